"""Reorders what runs along flattened features for the target network.

torch and Equinox flatten channels first, the others last.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from solstice.compat.weights.axes import Channels
from solstice.compat.weights.uses import MATRIX, Flat, Use


def likely_rows(target: Sequence[Use], source: Sequence[Use]) -> Iterator[list[Use]]:
    """Yield the source's uses with rows in each likely order; both sides are traced.

    If the target flattens (height, width, channels), the source may flatten channels first. Last
    come the uses as they are: axes may look moved and be others, as two heads of four features and
    four of two.
    """
    wanted = {use.shape: use.rows[0].sizes for use in target if len(use.rows) == 1}
    moves = [
        (_moved(use, wanted[use.shape]) if use.role == MATRIX and use.shape in wanted else [use])
        for use in source
    ]
    for way in range(max(map(len, moves), default=1)):
        yield [some[min(way, len(some) - 1)] for some in moves]
    if any(some[0] is not use for some, use in zip(moves, source, strict=True)):
        yield list(source)


def _moved(use: Use, wanted: tuple[int, ...]) -> list[Use]:
    """Return a matrix with its rows in the order of the wanted axes, the likeliest first.

    If it is not known which axes its rows had, they are the wanted ones, the first or the last
    moved to the other end or not.
    """
    rows = use.rows[0].sizes if len(use.rows) == 1 else ()
    found = [use] if rows in ((), wanted) else []
    for last in (False, True):
        axes = _before(wanted, first_was_last=last)
        if rows in ((), axes):
            found.append(_reordered(use, wanted, first_was_last=last))
    return found or [use]


def _before(wanted: tuple[int, ...], *, first_was_last: bool) -> tuple[int, ...]:
    """Return the axes before one was moved: the first, which was the last, or the reverse."""
    return (*wanted[1:], wanted[0]) if first_was_last else (wanted[-1], *wanted[:-1])


def _reordered(use: Use, wanted: tuple[int, ...], *, first_was_last: bool) -> Use:
    axes = _before(wanted, first_was_last=first_was_last)
    move = (-1, 0) if first_was_last else (0, -1)
    order = np.moveaxis(np.arange(use.shape[0]).reshape(axes), *move)
    return dataclasses.replace(use, index=use.index[order.reshape(-1)])


def aligned(target: Use, source: Use, way: int) -> Use:
    """Return a source's use with its rows and columns in the target's order; both are traced.

    Args:
        target: Which the source's goes to.
        source: Of the same role and shape.
        way: Which of the likely orders it is, counted from 0.
    """
    index = source.index
    sides = (0, target.rows, source.rows), (-1, target.columns, source.columns)
    for axis, ours, its in sides:
        if len(ours) != len(its) or [one.size for one in ours] != [one.size for one in its]:
            continue
        starts = itertools.accumulate((flat.size for flat in ours), initial=0)
        for start, mine, other in zip(starts, ours, its, strict=False):
            index = _turned(index, axis, start, mine.sizes, other.sizes, way)
    return dataclasses.replace(source, index=index)


def _turned(
    index: np.ndarray,
    axis: int,
    start: int,
    wanted: tuple[int, ...],
    sizes: tuple[int, ...],
    way: int,
) -> np.ndarray:
    """Return an index with one block of an axis in the order of the wanted axes."""
    size = math.prod(sizes)
    orders = [np.arange(size)] if sizes == wanted else []
    for last in (False, True):
        if len(sizes) > 1 and sizes == _before(wanted, first_was_last=last):
            move = (-1, 0) if last else (0, -1)
            orders.append(np.moveaxis(np.arange(size).reshape(sizes), *move).reshape(-1))
    if not orders:
        return index
    places = np.arange(index.shape[axis])
    places[start : start + size] = start + orders[min(way, len(orders) - 1)]
    return np.take(index, places, axis)


def channels_at(kernels: Sequence[tuple[int, int, int]]) -> Channels:
    """Return what gives, for a step, how many channels the last convolution until then gave.

    With True, how many the next one takes. Both are 0 where there is none. The third argument is
    the number of axes: what becomes two and goes into a matrix next is split into heads.

    Args:
        kernels: Of each convolution, in order, its step, and its channels before and after; both
            are 0 of a matrix.
    """

    def channels(at: int, later: bool, axes: int) -> int:
        if later:
            rest = [before for step, before, _ in kernels if step > at]
            return next(filter(None, rest[:1] if axes == 2 else rest), 0)
        return next((after for step, _, after in reversed(kernels) if step <= at and after), 0)

    return channels


def flat_of(uses: Sequence[Use]) -> list[Flat]:
    """Return the flattened features that some uses run along, if their order may differ."""
    return [flat for use in uses for flat in (*use.rows, *use.columns) if _has_orders(flat)]


def ways(uses: Sequence[Use]) -> int:
    """Return in how many orders the features that uses run along may lie."""
    return max((math.factorial(len(flat.sizes)) for flat in flat_of(uses)), default=1)


def doubt_of(uses: Sequence[Use]) -> str:
    """Return why the likeliest order of the features that uses run along is uncertain, or ""."""
    for use in uses:
        for flat in (*use.rows, *use.columns):
            if _has_orders(flat) and flat.sizes[0] == flat.sizes[-1]:
                what = "takes" if flat in use.rows else "runs along"
                return (
                    f"{use.leaf!r} {what} flattened features {flat.sizes}, whose axes cannot be "
                    f"told apart: whether channels come first is unknown."
                )
    return ""


def laid(target: Use, use: Use, way: int, *, channels_first: bool) -> Use:
    """Return a source's use with its rows and columns in the order of the target's.

    Args:
        target: The model's, with what lies along its rows and columns.
        use: The source's, of the same role and shape.
        way: Which order the features have in the source; 0 is the likeliest.
        channels_first: Whether the source's library flattens channels first.
    """
    index = use.index
    for flats, axis in ((target.rows, 0), (target.columns, -1)):
        if flats and sum(flat.size for flat in flats) == index.shape[axis]:
            starts = itertools.accumulate((flat.size for flat in flats), initial=0)
            places = [
                start + _places(flat, way, channels_first=channels_first)
                for start, flat in zip(starts, flats, strict=False)
            ]
            index = np.take(index, np.concatenate(places), axis)
    return dataclasses.replace(use, index=index)


def _has_orders(flat: Flat) -> bool:
    """Say whether the axis of the channels is known, so that the order may be another elsewhere."""
    return len(flat.sizes) > 1 and flat.channels in (flat.sizes[0], flat.sizes[-1])


def _places(flat: Flat, way: int, *, channels_first: bool) -> np.ndarray:
    """Return where the source has each of the features."""
    sizes = flat.sizes
    axes = tuple(range(len(sizes)))
    if not _has_orders(flat):
        return np.arange(flat.size)
    likely = axes
    if sizes[0] != sizes[-1] and (flat.channels == sizes[0]) != channels_first:
        likely = (axes[-1], *axes[:-1]) if channels_first else (*axes[1:], axes[0])
    orders = [likely, *(order for order in itertools.permutations(axes) if order != likely)]
    order = orders[way % len(orders)]
    held = np.arange(flat.size).reshape([sizes[axis] for axis in order])
    return held.transpose(np.argsort(order)).reshape(-1)
