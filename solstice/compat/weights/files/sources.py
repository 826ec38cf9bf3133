"""Sources of weights: files of several formats and mappings of arrays, as one flat table.

Nothing is ever unpickled: a file that could run code when it is read raises an error.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.core import Tracer

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.model import Model
from solstice.compat.weights.files.hdf5 import read_hdf5, read_keras_archive
from solstice.compat.weights.files.npz import read_npz
from solstice.compat.weights.files.orbax import is_orbax, read_orbax
from solstice.compat.weights.files.shards import SHARDS, is_sharded, read_safetensors, read_shards
from solstice.compat.weights.files.torch import from_tensor, is_tensor, read_torch
from solstice.compat.weights.words import natural
from solstice.errors import InvalidTypeError, InvalidValueError, MissingFileError
from solstice.tree.kinds import is_typed_key
from solstice.tree.names import few
from solstice.tree.naming import flatten_with_paths
from solstice.tree.tensors import damaged

_READERS = {
    ".safetensors": read_safetensors,
    ".npz": read_npz,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".keras": read_keras_archive,
    ".pt": read_torch,
    ".pth": read_torch,
    ".ckpt": read_torch,
    ".bin": read_torch,
}
_REFUSED = {
    ".npy": "it is one array without a name",
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".dill"), "pickles run code when they are read"),
}
# Keys under which torch programs keep the state dict in a checkpoint.
_NESTS = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights",
    "params", "ema_state_dict",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """The arrays of a source, by name.

    Attributes:
        place: Its name in messages: a path, or "the mapping".
        arrays: By name, on the host.
        in_order: Whether the names are in the order in which the network defines them.
        notes: Remarks on the reading for the user.
        parts: Arrays that are no weights by themselves, but parts of weights that are not known.
    """

    place: str
    arrays: dict[str, np.ndarray]
    in_order: bool
    notes: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset()


def read(source: Any, name: str = "source") -> Source:
    """Return the arrays of a file, a folder or a mapping.

    Args:
        source: As `compat.load` takes it.
        name: The name of the user's argument.

    Raises:
        DamagedFileError: A file is truncated, or its format does not match its suffix.
        MissingFileError: There is no such file.
        MissingPackageError: The format needs a package that is not installed.
        TypeError: It is not a source, or holds something other than arrays.
        ValueError: It is empty, of an unknown format, or two of its arrays have one name.

    >>> read({"layer": {"w": np.ones((2, 3)), "b": np.zeros(3)}}).arrays.keys()
    dict_keys(['layer/w', 'layer/b'])
    """
    if isinstance(source, str | os.PathLike):
        found = _read_path(arguments.path(source, "source"))
    elif isinstance(source, Mapping):
        found = _of_mapping("the mapping", source, name)
    elif isinstance(source, Model):
        raise InvalidTypeError(
            "source is expected to be a file, a folder or a mapping of arrays; it is a "
            f"{type(source).__name__}. From one Model to another: compat.convert(source, "
            "like=model, example=x)."
        )
    else:
        raise InvalidTypeError(
            f"source is expected to be the path of a file ({', '.join(_READERS)}) or of a folder "
            f"(shards of safetensors, an Orbax checkpoint), or a mapping of arrays; it is "
            f"{describe(source)}. For a torch module, pass module.state_dict()."
        )
    if not found.arrays:
        raise InvalidValueError(
            f"{name} is expected to hold arrays; {found.place} holds none: {describe(source)}."
        )
    if found.in_order and list(found.arrays) == sorted(found.arrays):
        # Sorted as strings, "10" before "2", which is not a network's order.
        by_number = {one: found.arrays[one] for one in sorted(found.arrays, key=natural)}
        return dataclasses.replace(found, arrays=by_number)
    return found


def _read_path(path: Path) -> Source:
    place = str(path)
    if not path.exists():
        raise MissingFileError(f"source is expected to be a file or a folder; {place} is neither.")
    if path.is_dir():
        return _read_folder(path)
    if path.name.endswith(SHARDS):
        return Source(place, read_shards(path), in_order=False)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        why = _REFUSED.get(suffix, f"its suffix is {suffix!r}")
        raise InvalidValueError(
            f"source is expected to be a file whose suffix is one of {', '.join(_READERS)}; "
            f"{place} is not read: {why}. "
            f"Write the arrays, by name, with safetensors.numpy.save_file or numpy.savez, or pass "
            f"them as a mapping."
        )
    if not path.stat().st_size:
        raise damaged(place, "it is empty")
    content, notes = _READERS[suffix](path)
    if isinstance(content, dict) and _READERS[suffix] is not read_torch:
        return Source(place, content, in_order=suffix == ".npz", notes=notes)
    found = _of_mapping(place, content)
    return dataclasses.replace(found, notes=(*found.notes, *notes))


def _read_folder(path: Path) -> Source:
    if is_sharded(path):
        return Source(str(path), read_shards(path), in_order=False)
    if is_orbax(path):
        return dataclasses.replace(_of_mapping(str(path), read_orbax(path)), in_order=False)
    inside = sorted(one.name for one in path.iterdir())
    raise InvalidValueError(
        f"source is expected to be a folder of safetensors files or an Orbax checkpoint; {path} "
        f"holds {', '.join(map(repr, inside[:6])) or 'nothing'}. Name the file or the folder in it."
    )


def _of_mapping(place: str, mapping: Mapping[Any, Any], argument: str = "source") -> Source:
    """Return a mapping's arrays, flat, in its order; those of the state dict in a checkpoint."""
    notes: tuple[str, ...] = ()
    if nest := _state_dict(mapping):
        others = [repr(name) for name in mapping if name != nest]
        left = f"; {few(others)} were left" if others else ""
        notes = (f"The arrays are those under {nest!r}{left}.",)
        mapping = mapping[nest]
    arrays: dict[str, np.ndarray] = {}
    torch = False
    for name, leaf in _walk("", mapping):
        if leaf is None:
            continue
        torch = torch or is_tensor(leaf)
        if name in arrays:
            raise InvalidValueError(f"Two arrays of {place} are named {name!r}; rename one.")
        arrays[name] = _as_array(f"{argument}, {place},", name, leaf)
    # flax.nnx writes each array as {"value": array}.
    if arrays and all(name.endswith("/value") for name in arrays):
        arrays = {name.removesuffix("/value"): leaf for name, leaf in arrays.items()}
    return Source(place, arrays, torch or "." in "".join(arrays), notes)


def _state_dict(mapping: Mapping[Any, Any]) -> str | None:
    """Return the key under which a torch checkpoint holds its state dict."""
    return next(
        (
            name
            for name in _NESTS
            if isinstance(inner := mapping.get(name), Mapping)
            and any(map(is_tensor, inner.values()))
        ),
        None,
    )


def _walk(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and leaves of a tree; a mapping keeps its order, which jax's trees lose."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _walk(f"{prefix}/{key}" if prefix else str(key), value)
    elif is_tensor(node) or _is_array(node):
        yield prefix, node
    else:
        pairs, _ = flatten_with_paths(node)
        yield from (("/".join(filter(None, (prefix, name))), leaf) for name, leaf in pairs)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | np.generic) or (
        hasattr(leaf, "__array__") and hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    )


def _as_array(what: str, name: str, leaf: Any) -> np.ndarray:
    if is_tensor(leaf):
        return from_tensor(leaf)
    odd = isinstance(leaf, Tracer | np.ma.MaskedArray) or is_typed_key(leaf)
    numbers = np.asarray(leaf) if _is_array(leaf) and not odd else None
    if numbers is None or numbers.dtype.kind in "OSUMm":
        raise InvalidTypeError(
            f"{what} is expected to hold arrays of numbers; {name!r} is {describe(leaf)}. Leave it "
            f"out, or pass the part that holds the arrays."
        )
    return numbers
