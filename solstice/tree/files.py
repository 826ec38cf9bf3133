"""A tree in one safetensors file, written atomically, and read back bit for bit.

Arrays are stored under their paths, so any tool can read them. The file's metadata has each leaf's
kind and digest, and leaves that are not arrays. Nothing is ever unpickled.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from solstice import arguments
from solstice.errors import DamagedFileError, InvalidValueError
from solstice.tree.encoding import as_keys, check_data, check_kinds, from_host, host_array, key_impl
from solstice.tree.json import from_json, to_json
from solstice.tree.kinds import OBJECT, dtype_name, is_array, is_typed_key, kind
from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import PyTree
from solstice.tree.staging import staged_beside
from solstice.tree.tensors import (
    Tensors,
    array_digest,
    as_dtype,
    check_regular,
    damaged,
    sync_directory,
    text_digest,
    untrusted,
    write_tensors,
)

_FORMAT = "solstice tree 3"
_BEFORE = (b"solstice tree 1\n", b"solstice tree 2\n")


def save(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Write a tree into one safetensors file, atomically replacing an older one.

    Arrays (sharded ones are gathered), typed PRNG keys, numbers, strings and bytes are written;
    other leaves, such as functions, are only recorded as present. When this returns, the new file
    is on disk, with the permissions of the one it replaces; a link stays a link. A process that is
    killed while writing may leave a folder `.{name}.{random}.tmp` behind, which the next save to
    the same path deletes.

    Args:
        path: The file; its directory exists.
        tree: An experiment, a model, any pytree.

    Raises:
        TypeError: A leaf is an array of something other than numbers.
        ValueError: Two leaves' paths have the same name.
        OSError: The file cannot be written; an older one is unchanged.
        ImportError: safetensors is not installed.

    >>> import jax.numpy as jnp, solstice, tempfile
    >>> file = tempfile.mkdtemp() + "/state.safetensors"
    >>> solstice.tree.save(file, {"w": jnp.arange(3.0), "key": jax.random.key(0)})
    >>> solstice.tree.load(file, like={"w": jnp.zeros(3), "key": jax.random.key(1)})["w"]
    Array([0., 1., 2.], dtype=float32)
    """
    file_path = arguments.path(path, "path")
    check_data(tree)
    leaves = leaves_by_path(tree)
    arrays = {name: host_array(leaf) for name, leaf in leaves.items() if is_array(leaf)}
    table = {name: describe_leaf(leaf) for name, leaf in leaves.items()}
    for name, values in arrays.items():
        table[name]["digest"] = array_digest(values)
    text = json.dumps(table)
    about = {"format": _FORMAT, "leaves": text, "digest": text_digest(text)}
    with replacing(file_path) as file:
        write_tensors(file, arrays, about)


def load(path: str | os.PathLike[str], like: PyTree = None) -> PyTree:
    """Return the tree that `save` wrote.

    Args:
        path: The file.
        like: A tree of the same structure, whose arrays (or `jax.ShapeDtypeStruct`s) have the same
            shapes and dtypes, on any devices. The result has its classes, static fields, shardings,
            numpy arrays and objects that are not data. Without it, the result is a dict of leaves
            by their paths, with numpy arrays and jax keys, without objects that are not data.

    Raises:
        DamagedFileError: The file was not written by `save`, or was truncated or changed.
        ValueError: The tree is not like `like`; the message names the leaf and how it differs. Or
            the file has the format of another version.
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read.

    >>> import jax.numpy as jnp, pathlib, solstice, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "state.safetensors"
    >>> solstice.tree.save(file, {"w": jnp.ones(2), "step": 7})
    >>> solstice.tree.load(file, like={"w": jnp.zeros(2), "step": 0})
    {'step': 7, 'w': Array([1., 1.], dtype=float32)}
    >>> solstice.tree.load(file)
    {'step': 7, 'w': array([1., 1.], dtype=float32)}
    """
    path = arguments.existing_file(path, "path")
    _refuse_older(path)
    with Tensors.open(path) as file, untrusted(path):
        table = _table(file)
        arrays = {name for name, entry in table.items() if "dtype" in entry}
        if file.names != arrays:
            raise damaged(path, "it does not hold the arrays that were written")
        if like is not None:
            wanted = leaves_by_path(like)
            check_like(str(path), table, wanted)
            found = [_read(file, name, table[name], leaf) for name, leaf in wanted.items()]
            return jax.tree.unflatten(jax.tree.structure(like), found)
        return {
            name: _read(file, name, entry, None)
            for name, entry in table.items()
            if entry["kind"] != OBJECT
        }


def describe_leaf(leaf: object) -> dict[str, PyTree]:
    """Return a file's description of a leaf: everything but the numbers of an array.

    That is its kind, the dtype and shape of an array's numbers (for typed keys, of their data), or
    a value as JSON.

    >>> import numpy as np
    >>> describe_leaf(np.ones(2))
    {'kind': 'float64[2]', 'dtype': 'float64', 'shape': [2], 'impl': None}
    >>> describe_leaf("adam")
    {'kind': 'str', 'value': '"adam"'}
    """
    about: dict[str, PyTree] = {"kind": kind(leaf)}
    if is_array(leaf):
        impl = key_impl(leaf)
        numbers = leaf if impl is None else jax.eval_shape(jax.random.key_data, leaf)
        about |= {"dtype": dtype_name(numbers.dtype), "shape": list(numbers.shape), "impl": impl}
    elif about["kind"] != OBJECT:
        about["value"] = to_json(leaf)
    return about


def value_of(where: str, name: str, about: Mapping[str, PyTree]) -> PyTree:
    """Return the value of a leaf that is not an array, of the kind in the file."""
    value = from_json(about["value"])
    if kind(value) != about["kind"]:
        raise damaged(where, f"{name!r} is {kind(value)} there instead of {about['kind']}")
    return value


def check_like(
    where: str, found: Mapping[str, PyTree], like: Mapping[str, PyTree], name: str = "like"
) -> None:
    """Raise if a file's descriptions of leaves, by path, do not match the leaves of `like`.

    Args:
        where: The file.
        found: Its description of each leaf.
        like: The leaves.
        name: The argument's name, for the message.

    Raises:
        ValueError: The leaf is named, and how it differs.
        DamagedFileError: The file contradicts itself.
    """
    check_kinds(where, {path: about["kind"] for path, about in found.items()}, like, name)
    for path, about in found.items():
        if is_array(leaf := like[path]):
            shape, impl = tuple(about["shape"]), about["impl"]
            if is_typed_key(leaf):
                fits = shape[: leaf.ndim] == leaf.shape and about["dtype"] == "uint32" and impl
            else:
                fits = shape == leaf.shape and about["dtype"] == dtype_name(leaf.dtype)
            if not fits or (impl is not None) != is_typed_key(leaf):
                raise damaged(where, f"its description of {path!r} contradicts itself")


def _read(file: Tensors, name: str, entry: dict[str, PyTree], like: PyTree) -> PyTree:
    if entry["kind"] == OBJECT:
        return like
    if "dtype" not in entry:
        return value_of(file.place, name, entry)
    shape = tuple(entry["shape"])
    values = file.read(name, as_dtype(entry["dtype"]), shape, entry["digest"])
    if like is not None:
        return from_host(values, like, entry["impl"])
    return values if entry["impl"] is None else as_keys(values, entry["impl"])


def _table(file: Tensors) -> dict[str, PyTree]:
    """Return the descriptions of leaves in the file's metadata, by path."""
    about = file.about
    if about.get("format") != _FORMAT:
        raise DamagedFileError(
            f"{file.place} is expected to be a file of solstice.tree.save, {_FORMAT!r}; "
            f"solstice.tree.save did not write it, or it was changed since. Use another copy. A "
            f"checkpoint's arrays are read by solstice.restore(directory, exp), and those of any "
            f"safetensors file by safetensors.numpy.load_file(path).",
            path=str(file.place),
        )
    text = about.get("leaves", "")
    if text_digest(text) != about.get("digest"):
        raise damaged(file.place, "its description of the leaves was changed")
    return json.loads(text)


def _refuse_older(path: Path) -> None:
    with path.open("rb") as file:
        first = file.read(len(_BEFORE[0]))
    if first in _BEFORE:
        raise InvalidValueError(
            f"{path} has the format {first.decode().strip()!r}, and this version of Solstice reads "
            f"{_FORMAT!r}, in safetensors. Load it with the version that wrote it."
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file that replaces `path` once it is complete."""
    path = Path(os.path.realpath(path))  # a link keeps pointing to the replaced file
    if os.path.lexists(path):
        check_regular(path)
    with staged_beside(path) as staging:
        file = staging / path.name
        yield file
        with contextlib.suppress(FileNotFoundError):
            file.chmod(path.stat().st_mode)
        file.replace(path)
        sync_directory(path.parent)
