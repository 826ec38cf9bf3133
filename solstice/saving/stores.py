"""Where checkpoints are: in a local directory, or in an object store through fsspec.

A store holds directories of files. A directory is written file by file, and the last file completes
it, so it is either complete or absent. Only files with names of Solstice are deleted, never through
a link, so other files are safe.
"""

import abc
import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from typing import TypeVar

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import (
    InvalidValueError,
    MissingPackageError,
    SolsticeError,
)
from solstice.tree.tensors import check_regular, sync_directory

_T = TypeVar("_T")

# The files of checkpoints, and those that safetensors leaves behind when it is killed.
LAST = "checkpoint.json"
OURS = re.compile(rf"{re.escape(LAST)}|records-\d+|arrays-\d+\.safetensors|\.tmp\w{{6}}")


class Store(abc.ABC):
    """A place for directories of files.

    Attributes:
        place: The path or URL, one for all its aliases.
    """

    place: str

    @abc.abstractmethod
    def names(self, *, whole: bool = True) -> list[str]:
        """Return the names of the complete directories, or of all (`whole=False`)."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of a file; FileNotFoundError if there is none."""

    @abc.abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file next to the directories."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file next to the directories, if it exists."""

    @abc.abstractmethod
    def begin(self, directory: str) -> None:
        """Start a new directory."""

    @abc.abstractmethod
    def room(self, directory: str) -> Path | None:
        """Return the local path of a started directory; None in a remote store."""

    @abc.abstractmethod
    def add(self, directory: str, name: str, write: Callable[[Path], None]) -> int:
        """Add a file, which `write` writes to a path, to a started directory; return its size."""

    @abc.abstractmethod
    def finish(self, directory: str, content: bytes) -> None:
        """Write the last file of a directory, `checkpoint.json`, which completes it."""

    @abc.abstractmethod
    def open(self, directory: str, name: str) -> contextlib.AbstractContextManager[Path]:
        """Return a local path to read a directory's file from."""

    @abc.abstractmethod
    def delete(self, directory: str) -> None:
        """Delete the files of Solstice in a directory, and the directory if it is then empty."""

    @abc.abstractmethod
    def tidy(self) -> None:
        """Delete the remains of interrupted saves and deletions."""


def store(directory: str | os.PathLike[str]) -> Store:
    """Return the store of a path or a URL.

    Raises:
        InvalidValueError, InvalidTypeError: It is not a path.
        MissingPackageError: The URL's scheme needs a package that is not installed.

    >>> store("outputs/run").place.endswith("/outputs/run")
    True
    """
    if isinstance(directory, str):
        directory = re.sub("^(file|local)://", "", directory)  # another name of a local directory
        if "://" in directory:
            return Remote(directory)
    path = arguments.path(directory, "directory")
    if arguments.is_url(directory):
        raise InvalidValueError(
            f"directory is expected to be a path or a URL; it is {describe(directory)}. Give a URL "
            f"as a string, such as 's3://bucket/run'."
        )
    return Local(path)


# How many seconds a store may take to answer before a run starts.
PATIENCE = 20.0


def answered(action: Callable[[], _T], problem: str) -> _T:
    """Return what an action on a store returns, or raise after a few seconds.

    Args:
        action: It may fail in any way, or never return.
        problem: What is then wrong, for the message.

    Raises:
        SolsticeError: An error of Solstice that the action raised.
        InvalidValueError: It raised another error, or did not return.

    >>> answered(lambda: "there", "The store cannot be read")
    'there'
    """
    found: Future[_T] = Future()

    def noting() -> None:
        try:
            found.set_result(action())
        except Exception as error:  # noqa: BLE001 - raised below
            found.set_exception(error)

    threading.Thread(target=noting, name="solstice-store", daemon=True).start()
    try:
        return found.result(PATIENCE)
    except SolsticeError:
        raise
    except Exception as error:
        silent = isinstance(error, TimeoutError) and not found.done()
        why = f"no answer in {PATIENCE:g} s" if silent else f"{type(error).__name__}: {error}"
        raise InvalidValueError(
            f"{problem}: {why}. Check that the place exists, that it can be reached from here, and "
            f"that this process may read and write there."
        ) from error


class Local(Store):
    """A local directory; its directories get their names when they are complete."""

    def __init__(self, directory: Path) -> None:
        self._home = Path(os.path.realpath(directory))
        self.place = str(self._home)

    def names(self, *, whole: bool = True) -> list[str]:
        try:
            with os.scandir(self._home) as entries:
                return [one.name for one in entries if not whole or os.path.isdir(one.path)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, name: str) -> bytes:
        check_regular(path := self._home / name)
        return path.read_bytes()

    def write(self, name: str, content: bytes) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        unfinished = self._home / f".{name}.tmp"
        unfinished.unlink(missing_ok=True)  # it may be a link
        _write(unfinished, content)
        unfinished.replace(self._home / name)

    def remove(self, name: str) -> None:
        path = self._home / name
        if not path.is_dir():  # a directory of that name is not ours
            path.unlink(missing_ok=True)

    def begin(self, directory: str) -> None:
        self._unfinished(directory).mkdir(parents=True)

    def room(self, directory: str) -> Path:
        return self._unfinished(directory)

    def add(self, directory: str, name: str, write: Callable[[Path], None]) -> int:
        path = self._unfinished(directory) / name
        write(path)
        return path.stat().st_size

    def finish(self, directory: str, content: bytes) -> None:
        unfinished = self._unfinished(directory)
        _write(unfinished / LAST, content)
        sync_directory(unfinished)
        unfinished.rename(self._home / directory)
        sync_directory(self._home)

    @contextlib.contextmanager
    def open(self, directory: str, name: str) -> Iterator[Path]:
        check_regular(path := self._home / directory / name)
        yield path

    def delete(self, directory: str) -> None:
        path = self._home / directory
        if path.is_symlink() or not path.is_dir():
            return  # another program's
        # Renamed first, so that a kill leaves nothing that looks complete.
        doomed = self._home / f".{directory}.old"
        path.rename(doomed)
        self._empty(doomed)

    def tidy(self) -> None:
        for name in self.names():
            if re.fullmatch(r"\.checkpoint-\d{6,}\.(tmp|old)", name):
                self._empty(self._home / name)

    def _unfinished(self, directory: str) -> Path:
        return self._home / f".{directory}.tmp"

    @staticmethod
    def _empty(path: Path) -> None:
        if path.is_symlink():
            return
        with contextlib.suppress(OSError):  # it holds other files and stays
            with os.scandir(path) as entries:
                for entry in entries:
                    if OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        os.unlink(entry.path)
            path.rmdir()


class Remote(Store):
    """A directory of an object store; its directories are complete with their last file."""

    def __init__(self, url: str) -> None:
        scheme = url.partition("://")[0]
        try:
            import fsspec

            self._files, self._home = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise MissingPackageError(
                f"{url} needs a package that is not installed ({error}): "
                f"pip install 'jax-solstice[remote]'"
            ) from error
        except ValueError as error:
            raise InvalidValueError(
                f"{url} is expected to be a path or the URL of a store that fsspec supports, such "
                f"as s3:// or gs://; {scheme}:// is not: {error}"
            ) from error
        except Exception as error:  # of any package; some connect here
            raise InvalidValueError(
                f"{url} cannot be opened: {type(error).__name__}: {error}. Check that the place "
                f"exists, and that it can be reached from here."
            ) from error
        scheme = {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme)
        self.place = f"{scheme}://{re.sub('/+', '/', self._home).strip('/')}"

    def names(self, *, whole: bool = True) -> list[str]:
        return answered(lambda: self._names(whole), f"{self.place} cannot be listed")

    def _names(self, whole: bool) -> list[str]:
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self._home, detail=True)
        except FileNotFoundError:
            return []
        names = [
            PurePosixPath(one["name"]).name
            for one in found
            if not whole or one["type"] == "directory"
        ]
        return [n for n in names if not whole or self._files.exists(self._path(n, LAST))]

    def read(self, name: str) -> bytes:
        return self._files.cat_file(self._path(name))

    def write(self, name: str, content: bytes) -> None:
        self._files.pipe_file(self._path(name), content)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def begin(self, directory: str) -> None:
        pass  # an object store has no empty directories

    def room(self, directory: str) -> None:
        return None

    def add(self, directory: str, name: str, write: Callable[[Path], None]) -> int:
        with tempfile.TemporaryDirectory(prefix="solstice-") as room:
            path = Path(room, name)
            write(path)
            self._files.put_file(str(path), self._path(directory, name))
            return path.stat().st_size

    def finish(self, directory: str, content: bytes) -> None:
        self._files.pipe_file(self._path(directory, LAST), content)

    @contextlib.contextmanager
    def open(self, directory: str, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="solstice-") as room:
            path = Path(room, name)
            self._files.get_file(self._path(directory, name), str(path))
            yield path

    def delete(self, directory: str) -> None:
        paths = self._files.find(self._path(directory), maxdepth=1)
        ours = [path for path in paths if OURS.fullmatch(PurePosixPath(path).name)]
        # The completing file goes first, so that a kill leaves nothing that looks complete.
        for path in sorted(ours, key=lambda path: PurePosixPath(path).name != LAST):
            self._files.rm_file(path)
        with contextlib.suppress(OSError):  # stores without directories have nothing to delete
            self._files.rmdir(self._path(directory))

    def tidy(self) -> None:
        whole = self.names()
        for name in self.names(whole=False):
            if re.fullmatch(r"checkpoint-\d{6,}", name) and name not in whole:
                self.delete(name)

    def _path(self, *parts: str) -> str:
        return "/".join([self._home.rstrip("/"), *parts])


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
