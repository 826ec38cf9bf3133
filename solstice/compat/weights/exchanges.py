"""Swaps layers of equal shapes, and doubtful layouts, until the model gives the right outputs."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from solstice.compat.weights.assign import Match
from solstice.compat.weights.cell_matches import CellMatch
from solstice.compat.weights.proof import TOLERANCE

# How many assignments are tried.
_TRIES = 200
Matched = Match | CellMatch
_Exchange = Callable[[Any, Any], Matched]


def ambiguous(matches: Iterable[Matched]) -> list[list[Matched]]:
    """Return the groups of matches that could be exchanged, of two and more."""
    groups: dict[Any, list[Matched]] = defaultdict(list)
    for match in matches:
        if match.group is not None:
            groups[match.group].append(match)
    return [group for group in groups.values() if len(group) > 1]


def nearest_exchange(
    matches: Sequence[Matched], far: Callable[[list[Matched]], float], exchanged: _Exchange
) -> list[Matched] | None:
    """Return the first assignment that is close enough.

    If they are few, all orders of layers of equal shapes are tried, with all layouts that are in
    doubt. Then, or if they are many, the nearest one is changed as long as it gets nearer, also by
    layouts for which there was no sign.

    Args:
        matches: The assignment to begin with.
        far: Returns how far the outputs of an assignment are from the expected ones.
        exchanged: Returns the first match with the source of the second.
    """
    groups = ambiguous(matches)
    many = math.prod(math.factorial(len(group)) for group in groups)
    many *= math.prod(len(match.layouts) for match in matches if match.doubt)
    few = many <= _TRIES
    best, nearest, tries = list(matches), math.inf, 0
    for assignment in _all(matches, exchanged) if few else [best]:
        tries += 1
        if (gap := far(assignment)) < nearest:
            best, nearest = assignment, gap
        if nearest <= TOLERANCE:
            return best
    improved = True
    while improved:
        improved = False
        for moved in _moves(best, exchanged, whole=few):
            if tries == _TRIES:
                return None
            tries += 1
            if (gap := far(moved)) < nearest:
                best, nearest, improved = moved, gap, True
                if nearest <= TOLERANCE:
                    return best
                break
    return None


def _all(matches: Sequence[Matched], exchanged: _Exchange) -> Iterator[list[Matched]]:
    """Yield every order of alike layers with every layout that is in doubt."""
    groups = ambiguous(matches)
    fixed = [match for match in matches if not any(match in group for group in groups)]
    for orders in itertools.product(*map(itertools.permutations, groups)):
        moved = [
            exchanged(match, other)
            for group, order in zip(groups, orders, strict=True)
            for match, other in zip(group, order, strict=True)
        ]
        several = [
            [match.read(layout) for layout in match.layouts] if match.doubt else [match]
            for match in (*fixed, *moved)
        ]
        yield from map(list, itertools.product(*several))


def _moves(
    matches: Sequence[Matched], exchanged: _Exchange, *, whole: bool
) -> Iterator[list[Matched]]:
    """Yield the assignments that differ in one layout, or in two alike layers, from one.

    Args:
        matches: The assignment.
        exchanged: As above.
        whole: Whether all orders and all doubtful layouts were tried.
    """

    def changed(*changes: tuple[Matched, Matched]) -> list[Matched]:
        return [next((new for old, new in changes if old is match), match) for match in matches]

    for group in [] if whole else ambiguous(matches):
        for one, other in itertools.combinations(group, 2):
            yield changed((one, exchanged(one, other)), (other, exchanged(other, one)))
    for match in matches:
        for layout in match.layouts if not (whole and match.doubt) else ():
            if layout[0] is not match.uses[0]:
                yield changed((match, match.read(layout)))
