"""Weights that are computed from other arrays: nodes that replace a leaf in a network's tree.

A node holds arrays, so it is trained, frozen, saved, stacked and sharded like any part of a tree;
its leaves have the path of the weight followed by their own name, as in "Dense_0/kernel/a".
"""

import abc
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from solstice.tree.overwritten import is_box


class Composed(eqx.Module):
    """A weight of a network that is computed when the network is called."""

    @abc.abstractmethod
    def joined(self) -> Array:
        """Return the weight."""

    @abc.abstractmethod
    def words(self) -> str:
        """Describe how it is made, in a few words."""


def is_composed(node: object) -> bool:
    """Return whether a node of a tree is a computed weight."""
    return isinstance(node, Composed)


def is_weight(node: object) -> bool:
    """Return whether a node is one weight to its network: computed, or in a box."""
    return is_composed(node) or is_box(node)


def joined(node: Any) -> Any:
    """Return the weight of a node; other leaves are returned unchanged."""
    return node.joined() if isinstance(node, Composed) else node


def form(node: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and the dtype of the weight of a node."""
    if is_composed(node):
        return jax.eval_shape(joined, node)
    return jax.ShapeDtypeStruct(node.shape, node.dtype)


def is_matrix(leaf: jax.ShapeDtypeStruct) -> bool:
    """Return whether two or more axes of a weight are longer than 1.

    >>> bias, kernel = (jax.ShapeDtypeStruct((8, n, 1), "float32") for n in (1, 8))
    >>> is_matrix(bias), is_matrix(kernel)
    (False, True)
    """
    return leaf.size > 0 and sum(length > 1 for length in leaf.shape) >= 2


def words(node: Any) -> str:
    """Describe how a weight is made, in a few words."""
    if is_composed(node):
        return node.words()
    return (node.value if is_box(node) else node).dtype.name


def described(path: str, node: Any) -> str:
    """Name a weight for an error message, with its dtype and shape.

    >>> described("head/bias", jax.numpy.ones(3))
    'head/bias (float32[3])'
    """
    if is_box(node):
        return f"{path} (overwritten by its gradient)"
    return f"{path} ({words(node)}{list(form(node).shape)})"
