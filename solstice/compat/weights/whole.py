"""Leaves that an example uses only in part, such as the first rows of a table of positions."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from solstice.compat.weights.pairs import Pair
from solstice.compat.weights.proof import UnprovenError
from solstice.compat.weights.uses import Use


def whole(
    pairs: Sequence[Pair], source: Mapping[str, Any], target: Mapping[str, Any]
) -> tuple[Pair, ...]:
    """Return the pairs, and more for the rest of leaves that they give a part of.

    Where that part lies in both leaves alike, up to an order of the axes, the rest does too.

    Raises:
        ValueError: The values of the rest of a leaf are not known.

    >>> rows = Use("pos", "bias", np.arange(4))
    >>> table = {"pos": np.arange(6.0).reshape(3, 2)}
    >>> pairs = whole([Pair(rows, (rows,), "order of use")], table, table)
    >>> pairs[-1].target.index
    array([4, 5])
    """
    every = list(pairs)
    for leaf in dict.fromkeys(pair.target.leaf for pair in pairs):
        given = np.full(np.size(target[leaf]), -1)
        own = [pair for pair in pairs if pair.target.leaf == leaf]
        for pair in own:
            place = pair.sources[0].index.reshape(-1) if len(pair.sources) == 1 else 0
            given[pair.target.index.reshape(-1)] = place
        if (given >= 0).all():
            continue
        rest = _rest(given, own, source, np.shape(target[leaf]))
        if rest is None:
            raise UnprovenError(
                f"{leaf}: the example uses {int((given >= 0).sum())} of its {given.size} elements, "
                f"and the rest cannot be found in model. Give an example that uses all of it, "
                f"such as the longest sequence."
            )
        every.append(rest)
    return tuple(every)


def _rest(
    given: np.ndarray, own: Sequence[Pair], source: Mapping[str, Any], shape: tuple[int, ...]
) -> Pair | None:
    leaves = {use.leaf for pair in own for use in pair.sources}
    if len(leaves) != 1 or any((pair.factor, pair.offset) != (1, 0) for pair in own):
        return None
    (name,) = leaves
    array = np.asarray(source[name])
    if array.size != given.size:
        return None
    known, positions = given >= 0, np.arange(array.size).reshape(array.shape)
    for axes in itertools.permutations(range(array.ndim)):
        moved = positions.transpose(axes)
        if moved.shape == shape and (moved.reshape(-1)[known] == given[known]).all():
            first = own[0]
            rest = Use(first.target.leaf, first.target.role, np.flatnonzero(~known))
            its = Use(name, first.target.role, moved.reshape(-1)[~known])
            return Pair(rest, (its,), first.how, first.others)
    return None
