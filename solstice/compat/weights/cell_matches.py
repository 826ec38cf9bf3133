"""Which recurrent cell of a source goes to which cell of a model, gate by gate."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from solstice.compat.weights.layers import normal, prefix
from solstice.compat.weights.named_cells import NamedCell
from solstice.compat.weights.pairs import BY_GATES, Pair
from solstice.compat.weights.recurrent import GRU, LSTM, Cell, Gates, way
from solstice.compat.weights.uses import MATRIX

_BACKWARD = re.compile(r"reverse|backward|bwd")
# Words in the names of cells that say nothing of which one it is.
_COMMON = re.compile(
    r"(optimized)?_*(rnn|lstm|gru|cell|simple_*rnn|vanilla_*rnn|layers?|forward|l|bidirectional|"
    r"simple|dense_*[ih]|[ih][ifgornz]?|linear|weight_[ih]h|weight|cells?)*_*\d*_*"
)


@dataclasses.dataclass(frozen=True, eq=False)
class CellMatch:
    """A cell of the model and the cell of the source that goes there.

    Attributes:
        target: Of the model.
        gates: Which gate each of its blocks is.
        source: Of the source.
        group: Which matches it could be exchanged with; None if names decided.
    """

    target: Cell
    gates: Gates
    source: NamedCell
    group: Any = None
    layouts: tuple[()] = ()
    layout: int = 0
    doubt: str = ""

    @property
    def leaf(self) -> str:
        """The source's leaf that the cell is named for."""
        return _leaf(self.source.cell)

    def exchanged(self, other: "CellMatch") -> "CellMatch":
        """Return the match with the source's cell of another."""
        return dataclasses.replace(self, source=other.source)

    def read(self, layout: int) -> "CellMatch":
        """Return the match: a cell has one layout."""
        del layout
        return self

    def pairs(self, others: tuple[str, ...] = ()) -> list[Pair]:
        """Return the uses of the model's cell with those of the source's."""
        ours, theirs = self.gates, self.source.gates
        order = tuple(theirs.order.index(gate) for gate in ours.order)
        more = theirs.forget - ours.forget
        offsets = {ours.order.index("f"): more} if len(order) == LSTM and more else {}
        inverted = ours.order.index("z") if ours.inverted != theirs.inverted else None
        found = way(order, offsets=offsets, inverted=inverted)(self.target, self.source.cell)
        return [dataclasses.replace(pair, how=BY_GATES, others=others) for pair in found]


def match_cells(
    ours: Sequence[Cell],
    gates: Sequence[Gates | None],
    theirs: Sequence[NamedCell],
    arrays: Mapping[str, np.ndarray],
) -> tuple[list[CellMatch], list[str]]:
    """Return which cells go together, and why others do not.

    Args:
        ours: The model's, in order of use.
        gates: Theirs; None where they are not known.
        theirs: The source's, in its order.
        arrays: The source's.
    """
    if len(ours) != len(theirs):
        return [], [
            f"The model has {len(ours)} loops over time, and the source {len(theirs)} recurrent "
            f"cells."
        ]
    forms = defaultdict[Any, tuple[list[int], list[int]]](lambda: ([], []))
    for i, cell in enumerate(ours):
        forms[_form(cell)][0].append(i)
    for j, named in enumerate(theirs):
        forms[_form(named.cell)][1].append(j)
    matches, reasons = [], []
    for form, (mine, its) in forms.items():
        if len(mine) != len(its):
            why = "is of another kind or of other sizes than those of the model"
            reasons += [f"The recurrent cell {theirs[j].name!r} {why}." for j in its]
            continue
        order = _by_words([_leaf(ours[i]) for i in mine], [theirs[j].name for j in its])
        sure = order is not None or _is_stack([theirs[j].name for j in its])
        for i, j in zip(mine, [its[k] for k in order] if order else its, strict=True):
            known = gates[i]
            if why := _misfit(ours[i], known, theirs[j], arrays):
                reasons.append(f"The recurrent cell {theirs[j].name!r} {why}.")
            elif known is not None:
                group = None if sure else ("cell", form)
                matches.append(CellMatch(ours[i], known, theirs[j], group))
    return matches, reasons


def _form(cell: Cell) -> tuple[Any, ...]:
    return (cell.gates, *((cell.of_input[0].shape, cell.hidden) if cell.gates else ()))


def _leaf(cell: Cell) -> str:
    """Return the leaf of a cell's product with the carry."""
    return next(use.leaf for use in cell.uses if (use.role, use.of) == (MATRIX, "carry"))


def _misfit(
    cell: Cell, gates: Gates | None, named: NamedCell, arrays: Mapping[str, np.ndarray]
) -> str:
    """Say why a cell does not go into one of the same sizes; empty if it does."""
    if gates is None:
        return "is of a kind whose gates are not known"
    theirs = named.gates
    if cell.gates == GRU and None is not theirs.early != gates.early:
        first, second = ("before", "after") if theirs.early else ("after", "before")
        return (
            f"is a GRU that resets {first} the product with the carry, and the model's resets "
            f"{second} it: no weights make them equal. Give the model a GRU of the other kind "
            f"(Keras: reset_after={not theirs.early})"
        )
    for gate, letter in enumerate(gates.order):
        mine, its = cell.bias(gate), named.cell.bias(theirs.order.index(letter))
        # A late candidate's two biases must be kept apart; others are added up.
        apart = cell.gates == GRU and letter == "n" and not gates.early
        places = [bool(side) for side in mine] if apart else [any(mine)] * 2
        for has_place, uses in zip(places, its, strict=True):
            if has_place:
                continue
            for use in uses:
                if np.any(arrays[use.leaf].reshape(-1)[use.index]):
                    return (
                        f"has a bias {use.leaf!r} for its gate {letter!r} that is not zero, and "
                        f"the model's cell has none there"
                    )
    return ""


def _by_words(ours: Sequence[str], theirs: Sequence[str]) -> list[int] | None:
    """Return which of the source's cells goes with each of the model's, if their names say so."""
    mine, its = [_words(prefix(name)) for name in ours], [_words(name) for name in theirs]
    order = []
    for words in mine:
        shared = [len(words & others) for others in its]
        best = max(shared)
        if len(ours) > 1 and (best == 0 or shared.count(best) > 1):
            return None
        order.append(shared.index(best))
    return order if len(set(order)) == len(order) else None


def _words(name: str) -> set[str]:
    """Return the words of a cell's name that tell it from others."""
    words = {"backward" if _BACKWARD.search(name) else "forward"}
    name = re.sub(r"_l\d+(_reverse)?$", "", name)  # torch's number of a layer in a module
    return words | {part for part in normal(name) if not _COMMON.fullmatch(part)}


def _is_stack(names: Sequence[str]) -> bool:
    """Say whether cells are one module's layers, which torch numbers in the order of use."""
    found = [re.fullmatch(r"(.*)_l\d+", name) for name in names]
    return all(found) and len({match and match[1] for match in found}) == 1
