"""Sums of very many steps that lose no digits: each number as a float and what it leaves out.

The two floats lie along a last axis of 2; the first is the number, rounded. Added to one float32,
the losses of a long run would lose their last digits one by one, and in the end stand still.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def exact(value: Float[Array, "*shape"]) -> Float[Array, "*shape 2"]:
    """Return a float as a pair.

    >>> exact(jnp.ones(3)).shape
    (3, 2)
    """
    return jnp.stack([value, jnp.zeros_like(value)], axis=-1)


@jax.jit
def add(one: Float[Array, "*shape 2"], other: Float[Array, "*shape 2"]) -> Float[Array, "*shape 2"]:
    """Return the sum of two pairs, exact to about twice the digits of one float.

    The rounding error of the first parts' sum is a float itself, found by six additions: Knuth,
    The Art of Computer Programming, volume 2, 4.2.2, theorem B.

    >>> million, tiny = exact(jnp.float32(1e6)), exact(jnp.float32(1e-3))
    >>> add(million, tiny)
    Array([1.e+06, 1.e-03], dtype=float32)
    """
    a, b = one[..., 0], other[..., 0]
    total = a + b
    of_b = total - a
    rest = (a - (total - of_b)) + (b - of_b) + (one[..., 1] + other[..., 1])
    rounded = total + rest
    # What is infinite leaves nothing out; inf - inf would make it NaN.
    finite = jnp.isfinite(rounded)
    pair = jnp.where(finite, rounded, total), jnp.where(finite, rest - (rounded - total), 0)
    return jnp.stack(pair, axis=-1)


def value(pair: Float[Array, "*shape 2"]) -> Float[Array, "*shape"]:
    """Return a pair as one float."""
    return pair[..., 0]
