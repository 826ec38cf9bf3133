"""JSON lines: one record per line, in one file that survives a crash.

Images are left out.
"""

import os
from typing import Any

from solstice import arguments
from solstice.errors import InvalidValueError
from solstice.loggers.files import FileSink, cut_back
from solstice.loggers.json_text import as_json, parsed
from solstice.loggers.values import Image


class JSONLines(FileSink):
    """Writes one record per line into a file, immediately.

    Arrays become nested lists, and an `Image` is left out. Every line is standard JSON: numbers
    that JSON lacks are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`, which
    `read_json_lines`, `plots.learning_curves`, `float` and `pandas.to_numeric` turn into numbers
    again. A string equal to one of these is written as `{"$text": "NaN"}`. A resumed run continues
    at its checkpoint: no line is lost or repeated.

    Args:
        path: The file.
        append: Append to a file that already has records, which is otherwise an error.

    Raises:
        FileExistsError: At the run's start: the file holds something, `append` is false, and the
            run does not resume.

    >>> import pathlib, tempfile, solstice
    >>> path = pathlib.Path(tempfile.mkdtemp(), "log.jsonl")
    >>> sink = solstice.loggers.JSONLines(path)
    >>> sink.write({"mode": "train", "epoch": 0, "step": 100, "time": 1.5, "loss": float("nan")})
    >>> sink.close()
    >>> print(path.read_text(), end="")
    {"mode": "train", "epoch": 0, "step": 100, "time": 1.5, "loss": "NaN"}
    """

    def on_write(self, record: dict[str, Any]) -> None:
        # Not isinstance, which is slow for an equinox.Module.
        shown = {name: value for name, value in record.items() if type(value) is not Image}
        # A lone surrogate, which UTF-8 lacks, becomes its JSON escape.
        self._opened().append(as_json(shown).encode(errors="backslashreplace") + b"\n")

    def on_get_state(self) -> dict[str, int]:
        return {"offset": self._opened().size}

    def on_set_state(self, state: dict[str, Any]) -> None:
        cut_back(self._path, int(state["offset"]))
        self._append = True


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a file that `JSONLines` wrote, NaN and infinity as numbers.

    An incomplete last line, as a running or killed process leaves it, is left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another line is not JSON; the message says which.

    >>> import pathlib, tempfile, solstice
    >>> path = pathlib.Path(tempfile.mkdtemp(), "log.jsonl")
    >>> sink = solstice.loggers.JSONLines(path)
    >>> sink.write({"mode": "val", "epoch": 0, "step": 100, "time": 1.5, "loss": float("inf")})
    >>> sink.close()
    >>> solstice.loggers.read_json_lines(path)
    [{'mode': 'val', 'epoch': 0, 'step': 100, 'time': 1.5, 'loss': inf}]
    """
    records = []
    *lines, rest = arguments.existing_file(path, "path").read_bytes().split(b"\n")
    for number, line in enumerate([*lines, rest], start=1):
        try:
            records.append(parsed(line))
        except ValueError as error:
            if number > len(lines):  # without a line break, it may be incomplete
                break
            raise InvalidValueError(
                f"Line {number} of {os.fspath(path)!r} is not JSON: "
                f"{line[:80].decode(errors='replace')!r}."
            ) from error
    return records
