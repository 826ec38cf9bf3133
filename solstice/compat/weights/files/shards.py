"""Arrays of safetensors files: of one, or of a folder of shards with its index."""

import json
from pathlib import Path

import numpy as np

from solstice.errors import InvalidValueError
from solstice.tree.tensors import Tensors, as_dtype, damaged, untrusted

SHARDS = ".safetensors.index.json"
# The entry of `compat.save` in a file's metadata for arrays whose dtype the format lacks.
DTYPES = "solstice dtypes"


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the arrays by name.

    Raises:
        DamagedFileError: It is not a complete file of this format.
        InvalidValueError: An array is of a dtype that numpy lacks.
    """
    with Tensors.open(path) as file, untrusted(path):
        arrays = {name: file.load(name) for name in sorted(file.names)}
        for name, dtype in json.loads(file.about.get(DTYPES, "{}")).items():
            stored = np.ascontiguousarray(arrays[name])
            arrays[name] = stored.view(as_dtype(dtype)).reshape(stored.shape[:-1])
    return arrays, ()


def is_sharded(folder: Path) -> bool:
    """Return whether a folder holds safetensors files."""
    return any(folder.glob("*.safetensors")) or any(folder.glob(f"*{SHARDS}"))


def read_shards(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of all shards: those of an index, or else all files of a folder.

    Raises:
        DamagedFileError: A shard is missing, or lacks an array that the index lists.
        InvalidValueError: There are several indices, or two shards have an array of one name.
    """
    indices = [path] if path.is_file() else sorted(path.glob(f"*{SHARDS}"))
    if len(indices) > 1:
        names = ", ".join(repr(one.name) for one in indices)
        raise InvalidValueError(f"{path} is expected to have one index; it has {names}. Name one.")
    if not indices:
        return _joined(path, sorted(path.glob("*.safetensors")))
    (index,) = indices
    with untrusted(index):
        places: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
        for file in places.values():
            if Path(file).name != file:
                raise damaged(index, f"it names the shard {file!r}, which is outside its folder")
    shards = [index.parent / file for file in dict.fromkeys(places.values())]
    for shard in shards:
        if not shard.is_file():
            raise damaged(index, f"the shard {shard.name!r} that it names is missing")
    arrays = _joined(index, shards)
    missing = [name for name in places if name not in arrays]
    if missing:
        raise damaged(index, f"{missing[0]!r} is in none of its shards")
    return {name: arrays[name] for name in places}


def _joined(place: Path, shards: list[Path]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for shard in shards:
        found, _ = read_safetensors(shard)
        if double := sorted(arrays.keys() & found):
            raise InvalidValueError(
                f"Two shards of {place} have an array {double[0]!r}; remove one, or name a file."
            )
        arrays |= found
    return arrays
