"""Reprs: an object's class and its arguments or fields, in a few lines.

Only shapes and dtypes of arrays are read, so an object prints anywhere: in a compiled step, after
its arrays were donated, half initialised. No foreign code runs, so nothing can fail.
"""

import dataclasses
import enum
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import PurePath
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from solstice.static import Aside, Static
from solstice.tree.names import without_middle
from solstice.tree.sizes import size

_WIDTH = 88
_LINES = 12
# How many levels of an object are shown, and how many characters of a text.
_DEPTH = 5
_LETTERS = 60
_ARRAYS = jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct
_LITERALS = bool, float, complex, type(None), type(...)
_SAFE = np.dtype, range
_BRACKETS = {list: "[]", tuple: "()", set: "{}", frozenset: "{}", dict: "{}"}


class Shown:
    """Prints its public attributes, and private ones that an argument or property names.

    Values that are None, empty or the argument's default are left out.

    >>> class Ruler(Shown):
    ...     def __init__(self, length, unit="cm"):
    ...         self.length, self._unit, self._cache = length, unit, {}
    >>> Ruler(3), Ruler([1, 1], "inch")
    (Ruler(length=3), Ruler(length=[1, 1], unit='inch'))
    """

    # The text between the parts of an object made by an operator.
    _operator: ClassVar[str | None] = None

    def _shown(self) -> list[tuple[str, object]]:
        """Return what to print: pairs of a name, which may be empty, and a value."""
        return list(_held(self))

    def __repr__(self) -> str:
        if self._operator is not None and vars(self):
            return _text(self, _WIDTH, 0)
        return _lines(type(self).__name__, _parts(self, _WIDTH, 0))


class ShownAsMade:
    """Prints the call that made it, with only plain values written out.

    >>> class Say(ShownAsMade):
    ...     def __init__(self, text, times=1, to=None): ...
    >>> Say("hello", to=lambda text: None), Say(object(), 3)
    (Say('hello', to=<lambda>), Say(object(...), 3))
    """

    # A text, not the arguments, which would keep objects alive that this one drops.
    _made_with: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", _noting(vars(cls)["__init__"]))  # noqa: B010

    def __repr__(self) -> str:
        return _lines(type(self).__name__, list(self._made_with))


def _noting(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def noting(self: object, *args: object, **options: object) -> None:
        if "_made_with" not in vars(self):  # otherwise a subclass's constructor has set it
            texts = [_text(one, _WIDTH, 1) for one in args]
            texts += [f"{k}={_text(v, _WIDTH - len(k), 1)}" for k, v in options.items()]
            object.__setattr__(self, "_made_with", tuple(texts))
        init(self, *args, **options)

    return noting


def _lines(name: str, parts: list[str]) -> str:
    line = f"{name}({', '.join(parts)})"
    if len(line) <= _WIDTH or not parts:
        return line
    if len(parts) > _LINES - 2:
        parts = [*parts[: _LINES - 3], f"... and {len(parts) - _LINES + 3} more"]
    return "\n".join([f"{name}(", *(f"  {part}," for part in parts), ")"])


def _parts(value: object, room: int, depth: int) -> list[str]:
    show = _tree if isinstance(value, eqx.Module) else _text
    held = value._shown() if isinstance(value, Shown) else _held(value)
    return [
        f"{name}{'=' * bool(name)}{show(one, max(0, room - len(name) - 4), depth + 1)}"
        for name, one in held
    ]


def _held(value: object) -> Iterator[tuple[str, object]]:
    """Yield names and values of the attributes to show."""
    attributes, arguments = vars(value), _arguments(type(value))
    fields = list(attributes)
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.name in attributes]
    for field in fields:
        name = field.removeprefix("_")
        if field != name and name not in arguments and not hasattr(type(value), name):
            continue
        held, in_tree = attributes[field], isinstance(value, eqx.Module)
        if held is None or (type(held) in _BRACKETS and not held):
            continue
        if in_tree and isinstance(held, dict | tuple | list) and not _leaves(held):
            continue
        default = arguments.get(name, inspect.Parameter.empty)
        if default is inspect.Parameter.empty or _text(held, 0, 0) != _text(default, 0, 0):
            yield name, held


def _arguments(cls: type) -> dict[str, object]:
    try:
        return {n: one.default for n, one in inspect.signature(cls.__init__).parameters.items()}
    except (TypeError, ValueError):
        return {}


def _tree(value: object, room: int, depth: int) -> str:
    """Return the text of a part of a pytree: how many numbers, and the shapes if they are few."""
    value = _unboxed(value)
    if isinstance(value, (Shown, *_ARRAYS)):
        return _text(value, room, depth)
    arrays = [leaf for leaf in _leaves(value) if isinstance(leaf, _ARRAYS)]
    if not arrays:
        return _text(value, room, depth)
    numbers = size(arrays)
    count = f"{numbers:,} number{_s(numbers)} in {len(arrays)} array{_s(len(arrays))}"
    if not isinstance(value, dict | tuple | list):
        return f"{type(value).__name__}({count})"
    whole = f"{count}: {_text(value, room, depth)}"
    return whole if len(whole) <= room and "..." not in whole else count


def _leaves(value: object) -> list[object]:
    try:
        return jax.tree.leaves(value)
    except (TypeError, ValueError, RecursionError):  # it is not a tree
        return [value]


def _s(count: int) -> str:
    return "s" * (count != 1)


def _text(value: object, room: int, depth: int) -> str:
    try:
        return _text_of(_unboxed(value), room, depth)
    except Exception:  # noqa: BLE001 - of an object that answers nothing, its class is known
        return f"{type(value).__name__}(...)"


def _text_of(value: Any, room: int, depth: int) -> str:
    kind = type(value)
    if isinstance(value, _ARRAYS):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if kind in _LITERALS or isinstance(value, _SAFE) or (kind is int and abs(value) < 10**30):
        return repr(value)
    if isinstance(value, Mesh):
        return f"Mesh({', '.join(f'{name}={size}' for name, size in value.shape.items())})"
    if isinstance(value, PartitionSpec):
        return f"P({', '.join(map(repr, value))})"
    if isinstance(value, str | bytes | PurePath):
        return _quoted(value)
    if isinstance(value, enum.Enum):
        return f"{kind.__name__}.{value.name}"
    if depth < _DEPTH and kind in _BRACKETS:
        return _items(value, room, depth)
    if depth < _DEPTH and isinstance(value, ShownAsMade):
        return _joined(kind.__name__, value._made_with, room)
    if depth < _DEPTH and isinstance(value, Shown) and (operator := value._operator):
        return f" {operator} ".join(_text(one, room, depth + 1) for _, one in value._shown())
    if depth < _DEPTH and _has_parts(value):
        # The room for a part, without the name and the mark that more follows.
        within = room - len(f"{kind.__name__}(, ...)")
        return _joined(kind.__name__, _parts(value, max(0, within), depth), room)
    if depth < _DEPTH and isinstance(value, tuple) and (names := getattr(kind, "_fields", ())):
        pairs = zip(names, value, strict=False)
        parts = (f"{name}={_text(one, room, depth + 1)}" for name, one in pairs)
        return _joined(kind.__name__, parts, room)
    return _name_of(value)


def _has_parts(value: object) -> bool:
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return False
    return isinstance(value, Shown) or dataclasses.is_dataclass(value)


def _unboxed(value: object) -> object:
    while isinstance(value, Static | Aside):
        value = value.value
    return value


def _items(value: Any, room: int, depth: int) -> str:
    left, right = _BRACKETS[type(value)]
    if type(value) is tuple and len(value) == 1:
        right = ",)"
    for within in (room, 0):  # with the items' contents, or only their names
        parts = [
            f"{_text(one, within, depth + 1)}: {_text(value[one], within, depth + 1)}"
            if type(value) is dict
            else _text(one, within, depth + 1)
            for one in islice(value, 12)
        ]
        line = f"{left}{', '.join(parts)}{right}"
        if len(parts) == len(value) and len(line) <= room:
            return line
    while parts:
        line = f"{left}{', '.join(parts)}, ... {len(value) - len(parts)} more{right}"
        if len(line) <= room and len(parts) < len(value):
            return line
        parts.pop()
    return f"{left}... {len(value)} item{_s(len(value))}{right[-1]}"


def _joined(name: str, parts: Iterable[str], room: int) -> str:
    """Return a call on one line, with as many of its parts as fit."""
    parts = list(parts)
    line = f"{name}({', '.join(parts)})"
    while len(line) > room and parts:
        parts.pop()
        line = f"{name}({', '.join([*parts, '...'])})"
    return line


def _quoted(value: str | bytes | PurePath) -> str:
    text = os.fspath(value) if isinstance(value, PurePath) else value
    if isinstance(text, bytes):
        return f"bytes[{len(text)}]"
    # Never log a URL's password.
    return repr(without_middle(re.sub(r"(?<=//)[^/@\s]*@", "...@", str(text)), _LETTERS))


def _name_of(value: object) -> str:
    """Return the name of a function or a class; for anything else, of its class."""
    while isinstance(value, functools.partial):
        value = value.func
    name = inspect.getattr_static(value, "__qualname__", None)
    if callable(value) and not isinstance(name, str):
        name = inspect.getattr_static(value, "__name__", None)  # what jax.jit returns
    if inspect.isroutine(value) or isinstance(value, type):
        name = value.__qualname__
    if isinstance(name, str):
        return ".".join(name.replace("<locals>.", "").split(".")[-2:])
    return f"{type(value).__name__}(...)"
