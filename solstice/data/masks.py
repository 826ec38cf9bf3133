"""Masks: mark which examples of a batch are real, for batches of the usual forms."""

from collections.abc import Mapping

from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.tree.pytree import AnyArray, PyTree


def masked(batch: PyTree, real: AnyArray) -> PyTree:
    """Return the batch with all but the `real` examples masked.

    `(x, y)` becomes `(x, y, mask)`, and a mapping gets the entry "mask".

    Raises:
        TypeError: It has no place for a mask.

    >>> import numpy as np
    >>> masked((np.zeros(2), np.ones(2)), np.array([True, False]))
    (array([0., 0.]), array([1., 1.]), array([ True, False]))
    """
    if isinstance(batch, Mapping):
        return {**batch, "mask": _both(batch.get("mask"), real)}
    # A named tuple has no field for it, or would lose its names.
    plain = isinstance(batch, tuple | list) and not hasattr(batch, "_fields")
    if plain and len(batch) in (2, 3):
        return batch[0], batch[1], _both(batch[2] if len(batch) == 3 else None, real)
    raise InvalidTypeError(
        f"last='pad' adds a mask, so batches are expected to be (x, y), (x, y, mask) or a mapping, "
        f"and not a named tuple; one is {describe(batch)}. Pass last='short' or last='drop'."
    )


def _both(mask: AnyArray | None, real: AnyArray) -> AnyArray:
    if mask is None:
        return real
    # A product, not `and`, since masks may be the numbers 0 and 1.
    return mask * real.reshape(-1, *[1] * (mask.ndim - 1)).astype(mask.dtype)
