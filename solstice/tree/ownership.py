"""Owned arrays: fresh buffers, strong types."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.tree.kinds import is_typed_key
from solstice.tree.pytree import AnyArray, PyTree


def owned(tree: PyTree) -> PyTree:
    """Return `tree` with each array as a fresh, strongly typed jax array.

    Fresh, so that donating it never takes a buffer in use elsewhere; strongly typed, so that the
    second step does not trace again. Leaves that are not arrays do not change.

    >>> import jax.numpy as jnp
    >>> owned({"rate": jnp.asarray(0.1)})["rate"].weak_type
    False
    """
    return jax.tree.map(lambda leaf: _owned_array(leaf) if eqx.is_array(leaf) else leaf, tree)


def _owned_array(leaf: AnyArray | np.generic) -> Array:
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "OSUMm":
        raise InvalidTypeError(
            f"A leaf is expected to be an array of numbers; one is {describe(leaf)}."
        )
    dtype = leaf.dtype if is_typed_key(leaf) else jax.dtypes.canonicalize_dtype(leaf.dtype)
    as_is = dtype == leaf.dtype and not getattr(leaf, "weak_type", False)
    # Unlike jnp.copy, device_put does not compile a program for each shape.
    if not isinstance(leaf, jax.Array):
        # jax shares numpy's memory if it is aligned, even with may_alias=False.
        return jax.device_put(np.array(leaf))
    if as_is and not isinstance(leaf, Tracer):
        return jax.device_put(leaf, may_alias=False)
    return jnp.copy(leaf) if is_typed_key(leaf) else jnp.array(leaf, dtype=dtype, copy=True)
