"""Reorders the rows of matrices that take flattened features for the target network.

torch and Equinox flatten channels first, the others last.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from solstice.compat.weights.uses import CONV, MATRIX, TRANSPOSED, Use


def likely_rows(target: Sequence[Use], source: Sequence[Use]) -> Iterator[list[Use]]:
    """Yield the source's uses with rows in each likely order; both sides are traced.

    If the target flattens (height, width, channels), the source may flatten channels first. Last
    come the uses as they are: axes may look moved and be others, as two heads of four features and
    four of two.
    """
    wanted = {use.shape: use.rows for use in target if use.rows}
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
    found = [use] if use.rows in ((), wanted) else []
    for last in (False, True):
        axes = _before(wanted, first_was_last=last)
        if use.rows in ((), axes):
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


def channels_before(uses: Sequence[Use]) -> dict[int, int]:
    """Return, by the step of each use, how many channels the last convolution until then gave."""
    channels, found = 0, {}
    for use in sorted(uses, key=lambda use: use.step):
        channels = use.shape[-1] if use.role in (CONV, TRANSPOSED) else channels
        found[use.step] = channels
    return found


def row_orders(
    target: Use, use: Use, channels: int, *, channels_first: bool
) -> tuple[list[Callable[[], Use]], str]:
    """Return a named matrix with its rows in each order that a traced one's may mean, and a doubt.

    The likeliest is first: the source's library flattens channels first, or last.

    Args:
        target: The model's, with the axes of its rows.
        use: The source's.
        channels: The number of channels, which identifies the axis of the channels.
        channels_first: Whether the source's library flattens channels first.

    Returns:
        What gives the use in each order, and why the likeliest one is uncertain, or "".
    """
    rows = target.rows
    if len(rows) < 2 or channels not in (rows[0], rows[-1]) or use.role != MATRIX:
        return [lambda: use], ""
    axes = tuple(range(len(rows)))
    same_ends, first = rows[0] == rows[-1], channels == rows[0]
    likely = axes
    if not same_ends and first != channels_first:
        likely = (axes[-1], *axes[:-1]) if channels_first else (*axes[1:], axes[0])
    others = (order for order in itertools.permutations(axes) if order != likely)

    def ordered(order: Sequence[int]) -> Use:
        if order == axes:
            return use
        held = np.arange(use.shape[0]).reshape([rows[axis] for axis in order])
        places = held.transpose(np.argsort(order)).reshape(-1)
        return dataclasses.replace(use, index=use.index[places])

    doubt = (
        f"{target.leaf!r} takes flattened features {rows}, whose axes cannot be told apart: "
        f"whether channels come first is unknown."
    )
    made = [functools.partial(ordered, order) for order in (likely, *others)]
    return made, doubt if same_ends else ""
