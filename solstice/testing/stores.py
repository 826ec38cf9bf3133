"""The subject of a sink's laws: how it is made, where it writes, how to read it back."""

import inspect
import logging
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.loggers.outlets import SinkLike
from solstice.loggers.records import RESERVED, Record
from solstice.loggers.values import Image
from solstice.testing.law import check_returned, maker
from solstice.testing.record_strategies import records as any_records
from solstice.testing.record_strategies import strategy_or
from solstice.tree.growing import Growing
from solstice.tree.json import from_json, to_json

Records = list[dict[str, Any]]
# How long a value that is not computed yet blocks a thread that reads it.
LATE = 2.0


class SinkSubject:
    """A sink under the laws, for `law.check(subject)`; its arguments are `check_sink`'s.

    Args:
        make_sink: Makes a sink that writes into a directory.
        read: Returns what is in a directory.
        shows: Returns what `read` gives for records.
        records: A Hypothesis strategy of lists of records, or None.

    >>> import solstice
    >>> subject = SinkSubject(
    ...     lambda directory: solstice.loggers.JSONLines(directory / "log"),
    ...     lambda directory: solstice.loggers.read_json_lines(directory / "log"),
    ... )
    >>> for law in solstice.testing.SINK_LAWS:
    ...     if not law.says_nothing(subject):
    ...         law.check(subject, examples=1)
    """

    def __init__(
        self,
        make_sink: Callable[..., Any],
        read: Callable[[Path], Any],
        shows: Callable[[Records], Any] | None = None,
        records: Any = None,
    ) -> None:
        self.make_sink = maker(make_sink, "make_sink", "directory", SinkLike, "a sink")
        self.read = arguments.function(read, "read", "directory")
        shows = without_images if shows is None else shows
        self.shows = arguments.function(shows, "shows", "records")
        self.records = strategy_or(any_records(), records, "records")
        self.append = inspect.signature(make_sink).parameters.get("append")
        with self.store() as store:
            sink = make_sink(store.directory)
            check_returned(sink, "make_sink", SinkLike, "a sink")
            sink.close()
        self._name = type(sink).__name__

    def __str__(self) -> str:
        return self._name

    def store(self) -> "SinkStore":
        """An empty directory, and the sinks made there."""
        return SinkStore(self.make_sink, self.read, self.shows)


class SinkStore:
    """An empty directory, and the sinks that a law makes in it; all are closed at its end.

    Args:
        make_sink: Makes a sink that writes into a directory.
        read: Returns what is in a directory.
        shows: Returns what is read back for records.

    Attributes:
        directory: The directory.
        warnings: The messages of the logger "solstice", which is silent in this context.
    """

    def __init__(
        self,
        make_sink: Callable[..., Any],
        read: Callable[[Path], Any],
        shows: Callable[[Records], Any],
    ) -> None:
        self._make_sink, self._read, self._shows = make_sink, read, shows
        self._sinks: list[SinkLike] = []
        self.warnings: list[str] = []

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory()
        # Nested, so that a name such as "../.." does not lead a faulty sink out of it.
        self.directory = Path(self._temporary.name, *"abcdef", "store").resolve()
        self.directory.mkdir(parents=True)
        self._logger = logging.getLogger("solstice")
        self._heard = _Heard(self.warnings)
        self._propagate, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for sink in self._sinks:
                sink.close()
        finally:
            self._logger.removeHandler(self._heard)
            self._logger.propagate = self._propagate
            self._temporary.cleanup()

    def sink(self, **options: Any) -> Any:
        """Make a sink, as each process of a run does."""
        self._sinks.append(self._make_sink(self.directory, **options))
        return self._sinks[-1]

    def assert_holds(self, records: Sequence[Mapping[str, Any]], when: str) -> None:
        """Raise unless exactly these records, as the sink shows them, are read back."""
        expected = self._shows([as_written(record) for record in records])
        found = difference(expected, self._read(self.directory))
        said = f"; it said: {'; '.join(self.warnings)}" if self.warnings else ""
        assert found is None, f"{when}, {found}{said}"


class _Heard(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


class Late:
    """A value that is not computed yet, like most when a callback logs them."""

    def __init__(self) -> None:
        self.computed = threading.Event()
        self.waited_for = self.in_run = False
        self._run = threading.current_thread()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.in_run = threading.current_thread() is self._run
        self.waited_for = self.in_run or not self.computed.wait(LATE)
        return np.array(0.5)


class Broken:
    """A value that cannot be read, such as a donated array."""

    message = "this value cannot be read"

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise InvalidValueError(self.message)


def write(sink: SinkLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records to a sink as a callback does."""
    for record in records:
        sink.write(as_record(record))


def as_record(record: Mapping[str, Any]) -> Record:
    """Return a drawn record as a callback writes it to a sink."""
    about = {name: record[name] for name in RESERVED}
    return Record(about, {name: record[name] for name in record if name not in RESERVED})


def as_written(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with Python numbers and numpy arrays.

    >>> import jax.numpy as jnp
    >>> as_written({"loss": jnp.ones(()), "name": "a"})
    {'loss': 1.0, 'name': 'a'}
    """
    return {name: _on_host(value) for name, value in record.items()}


def _on_host(value: Any) -> Any:
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        return value
    array = np.asarray(value)
    return array if array.ndim else array.item()


def without_images(records: Records) -> Records:
    """Return records as most sinks show them."""
    return [
        {name: value for name, value in record.items() if not isinstance(value, Image)}
        for record in records
    ]


def saved(state: Any) -> Any:
    """Return a state as a checkpoint restores it."""
    return from_json(to_json(state))


def later(records: Sequence[Mapping[str, Any]], than: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return records shifted to follow others in a run."""
    step, epoch = (max((one[name] for one in than), default=0) for name in ("step", "epoch"))
    return [{**one, "step": one["step"] + step, "epoch": one["epoch"] + epoch} for one in records]


def difference(expected: Any, found: Any, where: str = "what was read back") -> str | None:
    """Describe the first difference of two values: in kind, in length, in a number's last bit.

    Lists, arrays and tuples are one kind, and NaN is equal to NaN.

    >>> difference([{"loss": 0.5}], [{"loss": 0.25}])
    "what was read back[0]['loss'] is expected to be the float 0.5; it is the float 0.25"
    >>> difference(float("nan"), float("nan"))
    """
    expected, found = _plain(expected), _plain(found)
    if isinstance(expected, dict) and isinstance(found, dict):
        if set(expected) != set(found):
            return f"{where} has {_names(expected, found)}"
        pairs = [(f"{where}[{name!r}]", expected[name], found[name]) for name in expected]
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"{where} has {len(found)} items, where {len(expected)} are expected: {found!r}"
        pairs = [
            (f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(expected, found, strict=True))
        ]
    elif type(expected) is type(found) and repr(expected) == repr(found):
        return None
    else:
        return f"{where} is expected to be {describe(expected)}; it is {describe(found)}"
    return next((one for place, a, b in pairs if (one := difference(a, b, place))), None)


def _names(expected: dict[str, Any], found: dict[str, Any]) -> str:
    missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [f"no {', '.join(map(repr, missing))}"] * bool(missing)
    return " and ".join(parts + [f"{', '.join(map(repr, more))} besides"] * bool(more))


def _plain(value: Any) -> Any:
    if isinstance(value, Image):
        return _plain(value.pixels())
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, str):
        return str(value)
    return list(value) if isinstance(value, tuple | Growing) else value
