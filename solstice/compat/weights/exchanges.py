"""Swaps layers of equal shapes until the model gives the expected outputs."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from solstice.compat.weights.assign import Match, ambiguous
from solstice.compat.weights.layers import signature_of
from solstice.compat.weights.proof import TOLERANCE

# How many assignments are tried.
_TRIES = 200


def nearest_exchange(
    matches: Sequence[Match], far: Callable[[list[Match]], float]
) -> list[Match] | None:
    """Return the first assignment that is close enough; tries all if they are few, otherwise swaps.

    Args:
        matches: The assignment to begin with.
        far: Returns how far the outputs of an assignment are from the expected ones.
    """
    groups = ambiguous(matches)
    fixed = [match for match in matches if not any(match in group for group in groups)]
    many = math.prod(math.factorial(len(group)) for group in groups)
    if many <= _TRIES:
        for orders in itertools.product(*map(itertools.permutations, groups)):
            moved = [
                _moved(match, other)
                for group, order in zip(groups, orders, strict=True)
                for match, other in zip(group, order, strict=True)
            ]
            if far([*fixed, *moved]) <= TOLERANCE:
                return [*fixed, *moved]
        return None
    best, left = list(matches), _TRIES - 1
    nearest = far(best)
    improved = True
    while improved and nearest > TOLERANCE:
        improved = False
        for group in ambiguous(best):
            for one, other in itertools.combinations(group, 2):
                if left == 0 or one not in best or other not in best:
                    continue
                swapped = [
                    _moved(match, other)
                    if match is one
                    else _moved(match, one)
                    if match is other
                    else match
                    for match in best
                ]
                left -= 1
                if (gap := far(swapped)) < nearest:
                    best, nearest, improved = swapped, gap, True
    return best if nearest <= TOLERANCE else None


def _moved(match: Match, other: Match) -> Match:
    """Return a match with the source's layer of another."""
    uses = other.source.reading(signature_of(match.target.uses)) or other.uses
    return dataclasses.replace(match, source=other.source, uses=uses)
