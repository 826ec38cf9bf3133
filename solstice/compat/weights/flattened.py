"""Rows of matrices that take flattened features, put into the order of the network they go to.

torch and Equinox flatten channels first, the others last.
"""

import dataclasses
from collections.abc import Iterator, Sequence

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


def with_rows_of(
    target: Use, use: Use, channels: int, *, channels_first: bool
) -> tuple[Use, str | None]:
    """Return a named matrix with its rows in a traced one's order, and what is uncertain.

    Args:
        target: The model's, with the axes of its rows.
        use: The source's.
        channels: The number of channels, which tells the axis of the channels.
        channels_first: Whether the source's library flattens channels first.
    """
    rows = target.rows
    if len(rows) < 2 or channels not in (rows[0], rows[-1]) or use.role != MATRIX:
        return use, None
    if rows[0] == rows[-1]:
        return use, (
            f"{target.leaf!r} takes flattened features {rows}, whose axes cannot be told apart: "
            f"whether channels come first is unknown."
        )
    first = channels == rows[0]
    if first == channels_first:
        return use, None
    return _reordered(use, rows, first_was_last=first), None
