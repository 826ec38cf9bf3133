"""Gathered: a batch as indices into arrays on the device.

A compiled step gathers the rows, so only indices go to the device. Everything else opens it first.
"""

from collections.abc import Callable, Iterable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice.tree.pytree import AnyArray, PyTree

# Makes a batch of gathered leaves and its numbers; equal ones share a compiled program.
Recipe = Callable[[list[Array], AnyArray], PyTree]

# (batch, which examples are real) -> the batch with that mask; None without masks
Mask = Callable[[PyTree, AnyArray], PyTree]


@jax.tree_util.register_pytree_node_class
class Gathered:
    """The rows of one batch, or of several, stacked.

    Args:
        arrays: Whole arrays on the device.
        rows: Indices along their first axes, `(batch,)`; for several batches `(batches, batch)`.
        numbers: The epoch, the batch's index and the number of real rows, `(3,)` of uint32.
        recipe: How to make a batch of the rows.
        masked: Whether the experiment's mask marks which rows are real.
    """

    __slots__ = ("arrays", "masked", "numbers", "recipe", "rows")

    def __init__(
        self, arrays: list[PyTree], rows: PyTree, numbers: PyTree, recipe: Recipe, masked: bool
    ) -> None:
        self.arrays, self.rows, self.numbers = arrays, rows, numbers
        self.recipe, self.masked = recipe, masked

    @classmethod
    def stacked(cls, batches: "list[Gathered]") -> "Gathered":
        """Return several batches of the same arrays as one."""
        first = batches[0]
        rows = np.stack([one.rows for one in batches])
        numbers = np.stack([one.numbers for one in batches])
        return cls(first.arrays, rows, numbers, first.recipe, first.masked)

    def at(self, indices: tuple[PyTree, PyTree]) -> "Gathered":
        """Return a batch of the same arrays with other rows and numbers."""
        return Gathered(self.arrays, *indices, self.recipe, self.masked)

    def open(self, with_mask: Mask) -> PyTree:
        """Return the batch itself, inside or outside a compiled step.

        Args:
            with_mask: Adds the experiment's mask to a batch.
        """
        taken = [jnp.take(array, self.rows, 0, mode="clip") for array in self.arrays]
        batch = self.recipe(taken, self.numbers)
        if not self.masked:
            return batch
        return with_mask(batch, jnp.arange(len(self.rows)) < self.numbers[2])

    def tree_flatten(self) -> tuple[tuple[PyTree, ...], tuple[Recipe, bool]]:
        return (self.arrays, self.rows, self.numbers), (self.recipe, self.masked)

    @classmethod
    def tree_unflatten(cls, static: tuple[Recipe, bool], children: Iterable[PyTree]) -> Self:
        arrays, rows, numbers = children
        return cls(arrays, rows, numbers, *static)


def opened(batch: PyTree, with_mask: Mask) -> PyTree:
    """Return the batch itself; one to be gathered in the step is gathered now.

    >>> data = Gathered([jnp.arange(4) * 10], np.array([3, 1]), np.zeros(3, np.uint32),
    ...                 lambda leaves, numbers: tuple(leaves), masked=False)
    >>> opened(data, lambda batch, real: None)
    (Array([30, 10], dtype=int32),)
    >>> opened(5.0, lambda batch, real: None)
    5.0
    """
    return batch.open(with_mask) if type(batch) is Gathered else batch
