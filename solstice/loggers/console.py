"""Console: the log as a table on the screen."""

import logging
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

from solstice import arguments
from solstice.loggers.base import Sink
from solstice.loggers.values import is_number
from solstice.metrics.named import reported_name

_logger = logging.getLogger("solstice")

_ABOUT = ("mode", "epoch", "step", "time")
_WIDTH = 10
_HEADER_EVERY = 25


class Console(Sink):
    """Prints one record per row, under a header that is repeated when the columns change.

    Rows go to standard output, above the progress bar if there is one. Metrics are rounded to four
    digits. Arrays, images and texts are left out. The facts of `EnvironmentCallback` are a list.

    Args:
        metrics: The names of the metrics to show, in this order, where `loss` also means
            `average_loss`; None shows as many as fit into the terminal's width.

    >>> import solstice
    >>> sink = solstice.loggers.Console()
    >>> sink.write({"mode": "train", "epoch": 0, "step": 100, "time": 1.5, "loss": 0.51234})
    >>> sink.write({"mode": "val", "epoch": 0, "step": 100, "time": 2.5, "loss": 0.75})
    >>> sink.close()
    mode   epoch     step       loss
    train      0      100     0.5123
    val        0      100       0.75
    """

    def __init__(self, metrics: Sequence[str] | None = None) -> None:
        super().__init__("Console()")
        self._chosen = None if metrics is None else arguments.texts(metrics, "metrics")
        self._columns: list[str] = []
        self._rows = 0
        # The chosen names not seen yet, and the modes seen.
        self._unseen = list(self._chosen or ())
        self._modes: set[str] = set()

    def on_write(self, record: dict[str, Any]) -> None:
        if record["mode"] == "environment":
            _print(_facts(record))
            return
        numbers = {
            name: value
            for name, value in record.items()
            if is_number(value) and name not in ("epoch", "step", "time")
        }
        columns = list(dict.fromkeys([*self._columns, *numbers]))
        columns = _fitting(columns) if self._chosen is None else self._chosen
        lines = []
        if columns != self._columns or self._rows % _HEADER_EVERY == 0:
            self._columns, self._rows = columns, 0
            lines.append(_row("mode", ("epoch", "step"), columns, columns))
        found: list[str | None] = [*columns]
        if self._chosen is not None:
            found = [reported_name(name, numbers) for name in columns]
            self._look_for(found, numbers, str(record["mode"]))
        cells = [_short(None if name is None else numbers.get(name)) for name in found]
        about = (record.get("epoch", ""), record["step"])
        lines.append(_row(str(record["mode"]), about, cells, columns))
        self._rows += 1
        _print("\n".join(lines))

    def on_close(self) -> None:
        self._tell_unseen(())

    def _look_for(self, found: list[str | None], numbers: dict[str, float], mode: str) -> None:
        """Warn of chosen names that no mode has, once the modes repeat."""
        there = {name for name, one in zip(self._columns, found, strict=True) if one in numbers}
        self._unseen = [name for name in self._unseen if name not in there]
        if mode in self._modes:
            self._tell_unseen(numbers)
        self._modes.add(mode)

    def _tell_unseen(self, numbers: Iterable[str]) -> None:
        if self._unseen and self._modes:
            _logger.warning(
                "Console(metrics=) has empty columns: no record so far has %s.%s",
                ", ".join(map(repr, self._unseen)),
                f" Its numbers are {', '.join(numbers)}." if numbers else "",
            )
        self._unseen = []


def _print(text: str) -> None:
    # In one write: this is the sink's thread, and a bar may start or end at any moment.
    tqdm.write(f"{text}\n", end="")


def _facts(record: dict[str, Any]) -> str:
    facts = {name: value for name, value in record.items() if name not in _ABOUT}
    width = max(map(len, facts), default=0)
    return "\n".join(f"{name:<{width}} {value}" for name, value in facts.items())


def _fitting(columns: list[str]) -> list[str]:
    room = shutil.get_terminal_size().columns - len(_row("mode", ("epoch", "step"), (), ()))
    fitting = []
    for name in columns:
        room -= _width(name) + 1
        if room < 0:
            break
        fitting.append(name)
    return fitting


def _row(mode: str, about: Sequence[object], cells: Sequence[str], columns: Sequence[str]) -> str:
    epoch, step = about
    head = f"{mode:<5} {epoch:>6} {step:>8}"
    pairs = zip(cells, columns, strict=True)
    return " ".join([head, *(f"{cell:>{_width(name)}}" for cell, name in pairs)])


def _width(name: str) -> int:
    return max(len(name), _WIDTH)


def _short(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
