"""CSV: one record a row, in one file for a spreadsheet or pandas.

Images are left out. It knows nothing of what is in a record.
"""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from solstice.loggers.files import EntryFile, FileSink, cut_torn_line, say_lost
from solstice.loggers.values import Image


class CSV(FileSink):
    """Writes one record a row into a file, each at once.

    A metric that was not there before becomes a new last column, empty in earlier rows: the file
    is then written anew, and put in the old one's place in one go. Arrays are JSON in their cell,
    and an `Image` is left out; `nan` and `inf` are Python's. A resumed run goes on where its
    checkpoint stood: nothing is lost, nothing there twice.

    Args:
        path: The file.
        append: Go on behind what the file holds, where a new run would refuse.

    Raises:
        FileExistsError: At the run's start: the file holds something, `append` is false, and the
            run does not resume.

    >>> import pathlib, tempfile, solstice
    >>> path = pathlib.Path(tempfile.mkdtemp(), "log.csv")
    >>> sink = solstice.loggers.CSV(path)
    >>> sink.write({"mode": "train", "epoch": 0, "step": 100, "time": 1.5, "loss": 0.5})
    >>> sink.write({"mode": "val", "epoch": 0, "step": 100, "time": 2.5, "accuracy": 0.75})
    >>> sink.close()
    >>> print(path.read_text(), end="")
    mode,epoch,step,time,loss,accuracy
    train,0,100,1.5,0.5,
    val,0,100,2.5,,0.75
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        super().__init__(path, append=append)
        self._columns: list[str] = []
        self._rows = 0

    def on_open(self) -> None:
        super().on_open()
        rows = _read(self._path)
        self._columns, self._rows = (rows[0] if rows else []), max(len(rows) - 1, 0)

    def on_write(self, record: dict[str, Any]) -> None:
        cells = {name: _cell(value) for name, value in record.items() if type(value) is not Image}
        columns = self._columns + [name for name in cells if name not in self._columns]
        if columns != self._columns:
            self._widen(columns)
        self._opened().append(_lines([[cells.get(name, "") for name in columns]]))
        self._rows += 1

    def on_get_state(self) -> dict[str, int]:
        # Not in bytes: a later column moves every row.
        return {"rows": self._rows}

    def on_set_state(self, state: dict[str, Any]) -> None:
        cut_torn_line(self._path)
        rows = _read(self._path)
        wanted, found = int(state["rows"]), max(len(rows) - 1, 0)
        if found < wanted:
            say_lost(self._path, wanted, found, "rows")
        _replace(self._path, rows[: wanted + 1])
        self._append = True

    def _widen(self, columns: list[str]) -> None:
        rows = _read(self._path)[1:]
        self._opened().close()
        try:
            wider = [row + [""] * (len(columns) - len(row)) for row in rows]
            _replace(self._path, [columns, *wider])
            self._columns = columns
        finally:
            self._file = EntryFile(self._path, self._path.stat().st_size)


def _read(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    limit = csv.field_size_limit(2**31 - 1)  # a large array is one cell
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))
    finally:
        csv.field_size_limit(limit)


def _lines(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _replace(path: Path, rows: list[list[str]]) -> None:
    """Put a file of these rows in the place of `path`: a reader sees the old one or the new."""
    beside = path.with_name(f"{path.name}.new")
    file = EntryFile(beside, 0)
    file.append(_lines(rows))
    file.sync()
    file.close()
    os.replace(beside, path)


def _cell(value: Any) -> str:
    if isinstance(value, np.ndarray | list | tuple):
        return json.dumps(np.asarray(value).tolist())
    return "" if value is None else str(value)
