"""Where a bar is drawn: at the foot of a terminal, or in a notebook's cell.

A bar takes one line, which it writes again and again. In a terminal, what the user's code prints
meanwhile would land behind it; so writes to a terminal go above the bar. Either may be gone before
the run ends: then nothing is drawn any more.
"""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

from tqdm import tqdm

_logger = logging.getLogger("solstice")


class _Lasting:
    """A place that may be gone: from then on, what is drawn there is lost."""

    def __init__(self) -> None:
        self._gone = False

    @contextlib.contextmanager
    def _while_there(self) -> Iterator[None]:
        """Do something in a place that may be gone."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a notebook's kernel raises what it likes
            if not self._gone:
                self._gone = True
                _logger.warning(
                    "The progress bar is gone, and the run goes on: %s: %s.",
                    type(error).__name__,
                    error,
                )


class Terminal(_Lasting):
    """A terminal with bars at its foot: what is written to standard output or error goes above.

    It stands in for `write` on the streams themselves, so that whoever holds one, a logging
    handler too, writes above. A line without its end yet is left alone: bars wait until it ends.
    """

    _current: ClassVar["Terminal | None"] = None

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._write = stream.write
        self._unfinished = False

    @classmethod
    @contextlib.contextmanager
    def shared(cls) -> Iterator["Terminal"]:
        """Give the terminal that all bars share, its streams guarded while there is one."""
        if cls._current is not None:
            yield cls._current
            return
        with contextlib.ExitStack() as guards:
            terminal = cls._current = cls(sys.stderr)
            try:
                for stream in (sys.stdout, sys.stderr):
                    if is_terminal(stream) and hasattr(stream, "__dict__"):
                        terminal._guard(stream, guards)
                yield terminal
            finally:
                cls._current = None

    def _guard(self, stream: Any, guards: contextlib.ExitStack) -> None:
        write = stream.write

        def above(text: str) -> int:
            with tqdm.get_lock():
                # A bar of the user's own counts lines with ours; what it writes stays as it is.
                if any(getattr(bar, "fp", None) != self for bar in getattr(tqdm, "_instances", ())):
                    return write(text)
                # It takes the bars away and draws them anew, but beside an unfinished line.
                with tqdm.external_write_mode(file=self, nolock=True):
                    self.flush()
                    written = write(text)
                    with self._while_there():
                        stream.flush()
                    if text:
                        self._unfinished = not text.endswith("\n")
                return written

        taken = "write" in vars(stream)
        stream.write = above
        if taken:  # somebody else's before us
            guards.callback(setattr, stream, "write", write)
        else:
            guards.callback(delattr, stream, "write")

    def end_line(self) -> None:
        """End a line of the user's that has no end."""
        if self._unfinished:
            self._unfinished = False
            self._draw("\n")

    def write(self, text: str) -> None:
        """Write a bar's text."""
        if not self._unfinished:
            # A bar that was below may have left its line here.
            self._draw(text + "\x1b[K" if text.startswith("\r") else text)

    def _draw(self, text: str) -> None:
        if not self._gone:
            with self._while_there():
                self._write(text)

    def flush(self) -> None:
        if not self._gone:
            with self._while_there():
                self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding


class Cell(_Lasting):
    """A line of a notebook's output that is written anew in its place; no widgets are needed."""

    encoding = "utf-8"

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None

    @classmethod
    @contextlib.contextmanager
    def shared(cls) -> Iterator["Cell"]:
        """Give a line of the cell; each bar has its own."""
        yield cls()

    def end_line(self) -> None:
        return

    def write(self, text: str) -> None:
        """Write a bar's text; what moves a cursor is nothing here."""
        line = text.replace("\x1b[A", "").strip("\r\n")
        if self._gone or not line or (not line.strip() and self._handle is None):
            return
        with self._while_there():
            self._show(line)

    def _show(self, line: str) -> None:
        shown = {"text/plain": line.rstrip()}
        if self._handle is None:
            display = importlib.import_module("IPython.display").display
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def flush(self) -> None:
        return


def is_terminal(stream: Any) -> bool:
    """Say whether a stream is one; it may be None, or closed, or anybody's object."""
    try:
        return stream is not None and bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


def is_notebook() -> bool:
    """Say whether this runs in a notebook's kernel, without importing what is not there.

    >>> is_notebook()
    False
    """
    python = sys.modules.get("IPython")
    shell = None if python is None else python.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
