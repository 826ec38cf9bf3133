"""A tree in one file, written at once or not at all, and read back bit for bit.

It needs no other package than numpy, never unpickles, and notices every damaged byte. Meant for an
experiment that fits into the host's memory; checkpoints of a run are `CheckpointingCallback`'s.

The file: a first line; the arrays' bytes, one after the other; a JSON index of the leaves, each
with its path, kind and digest; the index's digest and length. Numbers are little-endian.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from solstice import arguments
from solstice.errors import DamagedFileError, InvalidValueError
from solstice.tree.digests import array_digest, as_bytes, digest
from solstice.tree.encoding import (
    OBJECT,
    check_data,
    check_kinds,
    from_host,
    is_array,
    key_impl,
    kind,
    to_host,
)
from solstice.tree.json import from_json, to_json
from solstice.tree.naming import leaves_by_path

_FIRST_LINE = b"solstice tree 2\n"
_FIRST_LINE_BEFORE = b"solstice tree 1\n"
_DIGEST_BYTES = 64  # in hexadecimal
_LENGTH_BYTES = 8


def save(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Write a tree into one file, which it replaces in one go: whatever happens, one is whole.

    Arrays (sharded ones are gathered), typed PRNG keys, numbers, strings and bytes are written;
    of other leaves, functions say, only that they are there. The new file is on the disk when this
    returns. A process that is killed meanwhile may leave a file `.{name}.{random}.tmp` behind.

    Args:
        path: The file; its directory exists.
        tree: An experiment, a model, any pytree.

    Raises:
        TypeError: A leaf is an array of something else than numbers.
        ValueError: Two leaves' paths have one name.
        OSError: The file cannot be written; what was there before is still there.

    >>> import solstice, tempfile
    >>> file = tempfile.mkdtemp() + "/state.solstice"
    >>> solstice.tree.save(file, {"w": jnp.arange(3.0), "key": jax.random.key(0)})
    >>> solstice.tree.load(file, like={"w": jnp.zeros(3), "key": jax.random.key(1)})["w"]
    Array([0., 1., 2.], dtype=float32)
    """
    file_path = arguments.path(path, "path")
    check_data(tree)
    leaves = leaves_by_path(tree)
    with _replacing(file_path) as file:
        file.write(_FIRST_LINE)
        index = json.dumps([_write(file, name, leaf) for name, leaf in leaves.items()])
        file.write(index.encode())
        file.write(digest(index).encode())
        file.write(len(index).to_bytes(_LENGTH_BYTES, "little"))


def load(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Return the tree that `save` wrote.

    Args:
        path: The file.
        like: A tree of the same structure, whose arrays (or `jax.ShapeDtypeStruct`s) have the
            same shapes and dtypes, on any devices. What comes back has its classes and static
            fields, its sharding, numpy's arrays where it has them, and its objects that are no
            data.

    Raises:
        DamagedFileError: The file is not what `save` wrote: another file, cut short or changed.
        ValueError: The tree is not like `like`; the message names the leaf and how it differs. Or
            the file has the format of another version.
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read.

    >>> import jax.numpy as jnp, pathlib, solstice, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "state.solstice"
    >>> solstice.tree.save(file, {"w": jnp.ones(2), "step": 7})
    >>> solstice.tree.load(file, like={"w": jnp.zeros(2), "step": 0})
    {'step': 7, 'w': Array([1., 1.], dtype=float32)}
    """
    path = arguments.existing_file(path, "path")
    with path.open("rb") as file:
        index, end = _read_index(path, file)
        wanted = leaves_by_path(like)
        check_kinds(str(path), {entry["path"]: entry["kind"] for entry in index}, wanted)
        file.seek(len(_FIRST_LINE))
        found = {entry["path"]: _read(path, file, entry, wanted[entry["path"]]) for entry in index}
        if file.tell() != end:
            raise _changed(path)
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])


def _write(file: BinaryIO, name: str, leaf: Any) -> dict[str, Any]:
    """Write an array's bytes; return the leaf's entry in the index, which holds other values."""
    entry: dict[str, Any] = {"path": name, "kind": kind(leaf)}
    if is_array(leaf):
        values = to_host(leaf)
        file.write(as_bytes(values).data)
        entry["dtype"], entry["shape"] = values.dtype.name, list(values.shape)
        entry["impl"] = key_impl(leaf)
        entry["digest"] = array_digest(entry["kind"], values)
    elif entry["kind"] != OBJECT:
        entry["value"] = to_json(leaf)
    return entry


def _read(path: Path, file: BinaryIO, entry: dict[str, Any], like: Any) -> Any:
    if entry["kind"] == OBJECT:
        return like
    if not is_array(like):
        return from_json(entry["value"])
    values = np.empty(entry["shape"], jnp.dtype(entry["dtype"]))
    file.readinto(as_bytes(values))  # pyright: ignore[reportAttributeAccessIssue]
    if array_digest(entry["kind"], values) != entry["digest"]:
        raise DamagedFileError(
            f"{path} is damaged: the bytes of {entry['path']!r} are not those that were written. "
            f"Use another copy."
        )
    return from_host(values, like, entry["impl"])


def _read_index(path: Path, file: BinaryIO) -> tuple[list[dict[str, Any]], int]:
    """Return the index of the leaves, and where it begins."""
    size = path.stat().st_size
    tail = _DIGEST_BYTES + _LENGTH_BYTES
    first = file.read(len(_FIRST_LINE))
    if first == _FIRST_LINE_BEFORE:
        raise InvalidValueError(
            f"{path} has the format 1, and this version of Solstice reads 2. Load it with the "
            f"version that wrote it."
        )
    if first != _FIRST_LINE:
        raise DamagedFileError(
            f"{path} is expected to be a file of solstice.tree.save; it does not begin as one."
        )
    if size >= len(_FIRST_LINE) + tail:
        file.seek(size - _LENGTH_BYTES)
        start = size - tail - int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if start >= len(_FIRST_LINE):
            file.seek(start)
            index = file.read(size - tail - start)
            if digest(index.decode(errors="replace")).encode() == file.read(_DIGEST_BYTES):
                return json.loads(index), start
    raise _changed(path)


def _changed(path: Path) -> DamagedFileError:
    return DamagedFileError(
        f"{path} is damaged: it was cut short or changed after solstice.tree.save had written it. "
        f"Use another copy."
    )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` once it is whole and on the disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the names in a directory, new ones too, outlive a power cut."""
    if hasattr(os, "O_DIRECTORY"):
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
