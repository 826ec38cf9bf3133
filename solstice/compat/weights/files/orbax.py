"""Arrays of an Orbax checkpoint: of one item of it, as numpy's arrays."""

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from solstice.errors import InvalidValueError, MissingPackageError
from solstice.tree.tensors import damaged

_TREE = ("_METADATA", "manifest.ocdbt")
_MARKS = (*_TREE, "_CHECKPOINT_METADATA")


def is_orbax(folder: Path) -> bool:
    """Return whether a folder is a checkpoint of Orbax, an item of one, or holds them by step."""
    return any((folder / mark).exists() for mark in _MARKS) or bool(_steps(folder))


def read_orbax(folder: Path) -> Any:
    """Return the tree of arrays of an item; of a checkpoint with one item, of that one.

    Raises:
        DamagedFileError: It is not a complete checkpoint.
        InvalidValueError: It holds several steps or items; name one.
        MissingPackageError: Orbax is not installed.
    """
    folder = _item(folder)
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise MissingPackageError(
            "Reading an Orbax checkpoint needs the package 'orbax-checkpoint', which is not "
            "installed: pip install orbax-checkpoint"
        ) from error
    # Orbax has no error classes: a missing or changed file raises many kinds.
    try:
        with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as checkpointer:
            warnings.simplefilter("ignore")
            tree: Any = checkpointer.metadata(folder).item_metadata.tree
            numpys = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return checkpointer.restore(folder, restore_args=numpys)
    except Exception as error:
        why = str(error).partition("\n")[0][:200]
        raise damaged(folder, f"it is not a complete Orbax checkpoint ({why})") from error


def _steps(folder: Path) -> list[Path]:
    steps = [one for one in folder.iterdir() if one.is_dir() and one.name.isdigit()]
    return [one for one in steps if any((one / mark).exists() for mark in _MARKS)]


def _item(folder: Path) -> Path:
    if any((folder / mark).exists() for mark in _TREE):
        return folder
    inside = _steps(folder) or [
        one for one in folder.iterdir() if any((one / mark).exists() for mark in _TREE)
    ]
    if len(inside) == 1:
        return _item(inside[0])
    names = ", ".join(repr(one.name) for one in sorted(inside, key=str))
    raise InvalidValueError(
        f"{folder} is expected to hold one tree of arrays; it holds {names or 'none'}. Name the "
        f"one to read."
    )
