"""Arrays in Keras's files, `.weights.h5` and `.keras`, by Keras's names.

In the file, layers are numbered by class and variables by position: "layers/dense_1/vars/0". A
layer's own name is an attribute there, and a variable's follows from the layer's class.
"""

import contextlib
import io
import re
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from solstice.compat.weights.words import (
    DEPTHWISE_KERNEL,
    POINTWISE_KERNEL,
    TRANSPOSED_KERNEL,
    natural,
)
from solstice.errors import MissingPackageError
from solstice.tree.tensors import damaged

_WEIGHTS = "model.weights.h5"


def read_hdf5(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the arrays, as "dense_1/kernel"; layers of one class are in the network's order.

    Raises:
        DamagedFileError: It is not a complete file of this format.
        MissingPackageError: h5py is not installed.
    """
    return _datasets(path, path), ()


def read_keras_archive(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the weights in a file of Keras's `model.save`; nothing else in it is read.

    Raises:
        DamagedFileError: It is not a complete file of this format.
        MissingPackageError: h5py is not installed.
    """
    _h5py()
    try:
        with zipfile.ZipFile(path) as archive:
            content = archive.read(_WEIGHTS)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, RuntimeError) as error:
        raise damaged(path, f"it is not a complete Keras archive ({error})") from error
    return _datasets(path, io.BytesIO(content)), ()


def _datasets(path: Path, file: Path | io.BytesIO) -> dict[str, np.ndarray]:
    h5py = _h5py()
    arrays: dict[str, np.ndarray] = {}
    own: dict[str, str] = {}

    def note(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            arrays[name] = np.asarray(node)
        elif name.endswith("/vars") and isinstance(node.attrs.get("name"), str):
            own[name.removesuffix("/vars")] = node.attrs["name"]

    # HDF5 raises these for a file that was cut or changed.
    try:
        with contextlib.closing(h5py.File(file, "r")) as opened:
            opened.visititems(note)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise damaged(path, f"it is not a complete HDF5 file ({error})") from error
    counts = Counter(name.rpartition("/vars/")[0] for name in arrays)
    names = {name: _name(name, arrays, own, counts) for name in sorted(arrays, key=natural)}
    if len(set(names.values())) < len(names):  # two layers of a name, in parts of the network
        return {name: arrays[name] for name in names}
    return {new: arrays[name] for name, new in names.items()}


# The names of a layer's variables, by its class and their number.
_VARIABLES = {
    "batch_normalization": {
        2: ("moving_mean", "moving_variance"),
        4: ("gamma", "beta", "moving_mean", "moving_variance"),
    },
    "layer_normalization": {2: ("gamma", "beta")},
    "group_normalization": {2: ("gamma", "beta")},
    "embedding": {1: ("embeddings",)},
    **{
        kind: {2: ("kernel", "recurrent_kernel"), 3: ("kernel", "recurrent_kernel", "bias")}
        for kind in ("cell", "gru_cell", "lstm_cell", "simple_rnn_cell")
    },
    **{
        f"conv{n}d_transpose": {1: (TRANSPOSED_KERNEL,), 2: (TRANSPOSED_KERNEL, "bias")}
        for n in (1, 2, 3)
    },
    **{
        f"depthwise_conv{n}d": {1: (DEPTHWISE_KERNEL,), 2: (DEPTHWISE_KERNEL, "bias")}
        for n in (1, 2)
    },
    **{
        f"separable_conv{n}d": {
            2: (DEPTHWISE_KERNEL, POINTWISE_KERNEL),
            3: (DEPTHWISE_KERNEL, POINTWISE_KERNEL, "bias"),
        }
        for n in (1, 2)
    },
}
_KERNELS = {1: ("kernel",), 2: ("kernel", "bias")}


def _name(
    path: str, arrays: dict[str, np.ndarray], own: dict[str, str], counts: Counter[str]
) -> str:
    """Return the name of an array, of its path in the file."""
    layer, found, place = path.rpartition("/vars/")
    if not found or not place.isdigit() or f"{layer}/vars/0" not in arrays:
        return path
    kind = re.sub(r"_\d+$", "", layer.rpartition("/")[2])
    by_count = _VARIABLES.get(kind, _KERNELS if arrays[f"{layer}/vars/0"].ndim > 1 else {})
    variables = by_count.get(counts[layer], tuple(map(str, range(counts[layer]))))
    variable = variables[int(place)] if int(place) < len(variables) else place
    parts, names = layer.split("/"), []
    for end, part in enumerate(parts, 1):
        if part == "layers":
            continue
        given = own.get("/".join(parts[:end]), part)
        # A name that Keras numbered itself depends on what was built before.
        automatic = re.sub(r"_\d+$", "", given) == re.sub(r"_\d+$", "", part)
        names.append(part if automatic else given)
    return "/".join([*names, variable])


def _h5py() -> ModuleType:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "Reading Keras's files needs the package 'h5py', which is not installed: "
            "pip install h5py"
        ) from error
    return h5py
