"""How a Flax Linen network's collections are treated: trained, overwritten, kept, dropped.

A collection that needs what a Model does not support raises or warns.
"""

import warnings
from typing import Any

import jax
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT

from solstice.errors import InvalidValueError
from solstice.tree.overwritten import Overwritten
from solstice.tree.pytree import PyTree


def take_weights(collections: dict[str, PyTree]) -> PyTree:
    """Take the weights out of the collections, with boxes around overwritten leaves."""
    weights = collections.pop("params", {})
    if OVERWRITE_WITH_GRADIENT not in collections:
        return weights
    scales = collections.pop(OVERWRITE_WITH_GRADIENT)
    return {**weights, OVERWRITE_WITH_GRADIENT: jax.tree.map(Overwritten, scales)}


def variables_of(weights: PyTree, state: dict[str, PyTree]) -> dict[str, PyTree]:
    """Return the variables for `module.apply`, with weights without boxes."""
    if OVERWRITE_WITH_GRADIENT not in weights:
        return {"params": weights, **state}
    weights = dict(weights)
    scales = {OVERWRITE_WITH_GRADIENT: weights.pop(OVERWRITE_WITH_GRADIENT)}
    return {"params": weights, **scales, **state}


def refuse_special(adapter: str, collections: dict[str, PyTree]) -> None:
    """Raise for a collection whose name says that it needs special treatment."""
    special = sorted(name for name in collections if name.startswith("_"))
    if special:
        raise InvalidValueError(
            f"{adapter}: the network has the collection {special[0]!r}, whose underscore means "
            "that it needs special treatment; of such collections, only "
            f"{OVERWRITE_WITH_GRADIENT!r} is supported, and this one would never be updated. Leave "
            "out the layer that creates it, or write an adapter that supports it: see "
            "solstice.compat.register."
        )


def persistent(
    adapter: str, collections: dict[str, PyTree], before: Any, after: Any
) -> dict[str, PyTree]:
    """Return the collections whose structure a training step does not change.

    Args:
        adapter: The adapter's name, for the warning.
        collections: All but the weights.
        before: Their shapes.
        after: The shapes that a training step returns.
    """
    kept = {
        name: values
        for name, values in collections.items()
        if name not in after or after[name] == before[name]
    }
    losses = [name for name in collections if name not in kept and "loss" in name]
    if losses:
        warnings.warn(
            f"{adapter}: the network sows {losses[0]!r}, which a Model does not report, so "
            f"nothing of it is added to the loss. Return it with the outputs, in a step of your "
            f"own.",
            stacklevel=5,
        )
    return kept
