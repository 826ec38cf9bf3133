"""Arrays that are nobody else's: fresh buffers, strong types."""

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

    Fresh, so that donating it never takes a buffer that somebody else still holds; strongly
    typed, so that the second step does not trace again. Anything but an array is left alone.

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
    # Unlike a copy by jnp, device_put compiles nothing; that would be a program for each shape.
    if not isinstance(leaf, jax.Array):
        # Where numpy's memory lies as jax likes it, jax keeps it, may_alias=False or not.
        return jax.device_put(np.array(leaf))
    if as_is and not isinstance(leaf, Tracer):
        return jax.device_put(leaf, may_alias=False)
    return jnp.copy(leaf) if is_typed_key(leaf) else jnp.array(leaf, dtype=dtype, copy=True)
