"""The size of a tree, in numbers and in bytes."""

import math
from typing import TypeGuard

import jax

from solstice.tree.kinds import Shaped
from solstice.tree.pytree import PyTree

_NUMBERS = (bool, int, float, complex)


def size(tree: PyTree) -> int:
    """Return how many numbers a tree holds: the elements of its arrays, and Python's numbers.

    A typed PRNG key counts as one; other leaves (strings, functions) do not count. A
    `jax.ShapeDtypeStruct` counts as an array.

    >>> import jax.numpy as jnp
    >>> size({"kernel": jnp.ones((3, 4)), "scale": 2.0, "activation": "relu"})
    13
    """
    return sum(map(_leaf_size, jax.tree.leaves(tree)))


def nbytes(tree: PyTree) -> int:
    """Return how many bytes the arrays of a tree have; other leaves do not count.

    Sharded and replicated arrays count once, whatever the devices.

    >>> import jax.numpy as jnp
    >>> nbytes({"kernel": jnp.ones((3, 4)), "half": jnp.ones(2, jnp.bfloat16)})
    52
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if _is_sized(leaf)]
    return sum(_leaf_size(leaf) * leaf.dtype.itemsize for leaf in leaves)


def _leaf_size(leaf: object) -> int:
    if _is_sized(leaf):
        return math.prod(leaf.shape)
    return int(isinstance(leaf, _NUMBERS))


def _is_sized(leaf: object) -> TypeGuard[Shaped]:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
