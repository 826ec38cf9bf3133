"""A wrapper for users' objects in a pytree's static part.

jax compares static parts to decide whether to recompile. A user's object may be unhashable, may
raise when compared (an array attribute), and is nearly always the same object.
"""

from typing import Generic, TypeVar

_T = TypeVar("_T")


class Static(Generic[_T]):
    """Holds `value`; two boxes are equal if their values are the same object or compare equal.

    >>> shared = [1, 2]
    >>> Static(shared) == Static(shared), hash(Static(shared)) == hash(Static([1, 2]))
    (True, True)
    """

    __slots__ = ("_hash", "value")

    def __init__(self, value: _T) -> None:
        self.value: _T = value
        try:
            self._hash = hash(value)
        except TypeError:  # a list or dict inside; equal values still share the type
            self._hash = hash(type(value))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static):
            return NotImplemented
        if self.value is other.value:
            return True
        if type(self.value) is not type(other.value) or self._hash != other._hash:
            return False
        try:
            return bool(self.value == other.value)
        except (TypeError, ValueError):  # arrays inside do not compare to one bool
            return False

    def __deepcopy__(self, memo: dict[int, object]) -> "Static[_T]":
        # A static value does not change, and a copy would recompile.
        return self

    def __repr__(self) -> str:
        return f"Static({self.value!r})"


class Aside(Generic[_T]):
    """Holds a `value` that no compiled program depends on: all boxes are equal, so none recompiles.

    The result of a compiled call may hold the value of another, equal box.

    >>> Aside("x[:1]") == Aside("x[:8]")
    True
    """

    __slots__ = ("value",)

    def __init__(self, value: _T) -> None:
        self.value: _T = value

    def __hash__(self) -> int:
        return hash(Aside)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Aside)

    def __deepcopy__(self, memo: dict[int, object]) -> "Aside[_T]":
        return self

    def __repr__(self) -> str:
        return f"Aside({self.value!r})"
