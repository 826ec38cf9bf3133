"""Networks and optimizers made by functions, so that equal ones share their compiled steps.

An estimator is fitted many times, and Optax, Haiku and Stax make new functions at each call, which
would recompile. Two functions made by the same code from the same values do the same, so the first
one is reused. Objects that hold weights are never shared.
"""

import functools
import hashlib
import inspect
import threading
import types
from typing import Any

import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.signatures import required

# Tuples of functions, by the code and values that made them; oldest first.
_KEPT: dict[Any, Any] = {}
_MOST = 64
_LOCK = threading.Lock()  # a grid may fit in several threads
_VALUES = (bool, int, float, complex, str, bytes, type(None), type)


def made(value: Any, name: str, **given: Any) -> Any:
    """Return what a function makes; anything else unchanged.

    Args:
        value: A function, or the object itself.
        name: What it is called.
        **given: The arguments that the function may require, in order.

    Raises:
        TypeError: It requires more.

    >>> made(lambda outputs: [outputs], "net", outputs=3, key=0), made([3], "net")
    ([3], [3])
    """
    # A callable network is not a function.
    if not (inspect.isroutine(value) or isinstance(value, functools.partial)):
        return _shared(value)
    number = required(value, name)
    if number > len(given):
        takes = f"of at most ({', '.join(given)})" if given else "without arguments"
        raise InvalidTypeError(
            f"{name}, if it is a function, is expected to be one {takes}; it is {describe(value)}, "
            f"which requires {number}. Bind them: functools.partial(function, ...)."
        )
    return _shared(value(*list(given.values())[:number]))


def _shared(thing: Any) -> Any:
    """Return an equal tuple of functions that was made earlier, if there is one."""
    if not (isinstance(thing, tuple) and thing and all(map(inspect.isfunction, thing))):
        return thing
    key = _key(thing, ())
    with _LOCK:
        kept = _KEPT.pop(key, thing)
        if _key(kept, ()) != key:  # a list that it is bound to has changed since
            kept = thing
        _KEPT[key] = kept
        while len(_KEPT) > _MOST:
            del _KEPT[next(iter(_KEPT))]
    return kept


def _key(value: Any, within: tuple[int, ...]) -> Any:
    """Return what identifies a function: its code and the values that it is bound to.

    Other objects are identified by `id`; the cache keeps them alive.
    """
    if id(value) in within:  # a function that calls itself
        return within.index(id(value))
    within = (*within, id(value))
    if isinstance(value, types.FunctionType):
        cells = tuple(_content(cell) for cell in value.__closure__ or ())
        named = tuple((value.__kwdefaults__ or {}).items())
        bound = (value.__defaults__, named, cells)
        return value.__code__, id(value.__globals__), _key(bound, within)
    if isinstance(value, tuple | list):
        return type(value), tuple(_key(one, within) for one in value)
    if type(value) is dict:
        return dict, tuple(_key(pair, within) for pair in value.items())
    if isinstance(value, set | frozenset):
        return type(value), frozenset(_key(one, within) for one in value)
    if isinstance(value, np.ndarray):  # its content may change
        return np.ndarray, value.shape, value.dtype.str, hashlib.blake2b(value.tobytes()).digest()
    if isinstance(value, functools.partial):
        return functools.partial, _key((value.func, value.args, *value.keywords.items()), within)
    return (type(value), value) if isinstance(value, _VALUES) else (object, id(value))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is bound to it yet
        return cell
