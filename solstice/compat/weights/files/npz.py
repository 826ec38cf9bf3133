"""Arrays of an `.npz` file, which is read without unpickling."""

import zipfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from solstice.errors import InvalidValueError, SolsticeError
from solstice.tree.tensors import damaged

# Errors of zipfile and numpy for truncated or changed files, and for wrong sizes in them.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def read_npz(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the arrays by name, in the file's order, and notes for the user.

    numpy writes bfloat16 without its type: 2-byte values without a type are read as bfloat16.

    Raises:
        DamagedFileError: It is not a complete file of this format.
        InvalidValueError: It holds Python objects, or two arrays of one name.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = [info.filename for info in file.infolist()]
        names = [member.removesuffix(".npy") for member in members]
        if len(set(names)) < len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise InvalidValueError(f"Two arrays of {path} are named {double!r}; rename one.")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _array(path, file, name) for name in names}
    except SolsticeError:
        raise
    except _DAMAGE as error:
        raise damaged(path, f"it is not a complete .npz file ({error})") from error
    halves = [name for name, leaf in arrays.items() if leaf.dtype == np.dtype("V2")]
    for name in halves:
        arrays[name] = arrays[name].view(jnp.bfloat16)
    if not halves:
        return arrays, ()
    return arrays, (f"{len(halves)} arrays of 2-byte values without a type were read as bfloat16.",)


def _array(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        found = file[name]
    except ValueError as error:
        if "pickle" in str(error):
            raise InvalidValueError(
                f"{path} is expected to hold arrays of numbers; {name!r} holds Python objects, "
                f"which are not unpickled: that runs code. Write arrays of numbers."
            ) from error
        raise damaged(path, f"{name!r} is not a complete array ({error})") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind in "OSUMm":
        kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
        raise InvalidValueError(
            f"{path} is expected to hold arrays of numbers; {name!r} is {kind}."
        )
    if found.dtype.kind == "V" and found.dtype != np.dtype("V2"):
        raise InvalidValueError(
            f"{path} is expected to hold arrays of numbers; {name!r} is of {found.dtype}, which "
            f"has no numeric type. Write it as float32, or with safetensors."
        )
    return found
