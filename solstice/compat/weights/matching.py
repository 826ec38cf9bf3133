"""Pairs the uses of two traced networks, in every possible way, for `compat.convert`.

    for pairs in candidates(target_uses, source_uses):    # the likeliest first
        arrays = values(pairs, source_arrays, target_arrays)
        ...                                               # the first that gives the right outputs

Uses are matched layer by layer: a layer is a matrix, a convolution or a table with all that follows
it, and the k-th layer of some roles and shapes goes with the k-th such layer. If that gives no
whole pairing, uses go by role and shape in order of use, with fused matrices split. If other uses
have the same role and shape, only the outputs tell, and `candidates` also yields them exchanged.

`assign`, for `compat.load`, pairs layers of which one side has names and no trace, so it may leave
some over and must say what was ambiguous; here all uses are paired, those of tied leaves too.
"""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from solstice.compat.weights.flattened import aligned, likely_rows
from solstice.compat.weights.layers import Signature, signature_of
from solstice.compat.weights.pairs import BY_USE, Pair
from solstice.compat.weights.recurrent import Cell, cells_of, pairings_of_cells
from solstice.compat.weights.uses import LAYERS, MEAN, VARIANCE, Use
from solstice.errors import InvalidValueError

_T = TypeVar("_T")
_WAYS = 3  # in how many orders flattened features may be
_SWAPS = 100  # how many other orders of alike layers are proposed


class MismatchError(InvalidValueError):
    """Two networks use their weights differently: the message names the first place.

    Attributes:
        target: The first leaf of the target that nothing fits; None if all of its leaves fit.
        source: The first leaf of the source that fits nothing; None likewise.
    """

    def __init__(
        self, message: str = "", *, target: str | None = None, source: str | None = None
    ) -> None:
        super().__init__(message)
        self.target = target
        self.source = source


def candidates(target: Sequence[Use], source: Sequence[Use]) -> Iterator[tuple[Pair, ...]]:
    """Yield ways to pair the uses of a target with those of a source, the likeliest first.

    Args:
        target: Of the network that gets values, in order.
        source: Of what gives them, in order.

    Raises:
        MismatchError: No way gives every use of the target one of the source's, and the reverse.

    >>> import numpy as np
    >>> from solstice.compat.weights.pairs import values
    >>> column, row = np.arange(6).reshape(3, 2), np.arange(6).reshape(2, 3)
    >>> (pairs,) = candidates([Use("kernel", "matrix", column)], [Use("weight", "matrix", row.T)])
    >>> values(pairs, {"weight": np.float32([[1, 2, 3], [4, 5, 6]])}, {"kernel": np.zeros((3, 2))})
    {'kernel': array([[1., 4.],
           [2., 5.],
           [3., 6.]])}
    """
    yield from _aligned(target, source)
    for turned in likely_rows(target, source):
        yield from _candidates(target, turned)


def _aligned(target: Sequence[Use], source: Sequence[Use]) -> Iterator[tuple[Pair, ...]]:
    """Yield the likeliest pairing with all that runs along flattened features reordered."""
    if not any(use.columns or len(use.rows) > 1 for use in target):
        return
    for pairs in itertools.islice(_candidates(target, source), 1):
        for way in range(_WAYS):
            yield tuple(
                dataclasses.replace(
                    pair, sources=tuple(aligned(pair.target, use, way) for use in pair.sources)
                )
                if len(pair.sources) == 1
                else pair
                for pair in pairs
            )


def _candidates(target: Sequence[Use], source: Sequence[Use]) -> Iterator[tuple[Pair, ...]]:
    loose_target, cells_target = cells_of(target)
    loose_source, cells_source = cells_of(source)
    if len(cells_target) != len(cells_source):
        raise _mismatch(
            target, source, f"{len(cells_target)} loops over time against {len(cells_source)}"
        )
    if not cells_target:
        yield from _orders(loose_target, loose_source)
        return
    straight = next(_orders(loose_target, loose_source))
    for cells in _cell_orders(cells_target, cells_source):
        yield straight + cells


def _orders(target: Sequence[Use], source: Sequence[Use]) -> Iterator[tuple[Pair, ...]]:
    """Yield pairings of uses outside of loops: in order, then with two similar ones swapped."""
    if len(target) != len(source):
        target, source = _once(target), _once(source)
    ours, theirs = _layers(target), _layers(source)
    first = _in_order(ours, theirs)
    if first is None:
        first = _by_role(target, source)
        yield first
    else:
        yield first
        for other in itertools.islice(_exchanged(theirs, signature_of), _SWAPS):
            yield _in_order(ours, other) or first
    for other in itertools.islice(_exchanged(source, lambda use: (use.role, use.shape)), _SWAPS):
        yield _by_role(target, other)


def _exchanged(items: Sequence[_T], kind: Callable[[_T], Any]) -> Iterator[list[_T]]:
    """Yield the items with two of the same kind swapped."""
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
        if use.role in LAYERS:
            layers.append([])
        layers[-1].append(use)
    return layers


def _in_order(
    ours: Sequence[Sequence[Use]], theirs: Sequence[Sequence[Use]]
) -> tuple[Pair, ...] | None:
    """Pair the k-th layer of some roles and shapes with the k-th such; None if some are left."""
    layers: dict[Signature, list[Sequence[Use]]] = defaultdict(list)
    for layer in theirs:
        layers[signature_of(layer)].append(layer)
    if Counter(map(signature_of, ours)) != {kind: len(some) for kind, some in layers.items()}:
        return None
    pairs = []
    for mine in ours:
        left: dict[Any, list[Use]] = defaultdict(list)
        for use in layers[signature_of(mine)].pop(0):
            left[use.role, use.shape].append(use)
        pairs += [Pair(use, (left[use.role, use.shape].pop(0),), BY_USE) for use in mine]
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
            pairs.append(Pair(ours.pop(0), (theirs.pop(0),), BY_USE))
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
        raise _mismatch(target[place].uses, source[place].uses, "cells of different sizes or kinds")
    for ways in itertools.product(*map(pairings_of_cells, kinds)):
        way = dict(zip(kinds, ways, strict=True))
        yield tuple(
            pair
            for mine, its in zip(target, source, strict=True)
            for pair in way[mine.gates](mine, its)
        )


def _mismatch(target: Sequence[Use], source: Sequence[Use], why: str = "") -> MismatchError:
    """Return an error that names the first use in which two sequences differ."""
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
