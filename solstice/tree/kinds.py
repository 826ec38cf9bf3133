"""Kinds of leaves: an array, an array of PRNG keys, a value, or an object."""

import functools
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

_ARRAYS = (np.ndarray, jax.Array, np.generic, jax.ShapeDtypeStruct)
VALUES = (bool, int, float, complex, str, bytes)
OBJECT = "object"


class Shaped(Protocol):
    """The attributes of an array and of a `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype: ...


def is_array(leaf: object) -> TypeGuard[Shaped]:
    """Return whether `leaf` is an array of jax or numpy, or a `jax.ShapeDtypeStruct`."""
    return isinstance(leaf, _ARRAYS)


def kind(leaf: object) -> str:
    """Return the kind of a leaf, the same for every leaf that may replace it.

    >>> kind(np.zeros((2, 3))), kind(jnp.zeros(3, jnp.bfloat16)), kind(jax.random.key(0))
    ('float64[2,3]', 'bfloat16[3]', 'key<fry>[]')
    >>> kind(0.1), kind("adam"), kind(len)
    ('float', 'str', 'object')
    """
    if is_array(leaf):
        return f"{dtype_name(leaf.dtype)}[{','.join(map(str, leaf.shape))}]"
    return type(leaf).__name__ if type(leaf) in VALUES else OBJECT


@functools.cache
def dtype_name(dtype: Any) -> str:
    """Return a dtype's name, which numpy builds each time."""
    return dtype.name


def is_typed_key(value: object) -> bool:
    """Return whether `value` is an array of typed PRNG keys, or its shape and dtype.

    >>> is_typed_key(jax.random.split(jax.random.key(0))), is_typed_key(jax.random.PRNGKey(0))
    (True, False)
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or isinstance(dtype, np.dtype):  # the common case, and much faster
        return False
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)
