"""A model's arrays by path, whether in `params`, `frozen` or `state`, and other values for them."""

from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from solstice import arguments
from solstice.compat.model import Model, boxed_weights
from solstice.errors import InvalidValueError
from solstice.tree.encoding import from_host, key_impl
from solstice.tree.fields import replace
from solstice.tree.kinds import is_typed_key
from solstice.tree.names import few, path_name
from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import PyTree

_M = TypeVar("_M", bound=Model)


def model_leaves(model: Model) -> dict[str, Array]:
    """Return a model's arrays by path: "params/..." (frozen ones too), then "state/...".

    >>> import equinox as eqx, jax
    >>> from solstice import compat
    >>> list(model_leaves(compat.as_model(eqx.nn.Linear(3, 2, key=jax.random.key(0)))))
    ['params/weight', 'params/bias']
    """
    arguments.instance(model, "model", Model, "a compat.Model, such as compat.as_model(network)")
    return leaves_by_path({"params": boxed_weights(model), "state": model.state})


def float_leaves(model: Model) -> dict[str, Array]:
    """Return the float arrays of a model: everything that it has learned.

    >>> import jax, jax.numpy as jnp
    >>> from jax.example_libraries import stax
    >>> from solstice import compat
    >>> model = compat.as_model(stax.serial(stax.Dense(2)), jnp.ones((1, 3)), key=0)
    >>> {path: leaf.shape for path, leaf in float_leaves(model).items()}
    {'params/0/0': (3, 2), 'params/0/1': (2,)}
    """
    return {path: leaf for path, leaf in model_leaves(model).items() if eqx.is_inexact_array(leaf)}


def with_leaves(model: _M, values: Mapping[str, Any]) -> _M:
    """Return the model with other values for some arrays, each with its dtype and placement.

    Args:
        model: The model; it does not change.
        values: By path; numpy's arrays, jax's, or traced ones, which keep the placement that jax
            gives them. For typed keys, the numbers that they are made of.

    Raises:
        ValueError: The model has no array at a path, or one of another shape.
    """
    expected = model_leaves(model)
    if unknown := [repr(path) for path in values if path not in expected]:
        raise InvalidValueError(f"The model has no leaf {few(unknown)}.")

    def changed(prefix: str, tree: PyTree) -> PyTree:
        def one(path: tuple[Any, ...], leaf: Any) -> Any:
            name = f"{prefix}/{path_name(path)}".rstrip("/")
            return _put(name, leaf, values[name]) if name in values else leaf

        return jax.tree_util.tree_map_with_path(one, tree)

    return replace(
        model,
        params=changed("params", model.params),
        frozen=changed("params", model.frozen),
        state=changed("state", model.state),
    )


def numbers_like(leaf: Any) -> Any:
    """Return an array with the shape and dtype of a leaf's numbers, of a typed key's too.

    >>> numbers_like(jax.random.key(0)).shape
    (2,)
    """
    return jax.eval_shape(jax.random.key_data, leaf) if is_typed_key(leaf) else leaf


def _put(path: str, leaf: Any, value: Any) -> Any:
    like = numbers_like(leaf)
    if np.shape(value) != like.shape:
        raise InvalidValueError(
            f"{path} is expected to have shape {like.shape}; the value has {np.shape(value)}."
        )
    if isinstance(value, Tracer):
        return value.astype(like.dtype)
    return from_host(np.asarray(value).astype(like.dtype, copy=False), leaf, key_impl(leaf))
