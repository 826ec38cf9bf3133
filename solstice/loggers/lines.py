"""The logger "solstice": a line that it cannot show does not end a run.

Python's logging survives a failing stream, but raises if standard error is closed.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any


def forgiving(logger: logging.Logger) -> logging.Logger:
    """Return the logger with handlers that drop lines if their stream is closed.

    >>> import io
    >>> closed, open_ = io.StringIO(), io.StringIO()
    >>> lines = forgiving(logging.Logger("example"))
    >>> lines.addHandler(logging.StreamHandler(closed))
    >>> lines.addHandler(logging.StreamHandler(open_))
    >>> closed.close()
    >>> lines.warning("read by some")
    >>> open_.getvalue().strip()
    'read by some'
    """

    def handle(record: logging.LogRecord) -> None:
        handlers = list(_handlers(logger)) or [logging.lastResort]
        for handler in handlers:
            if handler is not None and record.levelno >= handler.level:
                # What a broken or closed stream raises.
                with contextlib.suppress(OSError, ValueError):
                    handler.handle(record)

    logger.callHandlers = handle
    return logger


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


LOGGER = forgiving(logging.getLogger("solstice"))


# More would be a line that nobody reads: a classifier has four numbers for each class.
_MOST = 10


def log_line(metrics: dict[str, Any], step: int, mode: str) -> None:
    """Log the first ten metrics, and the learning rates, as one line.

    It is what a callback without a `logging_fn` calls.
    """
    numbers = [
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for i, (name, value) in enumerate(metrics.items())
        if i < _MOST or name.startswith("learning_rate")
    ]
    if more := len(metrics) - len(numbers):
        numbers.append(f"and {more} more")
    LOGGER.info("%s %d: %s", mode, step, ", ".join(numbers))
