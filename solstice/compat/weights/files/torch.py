"""Tensors of torch: those of its checkpoints, read with `weights_only`, and those in a mapping."""

import importlib
import pickle
import struct
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError, MissingPackageError
from solstice.tree.tensors import damaged

# Errors of torch for a file that was cut or changed. It may seek to before the start (OSError).
_DAMAGE = (
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
    IndexError,
    AttributeError,
    OSError,
    AssertionError,
    MemoryError,
    OverflowError,
    TypeError,
    struct.error,
)


def read_torch(path: Path) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """Return the mapping that `torch.save` wrote, without running any code from the file.

    Raises:
        DamagedFileError: It is not a complete torch file.
        InvalidValueError: It holds more than tensors and plain values, for example a whole module.
        MissingPackageError: torch is not installed.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise MissingPackageError(
            f"Reading {path.name!r} needs the package 'torch', which is not installed (and without "
            f"it, the file would have to be unpickled, which runs code): pip install torch "
            f"--index-url https://download.pytorch.org/whl/cpu. Or, on a machine with torch: "
            f"safetensors.torch.save_file(module.state_dict(), 'weights.safetensors')."
        ) from error
    with path.open("rb") as file:
        found = _content(torch, path, file)
    if not isinstance(found, Mapping):
        raise InvalidTypeError(
            f"{path} is expected to hold a state dict, names with their tensors; it holds "
            f"{describe(found)}. Save torch.save(module.state_dict(), path)."
        )
    return found, ()


def _content(torch: Any, path: Path, file: BinaryIO) -> Any:
    """Return what torch reads from an open file; see `read_torch` for the errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        why = next((line for line in lines if "GLOBAL" in line), "")
        if why and not file.read(1):
            raise damaged(path, "it is not a complete torch file (it ends early)") from error
        if not why:
            # torch also advises to read the file without `weights_only`, which runs its code.
            said = (line for line in lines if line.startswith("Unsupported"))
            why = f"weights are not read from it: {next(said, 'its pickle is unusual')[:99]}"
            raise damaged(path, f"it is not a complete torch file ({why})") from error
        raise InvalidValueError(
            f"{path} is expected to hold tensors; it holds other objects, which are not unpickled: "
            f"that runs code. ({why}) Save torch.save(module.state_dict(), path)."
        ) from error
    except _DAMAGE as error:
        if "TorchScript" in str(error):
            raise InvalidValueError(
                f"{path} is expected to hold tensors; it is a program of TorchScript. Save "
                f"torch.save(torch.jit.load(path).state_dict(), other)."
            ) from error
        why = str(error).partition("\n")[0][:200]
        raise damaged(
            path, f"it is not a complete torch file ({why or 'it ends early'})"
        ) from error


def is_tensor(leaf: object) -> bool:
    """Return whether something is a tensor of torch, without importing it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(leaf, torch.Tensor)


def from_tensor(tensor: Any) -> np.ndarray:
    """Return the numbers of a tensor, types that numpy lacks as jax has them.

    Raises:
        InvalidTypeError: It is on torch's meta device, quantized, or otherwise without numbers.
    """
    torch = sys.modules["torch"]
    try:
        tensor = tensor.detach().cpu()
        tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
        tensor = tensor.resolve_conj().resolve_neg().contiguous()
        name = str(tensor.dtype).removeprefix("torch.")
        if name == "bfloat16" or name.startswith("float8"):
            bits = torch.int16 if name == "bfloat16" else torch.uint8
            return tensor.view(bits).numpy().view(jnp.dtype(name))
        return np.array(tensor.numpy())
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise InvalidTypeError(
            f"A tensor of torch is expected to be one of numbers that numpy or jax has; it is "
            f"{describe(tensor)}: {str(error).partition(chr(10))[0][:200]} Of a quantized one, "
            f"pass tensor.dequantize(); of one on the device 'meta', load its weights first."
        ) from error
