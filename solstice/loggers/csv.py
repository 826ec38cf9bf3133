"""CSV: one record per row, in one file for a spreadsheet or pandas.

Images are left out.
"""

import contextlib
import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from solstice.loggers.files import EntryFile, FileSink, cut_torn, say_lost
from solstice.loggers.json_text import as_json
from solstice.loggers.values import Image, whole

# The characters that need quotes. A lone carriage return does, since readers take it for the end of
# a row.
_SPECIAL = re.compile('[,"\r\n\0]')


class CSV(FileSink):
    """Writes one record per row into a file, immediately.

    A new metric becomes a new last column, empty in earlier rows: the file is then rewritten and
    replaced atomically. Arrays are JSON in their cell, as in `JSONLines`, and an `Image` is left
    out; `nan` and `inf` are written as Python does. Strings keep their commas, quotes and line
    breaks (read with `newline=""`). A resumed run continues at its checkpoint: no row is lost or
    repeated.

    Args:
        path: The file.
        append: Append to a file that already has records, which is otherwise an error.

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
        super().__init__(path, append=append, cut=_cut_torn_row)
        self._columns: list[str] = []
        self._rows = 0

    def on_open(self) -> None:
        super().on_open()
        rows = _read(self._path)
        self._columns, self._rows = (rows[0] if rows else []), max(len(rows) - 1, 0)

    def on_write(self, record: dict[str, Any]) -> None:
        shown = {name: value for name, value in record.items() if type(value) is not Image}
        cells = {whole(name): _cell(value) for name, value in shown.items()}
        columns = self._columns + [name for name in cells if name not in self._columns]
        if columns != self._columns:
            self._widen(columns)
        self._opened().append(_lines([[cells.get(name, "") for name in columns]]))
        self._rows += 1

    def on_get_state(self) -> dict[str, int]:
        # Not in bytes, since a later column moves every row.
        return {"rows": self._rows, "columns": len(self._columns)}

    def on_set_state(self, state: dict[str, Any]) -> None:
        _cut_torn_row(self._path)
        rows = _read(self._path)
        wanted, found = int(state["rows"]), max(len(rows) - 1, 0)
        if found < wanted:
            say_lost(self._path, wanted, found, "rows")
        columns = int(state["columns"])
        _replace(self._path, [row[:columns] for row in rows[: wanted + 1] if columns])
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
    with _large_cells(), path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@contextlib.contextmanager
def _large_cells() -> Iterator[None]:
    limit = csv.field_size_limit(2**31 - 1)  # a large array is one cell
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _cut_torn_row(path: Path) -> int:
    """Cut off an incomplete last row, with a warning, and return the size of the rest."""
    return cut_torn(path, _end_of_rows(path.read_bytes())) if path.exists() else 0


def _end_of_rows(content: bytes) -> int:
    """Return where the last complete row ends; a line break within quotes does not end a row."""
    read = end = 0

    def lines() -> Iterator[str]:
        nonlocal read
        for line in io.BytesIO(content):
            read += len(line)
            yield line.decode(errors="replace")

    try:
        with _large_cells():
            for _ in csv.reader(lines(), strict=True):
                end = read if content.endswith(b"\n", 0, read) else end
    except csv.Error as error:
        if "end of data" not in str(error):  # another program's way to write rows
            return content.rfind(b"\n") + 1
    return end


def _lines(rows: list[list[str]]) -> bytes:
    # Lone surrogates, which UTF-8 lacks, are written as escapes, so the file stays readable.
    # Readers do not take an empty line for a row.
    lines = (",".join(map(_quoted, row)) or '""' for row in rows)
    text = "".join(f"{line}\n" for line in lines)
    return text.encode(errors="backslashreplace")


def _quoted(cell: str) -> str:
    # Not csv.writer, which writes a lone carriage return without quotes.
    escaped = cell.replace('"', '""')
    return f'"{escaped}"' if _SPECIAL.search(cell) else cell


def _replace(path: Path, rows: list[list[str]]) -> None:
    """Replace `path` by a file of these rows: a reader sees the old file or the new one."""
    beside = path.with_name(f"{path.name}.new")
    file = EntryFile(beside, 0)
    file.append(_lines(rows))
    file.sync()
    file.close()
    os.replace(beside, path)


def _cell(value: object) -> str:
    if isinstance(value, np.ndarray | list | tuple):
        return as_json(value)
    return "" if value is None else str(value)
