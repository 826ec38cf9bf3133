"""The norm of a tree, for watching gradients and parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from solstice.tree.pytree import PyTree


def norm(tree: PyTree) -> Float[Array, ""]:
    """Return the Euclidean norm of all floats and complex numbers in a tree's arrays, as float32.

    >>> import jax.numpy as jnp
    >>> norm({"kernel": jnp.full((3,), 2.0), "bias": jnp.array(2.0), "steps": jnp.array(9)})
    Array(4., dtype=float32)
    """
    arrays = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    # Narrow types overflow when squared.
    squares = [jnp.sum(jnp.square(jnp.abs(array).astype(jnp.float32))) for array in arrays]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))
