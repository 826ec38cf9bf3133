"""A model's float arrays by path, and a model with other values in them."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from solstice.compat.model import Model
from solstice.errors import InvalidValueError
from solstice.tree.fields import replace
from solstice.tree.names import names_difference
from solstice.tree.naming import flatten_with_paths
from solstice.tree.pytree import PyTree

_M = TypeVar("_M", bound=Model)


def float_arrays(model: Model) -> dict[str, jax.Array]:
    """Return what a network learned, by path: parameters, frozen or not, and float state.

    A path begins with "params/" or "state/"; whether a parameter is frozen does not change it.

    >>> import jax, jax.numpy as jnp
    >>> from jax.example_libraries import stax
    >>> from solstice import compat
    >>> model = compat.as_model(stax.serial(stax.Dense(2)), jnp.ones((1, 3)), key=0)
    >>> {path: leaf.shape for path, leaf in float_arrays(model).items()}
    {'params/0/0': (3, 2), 'params/0/1': (2,)}
    """
    leaves, _ = _named(model)
    return {path: leaf for path, leaf in leaves if _is_float(leaf)}


def with_arrays(model: _M, arrays: Mapping[str, Any]) -> _M:
    """Return the model with other values at some paths, in the leaves' own dtypes.

    Raises:
        ValueError: A path is none of the model's, or a value has another shape than the leaf.
    """
    leaves, structure = _named(model)
    if unknown := names_difference([path for path, _ in leaves], arrays).partition("have ")[2]:
        raise InvalidValueError(f"The model has no leaf {unknown.removesuffix(' besides')}.")
    changed = [_put(path, leaf, arrays[path]) if path in arrays else leaf for path, leaf in leaves]
    return replace(model, **jax.tree.unflatten(structure, changed))


def _put(path: str, leaf: Any, value: Any) -> Any:
    if np.shape(value) != leaf.shape:
        raise InvalidValueError(
            f"{path} is expected to have shape {leaf.shape}; it is given {np.shape(value)}."
        )
    return jnp.asarray(value, leaf.dtype)


def _named(model: Model) -> tuple[list[tuple[str, Any]], Any]:
    fields: dict[str, PyTree] = {
        "params": model.params,
        "frozen": model.frozen,
        "state": model.state,
    }
    leaves, structure = flatten_with_paths(fields)
    frozen = "frozen/"
    renamed = [
        ("params/" + path.removeprefix(frozen) if path.startswith(frozen) else path, leaf)
        for path, leaf in leaves
    ]
    return renamed, structure


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
