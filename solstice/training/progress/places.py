"""Where a bar is drawn: at the foot of a terminal, or in a notebook's cell.

A bar takes one line and writes it again and again. What the user's code prints to a terminal
meanwhile goes above the bar. A place may be gone before the run ends: then nothing is drawn.
"""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any, ClassVar, TextIO, TypeGuard

from tqdm import tqdm

_logger = logging.getLogger("solstice")

_UP, _ERASE = "\x1b[A", "\x1b[K"


class Losing:
    """A context that goes on after an error of what is only shown, and logs the first one.

    Args:
        message: What to log, with places for the error's type and text.
    """

    def __init__(self, message: str) -> None:
        self._message = message

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self.tell(error)
        return isinstance(error, Exception)

    def tell(self, error: Exception) -> None:
        """Log an error, if it is the first."""
        message, self._message = self._message, ""
        if message:
            _logger.warning(message, type(error).__name__, error)


class Place:
    """Where no bar can be drawn, such as a log file.

    Attributes:
        draws: Whether bars are seen there.
    """

    draws = False
    encoding = "utf-8"

    def __init__(self) -> None:
        self._losing = Losing("The progress bar is gone, and the run goes on: %s: %s.")

    def write(self, text: str) -> None:
        """Write a bar's text."""

    def flush(self) -> None:
        """Show what was written."""

    def end_line(self) -> None:
        """End a line of the user's in the bar's place, if there is one."""


class Terminal(Place):
    """A terminal with bars at its foot; what is written to standard output or error goes above.

    It takes over `write` of the streams themselves, so that it also gets what a logging handler
    writes that holds one. (`tqdm.contrib.logging` would forget the level of such a handler.) A line
    without its end is left alone: bars wait until it ends. A line that is drawn again from its
    start, such as a bar of the user's, is left alone until one of ours is due.
    """

    draws = True
    _current: ClassVar["Terminal | None"] = None

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.encoding, self.fileno = stream.encoding, stream.fileno
        self._stream, self._write = stream, stream.write
        # Whether the line at the cursor is the user's, whether it is drawn again from its start,
        # and whether the user's code is writing.
        self._theirs = self._redrawn = self._writing = False

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator["Terminal"]:
        """Give the terminal that all bars share, its streams guarded while there is one."""
        if cls._current is not None:
            yield cls._current
            return
        with contextlib.ExitStack() as guards:
            terminal = cls._current = cls(sys.stderr)
            guards.callback(setattr, cls, "_current", None)
            for stream in (sys.stdout, sys.stderr):
                if is_terminal(stream) and hasattr(stream, "__dict__"):
                    guards.enter_context(terminal._guarded(stream))
            yield terminal

    @contextlib.contextmanager
    def _guarded(self, stream: TextIO) -> Iterator[None]:
        before, write = vars(stream).get("write"), stream.write

        def above(text: str) -> int:
            with tqdm.get_lock():
                self._writing = True
                try:
                    # tqdm takes our bars away and draws them again, unless the line is the user's.
                    self._theirs |= text.startswith(_UP)
                    with tqdm.external_write_mode(file=self, nolock=True):
                        if not self._theirs:
                            self._draw("\r" + _ERASE)  # of a bar of the user's
                        self.flush()
                        written = write(text)
                        with self._losing:
                            stream.flush()
                        if text:
                            self._theirs = not text.endswith(("\n", _UP))
                            self._redrawn = text.startswith("\r")
                finally:
                    self._writing = False
            return written

        stream.write = above
        try:
            yield
        finally:
            if before is None:
                del stream.write
            else:  # somebody else's
                stream.write = before

    def end_line(self) -> None:
        if self._theirs:
            self._theirs = False
            self._draw("\n")

    def write(self, text: str) -> None:
        if self._theirs and (self._writing or not self._redrawn):
            return
        self._theirs = False
        # A bar that was below may have left its line here.
        self._draw(text + _ERASE if text.startswith("\r") else text)

    def _draw(self, text: str) -> None:
        with self._losing:
            self._write(text)

    def flush(self) -> None:
        with self._losing:
            self._stream.flush()


class Cell(Place):
    """A line of a notebook's output that is written anew in its place; no widgets are needed."""

    draws = True

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None

    def write(self, text: str) -> None:
        line = text.replace(_UP, "").strip("\r\n")  # nothing moves a cursor here
        if not line or (self._handle is None and not line.strip()):
            return
        shown = {"text/plain": line.rstrip()}
        with self._losing:
            if self._handle is None:
                display = importlib.import_module("IPython.display").display
                self._handle = display(shown, raw=True, display_id=True)
            else:
                self._handle.update(shown, raw=True)


def is_terminal(stream: object) -> TypeGuard[TextIO]:
    """Say whether a stream is one; it may be None, or closed, or anybody's object."""
    try:
        return stream is not None and bool(stream.isatty())  # pyright: ignore[reportAttributeAccessIssue]
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
