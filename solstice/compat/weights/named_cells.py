"""Recurrent cells among the arrays of a source, by the names that each library gives them."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from solstice.compat.weights.layers import prefix
from solstice.compat.weights.recurrent import GRU, LSTM, Cell, Gates
from solstice.compat.weights.uses import BIAS, MATRIX, Use
from solstice.compat.weights.words import RECURRENT, Entry

# NNX has "if_"; a simple cell "i" and "h".
_GATE = re.compile(r"(.*?)[./]?\b([ih])([a-z]?)_?$")
_NNX = re.compile(r"(.*?)[./]?\bdense_([ih])$")
_HAIKU_LSTM = re.compile(r"(^|[./])lstm(_\d+)?[./]linear$")
_HAIKU_RNN = re.compile(r"((?:.*[./])?vanilla_rnn(?:_\d+)?)[./]linear(_1)?$")
# The gates in the order in which libraries keep them in one array.
_ORDERS = {1: "h", 3: "rzn", 4: "ifgo"}
_KERAS_ORDERS = {1: "h", 3: "zrn", 4: "ifgo"}


@dataclasses.dataclass(frozen=True, eq=False)
class NamedCell:
    """A recurrent cell of a source.

    Attributes:
        name: What its arrays' names begin with.
        cell: Its uses.
        gates: Which gate each block is.
    """

    name: str
    cell: Cell
    gates: Gates


def split_cells(entries: list[Entry]) -> tuple[list[NamedCell], list[Entry]]:
    """Return the recurrent cells, and the arrays of no cell."""
    groups: dict[str, dict[str, Entry]] = {}
    makers: dict[str, Callable[[str, dict[str, Entry], int], NamedCell | None]] = {}
    kerases = {entry.layer for entry in entries if entry.last == "recurrent_kernel"}
    kerases |= {prefix(entry.new) for entry in entries if entry.last == "recurrent_kernel"}
    haikus = {prefix(entry.new) for entry in entries if entry.last == "w_h"}
    for entry in entries:
        group, part, maker = "", "", None
        gate = _GATE.match(entry.layer)
        if found := RECURRENT.search(entry.name):
            group, part, maker = prefix(entry.new) + found[3], f"{found[1]}_{found[2]}", _of_torch
        elif prefix(entry.new) in kerases:
            group, part, maker = prefix(entry.new), entry.last, _of_keras
        elif gate and entry.last in ("kernel", "bias"):
            group, part, maker = gate[1] + "/", f"{gate[2]}{gate[3]}_{entry.last}", _of_flax
        elif (gate := _NNX.match(entry.layer)) and entry.last in ("kernel", "bias"):
            group, part, maker = gate[1] + "/", f"{gate[2]}_{entry.last}", _of_nnx
        elif prefix(entry.new) in haikus:
            group, part, maker = prefix(entry.new), entry.last, _of_haiku_gru
        elif (found := _HAIKU_RNN.match(entry.layer)) and entry.last in "wb":
            part = f"{'h' if found[2] else 'i'}_{entry.last}"
            group, maker = found[1], _of_haiku_rnn
        elif _HAIKU_LSTM.search(entry.layer) and entry.last in "wb":
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


def _made(name: str, uses: Iterable[Use], order: str | None, **gates: Any) -> NamedCell | None:
    cell = Cell(tuple(uses))
    if not order or cell.gates != len(order):
        return None
    return NamedCell(name, cell, Gates(order, **gates))


def _joined(name: str, loop: int, parts: dict[str, Entry], words: Mapping[str, tuple[str, str]],
            orders: Mapping[int, str], **gates: Any) -> NamedCell | None:  # fmt: skip
    """Return a cell whose arrays hold all gates, with matrices (in, gates).

    Args:
        name: What the arrays' names begin with.
        loop: The number of the cell.
        parts: Its arrays.
        words: From the parts' names to their roles, and what they multiply or are added to.
        orders: The gates by their number.
        gates: What else `Gates` says.
    """
    uses = [
        Use(parts[word].name, role, parts[word].index, loop, of)
        for word, (role, of) in words.items()
        if word in parts
    ]
    carry = next((use for use in uses if (use.role, use.of) == (MATRIX, "carry")), None)
    if carry is None or carry.index.ndim != 2 or len(parts) != len(uses):
        return None
    return _made(name, uses, orders.get(carry.shape[1] // carry.shape[0]), **gates)


def _of_torch(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    words = {"weight_ih": (MATRIX, "input"), "weight_hh": (MATRIX, "carry")}
    if not set(words) <= set(parts):
        return None
    parts = parts | {
        word: dataclasses.replace(parts[word], index=parts[word].index.T) for word in words
    }
    # Equinox has one bias, of which a GRU's candidate is outside of the reset.
    gru = parts["weight_hh"].index.shape[1] == GRU * parts["weight_hh"].index.shape[0]
    words |= {"bias_ih": (BIAS, "input"), "bias_hh": (BIAS, "carry"), "bias_n": (BIAS, "carry")}
    words["bias"] = (BIAS, "input" if gru else "carry")
    return _joined(name, loop, parts, words, _ORDERS)


def _of_keras(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    words = {"kernel": (MATRIX, "input"), "recurrent_kernel": (MATRIX, "carry")}
    early = None
    if "bias" in parts:
        rows = np.atleast_2d(parts["bias"].index)  # one row, or those of input and carry
        early = len(rows) == 1
        names = ("bias_ih", "bias_hh") if len(rows) == 2 else ("bias_hh",)
        parts = {word: part for word, part in parts.items() if word != "bias"} | {
            word: dataclasses.replace(parts["bias"], index=row)
            for word, row in zip(names, rows, strict=False)
        }
        words |= {"bias_ih": (BIAS, "input"), "bias_hh": (BIAS, "carry")}
    return _joined(name, loop, parts, words, _KERAS_ORDERS, early=early)


def _of_nnx(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    words = {
        f"{side}_{word}": (role, of)
        for side, of in (("i", "input"), ("h", "carry"))
        for word, role in (("kernel", MATRIX), ("bias", BIAS))
    }
    return _joined(name, loop, parts, words, _ORDERS)


def _of_flax(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    gates = [part.removesuffix("_kernel")[1:] for part in parts if part.startswith("i") and
             part.endswith("kernel")]  # fmt: skip
    order = "".join(gates) or "h"
    if sorted(order) not in (sorted("ifgo"), sorted("rzn"), ["h"]):
        return None
    if set(order) == set("rzn"):
        gates = list(order := "rzn")
    uses = []
    for gate in gates:
        for which, of in (("i", "input"), ("h", "carry")):
            for word, role in (("kernel", MATRIX), ("bias", BIAS)):
                if entry := parts.get(f"{which}{gate}_{word}"):
                    uses.append(Use(entry.name, role, entry.index, loop, of))
    return _made(name, uses, order)


def _of_haiku(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    if set(parts) != {"w", "b"} or parts["b"].index.size % LSTM:
        return None
    weight, hidden = parts["w"].index, parts["b"].index.size // LSTM
    uses = [
        Use(parts["w"].name, MATRIX, weight[:-hidden], loop, "input"),
        Use(parts["w"].name, MATRIX, weight[-hidden:], loop, "carry"),
        Use(parts["b"].name, BIAS, parts["b"].index, loop, "carry"),
    ]
    return _made(name, uses, "igfo", forget=1.0)


def _of_haiku_gru(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    words = {"w_i": (MATRIX, "input"), "w_h": (MATRIX, "carry"), "b": (BIAS, "carry")}
    return _joined(name, loop, parts, words, {GRU: "zrn"}, inverted=True, early=True)


def _of_haiku_rnn(name: str, parts: dict[str, Entry], loop: int) -> NamedCell | None:
    words = {"i_w": (MATRIX, "input"), "h_w": (MATRIX, "carry")}
    words |= {"i_b": (BIAS, "input"), "h_b": (BIAS, "carry")}
    return _joined(name, loop, parts, words, {1: "h"})
