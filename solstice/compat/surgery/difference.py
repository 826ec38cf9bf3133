"""The first layer at which two networks differ, of the same library or of two."""

from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np

from solstice.tree.pytree import PyTree


class Difference(NamedTuple):
    """The first sub-module whose value the other network does not compute.

    Attributes:
        path: The sub-module.
        nearest: The sub-module of the other network with the most similar value.
        distance: The distance between the two, relative to the largest number of the first.
    """

    path: str
    nearest: str
    distance: float


def first_difference(
    found: Mapping[str, PyTree], others: Mapping[str, PyTree], *, tolerance: float = 1e-5
) -> Difference | None:
    """Return the first value of `found` that is not among `others`; None if all are.

    Libraries order axes differently, split heads or not, and wrap the same layers in different
    sub-modules. So values are compared as sorted numbers, with all values of the same size in the
    other network; a value of a size that the other network does not have is skipped.

    Args:
        found: What `compat.capture` returned of a network: values by path, in order of execution.
        others: What it returned of another network on the same inputs, or values from elsewhere.
        tolerance: The largest distance, relative to the largest number, that counts as equal.

    >>> import numpy as np
    >>> one = {"dense": np.array([1.0, 2.0]), "norm": np.array([0.5, 1.5])}
    >>> other = {"layers/0": np.array([1.0, 2.0]), "layers/1": np.array([0.5, 1.25])}
    >>> first_difference(one, other)
    Difference(path='norm', nearest='layers/1', distance=0.16666666666666666)
    """
    known = {path: numbers for path, value in others.items() for numbers in _numbers(value)}
    for path, value in found.items():
        for numbers in _numbers(value):
            scale = max(float(np.abs(numbers).max(initial=0.0)), 1e-30)
            distances = {
                other: float(np.abs(numbers - one).max(initial=0.0)) / scale
                for other, one in known.items()
                if one.size == numbers.size
            }
            if not distances:
                continue
            nearest = min(distances, key=lambda other: distances[other])
            if not distances[nearest] <= tolerance:  # as no NaN is
                return Difference(path, nearest, distances[nearest])
    return None


def _numbers(value: PyTree) -> list[np.ndarray]:
    """Return the sorted numbers of the first array of a value, which is the one passed on."""
    arrays = [leaf for leaf in jax.tree.leaves(value) if eqx.is_inexact_array(leaf)]
    return [np.sort(np.asarray(one, np.float64), axis=None) for one in arrays[:1]]
