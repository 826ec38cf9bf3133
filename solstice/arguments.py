"""Checks of the arguments of public functions and classes.

Each returns the converted argument (a Python int, a `Path`), or raises an error with the argument's
name, what was expected, and what was passed.
"""

import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.core import Tracer

from solstice.errors import (
    InvalidIndexError,
    InvalidTypeError,
    InvalidValueError,
    MissingFileError,
)

_T = TypeVar("_T")


def describe(value: Any) -> str:
    """Describe `value` briefly for an error message: type, shape, dtype or value.

    >>> import numpy as np
    >>> describe(np.zeros((2, 3), np.float32)), describe("adam"), describe(int)
    ('float32[2,3]', "the str 'adam'", "the class 'int'")
    """
    if isinstance(value, type):
        return f"the class {value.__name__!r}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, tuple | list | dict) and len(value) <= 4:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in value.items()) + "}"
        inner = ", ".join(map(describe, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    text = repr(value)
    if len(text) > 60:
        return f"a {type(value).__module__}.{type(value).__qualname__}"
    return f"the {type(value).__name__} {text}"


def count(value: Any, name: str, *, least: int = 1, most: int | None = None) -> int:
    """Return a whole number as an int: Python's, numpy's or an array of one; not a bool.

    >>> count(np.int64(3), "keep")
    3
    >>> count(0, "keep")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: keep is expected to be at least 1; it is 0.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise _wrong(name, "an int", value) from error
    if isinstance(value, bool):
        raise _wrong(name, "an int", value)
    if number < least:
        raise InvalidValueError(f"{name} is expected to be at least {least}; it is {number}.")
    if most is not None and number > most:
        raise InvalidValueError(f"{name} is expected to be at most {most}; it is {number}.")
    return number


def index(value: Any, name: str, size: int, of: str) -> int:
    """Return the index of one of several as an int; negative ones count from the end.

    >>> index(3, "i", 3, "members")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidIndexError: i is expected to be the index of one of 3 members; it is 3.
    """
    place = count(value, name, least=-(2**62))
    if not -size <= place < size:
        raise InvalidIndexError(
            f"{name} is expected to be the index of one of {size} {of}; it is {place}."
        )
    return place


def counts(values: Any, name: str, *, least: int = 1, most: int | None = None) -> tuple[int, ...]:
    """Return one or several whole numbers as a tuple of ints.

    >>> counts(5, "top_k"), counts([1, 5], "top_k")
    ((5,), (1, 5))
    """
    several = _listed(values)
    several = [values] if several is None else several
    return tuple(count(one, name, least=least, most=most) for one in several)


def number(
    value: Any,
    name: str,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> float:
    """Return a real number, finite and within limits, as a float.

    Args:
        value: The argument; not a bool, string or NaN.
        name: Its name.
        above: The exclusive lower limit.
        least: The inclusive lower limit.
        below: The exclusive upper limit.
        most: The inclusive upper limit.

    >>> number(1, "min_delta", least=0)
    1.0
    >>> number(float("nan"), "min_delta", least=0)
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: min_delta is expected to be a finite number of at least 0; \
it is nan.
    """
    if isinstance(value, bool | np.bool_ | str | bytes) or getattr(value, "ndim", 0):
        raise _wrong(name, "a number", value)
    try:
        found = float(value)
    except (TypeError, OverflowError) as error:
        raise _wrong(name, "a number", value) from error
    if above < found < below and least <= found <= most:  # False for NaN and infinity
        return found
    limits = {"above": above, "of at least": least, "below": below, "of at most": most}
    said = " and ".join(f"{word} {n:g}" for word, n in limits.items() if math.isfinite(n))
    wanted = f"a finite number {said}".rstrip()
    raise InvalidValueError(f"{name} is expected to be {wanted}; it is {value}.")


def flag(value: Any, name: str) -> bool:
    """Return a bool; numbers and strings raise.

    >>> flag("no", "append")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: append is expected to be True or False; it is the str 'no'.
    """
    if not isinstance(value, bool | np.bool_):
        raise InvalidTypeError(f"{name} is expected to be True or False; it is {describe(value)}.")
    return bool(value)


def choice(value: Any, name: str, among: Iterable[_T]) -> _T:
    """Return one of some values.

    >>> choice("max", "mode", ("min", "max"))
    'max'
    >>> choice("best", "mode", ("min", "max"))
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: mode is expected to be 'min' or 'max'; it is 'best'.
    """
    among = tuple(among)
    for one in among:
        if type(value) is type(one) and value == one:
            return one
    came = repr(value) if isinstance(value, str) else describe(value)
    raise InvalidValueError(
        f"{name} is expected to be {' or '.join(map(repr, among))}; it is {came}."
    )


def text(value: Any, name: str) -> str:
    """Return a string that is not empty.

    >>> text("", "metric")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: metric is expected to be a string that is not empty; it \
is ''.
    """
    if not isinstance(value, str):
        raise InvalidTypeError(f"{name} is expected to be a string; it is {describe(value)}.")
    if not value:
        raise InvalidValueError(f"{name} is expected to be a string that is not empty; it is ''.")
    return value


def several(values: Any, name: str, what: str) -> list[Any]:
    """Return the items of a list, a set, an array or an iterator, as a list.

    >>> several("cat", "labels", "a list of names")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: labels is expected to be a list of names; it is the str 'cat'.
    """
    found = _listed(values)
    if found is None:
        raise InvalidTypeError(f"{name} is expected to be {what}; it is {describe(values)}.")
    return found


def texts(values: Any, name: str) -> list[str]:
    """Return several strings as a list; a single string raises.

    >>> texts(("loss", "accuracy"), "metrics")
    ['loss', 'accuracy']
    >>> texts("loss", "metrics")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: metrics is expected to be a list of strings; it is the str \
'loss'.
    """
    found = _listed(values)
    if found is None or not all(isinstance(one, str) for one in found):
        raise InvalidTypeError(
            f"{name} is expected to be a list of strings; it is {describe(values)}."
        )
    return found


def path(value: Any, name: str) -> Path:
    """Return the absolute path of a file or a directory, which a later `chdir` does not change.

    >>> path("", "directory")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: directory is expected to be a path; it is the str ''.
    """
    found = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(found, str):
        raise InvalidTypeError(f"{name} is expected to be a path; it is {describe(value)}.")
    if not found or "\0" in found:
        raise InvalidValueError(f"{name} is expected to be a path; it is {describe(value)}.")
    return Path(found).absolute()


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a URL, also one that lost a slash in `Path("s3://...")`.

    >>> is_url("gs://bucket/run"), is_url(Path("gs://bucket/run")), is_url("outputs/run")
    (True, True, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(path)) is not None


def existing_file(value: Any, name: str) -> Path:
    """Return the absolute path of an existing file.

    >>> existing_file("lost.jsonl", "path")
    Traceback (most recent call last):
        ...
    solstice.errors.MissingFileError: path is expected to be a file; there is none at 'lost.jsonl'.
    """
    found = path(value, name)
    if not found.is_file():
        raise MissingFileError(
            f"{name} is expected to be a file; there is none at {os.fspath(value)!r}."
        )
    return found


def function(
    value: Any, name: str, takes: str | None = None, *, more: bool = False
) -> Callable[..., Any]:
    """Return a function or another callable.

    Args:
        value: The argument.
        name: Its name.
        takes: The names of the arguments it is called with, such as "exp, batch, key"; raises if
            its signature is known and does not take as many.
        more: Whether it is called with further arguments.

    >>> function(print, "action", "exp, step") is print
    True
    >>> function(lambda exp: None, "action", "exp, step")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: action is expected to be a function of (exp, step); it is \
<lambda>(exp).
    """
    wanted = "a function" if takes is None else f"a function of ({takes}{', ...' * more})"
    if takes == "":
        wanted = "a function without arguments"
    if not callable(value):
        raise InvalidTypeError(f"{name} is expected to be {wanted}; it is {describe(value)}.")
    if takes is None:
        return value
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # as for some builtins
        return value
    try:
        bind = signature.bind_partial if more else signature.bind
        bind(*filter(None, takes.split(",")))
    except TypeError as error:
        called = getattr(value, "__name__", type(value).__name__)
        raise InvalidTypeError(
            f"{name} is expected to be {wanted}; it is {called}{signature}."
        ) from error
    return value


def instance(value: Any, name: str, kind: type[_T], what: str) -> _T:
    """Return an object of a class.

    Args:
        value: The argument.
        name: Its name.
        kind: The class.
        what: What is expected, with an example.

    >>> instance(3, "mesh", Path, "a path, such as Path('log')")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: mesh is expected to be a path, such as Path('log'); it is \
the int 3.
    """
    if not isinstance(value, kind):
        raise InvalidTypeError(f"{name} is expected to be {what}; it is {describe(value)}.")
    return value


def mapping(value: Any, name: str) -> dict[str, Any]:
    """Return a mapping of strings to values as a dict.

    >>> mapping({"rate": 0.1}, "hyperparameters")
    {'rate': 0.1}
    """
    if not isinstance(value, Mapping) or not all(isinstance(one, str) for one in value):
        raise InvalidTypeError(
            f"{name} is expected to be a mapping of names to values; it is {describe(value)}."
        )
    return dict(value)


def check_untraced(tree: Any, function: str) -> None:
    """Raise if a tree holds a traced value, whose numbers are not known yet.

    >>> check_untraced({"w": jax.numpy.ones(2)}, "save()")
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise InvalidTypeError(
            f"{function} needs the values of arrays, and is expected to be called outside of "
            f"jax.jit and other transformations; an argument is traced."
        )


def check_leaves(tree: Any, name: str) -> None:
    """Raise if a leaf of a tree is not something that jax computes with, such as a string.

    >>> check_leaves({"w": np.ones(2), "scale": 1.0}, "params")
    >>> check_leaves({"w": np.ones(2), "name": "dense"}, "params")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: params is expected to hold arrays and numbers; it holds the \
str 'dense'.
    """
    for leaf in jax.tree.leaves(tree):
        try:
            jax.typeof(leaf)
        except (TypeError, OverflowError) as error:
            raise InvalidTypeError(
                f"{name} is expected to hold arrays and numbers; it holds {describe(leaf)}."
            ) from error


def array(values: Any, name: str) -> np.ndarray:
    """Return real numbers as a numpy array.

    >>> array([[1, 2], [3]], "losses")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: losses is expected to be an array of numbers; it is [[the \
int 1, the int 2], [the int 3]].
    """
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None or found.dtype.kind in "OSUcMm" or found.dtype.type is np.void:
        raise InvalidTypeError(
            f"{name} is expected to be an array of numbers; it is {describe(values)}."
        )
    return found


def _wrong(name: str, what: str, value: Any) -> InvalidTypeError:
    came = describe(value)
    if isinstance(value, Tracer):
        came += (
            " whose value is not known here, under jax.jit or jax.vmap: it becomes part of the "
            "program, the same for all members of an ensemble"
        )
    return InvalidTypeError(f"{name} is expected to be {what}; it is {came}.")


def _listed(values: Any) -> list[Any] | None:
    """Return the items of a list, a set, an array or an iterator; None for a single thing."""
    one = isinstance(values, str | bytes | Mapping) or getattr(values, "ndim", 1) == 0
    return None if one or not isinstance(values, Iterable) else list(values)
