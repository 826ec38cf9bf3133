"""Logged values as JSON that every reader accepts, and back.

JSON has no NaN and no infinities, and a bare `NaN` is an error to most readers. So they are
strings, as in the arrays of `tree.to_json`: "NaN", "Infinity" and "-Infinity", which Python,
JavaScript and pandas.to_numeric can convert. A string equal to one of them is {"$text": "NaN"}.
"""

import json
import math
import re
from typing import Any

import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidTypeError

_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_SPELLED = re.compile('"(NaN|-?Infinity)"')


def as_json(value: object) -> str:
    """Return numbers, strings, arrays, and lists and dicts of these as JSON, on one line.

    Raises:
        TypeError: A value is something else.

    >>> as_json({"loss": float("nan"), "most": np.array([1, -np.inf]), "said": "NaN"})
    '{"loss": "NaN", "most": [1.0, "-Infinity"], "said": {"$text": "NaN"}}'
    """
    try:
        text = _ENCODER.encode(value)
    except ValueError:  # it holds a number that JSON lacks
        return _ENCODER.encode(_spelled(value))
    return _ENCODER.encode(_spelled(value)) if _SPELLED.search(text) else text


def parsed(text: str | bytes) -> Any:
    """Return the values that `as_json` encoded, arrays as lists; a bare `NaN` is read too.

    Raises:
        ValueError: It is not JSON.

    >>> parsed('{"loss": "NaN", "most": [1.0, "-Infinity"], "said": {"$text": "NaN"}}')
    {'loss': nan, 'most': [1.0, -inf], 'said': 'NaN'}
    """
    text = text.decode() if isinstance(text, bytes) else text
    value = json.loads(text)
    return _read(value) if _SPELLED.search(text) else value


def _spelled(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str) and value in _NUMBERS:
        return {"$text": value}
    if isinstance(value, dict):
        return {name: _spelled(one) for name, one in value.items()}
    return [_spelled(one) for one in value] if isinstance(value, list | tuple) else value


def _read(value: object) -> object:
    if isinstance(value, str):
        return _NUMBERS.get(value, value)
    if isinstance(value, list):
        return [_read(one) for one in value]
    if isinstance(value, dict):
        if list(value) == ["$text"]:
            return value["$text"]
        return {name: _read(one) for name, one in value.items()}
    return value


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise InvalidTypeError(
        f"JSON lines hold numbers, strings and arrays; a value is {describe(value)}."
    )


_ENCODER = json.JSONEncoder(default=_plain, ensure_ascii=False, allow_nan=False)
