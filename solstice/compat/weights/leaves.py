"""A model's arrays by name, whichever of `params`, `frozen` and `state` they are in, and back."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from solstice import arguments
from solstice.compat.model import Model, boxed_weights
from solstice.tree.encoding import from_host, key_impl
from solstice.tree.fields import replace
from solstice.tree.names import path_name
from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import PyTree

_M = TypeVar("_M", bound=Model)


def model_leaves(model: Model) -> dict[str, Array]:
    """Return a model's arrays by name: "params/..." (frozen ones too), then "state/...".

    >>> import equinox as eqx, jax
    >>> from solstice import compat
    >>> list(model_leaves(compat.as_model(eqx.nn.Linear(3, 2, key=jax.random.key(0)))))
    ['params/weight', 'params/bias']
    """
    arguments.instance(model, "model", Model, "a compat.Model, such as compat.as_model(network)")
    return leaves_by_path({"params": boxed_weights(model), "state": model.state})


def with_leaves(model: _M, values: Mapping[str, np.ndarray]) -> _M:
    """Return the model with some arrays changed, each placed as the one that it replaces.

    Args:
        model: The model, which stays as it is.
        values: By name, of the leaves' shapes and dtypes; of typed keys, the numbers behind.
    """

    def changed(prefix: str, tree: PyTree) -> PyTree:
        def one(path: tuple[Any, ...], leaf: Any) -> Any:
            value = values.get(f"{prefix}/{path_name(path)}".rstrip("/"))
            return leaf if value is None else from_host(value, leaf, key_impl(leaf))

        return jax.tree_util.tree_map_with_path(one, tree)

    return replace(
        model,
        params=changed("params", model.params),
        frozen=changed("params", model.frozen),
        state=changed("state", model.state),
    )
