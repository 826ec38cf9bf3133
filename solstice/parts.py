"""The arrays of a checkpoint, in parts: what each process writes, and how they become whole again.

A part is one file with an index and arrays, and beside it a directory with those that are large,
which Orbax writes. Each piece of an array has a digest. It knows nothing of checkpoints and runs.
"""

import functools
import importlib.util
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from solstice.errors import DamagedFileError, MissingPackageError
from solstice.tree import digest, to_json
from solstice.tree.digests import array_digest, as_bytes
from solstice.tree.encoding import OBJECT, dtype_name, is_array, key_impl, kind, to_host

# From so many bytes on, an array is Orbax's to write, which takes it milliseconds of Python
# whatever the size; those below go into one file.
LARGE = 2**20

# The handler is shared; a run may have two callbacks that save.
_one_at_a_time = threading.Lock()


class Piece(NamedTuple):
    """A part of an array that one process writes.

    Attributes:
        leaf: Which of the tree's leaves it belongs to.
        start: Where it begins in the array, along each axis.
        values: Its numbers or keys, on a device or on the host.
    """

    leaf: int
    start: tuple[int, ...]
    values: Any


def pieces(leaves: Iterable[Any]) -> list[Piece]:
    """Return what this process is to write of some leaves, so that all processes write each once.

    An array that is on several devices falls into its shards, of which one process has the first
    copy; what each process has for itself, the first process writes.

    >>> pieces([np.ones(2), "adam"])
    [Piece(leaf=0, start=(0,), values=array([1., 1.]))]
    """
    found, first = [], jax.process_index() == 0
    for i, leaf in enumerate(leaves):
        if not is_array(leaf):
            continue
        if isinstance(leaf, jax.Array) and not isinstance(leaf.sharding, SingleDeviceSharding):
            found += [
                Piece(i, tuple(axis.start or 0 for axis in shard.index), shard.data)
                for shard in leaf.addressable_shards
                if shard.replica_id == 0
            ]
        elif first:
            found.append(Piece(i, (0,) * leaf.ndim, leaf))
    return found


def table(leaves: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a checkpoint says of each leaf of a tree, given by path.

    That is its path and kind, the dtype and shape of an array's numbers (those behind the keys for
    typed keys) and a value as JSON.

    >>> table({"w": np.ones(2), "name": "adam"})[1]
    {'path': 'name', 'kind': 'str', 'value': '"adam"'}
    """
    entries = []
    for path, leaf in leaves.items():
        entry: dict[str, Any] = {"path": path, "kind": kind(leaf)}
        if (impl := key_impl(leaf)) is not None:
            numbers = jax.eval_shape(jax.random.key_data, leaf)
            entry |= {"shape": numbers.shape, "dtype": numbers.dtype.name, "impl": impl}
        elif is_array(leaf):
            entry |= {"shape": leaf.shape, "dtype": leaf.dtype.name, "impl": None}
        elif entry["kind"] != OBJECT:
            entry["value"] = to_json(leaf)
        entries.append(entry)
    return entries


def copied(pieces: list[Piece]) -> Callable[[], list[Piece]]:
    """Copy the values of pieces and return what gives pieces of the copies, once there is time.

    The copies outlive the next step; none is waited for.
    """
    copies: dict[int, Any] = {}
    small: dict[int, jax.Array] = {}
    large: dict[int, jax.Array] = {}
    for i, (_, _, values) in enumerate(pieces):
        if isinstance(values, jax.Array):
            size = math.prod(values.shape) * values.dtype.itemsize  # as nbytes, but at once
            (small if size < LARGE else large)[i] = values
        else:
            copies[i] = np.array(values)
    if len({array.sharding for array in small.values()}) > 1:
        large, small = small | large, {}  # a compiled call takes the arrays of one device
    forms = {i: (array.dtype, array.shape) for i, array in small.items()}
    packed = _packed([*small.values()]) if small else []
    if large:
        copies |= zip(large, jax.device_put([*large.values()], may_alias=False), strict=True)
    places = [(leaf, start) for leaf, start, _ in pieces]

    def found() -> list[Piece]:
        own = copies | _unpacked(packed, forms)
        return [Piece(*place, own[i]) for i, place in enumerate(places)]

    return found


@jax.jit
def _packed(arrays: list[jax.Array]) -> list[jax.Array]:
    """Return all numbers of some arrays, those of a dtype in one array.

    Each array that a call returns costs more than the copy of a small one: 13 took 142 us as they
    are and 21 us packed into two.
    """
    by_dtype: dict[Any, list[jax.Array]] = {}
    for array in arrays:
        by_dtype.setdefault(array.dtype, []).append(array.reshape(-1))
    return [jnp.concatenate(group) for group in by_dtype.values()]


def _unpacked(packed: list[jax.Array], forms: Mapping[int, Any]) -> dict[int, np.ndarray]:
    """Return the arrays that were packed on the host, given the dtype and shape of each."""
    dtypes = dict.fromkeys(dtype for dtype, _ in forms.values())
    rest = dict(zip(dtypes, map(to_host, packed), strict=True))
    found = {}
    for i, (dtype, shape) in forms.items():
        numbers, size = rest[dtype], math.prod(shape)
        found[i] = numbers[:size].reshape(shape + numbers.shape[1:])
        rest[dtype] = numbers[size:]
    return found


def write_part(
    directory: str | os.PathLike[str], number: int, pieces: list[Piece], *, sync: bool
) -> str:
    """Write a part into a directory and return the digest of its index.

    Args:
        directory: It exists, and has no part of this number.
        number: The part's number, from 0.
        pieces: What it holds.
        sync: Whether it is on the disk, and not only with the operating system, at the end.
    """
    places, digests, small, large, end = [], [], [], {}, 0
    # Of several processes, Orbax has only the first one write numpy's arrays, and says nothing.
    alone = jax.process_count() == 1
    for i, (leaf, start, values) in enumerate(pieces):
        numbers = to_host(values)
        # The axes of the numbers behind a key come after those of the keys.
        behind = (0,) * (numbers.ndim - len(start))
        digests.append(array_digest(dtype_name(numbers.dtype), numbers))
        at = None
        if numbers.nbytes < LARGE or not alone:
            small.append(as_bytes(numbers))
            at, end = end, end + numbers.nbytes
        else:
            large[str(i)] = numbers
        places.append((leaf, start + behind, numbers.shape, at))
    if large:
        ocp, handler, path = _orbax()
        target = f"{directory}/arrays-{number}"
        os.mkdir(target)
        with _one_at_a_time:
            handler.save(path(target), args=ocp.args.PyTreeSave(large))
    index = f'{{"digests": {json.dumps(digests)}, "pieces": {_places_text(tuple(places))}}}'
    with open(f"{directory}/part-{number}", "wb", buffering=LARGE) as file:
        file.writelines([f"{index}\n".encode(), *small])
        if sync:
            file.flush()
            os.fsync(file.fileno())
    return digest(index)


@functools.lru_cache(maxsize=8)
def _places_text(places: tuple[Any, ...]) -> str:
    """Return where pieces are, which is the same save after save, as JSON."""
    names = ("leaf", "start", "shape", "at")
    return json.dumps([dict(zip(names, place, strict=True)) for place in places])


def read_parts(directory: Path, indices: list[str], leaves: list[dict[str, Any]]) -> dict[int, Any]:
    """Return the arrays whose pieces are in a directory's parts, on the host, by leaf.

    Args:
        directory: Where the parts are.
        indices: The digest of each part's index.
        leaves: Of each leaf, the "dtype" and "shape" of its numbers; None for those without.

    Raises:
        DamagedFileError: Something is missing or is not what was written.
    """
    whole = {
        i: np.empty(leaf["shape"], jnp.dtype(leaf["dtype"]))
        for i, leaf in enumerate(leaves)
        if "dtype" in leaf
    }
    missing = {i: array.size for i, array in whole.items()}
    for number, written in enumerate(indices):
        for entry, numbers in _read_part(directory, number, written, leaves):
            i, start = entry["leaf"], entry["start"]
            place = tuple(slice(a, a + n) for a, n in zip(start, entry["shape"], strict=True))
            whole[i][place] = numbers
            missing[i] -= numbers.size
    short = [i for i, count in missing.items() if count]
    if short:
        raise damaged(directory, f"parts of the array {leaves[short[0]]['path']!r} are missing")
    return whole


def _read_part(directory: Path, number: int, written: str, leaves: list[dict[str, Any]]) -> Any:
    """Yield the entry and the numbers of each piece of a part."""
    path = directory / f"part-{number}"
    try:
        with path.open("rb") as file:
            index, packed = file.readline().removesuffix(b"\n"), file.read()
    except OSError as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if digest(index.decode(errors="replace")) != written:
        raise damaged(path, "the digest of its index is another one")
    found = json.loads(index)
    entries = [e | {"digest": d} for e, d in zip(found["pieces"], found["digests"], strict=True)]
    dtypes = [jnp.dtype(leaves[entry["leaf"]]["dtype"]) for entry in entries]
    large = {
        str(i): np.empty(entry["shape"], dtype)
        for i, (entry, dtype) in enumerate(zip(entries, dtypes, strict=True))
        if entry["at"] is None
    }
    arrays = _read_large(directory / f"arrays-{number}", large) if large else {}
    for i, (entry, dtype) in enumerate(zip(entries, dtypes, strict=True)):
        if (at := entry["at"]) is None:
            numbers = arrays[str(i)]
        else:
            # What is cut off must not become a broadcast number, so the bytes are counted.
            count = math.prod(entry["shape"])
            if at + count * dtype.itemsize > len(packed):
                raise damaged(path, "it was cut short")
            numbers = np.frombuffer(packed, dtype, count, at).reshape(entry["shape"])
        if array_digest(dtype_name(numbers.dtype), numbers) != entry["digest"]:
            leaf = leaves[entry["leaf"]]["path"]
            raise damaged(path.parent, f"the bytes of {leaf!r} are not those written")
        yield entry, numbers


def _read_large(path: Path, empty: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ocp, handler, as_path = _orbax()
    try:
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), empty)
        args = ocp.args.PyTreeRestore(item=empty, restore_args=as_numpy)
        read = handler.restore(as_path(path), args=args)
    except Exception as error:  # damage shows in whatever Orbax and its stores raise
        why = str(error).split(" [tensorstore_spec", 1)[0]
        raise damaged(path, f"{type(error).__name__}: {why:.200}") from error
    return {i: np.asarray(values) for i, values in read.items()}


def damaged(path: Path, why: str) -> DamagedFileError:
    """Return the error for a file or directory of a checkpoint."""
    return DamagedFileError(f"{path} is damaged: {why}.")


def check_orbax() -> None:
    """Raise where Orbax is not installed, without importing it.

    Raises:
        ImportError: It names the extra to install.
    """
    try:
        found = importlib.util.find_spec("orbax.checkpoint")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise MissingPackageError(MISSING)


@functools.cache
def _orbax() -> tuple[Any, Any, Any]:
    """Return Orbax, a handler that writes trees of numpy's arrays, and its class of paths."""
    try:
        import orbax.checkpoint as ocp
        from etils import epath
    except ModuleNotFoundError as error:
        raise MissingPackageError(MISSING) from error
    # To read, each process is alone to Orbax, or it would wait for all.
    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index,
            active_processes={index},
            barrier_sync_key_prefix=f"solstice-{index}",
        )
    # The handler alone, without a Checkpointer around it: what makes a checkpoint whole is that its
    # directory gets its name. Files of one array each need no merging at the end.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=alone)
    return ocp, handler, epath.Path


MISSING = (
    "Checkpoints need the package orbax-checkpoint, which is not installed: "
    "pip install 'solstice[checkpoint]'. Without it, solstice.tree.save writes one file."
)
