"""PRNG keys, raw and typed, and keys from seeds."""

from typing import TypeGuard

import jax
import jax.numpy as jnp
from jaxtyping import Array

from solstice.arguments import count, describe
from solstice.errors import InvalidTypeError
from solstice.tree.kinds import is_typed_key


def is_key(value: object) -> TypeGuard[Array]:
    """Return whether `value` is one PRNG key, raw or typed.

    >>> is_key(jax.random.key(0)), is_key(jax.random.PRNGKey(0)), is_key(0)
    (True, True, False)
    """
    if not isinstance(value, jax.Array):
        return False
    if is_typed_key(value):
        return value.ndim == 0
    return value.dtype == jnp.uint32 and value.ndim == 1


def as_key(key: object) -> Array:
    """Return `key` as a jax PRNG key: an int seed becomes one, a raw or typed key does not change.

    Raises:
        TypeError: `key` is neither a seed nor a single key.

    >>> as_key(0) == jax.random.key(0)
    Array(True, dtype=bool)
    """
    if is_key(key):
        return jnp.asarray(key)
    if not hasattr(key, "__index__") or isinstance(key, bool) or getattr(key, "ndim", 0):
        raise InvalidTypeError(
            f"key is expected to be an int seed or one PRNG key, such as jax.random.key(0); it is "
            f"{describe(key)}."
        )
    return jax.random.key(count(key, "key", least=-(2**63), most=2**63 - 1))
