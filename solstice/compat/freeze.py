"""Freezing: which of a network's parameters the optimizer updates, the same for every library.

Freezing moves leaves from `params` to `frozen` and back; the outputs do not change.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jaxtyping import Array

from solstice import arguments
from solstice.compat.model import Model, boxed_weights, divide
from solstice.errors import InvalidValueError
from solstice.tree.fields import replace
from solstice.tree.names import matches, path_name
from solstice.tree.overwritten import trained

_M = TypeVar("_M", bound=Model)


def freeze(model: _M, predicate: str | Callable[[str, Array], Any]) -> _M:
    """Return the model with the parameters that `predicate` selects frozen as well.

    Args:
        model: An adapted network of any library.
        predicate: A function of a parameter's path, such as "Dense_0/kernel", and its value that
            returns whether to freeze it; or a glob for the paths, such as "Dense_0/*", as in
            `by_path`.

    Raises:
        ValueError: It selects no parameter; the message lists the paths.

    Fine-tune only a head, by its name; initialise the optimizer after that:

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from solstice import compat
    >>> network = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    >>> model = compat.FlaxModel(network, jnp.ones((1, 3)), key=jax.random.key(0))
    >>> tuned = compat.freeze(model, lambda path, leaf: not path.startswith("layers_2"))
    >>> [leaf.shape for leaf in jax.tree.leaves(tuned.params)]
    [(2,), (8, 2)]
    >>> [leaf.shape for leaf in jax.tree.leaves(compat.freeze(model, "layers_0/*").params)]
    [(2,), (8, 2)]
    """
    _check_model(model)
    chooses: Any = predicate
    if isinstance(predicate, str):
        chooses = lambda path, leaf: matches(path, predicate)  # noqa: E731
    arguments.function(chooses, "predicate", "path, leaf")
    leaves = jax.tree_util.tree_leaves_with_path(trained(model.params))
    chosen = {path for path, leaf in leaves if chooses(path_name(path), leaf)}
    if not chosen:
        paths = ", ".join(path_name(path) for path, _ in leaves)
        glob = isinstance(predicate, str)
        why = f"predicate, the glob {predicate!r}, matches" if glob else "the predicate selects"
        raise InvalidValueError(
            f"freeze() is expected to freeze some parameters, but {why} none of {paths}."
        )
    # They include the boxes' paths, which predicate does not get.
    still = {path for path, _ in jax.tree_util.tree_leaves_with_path(model.params)} - chosen
    weights = boxed_weights(model)
    kept = jax.tree_util.tree_map_with_path(lambda path, _: path in still, weights)
    params, frozen = divide(weights, kept)
    return replace(model, params=params, frozen=frozen)


def unfreeze(model: _M) -> _M:
    """Return the model with all trainable leaves in its parameters again.

    In a model of `compat.lora` or `compat.quantize`, the base weights stay frozen.

    >>> import equinox as eqx, jax
    >>> from solstice import compat
    >>> model = compat.as_model(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
    >>> frozen = compat.freeze(model, lambda path, leaf: True)
    >>> len(jax.tree.leaves(frozen.params)), len(jax.tree.leaves(compat.unfreeze(frozen).params))
    (0, 2)
    """
    _check_model(model)
    params, frozen = divide(boxed_weights(model), model.trainable())
    return replace(model, params=params, frozen=frozen)


def _check_model(model: object) -> None:
    what = "a compat.Model, such as exp.model of an experiment or compat.as_model(network, ...)"
    arguments.instance(model, "model", Model, what)
