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
# Up to how many alike layers every two are exchanged to see whether outputs decided.
_FEW = 4
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
) -> list[Matched]:
    """Return the first assignment that is close enough, or the nearest one.

    If they are few, all orders of layers of equal shapes are tried: with the layouts that are in
    doubt, then with all layouts that fit. If they are many, the nearest one is changed in one place
    as long as it gets nearer.

    Args:
        matches: The assignment to begin with.
        far: Returns how far the outputs of an assignment are from the expected ones.
        exchanged: Returns the first match with the source of the second.
    """
    best, nearest = list(matches), math.inf
    tried = set[Any]()

    def nearer(assignment: list[Matched]) -> bool:
        """Try an assignment, unless it was tried or enough were; say whether it is the nearest."""
        nonlocal best, nearest
        key = frozenset(map(_key, assignment))
        if key in tried or len(tried) == _TRIES:
            return False
        tried.add(key)
        gap = far(assignment)
        closer = gap < nearest
        best, nearest = (assignment, gap) if closer else (best, nearest)
        return closer

    first = list(matches)
    for assignment in (first, *_together(first)):
        if nearer(assignment) and nearest <= TOLERANCE:
            return best
    for every in (False, True):
        few = _many(first, every=every) <= _TRIES
        for assignment in _all(first, exchanged, every=every) if few else [first]:
            if nearer(assignment) and nearest <= TOLERANCE:
                return best
    while any(map(nearer, _moves(best, exchanged))):
        if nearest <= TOLERANCE:
            break
    return best


def undecided(
    matches: Sequence[Matched],
    fits: Callable[[list[Matched]], bool],
    exchanged: _Exchange,
) -> list[Matched]:
    """Return the matches that were in question and could be changed: the outputs fit as well.

    Of many alike layers, only neighbours are exchanged.

    Args:
        matches: An assignment that gives the right outputs.
        fits: Whether another one gives them too, from other numbers.
        exchanged: Returns the first match with the source of the second.
    """
    found: list[Matched] = []
    moves = itertools.chain(_together(matches), _moves(matches, exchanged, every=False))
    for other in moves:
        changed = [one for one, new in zip(matches, other, strict=True) if one is not new]
        asked = [one for one in changed if one.group is not None or one.doubt]
        if asked and any(one not in found for one in asked) and fits(other):
            found += [one for one in asked if one not in found]
    return found


def _open(match: Matched, *, every: bool) -> bool:
    """Say whether a match's layouts are to be tried: all, or those that are in doubt."""
    return bool(match.layouts) and (every or bool(match.doubt))


def _many(matches: Sequence[Matched], *, every: bool) -> int:
    """Return how many assignments `_all` yields."""
    orders = math.prod(math.factorial(len(group)) for group in ambiguous(matches))
    return orders * math.prod(len(one.layouts) for one in matches if _open(one, every=every))


def _key(match: Matched) -> Any:
    """Return what tells an assignment of a layer from others."""
    return id(match.target), match.leaf, match.layout


def _all(
    matches: Sequence[Matched], exchanged: _Exchange, *, every: bool
) -> Iterator[list[Matched]]:
    """Yield every order of alike layers with every layout of those that are open."""
    groups = ambiguous(matches)
    fixed = [match for match in matches if not any(match in group for group in groups)]
    for orders in itertools.product(*map(itertools.permutations, groups)):
        moved = [
            exchanged(match, other)
            for group, order in zip(groups, orders, strict=True)
            for match, other in zip(group, order, strict=True)
        ]
        ones = [*fixed, *moved]
        counts = [range(len(one.layouts) if _open(one, every=every) else 1) for one in ones]
        for layouts in itertools.product(*counts):
            yield [
                one if layout == one.layout else one.read(layout)
                for one, layout in zip(ones, layouts, strict=True)
            ]


def _together(matches: Sequence[Matched]) -> Iterator[list[Matched]]:
    """Yield the assignments with flattened features in another order, the same in all layers."""
    orders = [1 + max((way for _, way in one.layouts), default=0) for one in matches]
    for way in range(1, max(orders, default=1)):
        yield [
            one.read(one.layout - one.layout % many + way % many) if many > 1 else one
            for one, many in zip(matches, orders, strict=True)
        ]


def _moves(
    matches: Sequence[Matched], exchanged: _Exchange, *, every: bool = True
) -> Iterator[list[Matched]]:
    """Yield the assignments that differ in two alike layers, or in one layout, from one.

    If `every` is False, only layouts that are in doubt are changed, and of many alike layers only
    neighbours.
    """

    def changed(*changes: tuple[Matched, Matched]) -> list[Matched]:
        return [next((new for old, new in changes if old is match), match) for match in matches]

    for group in ambiguous(matches):
        near = not every and len(group) > _FEW
        pairs = itertools.pairwise(group) if near else itertools.combinations(group, 2)
        for one, other in pairs:
            yield changed((one, exchanged(one, other)), (other, exchanged(other, one)))
    for match in matches:
        for layout in range(len(match.layouts) if _open(match, every=every) else 0):
            if layout != match.layout:
                yield changed((match, match.read(layout)))
