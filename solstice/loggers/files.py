"""Sinks that append entries to one file, each completely or not at all."""

import errno
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path

from solstice import arguments
from solstice.errors import ExistingFileError, InvalidValueError
from solstice.loggers.base import Sink, local_path

_logger = logging.getLogger("solstice")


class EntryFile:
    """A file open for appending entries after its first `size` bytes.

    Args:
        path: The file; it and its directories are created if they are missing.
        size: Where to continue; the file is truncated there.

    >>> import tempfile
    >>> file = EntryFile(Path(tempfile.mkdtemp()) / "new" / "log", 0)
    >>> file.append(b"one entry")
    >>> file.size, file.path.read_text()
    (9, 'one entry')
    >>> file.close()
    """

    def __init__(self, path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.path = path
        self.size = size
        # Unbuffered: a written entry can be read, and survives this process, immediately.
        self._raw = io.FileIO(path, "r+")
        self._raw.truncate(size)
        self._raw.seek(size)

    def append(self, entry: bytes) -> None:
        """Write an entry.

        Raises:
            OSError: It could not be written; the file has not changed.
        """
        try:
            written = self._raw.write(entry)
            if written != len(entry):  # how a full disk first shows
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            self._raw.truncate(self.size)
            self._raw.seek(self.size)
            raise
        self.size += len(entry)

    def sync(self) -> None:
        """Make all entries durable, also in a power cut."""
        os.fsync(self._raw.fileno())

    def close(self) -> None:
        self._raw.close()


class FileSink(Sink):
    """A sink into one file; a subclass defines its entries.

    Args:
        path: The file.
        append: Append to a file that already has records, which is otherwise an error.
        cut: Cuts off an incomplete entry, and returns the size of the rest; None is
            `cut_torn_line`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        append: bool = False,
        cut: Callable[[Path], int] | None = None,
    ) -> None:
        self._path = local_path(path)
        super().__init__(f"{type(self).__name__}({os.fspath(path)!r})")
        self._held = self._path
        self._append = arguments.flag(append, "append")
        if cut is not None:
            arguments.function(cut, "cut", "path")
        self._cut = cut_torn_line if cut is None else cut
        self._file: EntryFile | None = None

    @property
    def place(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    def on_open(self) -> None:
        size = self._path.stat().st_size if self._path.exists() else 0
        if size and not self._append:
            raise ExistingFileError(
                f"{str(self._path)!r} holds the log of another run ({size} bytes). Log to a new "
                f"file, delete this one, or append to it with append=True."
            )
        self._file = EntryFile(self._path, self._cut(self._path))
        self._append = True  # from now on, its records are ours

    def on_flush(self) -> None:
        self._opened().sync()

    def on_close(self) -> None:
        self._opened().close()
        self._file = None

    def _opened(self) -> EntryFile:
        if self._file is None:
            raise InvalidValueError(f"{self} is closed.")
        return self._file


def cut_back(path: Path, size: int) -> None:
    """Keep the first `size` bytes of a file, with a warning if it has fewer."""
    if size < 0:
        raise InvalidValueError(f"A log's size is expected to be no less than 0; it is {size}.")
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        say_lost(path, size, found, "bytes")
    elif found > size:
        os.truncate(path, size)


def cut_torn_line(path: Path) -> int:
    """Cut off an incomplete last line, with a warning, and return the size of the rest."""
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with path.open("rb") as file:
        size = file.seek(-1, os.SEEK_END) + 1
        if file.read() == b"\n":
            return size
    return cut_torn(path, path.read_bytes().rfind(b"\n") + 1)


def cut_torn(path: Path, end: int) -> int:
    """Keep the first `end` bytes of a file, with a warning, and return `end`."""
    if path.stat().st_size > end:
        with path.open("rb") as file:
            file.seek(end)
            torn = file.read(200)
        _logger.warning(
            "%r ended in an incomplete line, which is now cut off: %r.", str(path), torn
        )
        os.truncate(path, end)
    return end


def say_lost(path: Path, wanted: int, found: int, what: str) -> None:
    """Warn that a file has fewer entries than at the checkpoint."""
    _logger.warning(
        "%r had %d %s at the checkpoint and has %d now: part of the log is lost.",
        str(path),
        wanted,
        what,
        found,
    )
