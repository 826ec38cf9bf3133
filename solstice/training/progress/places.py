"""Where a bar is drawn: at the bottom of a terminal, or in a notebook's cell.

A bar rewrites one line. What the user's code prints to a terminal appears above it. If the terminal
goes away before the run ends, nothing is drawn.
"""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, ClassVar, TextIO, TypeGuard

from tqdm import tqdm

_logger = logging.getLogger("solstice")

_UP, _ERASE = "\x1b[A", "\x1b[K"


class Losing:
    """A context that suppresses errors of display, and logs the first one.

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
    """A place where no bar can be drawn, such as a log file.

    Attributes:
        draws: Whether bars can be drawn there.
    """

    draws = False
    encoding = "utf-8"

    def __init__(self) -> None:
        self._losing = Losing("The progress bar can no longer be drawn; the run continues: %s: %s.")

    def write(self, text: str) -> None:
        """Write a bar's text."""

    def flush(self) -> None:
        """Flush what was written."""

    def end_line(self) -> None:
        """End the user's line where the bar is to be drawn, if there is one."""


class Terminal(Place):
    """A terminal with bars at the bottom; standard output and error appear above them.

    It replaces `write` of the streams, so it also gets what a logging handler with such a stream
    writes. (`tqdm.contrib.logging` would lose the level of such a handler.) Bars wait until an
    unfinished line ends. A line that is redrawn from its start, such as a bar of the user's, stays
    until one of ours is due.
    """

    draws = True
    _current: ClassVar["Terminal | None"] = None

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.encoding, self.fileno = stream.encoding, stream.fileno
        self._stream, self._write = stream, stream.write
        # Whether the line at the cursor is the user's, whether it is redrawn from its start, and
        # whether the user's code is writing.
        self._theirs = self._redrawn = self._writing = False

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator["Terminal"]:
        """Return the terminal that all bars share; its streams are replaced while it is in use."""
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
                    # tqdm clears our bars and draws them again, unless the line is the user's.
                    self._theirs |= text.startswith(_UP)
                    with tqdm.external_write_mode(file=self, nolock=True):
                        if not self._theirs:
                            self._draw("\r" + _ERASE)  # erases a bar of the user's
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
            else:  # another thread's
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
    """A line of a notebook's output that is rewritten in place; it needs no widgets."""

    draws = True

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None

    def write(self, text: str) -> None:
        line = text.replace(_UP, "").strip("\r\n")  # there is no cursor to move here
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
    """Return whether a stream is a terminal that can erase a line.

    It may be None, closed, or any object. Emacs and some CI set `TERM=dumb` if theirs cannot; a
    terminal of no columns, as containers have, shows no bar.
    """
    if os.environ.get("TERM") == "dumb":
        return False
    try:
        if stream is None or not stream.isatty():  # pyright: ignore[reportAttributeAccessIssue]
            return False
    except (AttributeError, OSError, ValueError):
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, OSError, ValueError):  # one that another program stands in for
        return True


def is_notebook() -> bool:
    """Return whether this runs in a notebook's kernel, without importing IPython.

    >>> is_notebook()
    False
    """
    python = sys.modules.get("IPython")
    shell = None if python is None else python.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
