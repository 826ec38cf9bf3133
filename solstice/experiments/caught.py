"""Find tracers where no array belongs: in static fields and in functions stored there.

A static field is the same for all members of an ensemble, so it cannot hold the value of one
member. The search looks into containers, objects, partials and closures, never into modules or
classes.
"""

import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from solstice.static import Static

# A network's object may lead into much of its library; tracers are never that deep.
_MOST = 20_000

_OPAQUE = (
    str, bytes, int, float, complex, type(None), type, types.ModuleType, types.BuiltinFunctionType,
    np.ndarray, np.generic, np.dtype, jax.Array, jax.ShapeDtypeStruct,
)  # fmt: skip


def caught_tracer(tree: Any) -> str | None:
    """Return where in the static part of a pytree a tracer is; None if there is none.

    >>> found = []
    >>> def make(rate):
    ...     found.append(caught_tracer({"schedule": lambda step: rate * step, "rate": rate}))
    ...     return rate
    >>> _ = jax.vmap(make)(jax.numpy.ones(2))
    >>> found
    ['schedule.<lambda>: rate']
    """
    statics = list(_static_parts(tree, ""))
    seen: set[int] = set()
    while statics and len(seen) < _MOST:
        name, value = statics.pop(0)
        if isinstance(value, Tracer):
            return name.strip(".")
        if isinstance(value, _OPAQUE) or id(value) in seen:
            continue
        seen.add(id(value))
        statics.extend((f"{name}{step}", part) for step, part in _parts(value))
    return None


def _static_parts(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield what is static in a pytree: fields, aux data, and leaves that are not arrays."""
    if isinstance(node, jax.Array | np.ndarray):
        return
    children, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda other: other is not node
    )
    if jax.tree_util.treedef_is_leaf(structure):
        yield name, node
        return
    if dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            if field.metadata.get("static") and hasattr(node, field.name):
                yield f"{name}.{field.name}", getattr(node, field.name)
    elif (data := structure.node_data()) is not None and not isinstance(node, Mapping):
        yield name, data[1]
    for path, child in children:
        yield from _static_parts(child, f"{name}.{jax.tree_util.keystr(path, simple=True)}")


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Static):
        return [("", value.value)]
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in list(value.items())]
    # A transformation's `init` has been called and no step calls it again: optax.inject_hyperparams
    # has already copied its values into the state.
    if hasattr(value, "init") and hasattr(value, "update") and isinstance(value, tuple):
        return [(".update", value.update)]  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, tuple | list | set | frozenset):
        return [(f"[{i}]", part) for i, part in enumerate(value)]
    if isinstance(value, functools.partial):
        return [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    if isinstance(value, types.MethodType):
        return [("", value.__func__), (".self", value.__self__)]
    if isinstance(value, types.FunctionType):
        return _captured(value)
    return [(f".{key}", part) for key, part in list(getattr(value, "__dict__", {}).items())]


def _captured(function: types.FunctionType) -> list[tuple[str, Any]]:
    found = [("'s defaults", function.__defaults__), ("'s defaults", function.__kwdefaults__)]
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            found.append((f".{function.__name__}: {name}", cell.cell_contents))
        except ValueError:  # not assigned yet
            continue
    return [*found, *(("", part) for part in function.__dict__.values())]
