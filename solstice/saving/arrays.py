"""The arrays of a checkpoint: which process writes which piece, and how they are reassembled.

Each process writes one safetensors file. An array on one device is one piece, under its leaf's
path; for an array on several devices, each process writes the shards that it holds first. Each
piece has a digest, and is read only by the processes that need it.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from solstice.tree.encoding import across_processes, from_host, host_array
from solstice.tree.flat import copied
from solstice.tree.kinds import Shaped, is_array
from solstice.tree.pytree import PyTree
from solstice.tree.tensors import array_digest, damaged

Reader = Callable[[Mapping[str, PyTree]], np.ndarray]


class Piece(NamedTuple):
    """A part of an array that one process writes.

    Attributes:
        leaf: The path of the leaf it belongs to.
        start: Where it starts in the array, along each axis.
        values: Its numbers or keys, on a device or on the host.
    """

    leaf: str
    start: tuple[int, ...]
    values: Shaped


def pieces(leaves: Mapping[str, PyTree]) -> list[Piece]:
    """Return the pieces that this process writes, so that all processes write each piece once.

    Arrays that are local to each process are written by the first process.

    >>> pieces({"w": np.ones(2), "name": "adam"})
    [Piece(leaf='w', start=(0,), values=array([1., 1.]))]
    """
    found, first = [], jax.process_index() == 0
    for path, leaf in leaves.items():
        if not is_array(leaf):
            continue
        if isinstance(leaf, jax.Array) and not isinstance(leaf.sharding, SingleDeviceSharding):
            found += [
                Piece(path, tuple(axis.start or 0 for axis in shard.index), shard.data)
                for shard in leaf.addressable_shards
                if shard.replica_id == 0
            ]
        elif first:
            found.append(Piece(path, (0,) * leaf.ndim, leaf))
    return found


def copies(pieces: list[Piece]) -> list[Piece]:
    """Return pieces with copies of their values, valid after the next step, without waiting."""
    on_devices = [piece.values for piece in pieces if isinstance(piece.values, jax.Array)]
    copies_there = iter(copied(on_devices))
    # numpy arrays stay numpy arrays, since jax may lack their dtype.
    return [
        piece._replace(
            values=next(copies_there)
            if isinstance(piece.values, jax.Array)
            else np.array(piece.values)
        )
        for piece in pieces
    ]


def named(pieces: Iterable[Piece]) -> tuple[dict[str, np.ndarray], list[dict[str, PyTree]]]:
    """Return the numbers of pieces by name, and a checkpoint's entry for each piece.

    The first piece of a leaf has the leaf's path as its name, the second "path#1", and so on.

    >>> named(pieces({"w": np.ones(2)}))[1]
    [{'name': 'w', 'leaf': 'w', 'start': [0], 'shape': [2], 'digest': '...'}]
    """
    arrays: dict[str, np.ndarray] = {}
    entries = []
    for leaf, first, values in pieces:
        numbers = host_array(values)
        names = itertools.chain([leaf], (f"{leaf}#{i}" for i in itertools.count(1)))
        name = next(name for name in names if name not in arrays)
        arrays[name] = numbers
        # The axes of the numbers behind a key come after those of the keys.
        start = [*first, *(0,) * (numbers.ndim - len(first))]
        place = {"name": name, "leaf": leaf, "start": start, "shape": list(numbers.shape)}
        entries.append(place | {"digest": array_digest(numbers)})
    return arrays, entries


def check_places(
    where: str, leaf: str, shape: tuple[int, ...], entries: Sequence[Mapping[str, PyTree]]
) -> None:
    """Raise unless pieces fill an array, with each element in exactly one of them.

    Args:
        where: The checkpoint.
        leaf: The path of the leaf.
        shape: The array's.
        entries: The checkpoint's entries of the pieces.

    Raises:
        DamagedFileError: Pieces are missing, overlap, or are outside the array.

    >>> halves = [{"start": [0], "shape": [2]}, {"start": [2], "shape": [2]}]
    >>> check_places("run/step_4", "w", (4,), halves)
    """
    starts = [tuple(entry["start"]) for entry in entries]
    shapes = [tuple(entry["shape"]) for entry in entries]
    why = f"the {len(entries)} pieces of {leaf!r} do not fill an array of shape {shape}"
    if any(len(one) != len(shape) for one in (*starts, *shapes)):
        raise damaged(where, why)
    # Shards form a grid: along each axis, the cuts are the same everywhere.
    cuts = [
        sorted({(s[axis], n[axis]) for s, n in zip(starts, shapes, strict=True)})
        for axis in range(len(shape))
    ]
    whole = all(
        [start for start, _ in axis] == [0, *itertools.accumulate(n for _, n in axis)][:-1]
        and sum(n for _, n in axis) == size
        for axis, size in zip(cuts, shape, strict=True)
    )
    count = int(np.prod([len(axis) for axis in cuts], dtype=object))
    if not whole or not len(entries) == len(set(starts)) == count:
        raise damaged(where, why)


def placed(
    entries: Sequence[Mapping[str, PyTree]], read: Reader, about: Mapping[str, PyTree], like: PyTree
) -> PyTree:
    """Return an array assembled from its pieces and placed like `like`.

    Args:
        entries: The checkpoint's entries of the array's pieces.
        read: Reads a piece.
        about: The checkpoint's description of the leaf.
        like: The leaf that it replaces.
    """
    shape = tuple(about["shape"])

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        index = (*index, *(slice(None),) * (len(shape) - len(index)))
        ranges = [range(*axis.indices(size)) for axis, size in zip(index, shape, strict=True)]
        if len(entries) == 1:
            return read(entries[0])[(*index, ...)]  # an array, also without dimensions
        found = np.empty([len(one) for one in ranges], np.dtype(about["numpy"]))
        for entry in entries:
            here, there = [], []
            for wanted, start, size in zip(ranges, entry["start"], entry["shape"], strict=True):
                first, last = max(wanted.start, start), min(wanted.stop, start + size)
                here.append(slice(first - wanted.start, last - wanted.start))
                there.append(slice(first - start, last - start))
            if all(axis.start < axis.stop for axis in here):
                found[tuple(here)] = read(entry)[tuple(there)]
        return found

    sharding = getattr(like, "sharding", None)
    if sharding is not None and not sharding.is_fully_addressable:
        return across_processes(part, shape, sharding, about["impl"])
    return from_host(part(()), like, about["impl"])
