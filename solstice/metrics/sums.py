"""Sums over very many steps that lose no digits: each number as a float and its error.

The two floats are along a last axis of size 2; the first is the rounded number. In a single
float32, the sum of a long run's losses would lose digits and finally stop growing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def exact(
    value: Float[Array, "*shape"], rest: Float[Array, "*shape"] | float = 0.0
) -> Float[Array, "*shape 2"]:
    """Return the sum of two floats as a pair, without rounding it.

    The rounding error of a sum is a float itself, found by six additions: Knuth, The Art of
    Computer Programming, volume 2, 4.2.2, theorem B.

    >>> exact(jnp.float32(1e6), jnp.float32(1e-3))
    Array([1.e+06, 1.e-03], dtype=float32)
    """
    total = value + rest
    of_rest = total - value
    error = (value - (total - of_rest)) + (rest - of_rest)
    # Infinite numbers have no error; inf - inf would be NaN.
    return jnp.stack([total, jnp.where(jnp.isfinite(total), error, 0)], axis=-1)


@jax.jit
def add(one: Float[Array, "*shape 2"], other: Float[Array, "*shape 2"]) -> Float[Array, "*shape 2"]:
    """Return the sum of two pairs, exact to about twice the digits of one float.

    >>> small = exact(jnp.float32(1e-3))
    >>> add(add(exact(jnp.float32(1e6)), small), small)
    Array([1.e+06, 2.e-03], dtype=float32)
    """
    total = exact(one[..., 0], other[..., 0])
    pair = exact(total[..., 0], total[..., 1] + (one[..., 1] + other[..., 1]))
    # Without a barrier, XLA takes many minutes to compile some twenty merges in a row.
    return jax.lax.optimization_barrier(pair)


def value(pair: Float[Array, "*shape 2"]) -> Float[Array, "*shape"]:
    """Return a pair as one float."""
    return pair[..., 0]
