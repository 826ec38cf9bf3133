"""Placing batches: one part per device; a batch that does not divide is padded and masked.

Each process gives its part of a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.sharding.arrays import batch_size, local
from solstice.sharding.placements import Sharding
from solstice.tree.pytree import AnyArray, PyTree

# (batch, which examples are real) -> the batch with that mask; None without masks
WithMask = Callable[[PyTree, AnyArray], PyTree]


def place_batch(
    sharding: Sharding,
    batch: PyTree,
    with_mask: WithMask,
    sizes: Sequence[int | None] = (),
) -> PyTree:
    """Return a batch on the mesh, with its first axis split.

    Arrays whose first axis differs from the first array's, and scalars, go to every device. Leaves
    that are not arrays do not change.

    Args:
        sharding: The placement.
        batch: This process's part of the batch.
        with_mask: Adds a mask to the batch; returns None if the experiment takes no mask.
        sizes: How many examples each process has; all are padded to the largest.

    Raises:
        ValueError: The batch does not divide, and the experiment takes no masks.

    >>> from solstice.sharding import DataParallel
    >>> batch, no_mask = (np.zeros((4, 2)), np.zeros(4)), lambda batch, real: None
    >>> place_batch(DataParallel(), batch, no_mask)[0].shape
    (4, 2)
    """
    processes = jax.process_count()
    if sharding.mesh.size == 1:
        return batch
    parts = sharding.parts
    if parts % processes:
        raise InvalidValueError(
            f"A batch is split into {parts} parts over {processes} processes; each is expected to "
            f"have the same number. Give a mesh of all devices of all processes."
        )
    parts //= processes
    size = batch_size(batch)
    every = [one for one in (size, *sizes) if one is not None]
    if size is not None and (most := max(every) + -max(every) % parts) != min(every):
        masked = with_mask(*padded(batch, most))
        if masked is None:
            raise InvalidValueError(
                f"A batch of {size} examples is split over {parts} devices"
                + f" (the processes have {', '.join(map(str, sizes))})" * (len(sizes) > 1)
                + f", which does not divide, and the experiment takes no mask for padding. Drop "
                f"the last batch, choose batches of a multiple of {parts}, or give the experiment "
                f"a method with_mask(batch, real), as ClassificationExperiment has."
            )
        batch, size = masked, most
    split = NamedSharding(sharding.mesh, sharding.batch_spec)
    whole = NamedSharding(sharding.mesh, PartitionSpec())

    def place(leaf: object) -> object:
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array | int | float):
            return leaf
        target = split if np.ndim(leaf) and np.shape(leaf)[0] == size else whole
        if processes == 1:
            return jax.device_put(leaf, target)
        return jax.make_array_from_process_local_data(target, np.asarray(leaf))

    return jax.tree.map(place, batch)


def predict_placed(
    sharding: Sharding,
    predict: Callable[[PyTree], PyTree],
    inputs: PyTree,
    sizes: Sequence[int | None] = (),
) -> PyTree:
    """Return what `predict` returns for inputs on the mesh, on the host, without padding.

    Each process gets the predictions of its own inputs.

    >>> from solstice.sharding import DataParallel
    >>> predict_placed(DataParallel(), lambda x: 2 * x, np.arange(3)).tolist()
    [0, 2, 4]
    """
    size = batch_size(inputs)
    placed = place_batch(sharding, inputs, lambda batch, real: batch, sizes)
    return jax.tree.map(lambda leaf: _own_rows(leaf, size), predict(placed))


def _own_rows(array: object, size: int | None) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        whole = np.asarray(local(array))
        each = len(whole) // jax.process_count()
        start = jax.process_index() * each
        return whole[start : start + each][:size]
    return np.asarray(array)[:size]


def padded(batch: PyTree, size: int) -> tuple[PyTree, np.ndarray]:
    """Return a batch with its examples repeated up to a size, and which of them are real.

    Repeated, not zeros, since batch statistics count masked examples too.

    >>> padded((np.array([1, 2, 3]),), 5)
    ((array([1, 2, 3, 1, 2]),), array([ True,  True,  True, False, False]))
    """
    count = batch_size(batch)
    if not count:
        raise InvalidValueError(f"A batch with examples is expected; it is {describe(batch)}.")
    order = np.arange(size) % count

    def pad(leaf: Any) -> Any:
        return leaf[order] if np.ndim(leaf) and np.shape(leaf)[0] == count else leaf

    return jax.tree.map(pad, batch), np.arange(size) < count
