"""What a leaf is: an array, an array of PRNG keys, a value, or an object."""

import functools
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

_ARRAYS = (np.ndarray, jax.Array, np.generic, jax.ShapeDtypeStruct)
VALUES = (bool, int, float, complex, str, bytes)
OBJECT = "object"


class Shaped(Protocol):
    """What an array, and a `jax.ShapeDtypeStruct`, say of themselves."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype: ...


def is_array(leaf: object) -> TypeGuard[Shaped]:
    """Say whether `leaf` is an array of jax or numpy, or a `jax.ShapeDtypeStruct` of one."""
    return isinstance(leaf, _ARRAYS)


def kind(leaf: object) -> str:
    """Say what a leaf is, the same for every leaf that may stand in its place.

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
    """Return a dtype's name, which numpy puts together each time."""
    return dtype.name


def is_typed_key(value: object) -> bool:
    """Say whether `value` is an array of typed PRNG keys, or stands for one.

    >>> is_typed_key(jax.random.split(jax.random.key(0))), is_typed_key(jax.random.PRNGKey(0))
    (True, False)
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or isinstance(dtype, np.dtype):  # as nearly always, and much faster
        return False
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)
