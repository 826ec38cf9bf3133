"""Tensors of torch: those of its checkpoints, read with `weights_only`, and those in a mapping."""

import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError, MissingPackageError
from solstice.tree.tensors import damaged


def read_torch(path: Path) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """Return what `torch.save` wrote, a mapping, without running any code of the file's.

    Raises:
        DamagedFileError: It is not a complete torch file.
        InvalidValueError: It holds more than tensors and plain values, as whole modules are.
        MissingPackageError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            f"Reading {path.name!r} needs the package 'torch', which is not installed (and without "
            f"it, the file would have to be unpickled, which runs code): pip install torch "
            f"--index-url https://download.pytorch.org/whl/cpu. Or, on a machine with torch: "
            f"safetensors.torch.save_file(module.state_dict(), 'weights.safetensors')."
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        why = next((line for line in lines if "GLOBAL" in line), "")
        if not why:
            raise damaged(path, f"it is not a complete torch file ({lines[0]})") from error
        raise InvalidValueError(
            f"{path} is expected to hold tensors; it holds other objects, which are not unpickled: "
            f"that runs code. ({why}) Save torch.save(module.state_dict(), path)."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, IndexError, AttributeError) as error:
        why = str(error).partition("\n")[0][:200]
        raise damaged(
            path, f"it is not a complete torch file ({why or 'it ends early'})"
        ) from error
    if not isinstance(found, Mapping):
        raise InvalidTypeError(
            f"{path} is expected to hold a state dict, names with their tensors; it holds "
            f"{describe(found)}. Save torch.save(module.state_dict(), path)."
        )
    return found, ()


def is_tensor(leaf: object) -> bool:
    """Say whether something is a tensor of torch, without importing it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(leaf, torch.Tensor)


def from_tensor(tensor: Any) -> np.ndarray:
    """Return the numbers of a tensor, bfloat16 as jax has it."""
    torch = sys.modules["torch"]
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return np.array(tensor.numpy())
