"""Number types: the type in which a network computes, and what stays in float32.

Sums of many small parts (losses, averages of parameters) stay in float32 or wider, whatever the
type of the parameters.
"""

import contextlib
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.tree.fields import replace
from solstice.tree.pytree import PyTree

# The number of steps without an overflow after which a loss scale grows.
_PERIOD = 2000


def compute_dtype(value: object) -> str:
    """Return the name of a float type that a network can compute in.

    >>> compute_dtype(jnp.bfloat16)
    'bfloat16'
    >>> compute_dtype("float64")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: compute_dtype is expected to be a type of floats, such as \
'bfloat16' (float64 takes jax_enable_x64); it is the str 'float64'.
    """
    dtype = None
    if isinstance(value, str | type | np.dtype):
        with contextlib.suppress(TypeError, ValueError):
            dtype = jnp.dtype(value)
    floats = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if dtype is None or not floats or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise InvalidValueError(
            f"compute_dtype is expected to be a type of floats, such as 'bfloat16' (float64 takes "
            f"jax_enable_x64); it is {describe(value)}."
        )
    return dtype.name


def widened(tree: PyTree) -> PyTree:
    """Return floats of less than 32 bits as float32; leave everything else.

    >>> widened({"w": jnp.ones(2, jnp.bfloat16)})["w"].dtype
    dtype('float32')
    """

    def wide(array: Array) -> Array:
        narrow = jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits < 32
        return array.astype(jnp.float32) if narrow else array

    return jax.tree.map(wide, tree)


def like(tree: PyTree, other: PyTree) -> PyTree:
    """Return arrays in the types of the other tree's."""

    def cast(array: Array, other: Array) -> Array:
        return array if array.dtype == other.dtype else array.astype(other.dtype)

    return jax.tree.map(cast, tree, other)


def moved(average: PyTree, params: PyTree, decay: float) -> PyTree:
    """Return the moving average after one more step, in the average's own types.

    >>> float(moved(jnp.float32(1.0), jnp.bfloat16(0.0), 0.999))
    0.9990000128746033
    """

    def one(old: Array, new: Array) -> Array:
        if new.dtype != old.dtype:
            # Without this, XLA would drop the rounding of the parameters and average other values.
            info = jnp.finfo(new.dtype)
            new = jax.lax.reduce_precision(new.astype(old.dtype), info.nexp, info.nmant)
        return decay * old + (1 - decay) * new

    return jax.tree.map(one, average, params)


def chosen(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    """Return the one tree where a scalar is True, and the other where it is not.

    >>> chosen(jnp.array(False), {"w": 1 + jnp.zeros(2)}, {"w": jnp.zeros(2)})["w"].tolist()
    [0.0, 0.0]
    """
    return jax.tree.map(
        lambda one, other: one if one is other else jax.lax.select(condition, one, other), new, old
    )


def stays_finite(new: PyTree, old: PyTree) -> Array:
    """Return whether every float that was finite still is.

    >>> bool(stays_finite(jnp.array([1.0, jnp.inf]), jnp.array([0.0, jnp.inf])))
    True
    >>> bool(stays_finite(jnp.array([jnp.inf, jnp.inf]), jnp.array([0.0, jnp.inf])))
    False
    """
    kept = [
        (jnp.isfinite(one) | ~jnp.isfinite(other)).all()
        for one, other in zip(*map(jax.tree.leaves, (new, old)), strict=True)
        if jnp.issubdtype(one.dtype, jnp.inexact)
    ]
    return jnp.array(kept).all() if kept else jnp.array(True)


def cast(tree: PyTree, dtype: str) -> PyTree:
    """Return the tree with its float arrays in a type; leave everything else.

    >>> cast({"x": jnp.ones(2), "label": jnp.ones(2, int)}, "bfloat16")["x"].dtype
    dtype(bfloat16)
    """

    def one(leaf: object) -> object:
        if isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.astype(dtype)
        return leaf

    return jax.tree.map(one, tree)


def all_finite(tree: PyTree) -> Array:
    """Return whether all numbers in a tree of arrays are finite.

    >>> bool(all_finite({"w": jnp.array([1.0, jnp.nan])})), bool(all_finite({}))
    (False, True)
    """
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(finite).all() if finite else jnp.array(True)


class LossScale(eqx.Module):
    """A factor of the loss that keeps gradients from being rounded to zero in float16.

    It is halved, to 1 at least, when a gradient overflows, and doubled after 2,000 steps without
    (https://arxiv.org/abs/1710.03740).

    >>> scale = LossScale()
    >>> float(scale.loss_scale), float(scale.adjust(jnp.array(False)).loss_scale)
    (32768.0, 16384.0)
    """

    loss_scale: Float[Array, ""]
    counter: Int[Array, ""]

    def __init__(self) -> None:
        self.loss_scale = jnp.full((), 2.0**15, jnp.float32)
        self.counter = jnp.zeros((), jnp.int32)

    def scale(self, loss: Array) -> Array:
        """Return the scaled loss, to take gradients of."""
        return loss * self.loss_scale

    def unscale(self, tree: PyTree) -> PyTree:
        """Divide what was computed from a scaled loss by the scale, each array in its type.

        >>> LossScale().unscale(jnp.full(1, 2**14, jnp.float16))
        Array([0.5], dtype=float16)
        """
        inverse = 1 / self.loss_scale
        return jax.tree.map(lambda array: (array * inverse).astype(array.dtype), tree)

    def adjust(self, finite: Array) -> Self:
        """Return the next step's scale, after a step that was finite or overflowed."""
        larger = self.loss_scale * 2
        due = (self.counter == _PERIOD - 1) & jnp.isfinite(larger)
        grown = jnp.where(due, larger, self.loss_scale)
        scale = jnp.where(finite, grown, jnp.maximum(self.loss_scale / 2, 1))
        counter = jnp.where(finite, (self.counter + 1) % _PERIOD, 0)
        return replace(self, loss_scale=scale, counter=counter)
