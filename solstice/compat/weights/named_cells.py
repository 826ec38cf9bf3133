"""Recurrent cells among the arrays of a source, by the names that each library gives them."""

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np

from solstice.compat.weights.layers import prefix
from solstice.compat.weights.recurrent import Cell
from solstice.compat.weights.uses import BIAS, MATRIX, Use
from solstice.compat.weights.words import RECURRENT, Entry

_GATE = re.compile(r"(.*?)[./]?\b([ih])([a-z])_?$")  # NNX has "if_"
# The gates in the order in which libraries keep them in one array.
_ORDERS = {1: "h", 3: "rzn", 4: "ifgo"}
_KERAS_ORDERS = {1: "h", 3: "zrn", 4: "ifgo"}


@dataclasses.dataclass(frozen=True, eq=False)
class NamedCell:
    """A recurrent cell of a source.

    Attributes:
        name: What its arrays' names begin with.
        cell: Its uses.
        gates: Which gate each block is, as "ifgo": input, forget, candidate, output.
        forget: What the network adds to the forget gate, besides the bias.
    """

    name: str
    cell: Cell
    gates: str
    forget: float = 0.0


def split_cells(entries: list[Entry]) -> tuple[list[NamedCell], list[Entry]]:
    """Return the recurrent cells, and the arrays of no cell."""
    groups: dict[str, dict[str, Entry]] = {}
    makers: dict[str, Callable[[str, dict[str, Entry], int], NamedCell | None]] = {}
    kerases = {entry.layer for entry in entries if entry.last == "recurrent_kernel"}
    kerases |= {prefix(entry.new) for entry in entries if entry.last == "recurrent_kernel"}
    for entry in entries:
        group, part, maker = "", "", None
        gate = _GATE.match(entry.layer)
        if found := RECURRENT.search(entry.name):
            group, part, maker = prefix(entry.new) + found[3], f"{found[1]}_{found[2]}", _of_torch
        elif prefix(entry.new) in kerases:
            group, part, maker = prefix(entry.new), entry.last, _of_keras
        elif gate and entry.last in ("kernel", "bias"):
            group, part, maker = gate[1] + "/", f"{gate[2]}{gate[3]}_{entry.last}", _of_flax
        elif re.search(r"(^|[./])lstm(_\d+)?[./]linear$", entry.layer) and entry.last in "wb":
            group, part, maker = entry.layer, entry.last, _of_haiku
        if maker is not None:
            groups.setdefault(group, {})[part] = entry
            makers[group] = maker
    # An Equinox cell has torch's names for its matrices, and one bias.
    for entry in entries:
        if entry.last in ("bias", "bias_n") and "weight_ih" in groups.get(prefix(entry.new), {}):
            groups[prefix(entry.new)][entry.last] = entry
    cells, used = [], set()
    for group, parts in groups.items():
        made = makers[group](group, parts, len(cells))
        if made is not None:
            cells.append(made)
            used |= {id(entry) for entry in parts.values()}
    return cells, [entry for entry in entries if id(entry) not in used]


def _made(name: str, uses: Iterable[Use], gates: str | None) -> NamedCell | None:
    cell = Cell(tuple(uses))
    return NamedCell(name, cell, gates) if gates and cell.gates == len(gates) else None


def _use(entry: Entry, role: str, index: np.ndarray, loop: int, of: str) -> Use:
    return Use(entry.name, role, index, loop, of)


def _of_torch(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    if not {"weight_ih", "weight_hh"} <= set(parts):
        return None
    uses = [
        _use(parts["weight_ih"], MATRIX, parts["weight_ih"].index.T, loop, "input"),
        _use(parts["weight_hh"], MATRIX, parts["weight_hh"].index.T, loop, "carry"),
    ]
    for part, of in (("bias_ih", "input"), ("bias_hh", "carry"), ("bias", "carry")):
        if part in parts:
            uses.append(_use(parts[part], BIAS, parts[part].index, loop, of))
    rows, hidden = parts["weight_hh"].index.shape
    return _made(name, uses, _ORDERS.get(rows // hidden))


def _of_keras(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    if not {"kernel", "recurrent_kernel"} <= set(parts):
        return None
    uses = [
        _use(parts["kernel"], MATRIX, parts["kernel"].index, loop, "input"),
        _use(parts["recurrent_kernel"], MATRIX, parts["recurrent_kernel"].index, loop, "carry"),
    ]
    if "bias" in parts:
        rows = np.atleast_2d(parts["bias"].index)  # one row, or those of input and carry
        ofs = ("input", "carry") if len(rows) == 2 else ("carry",)
        uses += [
            _use(parts["bias"], BIAS, row, loop, of) for row, of in zip(rows, ofs, strict=False)
        ]
    hidden, columns = parts["recurrent_kernel"].index.shape
    return _made(name, uses, _KERAS_ORDERS.get(columns // hidden))


def _of_flax(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    gates = "".join(part[1] for part in parts if part.startswith("i") and part.endswith("kernel"))
    if sorted(gates) not in (sorted("ifgo"), sorted("rzn")):
        return None
    uses = []
    for gate in gates:
        for which, of in (("i", "input"), ("h", "carry")):
            for word, role in (("kernel", MATRIX), ("bias", BIAS)):
                if entry := parts.get(f"{which}{gate}_{word}"):
                    uses.append(_use(entry, role, entry.index, loop, of))
    return _made(name, uses, gates)


def _of_haiku(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    if set(parts) != {"w", "b"} or parts["b"].index.size % 4:
        return None
    weight, hidden = parts["w"].index, parts["b"].index.size // 4
    uses = [
        _use(parts["w"], MATRIX, weight[:-hidden], loop, "input"),
        _use(parts["w"], MATRIX, weight[-hidden:], loop, "carry"),
        _use(parts["b"], BIAS, parts["b"].index, loop, "carry"),
    ]
    made = _made(name, uses, "igfo")
    return made and dataclasses.replace(made, forget=1.0)
