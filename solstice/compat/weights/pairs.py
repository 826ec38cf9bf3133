"""A pair: which elements of a target's leaf get which values of a source."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from solstice.compat.weights.uses import VARIANCE, Use
from solstice.errors import InvalidValueError

# How a pair was found.
BY_NAME, BY_USE, BY_PROBING = "name", "order of use", "probing"
BY_LIKENESS, BY_GATES, BY_OUTPUTS, TIED = "likeness of names", "gates", "outputs", "tied"


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """What one use of a target's leaf gets.

    Attributes:
        target: The use that gets values.
        sources: The uses that give them, added up (the two biases of a cell); none gives zeros.
        how: One of the words above.
        others: Source leaves of the same role and shape, each of which could be meant as well;
            empty if there is none, or if a name decided.
        factor: What is given is `factor * source + offset`.
        offset: As above: 1 if one cell adds 1 to its forget gate and the other does not.
    """

    target: Use
    sources: tuple[Use, ...]
    how: str
    others: tuple[str, ...] = ()
    factor: float = 1.0
    offset: float = 0.0

    def value(self, source: Mapping[str, Any]) -> np.ndarray:
        """Return the values for the target's elements, in the order of its `index`."""
        target = self.target
        total = np.zeros(target.shape)
        shift = 0.0
        for use in self.sources:
            leaf = np.asarray(source[use.leaf]).reshape(-1)[use.index.reshape(-1)]
            used = leaf.reshape(target.shape)
            if len(self.sources) == 1 and _plain(self, use):
                return used
            total = total + use.factor * used
            shift += use.shift
        # An epsilon is the network's, and not part of a variance.
        gap = 0.0 if target.role == VARIANCE else self.factor * shift - target.shift
        return (self.factor * total + self.offset + gap) / target.factor


def _plain(pair: Pair, use: Use) -> bool:
    """Return whether values are copied without change, bit for bit."""
    target = pair.target
    shifts = target.role == VARIANCE or use.shift == target.shift
    same = use.factor == target.factor and shifts
    return same and (pair.factor, pair.offset) == (1.0, 0.0)


class ClashError(InvalidValueError):
    """A leaf of the target would get two values: it is tied, and the source's leaves differ."""


def values(
    pairs: Sequence[Pair], source: Mapping[str, Any], target: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return new arrays for the target's leaves that the pairs concern.

    Elements that no pair concerns keep the target's values.

    Raises:
        ClashError: A leaf of the target would get two values.
    """
    arrays: dict[str, np.ndarray] = {}
    given: dict[str, np.ndarray] = {}
    for pair in pairs:
        leaf = pair.target.leaf
        if leaf not in arrays:
            arrays[leaf] = np.array(target[leaf])
            given[leaf] = np.zeros(arrays[leaf].size, bool)
        flat, index = arrays[leaf].reshape(-1), pair.target.index.reshape(-1)
        new = pair.value(source).astype(flat.dtype).reshape(-1)
        again = given[leaf][index]
        if not np.array_equal(flat[index][again], new[again], equal_nan=True):
            first = next(one for one in pairs if one.target.leaf == leaf)
            raise ClashError(
                f"{leaf} is used twice in the target, and would get {_leaves(first)} and "
                f"{_leaves(pair)}, whose values differ. Untie it, or tie them in the source."
            )
        flat[index] = new
        given[leaf][index] = True
    return arrays


def _leaves(pair: Pair) -> str:
    return " + ".join(use.leaf for use in pair.sources) or "zeros"


def left_parts(pairs: Sequence[Pair], leaves: Mapping[str, Any]) -> set[str]:
    """Return the leaves of which only a part got numbers."""
    counts: dict[str, int] = {}
    for pair in pairs:
        counts[pair.target.leaf] = counts.get(pair.target.leaf, 0) + pair.target.index.size
    return {leaf for leaf, count in counts.items() if count < leaves[leaf].size}
