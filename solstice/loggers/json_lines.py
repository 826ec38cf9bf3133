"""JSON lines: one record a line, in one file, which survives whatever happens to the run.

Images are left out. It reads a file back, and knows nothing of what is in a record.
"""

import json
import os
from typing import Any

import numpy as np

from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.loggers.base import local_path
from solstice.loggers.files import FileSink, cut_back
from solstice.loggers.values import Image
from solstice.tree import describe


class JSONLines(FileSink):
    """Writes one record a line into a file, each at once.

    Arrays become nested lists, and an `Image` is left out. NaN and infinity are written as
    `NaN`, `Infinity` and `-Infinity`, as Python's json reads and writes them, so every float
    survives; `read_json_lines` reads the file back. A resumed run goes on where its checkpoint
    stood: nothing is lost, nothing there twice.

    Args:
        path: The file.
        append: Go on behind what the file holds, where a new run would refuse.

    Raises:
        FileExistsError: At the run's start: the file holds something, `append` is false, and the
            run does not resume.

    >>> import pathlib, tempfile, solstice
    >>> path = pathlib.Path(tempfile.mkdtemp(), "log.jsonl")
    >>> sink = solstice.loggers.JSONLines(path)
    >>> sink.write({"mode": "train", "epoch": 0, "step": 100, "time": 1.5, "loss": float("nan")})
    >>> sink.close()
    >>> print(path.read_text(), end="")
    {"mode": "train", "epoch": 0, "step": 100, "time": 1.5, "loss": NaN}
    """

    def on_write(self, record: dict[str, Any]) -> None:
        # Not isinstance, which asks an equinox.Module for its class in Python.
        shown = {name: value for name, value in record.items() if type(value) is not Image}
        self._opened().append(_ENCODER.encode(shown).encode() + b"\n")

    def on_get_state(self) -> dict[str, int]:
        return {"offset": self._opened().size}

    def on_set_state(self, state: dict[str, Any]) -> None:
        cut_back(self._path, int(state["offset"]))
        self._append = True


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a file that `JSONLines` wrote, NaN and infinity included.

    A last line without its end, as a running or killed process leaves, is left out.

    Raises:
        ValueError: Another line is no JSON; the message says which.

    >>> import pathlib, tempfile, solstice
    >>> path = pathlib.Path(tempfile.mkdtemp(), "log.jsonl")
    >>> sink = solstice.loggers.JSONLines(path)
    >>> sink.write({"mode": "val", "epoch": 0, "step": 100, "time": 1.5, "loss": float("inf")})
    >>> sink.close()
    >>> solstice.loggers.read_json_lines(path)
    [{'mode': 'val', 'epoch': 0, 'step': 100, 'time': 1.5, 'loss': inf}]
    """
    records = []
    for number, line in enumerate(local_path(path).read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise InvalidValueError(
                f"Line {number} of {os.fspath(path)!r} is no JSON: {line[:80]!r}."
            ) from error
    return records


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise InvalidTypeError(
        f"JSON lines hold numbers, texts and arrays; a value is {describe(value)}."
    )


_ENCODER = json.JSONEncoder(default=_plain, ensure_ascii=False)
