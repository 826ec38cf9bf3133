"""Columns: errors for values in a batch that a compiled step cannot take.

jax's errors do not say which part of a batch it is, nor what to do about it.
"""

import numbers

import jax
import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.tree.names import path_name
from solstice.tree.pytree import PyTree

# By the kind of numpy's dtype.
_KINDS = {"U": "text", "S": "text", "O": "Python objects", "M": "dates", "m": "spans of time"}
_REMEDIES = {
    "text": "Encode it as numbers",
    "Python objects": "Make it one array, np.stack(list(column)) of equal arrays, or "
    "table.to_numpy('float32') of a table with columns of several types",
    "dates": "Make it numbers, column.astype('int64')",
    "spans of time": "Make it numbers, column.astype('int64')",
    "records": "Give their fields as separate arrays",
}


def check_columns(batch: PyTree, name: str, *, static: bool = False) -> None:
    """Raise for an array or an object in a batch that a compiled step cannot take.

    Args:
        batch: A batch.
        name: The dataset's name, for the message.
        static: Whether objects that are not arrays are allowed, as under `equinox.filter_jit`.

    Raises:
        TypeError: The column is named.

    >>> check_columns({"image": np.zeros((2, 3)), "id": np.array(["a", "b"])}, "train_ds")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: train_ds is expected to give arrays of numbers; its column \
'id' is text, <U1[2]. Encode it as numbers, or leave the column out of the batches.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        is_numpys = isinstance(leaf, np.ndarray | np.generic)
        if isinstance(leaf, np.ma.MaskedArray):
            raise InvalidTypeError(
                f"{name} is expected to give arrays without a mask; its {_column(path)} is a "
                "masked "
                f"array of numpy, {describe(leaf)}, whose mask no step would see. Fill it, "
                f"x.filled(0), and pass ~np.ma.getmaskarray(x) too if the step needs the mask."
            )
        if is_numpys and not leaf.dtype.isnative:
            raise InvalidTypeError(
                f"{name} is expected to give arrays in this machine's byte order; "
                f"{_column(path)} is {describe(leaf)}. Convert it once, after reading it: "
                f"x.astype(x.dtype.newbyteorder('='))."
            )
        what = _what(leaf) if is_numpys or not static else None
        if what is not None:
            remedy = _REMEDIES.get(what, "Give its numbers as an array")
            raise InvalidTypeError(
                f"{name} is expected to give arrays of numbers; its {_column(path)} is {what}, "
                f"{describe(leaf)}. {remedy}, or leave the column out of the batches."
            )


def _what(leaf: object) -> str | None:
    """Describe what a leaf is if it is not a number, key or array of these."""
    if isinstance(leaf, np.ndarray | np.generic):
        if leaf.dtype.kind == "O" and leaf.size and isinstance(leaf.flat[0], str | bytes):
            return "text"
        return "records" if leaf.dtype.type is np.void else _KINDS.get(leaf.dtype.kind)
    if isinstance(leaf, jax.Array | numbers.Number) or hasattr(leaf, "__jax_array__"):
        return None
    return "text" if isinstance(leaf, str | bytes) else "no array"


def _column(path: tuple[object, ...]) -> str:
    # The list is the column, not its elements.
    while len(path) > 1 and isinstance(path[-1], jax.tree_util.SequenceKey):
        path = path[:-1]
    return f"column {path_name(path)!r}" if path else "batch itself"
