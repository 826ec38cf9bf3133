"""Checks of arrays over devices: whether copies are equal; and gathering them.

Both work across processes; all of them must call.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from solstice import arguments
from solstice.errors import UnequalCopiesError
from solstice.sharding.arrays import local
from solstice.tree.kinds import is_typed_key
from solstice.tree.naming import flatten_with_paths
from solstice.tree.pytree import PyTree


def assert_replicated(tree: PyTree, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Raise if devices or processes hold unequal copies of an array.

    It compares shards that hold the same part of an array; NaN equals NaN. Across processes, arrays
    that each has for itself are compared too.

    Args:
        tree: The tree.
        atol: How far floats (and complex numbers) may differ: by `atol + rtol * abs(first)`, as in
            `numpy.isclose`. Integers, bools and keys must be equal.
        rtol: Like `atol`, relative to the first copy.

    Raises:
        ValueError: A tolerance is negative or not finite.
        AssertionError: The message names the first such leaf, the devices (or processes) and the
            largest difference.

    >>> import solstice
    >>> solstice.sharding.assert_replicated({"w": jnp.ones(2)}, atol=1e-6)
    """
    within = _Within(
        arguments.number(atol, "atol", least=0), arguments.number(rtol, "rtol", least=0)
    )
    named, _ = flatten_with_paths(tree)
    for name, leaf in named:
        if isinstance(leaf, jax.Array):
            _check_devices(name, _numbers(leaf), within)
    if jax.process_count() > 1:
        for name, leaf in named:
            if isinstance(leaf, jax.Array):
                _check_processes(name, _numbers(leaf), within)


class _Within(NamedTuple):
    """How far floats may differ."""

    atol: float
    rtol: float


def _numbers(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if is_typed_key(leaf) else leaf


def _check_devices(name: str, array: jax.Array, within: _Within) -> None:
    first: dict[str, jax.Shard] = {}
    for shard in array.addressable_shards:
        other = first.setdefault(str(shard.index), shard)
        if other is not shard:
            one, two = np.asarray(other.data), np.asarray(shard.data)
            _compare(name, one, two, other.device, shard.device, within)


def _check_processes(name: str, array: jax.Array, within: _Within) -> None:
    from jax.experimental import multihost_utils

    if not (array.is_fully_addressable or array.is_fully_replicated):
        return  # each process has another part
    every = multihost_utils.process_allgather(np.asarray(array.addressable_data(0)))
    for i, values in enumerate(every):
        one, two = np.asarray(every[0]), np.asarray(values)
        _compare(name, one, two, "process 0", f"process {i}", within)


def _compare(
    name: str, one: np.ndarray, two: np.ndarray, holder: object, other: object, within: _Within
) -> None:
    if one.tobytes() == two.tobytes():
        return
    unequal = one != two
    inexact = jnp.issubdtype(one.dtype, jnp.inexact)
    wide = np.complex128 if np.iscomplexobj(one) else np.float64
    one, two = one.astype(wide), two.astype(wide)
    if inexact:  # 0.0 equals -0.0, and a NaN another NaN
        unequal = ~np.isclose(two, one, rtol=within.rtol, atol=within.atol, equal_nan=True)
    if not unequal.any():
        return
    with np.errstate(invalid="ignore"):
        difference = np.abs(one - two)[unequal].max()
    raise UnequalCopiesError(
        f"{name!r} is expected to be the same everywhere; on {holder} and on {other} it differs in "
        f"{unequal.sum()} of {one.size} elements, by up to {difference:.6g}. Something "
        f"differs between them: a key, the order of the data, or a callback."
    )


def gather(tree: PyTree) -> PyTree:
    """Return a tree with all arrays gathered on the host of every process.

    Arrays become numpy arrays; typed keys stay keys, on this process. Leaves that are not arrays do
    not change.

    >>> import solstice
    >>> solstice.sharding.gather({"w": jnp.ones(2), "name": "a"})
    {'name': 'a', 'w': array([1., 1.], dtype=float32)}
    """

    def one(leaf: object) -> object:
        if not isinstance(leaf, jax.Array):
            return leaf
        if is_typed_key(leaf):
            data = np.asarray(local(jax.random.key_data(leaf)))
            return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf))
        return np.asarray(local(leaf))

    return jax.tree.map(one, tree)
