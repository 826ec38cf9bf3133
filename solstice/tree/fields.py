"""Out-of-place changes of an immutable module's fields."""

import dataclasses
from typing import TypeVar

import equinox as eqx

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, UnknownFieldError

_M = TypeVar("_M", bound=eqx.Module)


def replace(obj: _M, **changes: object) -> _M:
    """Return a copy of `obj` with some of its fields changed; `obj` does not change.

    It works on every `equinox.Module`, also with a custom `__init__`: neither `__init__` nor
    `__check_init__` runs again.

    Args:
        obj: The module to copy.
        **changes: New values by field name.

    Raises:
        TypeError: `obj` is not an `equinox.Module`.
        AttributeError: A name is not a field; the message lists the fields.

    >>> import equinox, solstice
    >>> class Point(equinox.Module):
    ...     x: int
    ...     y: int
    >>> solstice.replace(Point(1, 2), y=5)
    Point(x=1, y=5)
    """
    if not isinstance(obj, eqx.Module) or isinstance(obj, type):
        raise InvalidTypeError(
            f"obj of replace() is expected to be an equinox.Module (an Experiment, a Model, a "
            f"Metrics, ...); it is {describe(obj)}. For a plain dataclass use dataclasses.replace."
        )
    fields = [field.name for field in dataclasses.fields(obj)]
    unknown = [name for name in changes if name not in fields]
    if unknown:
        raise UnknownFieldError(
            f"{type(obj).__name__} has no field {', '.join(map(repr, unknown))}. "
            f"Its fields are: {', '.join(fields)}."
        )
    new = object.__new__(type(obj))
    for name in fields:
        if name in changes:
            object.__setattr__(new, name, changes[name])
        elif name in obj.__dict__:
            object.__setattr__(new, name, obj.__dict__[name])
    return new
