"""Hypothesis strategies of logged texts, values and records."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solstice import arguments
from solstice.loggers.records import RESERVED
from solstice.loggers.values import Image, Text
from solstice.testing.law import import_hypothesis


def strategy_or(default: Any, value: Any, name: str) -> Any:
    """Return a given Hypothesis strategy, or the default for None.

    Raises:
        TypeError: It is something else.
    """
    kind = import_hypothesis().strategies.SearchStrategy
    return (
        default if value is None else arguments.instance(value, name, kind, "a strategy, or None")
    )


def texts(min_size: int = 0) -> Any:
    """Short texts of any characters: line ends, quotes, NUL, and lone surrogates."""
    st = import_hypothesis().strategies
    min_size = arguments.count(min_size, "min_size", least=0, most=8)
    odd = st.sampled_from(
        ["\r", "\n", "\r\n", '"', ",", " ", "\0", "/", "..", "NaN", "é", "\u2028", "😀", "\udce9"]
    )
    parts = st.lists(st.one_of(odd, st.text(max_size=3)), max_size=4).map("".join)
    return parts.filter(lambda text: len(text) >= min_size)


def logged_values() -> Any:
    """Values that a metric may compute: finite and other numbers, bools, texts, arrays and images.

    Python's numbers, numpy's and jax's arrays and scalars, of several dtypes.

    >>> import hypothesis
    >>> @hypothesis.given(logged_values())
    ... def test_value(value):
    ...     assert value is not None
    >>> test_value()
    """
    st = import_hypothesis().strategies
    numbers = [0.0, -0.0, 1.0, 100.0, 0.1, 1e-5, np.nan, np.inf, -np.inf]
    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    several = st.lists(st.sampled_from(numbers), min_size=1, max_size=5)

    def array(shape: tuple[int, ...], numbers: list[float], dtype: str, on_device: bool) -> Any:
        values = np.resize(np.array(numbers, np.float32), shape)
        if not jnp.issubdtype(dtype, jnp.floating):
            values = np.nan_to_num(values, posinf=1.0, neginf=0.0)
        values = values.astype(dtype)
        return jax.device_put(values) if on_device else values

    def image(height: int, width: int, channels: int) -> Image:
        pixels = np.arange(height * width * channels).reshape(height, width, channels)
        return Image(pixels.astype(np.uint8))

    dtypes = ["float32", "bfloat16", "float16", "int32", "uint8", "bool"]
    return st.one_of(
        st.sampled_from(numbers),
        st.floats(),
        st.integers(-(2**63), 2**63 - 1),
        st.booleans(),
        texts(),
        texts().map(Text),
        st.lists(texts(), max_size=2),
        st.floats(width=32).map(np.float32),
        st.builds(array, shapes, several, st.sampled_from(dtypes), st.booleans()),
        st.builds(image, st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 4])),
    )


def records(values: Any = None, *, names: Any = None, modes: Any = None, max_size: int = 4) -> Any:
    """Lists of records, as a run sends them to a sink: epochs and steps never go back.

    Args:
        values: The strategy of the metrics' values; None uses `logged_values()`.
        names: The strategy of their names; None uses any text that does not start with a slash.
        modes: The strategy of the modes; None uses train, val, test, and any such text.
        max_size: The largest number of records.

    >>> import hypothesis
    >>> @hypothesis.given(records())
    ... def test_records(records):
    ...     steps = [record["step"] for record in records]
    ...     assert steps == sorted(steps)
    >>> test_records()
    """
    st = import_hypothesis().strategies
    values = strategy_or(logged_values(), values, "values")
    # A faulty sink would write to the root of the disk.
    safe_texts = texts().filter(lambda text: not text.startswith("/"))
    names = strategy_or(safe_texts, names, "names")
    any_mode = st.one_of(st.sampled_from(["train", "val", "test"]), safe_texts.filter(bool))
    modes = strategy_or(any_mode, modes, "modes")
    max_size = arguments.count(max_size, "max_size")
    names = names.filter(lambda name: name not in RESERVED)

    def of(names: list[str], modes: list[str]) -> Any:
        about = {
            "mode": st.sampled_from(modes),
            "epoch": st.integers(0, 1),
            "step": st.integers(0, 9),
            "time": st.floats(1e9, 2e9),
        }
        metrics = st.dictionaries(st.sampled_from(names), values, max_size=3)
        one = st.tuples(st.fixed_dictionaries(about), metrics)
        return st.lists(one, min_size=1, max_size=max_size).map(rising)

    def rising(parts: list[Any]) -> list[dict[str, Any]]:
        rows, epoch, step = [], 0, 0
        for one, computed in parts:
            epoch, step = epoch + one["epoch"], step + one["step"]
            rows.append({**one, "epoch": epoch, "step": step, **computed})
        return rows

    # A few for all records, since most have the same metrics.
    several = {"min_size": 1, "max_size": 3, "unique": True}
    return st.tuples(st.lists(names, **several), st.lists(modes, **several)).flatmap(
        lambda drawn: of(*drawn)
    )
