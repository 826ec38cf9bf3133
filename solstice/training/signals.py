"""SIGTERM and Ctrl-C during a run: recorded, so that the current step is finished first."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Raised between two steps after a signal; the run ends and raises `ending` instead."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.ending: BaseException = (
            KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
        )


class Signals:
    """The received signals."""

    def __init__(self) -> None:
        self.received: int | None = None

    def check(self) -> None:
        """Raise `Interrupted` if a signal was received."""
        if self.received is not None:
            raise Interrupted(self.received)


@contextlib.contextmanager
def noted() -> Iterator[Signals]:
    """Record the first SIGINT or SIGTERM; a second one ends the process immediately.

    Outside the main thread, where Python allows no handlers, it does nothing.

    >>> import os
    >>> with noted() as signals:
    ...     os.kill(os.getpid(), signal.SIGTERM)
    ...     signals.received == signal.SIGTERM
    True
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, frame: Any) -> None:
        signals.received = number
        for one in _HANDLED:
            signal.signal(one, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in _HANDLED}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            # None is a handler that was not installed from Python, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
