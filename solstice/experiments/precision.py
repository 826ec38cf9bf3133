"""Number types: what a network computes in, and what must not be rounded to it.

Sums of many small parts (losses, averages of parameters) are kept in float32 or more, whatever the
parameters are.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice.arguments import describe
from solstice.errors import InvalidValueError, MissingPackageError
from solstice.tree.pytree import PyTree


def compute_dtype(value: Any) -> str:
    """Return the name of a type of floats that a network can compute in here.

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
    """Return floats of less than 32 bits as float32, and all else as it is.

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
            # XLA would leave out that parameters were rounded, and average others than they are.
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
    """Return whether no float became infinite or NaN that was finite.

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


def jmp() -> Any:
    """Return the package that computes in other types.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import jmp
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "compute_dtype= needs the package jmp, which is not installed: "
            "pip install 'solstice[precision]'"
        ) from error
    return jmp


@functools.cache
def policy(dtype: str) -> Any:
    """Return what casts a network's arrays to `dtype`, and its outputs back to float32."""
    return jmp().get_policy(f"params=float32,compute={dtype},output=float32")
