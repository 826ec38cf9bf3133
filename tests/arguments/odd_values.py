"""Values that people put in by mistake."""

import jax.numpy as jnp
import numpy as np


class Odd:
    """A class, where an instance or a function is meant."""


def nothing():
    """A function that takes no argument."""


_VALUES = {
    "None": None,
    "True": True,
    "False": False,
    "numpy True": np.True_,
    "zero": 0,
    "one": 1,
    "minus one": -1,
    "fraction": 1.5,
    "NaN": float("nan"),
    "inf": float("inf"),
    "huge": 10**20,
    "complex": 1j,
    "numpy int": np.int64(2),
    "numpy float": np.float32(0.5),
    "numpy NaN": np.float64("nan"),
    "array of one int": np.array(2),
    "jax int": jnp.int32(2),
    "empty text": "",
    "text": "abc",
    "number as text": "3",
    "text with a NUL": "a\0b",
    "bytes": b"abc",
    "empty list": [],
    "empty tuple": (),
    "empty dict": {},
    "set": {"abc"},
    "object": object(),
    "function": nothing,
    "class": Odd,
    "list of None": [None],
    "list of text": ["abc"],
    "list of objects": [object()],
    "ragged list": [[1, 2], [3]],
    "seven ints": (1, 2, 3, 4, 5, 6, 7),
    "pair": ("abc", "min"),
    "dict of text": {"abc": "abc"},
    "dict of ints": {1: 2},
    "seven floats": np.linspace(0, 1, 7, dtype=np.float32),
    "seven with a NaN": np.array([1, np.nan, 1, 1, 1, 1, 1], np.float32),
    "seven with a negative": np.array([1, 1, 1, -0.5, 1, 1, 1], np.float32),
    "seven bools": np.array([True, False, True, True, True, True, True]),
    "matrix": np.arange(6, dtype=np.int32).reshape(2, 3),
    "array without elements": np.zeros((0, 3), np.float32),
    "array of complex": np.array([1j, 2.0]),
    "array of text": np.array(["a", "b"]),
    "array of objects": np.array([None, "a"], dtype=object),
}
ALL = frozenset(_VALUES) | {"iterator"}


def odd_value(name):
    """Return one of them; an iterator is made anew, for it is empty after its use."""
    return iter([1, 2]) if name == "iterator" else _VALUES[name]
