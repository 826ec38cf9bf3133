"""The functions and sinks that a callback logs to, with one interface.

Callbacks use it; users pass functions and sinks.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.loggers.base import Sink
from solstice.loggers.lines import log_line
from solstice.loggers.records import Record, make_record
from solstice.loggers.values import to_host
from solstice.sharding.processes import is_first_process

LoggingFn = Callable[[dict[str, Any], int, str], object]


@runtime_checkable
class SinkLike(Protocol):
    """What a callback calls on a sink, which need not be a `Sink`."""

    def write(self, record: Record) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class Outlets:
    """The functions and sinks that one callback logs to.

    A function is called immediately with values on the host, which waits for the device. A sink
    gets a whole record with arrays on the device, and waits on its own thread.

    Args:
        logging_fn: A function of (metrics, step, mode), a sink, or a list of these; None sends
            one line to the logger "solstice".

    Raises:
        TypeError: One of them is neither.

    >>> outlets = Outlets(lambda metrics, step, mode: print(mode, step, metrics))
    >>> outlets.write({"loss": 0.5}, index=99, mode="train", epoch=0, step=100)
    train 99 {'loss': 0.5}
    """

    def __init__(self, logging_fn: object) -> None:
        logging_fn = log_line if logging_fn is None else logging_fn
        several = logging_fn if isinstance(logging_fn, list | tuple) else [logging_fn]
        self.sinks: list[SinkLike] = []
        self._functions: list[LoggingFn] = []
        for one in several:
            if isinstance(one, SinkLike):
                self.sinks.append(one)
            elif callable(one):
                takes = "metrics, step, mode"
                self._functions.append(arguments.function(one, "logging_fn", takes))
            else:
                raise InvalidTypeError(
                    f"logging_fn is expected to be a function of (metrics, step, mode), a sink "
                    f"such as loggers.JSONLines(path), or a list of these; it is {describe(one)}."
                )

    @property
    def wait(self) -> bool:
        """Whether a write waits for the device."""
        return bool(self._functions)

    def open(self) -> None:
        """Open the sinks; raise if one cannot be opened."""
        if not is_first_process():
            return
        for sink in self.sinks:
            if isinstance(sink, Sink):  # others open with their first record
                sink.open()

    def write(
        self, metrics: Mapping[str, Any], *, index: int, mode: str, epoch: int, step: int
    ) -> None:
        """Log computed metrics.

        Args:
            metrics: What `compute()`, of the metrics or of `records`, returned.
            index: The `step` for functions.
            mode: "train", "val", "test" or the name of an evaluation.
            epoch: The epoch's index.
            step: Training steps completed.

        With several processes, only the first logs: the metrics are those of all.
        """
        if not is_first_process():
            return
        if self._functions:
            metrics = to_host(dict(metrics))
            for function in self._functions:
                function(metrics, index, mode)
        if self.sinks:
            record = make_record(metrics, mode=mode, epoch=epoch, step=step)
            for sink in self.sinks:
                sink.write(record)

    def close(self) -> None:
        """Flush and close every sink."""
        for sink in self.sinks:
            sink.close()

    def get_state(self) -> dict[str, Any]:
        """Return every sink's state, by its class and its index among those of its class."""
        return {name: sink.get_state() for name, sink in self._named()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore every sink's state; one without a state starts as in a new run."""
        for name, sink in self._named():
            if name in state:
                sink.set_state(state[name])

    def _named(self) -> list[tuple[str, SinkLike]]:
        seen: Counter[str] = Counter()
        named = []
        for sink in self.sinks:
            kind = type(sink).__name__
            named.append((f"{kind}{seen[kind]}", sink))
            seen[kind] += 1
        return named


def sinks_of(owner: object) -> list[SinkLike]:
    """Return the sinks among an object's attributes and in its outlets.

    >>> from solstice import LoggingCallback, loggers
    >>> sinks_of(LoggingCallback(logging_fn=[print, loggers.Console()]))
    [Console()]
    """
    found: list[SinkLike] = []
    for one in vars(owner).values():
        if isinstance(one, Outlets):
            found += one.sinks
        elif isinstance(one, SinkLike):
            found.append(one)
    return found
