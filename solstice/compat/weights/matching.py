"""Which leaf gets which: uses of a target paired with uses of a source, and the values that follow.

It does not matter where uses come from: a trace of a model (`roles.trace`) or the names in a file.
A source of names alone makes `Use`s with the roles that its format implies, in their order there.

    pairings = candidates(target_uses, source_uses, named={"params/out/kernel": "head.weight"})
    for pairs in pairings:                      # the likeliest first
        arrays = values(pairs, source_arrays, target_arrays)
        ...                                     # the first that gives the right outputs
    matches = [match for pair in pairs for match in describe(pair, source_shapes, target_shapes)]

Names go first, as given. What is left is matched layer by layer: a layer is a matrix, a convolution
or a table with the vectors that follow, and the k-th layer of some roles and shapes goes with the
k-th such layer. Where that gives no whole pairing, uses go by role and shape in order of use, then
with fused matrices split. Where another leaf of the same role and shape could have been meant, the
pair says so in `others`: only the outputs tell, and `candidates` goes on with those alternatives.
"""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from solstice.compat.weights.pairs import BY_NAME, BY_USE, Pair
from solstice.compat.weights.recurrent import Cell, cells_of, pairings_of_cells
from solstice.compat.weights.uses import CONV, MATRIX, MEAN, TABLE, VARIANCE, Use
from solstice.errors import InvalidValueError

_T = TypeVar("_T")
_SWAPS = 200  # how many other orders of alike layers are proposed
_LAYERS = MATRIX, CONV, TABLE


class MismatchError(InvalidValueError):
    """Two networks do not use their weights alike: the message names the first place.

    Attributes:
        target: The first leaf of the target that nothing fits; None where it has none left.
        source: The first leaf of the source that fits nothing; None likewise.
    """

    def __init__(
        self, message: str = "", *, target: str | None = None, source: str | None = None
    ) -> None:
        super().__init__(message)
        self.target = target
        self.source = source


class ClashError(InvalidValueError):
    """A leaf of the target would get two values: it is tied, and the source's leaves differ."""


def candidates(
    target: Sequence[Use], source: Sequence[Use], *, named: Mapping[str, str] | None = None
) -> Iterator[tuple[Pair, ...]]:
    """Yield ways to pair the uses of a target with those of a source, the likeliest first.

    Args:
        target: Of the network that gets values, in order.
        source: Of what gives them, in order.
        named: Leaves of the target whose source leaf is known, by name. Their uses are paired with
            those of that leaf alone, first with first.

    Raises:
        MismatchError: No way gives every use of the target one of the source's, and the reverse.

    >>> column, row = np.arange(6).reshape(3, 2), np.arange(6).reshape(2, 3)
    >>> (pairs,) = candidates([Use("kernel", "matrix", column)], [Use("weight", "matrix", row.T)])
    >>> values(pairs, {"weight": np.float32([[1, 2, 3], [4, 5, 6]])}, {"kernel": np.zeros((3, 2))})
    {'kernel': array([[1., 4.],
           [2., 5.],
           [3., 6.]])}
    """
    for turned in _flattened(target, source):
        yield from _candidates(target, turned, named or {})


def _candidates(
    target: Sequence[Use], source: Sequence[Use], named: Mapping[str, str]
) -> Iterator[tuple[Pair, ...]]:
    by_name, target, source = _by_name(target, source, named)
    loose_target, cells_target = cells_of(target)
    loose_source, cells_source = cells_of(source)
    if len(cells_target) != len(cells_source):
        raise _mismatch(
            target, source, f"{len(cells_target)} loops over time against {len(cells_source)}"
        )
    if not cells_target:
        for pairs in _orders(loose_target, loose_source):
            yield by_name + pairs
        return
    straight = next(_orders(loose_target, loose_source))
    for cells in _cell_orders(cells_target, cells_source):
        yield by_name + straight + cells


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


def _flattened(target: Sequence[Use], source: Sequence[Use]) -> Iterator[list[Use]]:
    """Yield the source's uses with the rows of matrices of flattened features in likely orders.

    Where the target flattens (height, width, channels), the source may flatten channels first.
    """
    wanted = {use.index.shape: use.rows for use in target if use.rows}
    moves = [
        (_moved(use, wanted[use.shape]) if use.role == MATRIX and use.shape in wanted else [use])
        for use in source
    ]
    for way in range(max(map(len, moves), default=1)):
        yield [some[min(way, len(some) - 1)] for some in moves]


def _moved(use: Use, wanted: tuple[int, ...]) -> list[Use]:
    """Return a matrix with its rows in the order of the wanted axes, the likeliest first.

    If it is not known which axes its rows had, they are the wanted ones, as they are or otherwise.
    """
    first, last = wanted[-1:] + wanted[:-1], wanted[1:] + wanted[:1]
    orders = [
        np.arange(use.shape[0]).reshape(wanted),
        np.moveaxis(np.arange(use.shape[0]).reshape(first), 0, -1),
        np.moveaxis(np.arange(use.shape[0]).reshape(last), -1, 0),
    ]
    possible = [
        dataclasses.replace(use, index=use.index[order.reshape(-1)])
        for order, axes in zip(orders, (wanted, first, last), strict=True)
        if use.rows in ((), axes)
    ]
    return possible or [use]


def _leaves(pair: Pair) -> str:
    return " + ".join(use.leaf for use in pair.sources) or "zeros"


def _by_name(
    target: Sequence[Use], source: Sequence[Use], named: Mapping[str, str]
) -> tuple[tuple[Pair, ...], list[Use], list[Use]]:
    """Return the pairs that names decide, and the uses that are left."""
    pairs = []
    for leaf, name in named.items():
        ours = [use for use in target if use.leaf == leaf]
        theirs = [use for use in source if use.leaf == name]
        for use in ours:
            same = [one for one in theirs if (one.role, one.shape) == (use.role, use.shape)]
            if not same:
                raise MismatchError(
                    f"{name} is named for {use}, and is used otherwise: "
                    f"{', '.join(map(str, theirs)) or 'not at all'}.",
                    target=leaf,
                    source=name,
                )
            pairs.append(Pair(use, (same[0],), BY_NAME))
    left = [use for use in target if use.leaf not in named]
    taken = set(named.values())
    return tuple(pairs), left, [use for use in source if use.leaf not in taken]


def _orders(target: Sequence[Use], source: Sequence[Use]) -> Iterator[tuple[Pair, ...]]:
    """Yield pairings of uses outside of loops: in order, then with two exchanged that are alike."""
    if len(target) != len(source):
        target, source = _once(target), _once(source)
    ours, theirs = _layers(target), _layers(source)
    first = _in_order(ours, theirs)
    if first is None:
        first = _by_role(target, source)
        yield first
    else:
        yield first
        for other in itertools.islice(_exchanged(theirs, _signature), _SWAPS):
            yield _in_order(ours, other) or first
    for other in itertools.islice(_exchanged(source, lambda use: (use.role, use.shape)), _SWAPS):
        yield _by_role(target, other)


def _exchanged(items: Sequence[_T], kind: Callable[[_T], Any]) -> Iterator[list[_T]]:
    """Yield the items with two exchanged that are of one kind."""
    for i, j in itertools.combinations(range(len(items)), 2):
        if kind(items[i]) == kind(items[j]):
            order = list(items)
            order[i], order[j] = items[j], items[i]
            yield order


def _once(uses: Sequence[Use]) -> list[Use]:
    """Return the uses without those that repeat an earlier one."""
    seen: dict[Any, Use] = {}
    for use in uses:
        seen.setdefault((use.leaf, use.role, use.shape, use.index.tobytes()), use)
    return list(seen.values())


def _layers(uses: Sequence[Use]) -> list[list[Use]]:
    layers: list[list[Use]] = [[]]
    for use in uses:
        if use.role in _LAYERS:
            layers.append([])
        layers[-1].append(use)
    return layers


_Signature = tuple[tuple[Any, int], ...]


def _signature(layer: Sequence[Use]) -> _Signature:
    return tuple(sorted(Counter((use.role, use.shape) for use in layer).items()))


def _in_order(
    ours: Sequence[Sequence[Use]], theirs: Sequence[Sequence[Use]]
) -> tuple[Pair, ...] | None:
    """Pair the k-th layer of some roles and shapes with the k-th such; None if some are left."""
    layers: dict[_Signature, list[Sequence[Use]]] = defaultdict(list)
    alike: dict[Any, dict[str, None]] = defaultdict(dict)
    for layer in theirs:
        layers[_signature(layer)].append(layer)
        for use in layer:
            alike[use.role, use.shape].setdefault(use.leaf)
    if Counter(map(_signature, ours)) != {kind: len(some) for kind, some in layers.items()}:
        return None
    pairs = []
    for mine in ours:
        left: dict[Any, list[Use]] = defaultdict(list)
        for use in layers[_signature(mine)].pop(0):
            left[use.role, use.shape].append(use)
        for use in mine:
            found = left[use.role, use.shape].pop(0)
            others = tuple(leaf for leaf in alike[use.role, use.shape] if leaf != found.leaf)
            pairs.append(Pair(use, (found,), BY_USE, others))
    return tuple(pairs)


def _by_role(target: Sequence[Use], source: Sequence[Use]) -> tuple[Pair, ...]:
    """Pair by role in order of use; one wide use goes with several narrow ones side by side."""
    pairs = []
    for role in dict.fromkeys(use.role for use in (*target, *source)):
        ours = [use for use in target if use.role == role]
        theirs = [use for use in source if use.role == role]
        while ours and theirs:
            mine, its = ours[0], theirs[0]
            width = min(mine.shape[-1], its.shape[-1])
            if mine.shape[:-1] != its.shape[:-1] or not width:
                raise _mismatch(target, source)
            ours[:1] = _halves(mine, width)
            theirs[:1] = _halves(its, width)
            same = {use.leaf: None for use in source if (use.role, use.shape) == (role, its.shape)}
            others = tuple(leaf for leaf in same if leaf != its.leaf)
            pairs.append(Pair(ours.pop(0), (theirs.pop(0),), BY_USE, others))
        if ours or theirs:
            raise _mismatch(target, source)
    return tuple(pairs)


def _halves(use: Use, width: int) -> list[Use]:
    """Cut a use at `width` of its last axis, unless it ends there."""
    parts = use.index[..., :width], use.index[..., width:]
    return [dataclasses.replace(use, index=part) for part in parts if part.size]


def _cell_orders(target: Sequence[Cell], source: Sequence[Cell]) -> Iterator[tuple[Pair, ...]]:
    """Yield pairings of the uses in loops: one order of gates holds for all alike cells."""
    if all(mine.signature == its.signature for mine, its in zip(target, source, strict=True)):
        uses = [
            Pair(use, (other,), BY_USE)
            for mine, its in zip(target, source, strict=True)
            for use, other in zip(mine.ordered, its.ordered, strict=True)
        ]
        yield tuple(uses)
    kinds = sorted({cell.gates for cell in target})
    alike = [mine.fits(its) for mine, its in zip(target, source, strict=True)]
    if not all(alike):
        place = alike.index(False)
        if target[place].signature == source[place].signature:
            return
        raise _mismatch(
            target[place].uses, source[place].uses, "cells of other sizes or of another kind"
        )
    for ways in itertools.product(*map(pairings_of_cells, kinds)):
        way = dict(zip(kinds, ways, strict=True))
        yield tuple(
            pair
            for mine, its in zip(target, source, strict=True)
            for pair in way[mine.gates](mine, its)
        )


def _mismatch(target: Sequence[Use], source: Sequence[Use], why: str = "") -> MismatchError:
    """Name the first place where two sequences of uses differ."""
    statistics = [{use.role for use in uses} & {MEAN, VARIANCE} for uses in (target, source)]
    if not why and statistics[0] != statistics[1]:
        without = "target" if statistics[1] else "source"
        why = f"the {without} keeps no batch statistics"
    mine, its = _first_difference(target, source)
    text = (
        f"The target uses {mine or 'nothing more'} where the source uses {its or 'nothing more'}"
        f"{': ' * bool(why)}{why}."
    )
    return MismatchError(text, target=mine and mine.leaf, source=its and its.leaf)


def _first_difference(
    target: Sequence[Use], source: Sequence[Use]
) -> tuple[Use | None, Use | None]:
    """Return the first uses of one role that differ in shape, in the target's order."""
    found = []
    for role in dict.fromkeys(use.role for use in (*target, *source)):
        ours = [use for use in target if use.role == role]
        theirs = [use for use in source if use.role == role]
        for mine, its in itertools.zip_longest(ours, theirs):
            if mine is None or its is None or mine.shape != its.shape:
                place = target.index(mine) if mine is not None else len(target)
                found.append((place, mine, its))
                break
    first = min(found, key=lambda one: one[0], default=(0, None, None))
    return first[1], first[2]
