"""Cells of recurrent networks: their gates, in any library's order.

A loop over time holds matrices that take the input and matrices that take the carry. Split into
blocks as wide as the carry, they give one matrix per gate in any library, whether it stores eight
kernels, two or one. Libraries differ in the order of the gates, and in a 1 that some add to the
forget gate, so all orders are proposed.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from solstice.compat.weights.pairs import BY_PROBING, BY_USE, Pair
from solstice.compat.weights.uses import BIAS, MATRIX, Use

SIMPLE, GRU, LSTM = 1, 3, 4


@dataclasses.dataclass(frozen=True)
class Gates:
    """What a cell's blocks are.

    Attributes:
        order: A letter a block: of an LSTM input, forget, candidate and output, as "ifgo"; of a GRU
            reset, update and candidate, as "rzn"; of a simple cell "h".
        forget: What the network adds to an LSTM's forget gate, besides the bias.
        inverted: Whether a GRU's update gate is the new state's part, and not the old one's.
        early: Whether a GRU resets before the product with the carry; None if it is unknown.
    """

    order: str
    forget: float = 0.0
    inverted: bool = False
    early: bool | None = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """The uses in one loop over time."""

    uses: tuple[Use, ...]

    @cached_property
    def signature(self) -> tuple[Any, ...]:
        """Roles and shapes: two cells of one library and kind have the same."""
        return tuple((use.role, use.of, use.shape) for use in self.ordered)

    @cached_property
    def ordered(self) -> tuple[Use, ...]:
        """The uses with each role's in order of use."""
        return tuple(sorted(self.uses, key=lambda use: (use.role, use.of, use.shape)))

    @cached_property
    def of_input(self) -> list[Use]:
        """A matrix (in, hidden) for each gate."""
        return self._blocks(MATRIX, "input")

    @cached_property
    def of_carry(self) -> list[Use]:
        """A matrix (hidden, hidden) for each gate."""
        return self._blocks(MATRIX, "carry")

    @cached_property
    def input_bias(self) -> list[Use]:
        """Vectors that are added to products with the input alone."""
        return self._blocks(BIAS, "input")

    @cached_property
    def other_bias(self) -> list[Use]:
        """Vectors that are added to what holds the carry."""
        return self._blocks(BIAS, "carry")

    @property
    def hidden(self) -> int:
        """The size of the carry; 0 if it is unknown."""
        rows = {use.shape[0] for use in self.uses if (use.role, use.of) == (MATRIX, "carry")}
        return rows.pop() if len(rows) == 1 else 0

    @cached_property
    def gates(self) -> int:
        """How many gates it has: 4 of an LSTM, 3 of a GRU, 1 of a simple cell; 0 if unknown."""
        known = all(use.role in (MATRIX, BIAS) for use in self.uses)
        count = len(self.of_carry)
        if not known or count not in (SIMPLE, GRU, LSTM) or len(self.of_input) != count:
            return 0
        biases = len(self.input_bias), len(self.other_bias)
        fits = all(n in (0, count) for n in biases) or (count == GRU and biases == (3, 1))
        return count if fits else 0

    def fits(self, other: "Cell") -> bool:
        """Return whether the other cell is of the same kind and sizes."""
        return (
            self.gates == other.gates != 0
            and self.of_input[0].shape == other.of_input[0].shape
            and self.of_carry[0].shape == other.of_carry[0].shape
            and self.has_bias == other.has_bias
        )

    @property
    def has_bias(self) -> bool:
        """Whether it has a bias at all."""
        return bool(self.input_bias or self.other_bias)

    def bias(self, gate: int) -> tuple[tuple[Use, ...], tuple[Use, ...]]:
        """Return what a gate adds to its product with the input, and to the other."""
        alone = len(self.other_bias) == 1 and self.gates == GRU
        first = self.input_bias[gate : gate + 1]
        second = self.other_bias[gate : gate + 1]
        if alone:  # of the candidate, which is the last gate in every library
            second = self.other_bias if gate == GRU - 1 else []
        return tuple(first), tuple(second)

    def _blocks(self, role: str, of: str) -> list[Use]:
        width, blocks = self.hidden, []
        for use in self.uses:
            if (use.role, use.of) != (role, of):
                continue
            if not width or use.shape[-1] % width:
                return []
            cuts = np.split(use.index, use.shape[-1] // width, axis=-1)
            blocks += [dataclasses.replace(use, index=part) for part in cuts]
        return blocks


Way = Callable[[Cell, Cell], tuple[Pair, ...]]


def cells_of(uses: Sequence[Use]) -> tuple[list[Use], list[Cell]]:
    """Return the uses outside of loops, and a cell for each loop."""
    loops: dict[int, list[Use]] = {}
    for use in uses:
        if use.loop is not None:
            loops.setdefault(use.loop, []).append(use)
    outside = [use for use in uses if use.loop is None]
    return outside, [Cell(tuple(some)) for some in loops.values()]


def pairings_of_cells(gates: int) -> Iterator[Way]:
    """Yield ways to pair two cells with so many gates, the likeliest first."""
    if gates == LSTM:
        orders = list(itertools.permutations(range(LSTM)))
        yield from (way(order) for order in orders)
        for offset in (1.0, -1.0):
            for order, gate in itertools.product(orders, range(LSTM)):
                yield way(order, offsets={gate: offset})
    elif gates == GRU:  # the candidate is the last in every library
        for order in ((0, 1, 2), (1, 0, 2)):
            for inverted in (None, 0, 1):
                yield way(order, inverted=inverted)
    else:
        yield way((0,))


def way(
    order: tuple[int, ...],
    offsets: dict[int, float] | None = None,
    inverted: int | None = None,
) -> Way:
    """Return how to pair cells whose gates are in another order.

    Args:
        order: For each of the target's gates, which of the source's it is.
        offsets: What is added to the bias of some of the target's gates.
        inverted: The target's gate that is the source's with the other sign, if any.
    """
    how = BY_USE if len(order) == 1 else BY_PROBING
    offsets = offsets or {}

    def paired(target: Cell, source: Cell) -> tuple[Pair, ...]:
        pairs = []
        for gate, its in enumerate(order):
            sign = -1.0 if gate == inverted else 1.0
            for mine, other in (
                (target.of_input[gate], source.of_input[its]),
                (target.of_carry[gate], source.of_carry[its]),
            ):
                pairs.append(Pair(mine, (other,), how, factor=sign))
            pairs += _biases(target, source, gate, its, how, sign, offsets.get(gate, 0.0))
        return tuple(pairs)

    return paired


def _biases(
    target: Cell, source: Cell, gate: int, its: int, how: str, sign: float, offset: float
) -> list[Pair]:
    first, second = target.bias(gate)
    from_first, from_second = source.bias(its)
    # The candidate of a GRU adds its second bias before the reset gate: both must be kept.
    if target.gates == GRU and gate == GRU - 1 and first and second:
        return [
            Pair(use, given, how, factor=sign)
            for some, given in ((first, from_first), (second, from_second))
            for use in some
        ]
    every = (*first, *second)
    given = (*from_first, *from_second)
    return [
        Pair(use, given if place == 0 else (), how, factor=sign, offset=offset * (place == 0))
        for place, use in enumerate(every)
    ]
