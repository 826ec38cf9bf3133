"""Arrays over the devices of several processes: made from each one's part, and gathered."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from solstice.tree.flat import copied
from solstice.tree.kinds import is_typed_key
from solstice.tree.pytree import PyTree

_T = TypeVar("_T")


def as_global(
    arrays: Sequence[Any], shardings: Sequence[NamedSharding], *, may_alias: bool
) -> list[jax.Array]:
    """Return arrays, the same in all processes, placed by their shardings.

    Args:
        arrays: The arrays to place.
        shardings: One sharding for each.
        may_alias: Whether the results may share memory with them.

    >>> from jax.sharding import Mesh
    >>> whole = NamedSharding(Mesh(jax.devices()[:1], ("data",)), PartitionSpec())
    >>> as_global([np.ones(2, "float32")], [whole], may_alias=False)[0].sharding == whole
    True
    """
    put = jax.device_put if jax.process_count() == 1 else _across
    placed = []
    for array, sharding in zip(arrays, shardings, strict=True):
        # One after the other, so that memory holds only one twice. may_alias=False is not enough:
        # when it places an array on several devices, jax keeps the part that is already there.
        own = array if may_alias else copied([array])[0]
        placed.append(put(own, sharding))
    return placed


def _across(array: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        move = jax.jit(lambda one: one, out_shardings=sharding)
        return move(array)
    if is_typed_key(array):
        data = _across(jax.random.key_data(array), NamedSharding(sharding.mesh, PartitionSpec()))
        impl = jax.random.key_impl(array)
        wrap = jax.jit(lambda one: jax.random.wrap_key_data(one, impl=impl), out_shardings=sharding)
        return wrap(data)
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def to_all(array: jax.Array) -> jax.Array:
    """Return an array replicated on every device; all processes call it.

    >>> to_all(jax.numpy.ones(2)).tolist()
    [1.0, 1.0]
    """
    if array.is_fully_replicated or not isinstance(array.sharding, NamedSharding):
        return array
    whole = NamedSharding(array.sharding.mesh, PartitionSpec())
    return jax.jit(lambda one: one, out_shardings=whole)(array)


def local(array: _T) -> _T | jax.Array:
    """Return an array that is replicated on every device as an array of only this process."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return to_all(array).addressable_data(0)
    return array


def local_tree(tree: PyTree) -> PyTree:
    """Return a tree with each array that spans processes as an array of only this process."""
    return jax.tree.map(local, tree)


def batch_size(batch: PyTree) -> int | None:
    """Return the length of the first axis of a batch's first array; None if there is none.

    >>> batch_size({"image": np.zeros((3, 2)), "weight": 1.0})
    3
    """
    shapes = (np.shape(leaf) for leaf in jax.tree.leaves(batch) if hasattr(leaf, "shape"))
    return next((shape[0] for shape in shapes if shape), None)
