"""Finds which gate is which in a network's recurrent cells by running their loops.

A cell's blocks are known from the trace, and which gate each is, from what the loop makes of
numbers: its matrices and biases for the carry are drawn at random, and one turn of the loop changes
the carry by the formula of an LSTM or a GRU for one order of the gates only.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, jaxpr_as_fun

from solstice.compat.model import Model, as_inputs
from solstice.compat.weights.leaves import float_leaves
from solstice.compat.weights.recurrent import GRU, LSTM, SIMPLE, Cell, Gates
from solstice.compat.weights.roles import forward_jaxpr
from solstice.compat.weights.uses import Use
from solstice.tree.programs import bind, called, evaluate, scan_parts
from solstice.tree.pytree import PyTree

_CLOSE = {2: 3e-2}  # by the bytes of a number
_CLOSE_ELSE = 1e-4


def find_gates(model: Model, example: PyTree, cells: Sequence[Cell]) -> list[Gates | None]:
    """Return which gate each block of a model's cells is; None if unknown.

    It finds those of LSTMs and GRUs, and of simple cells, which have one block.

    Args:
        model: The model.
        example: A batch's inputs.
        cells: Its cells, as its trace has them.
    """
    if all(cell.gates not in (GRU, LSTM) for cell in cells):
        return [Gates("h") if cell.gates == SIMPLE else None for cell in cells]
    inputs, arrays = as_inputs(example), float_leaves(model)

    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in arrays.items()}
    jaxpr, consts = forward_jaxpr(model, inputs)
    bodies: list[Any] = []

    @jax.jit
    def entered(values: dict[str, Any], inputs: PyTree) -> list[Any]:
        loops: list[_Loop] = []
        given = [*map(values.__getitem__, arrays), *jax.tree.leaves(inputs)]
        evaluate(jaxpr, consts, given, _noting_loops(loops))
        bodies[:] = [loop.body for loop in loops]
        return [(loop.consts, loop.carry, loop.inputs) for loop in loops]

    def turns(values: dict[str, np.ndarray]) -> list["_Loop"]:
        found = entered(values, inputs)
        return [_Loop(body, *parts) for body, parts in zip(bodies, found, strict=True)]

    at_rest, found = turns(zeros), []
    for cell in cells:
        if cell.gates not in (GRU, LSTM):
            found.append(Gates("h") if cell.gates == SIMPLE else None)
            continue
        values = _drawn(cell, zeros)
        changed = (
            loop
            for loop, before in zip(turns(values), at_rest, strict=True)
            if loop.differs(before)
        )
        loop = next(changed, None)
        found.append(None if loop is None else loop.gates(_Numbers(cell, values)))
    return found


def _drawn(cell: Cell, zeros: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return values of leaves that are 0, but for a cell's matrices of the carry and biases."""
    generator, values = np.random.default_rng(0), dict(zeros)
    for use in (*cell.of_carry, *cell.input_bias, *cell.other_bias):
        values[use.leaf] = values[use.leaf].copy()
        numbers = generator.normal(size=use.index.size)
        values[use.leaf].reshape(-1)[use.index.reshape(-1)] = numbers
    return values


class _Numbers:
    """The numbers in a cell's blocks, as the network uses them, and the formulas of its kind."""

    def __init__(self, cell: Cell, values: dict[str, np.ndarray]) -> None:
        def used(use: Use) -> np.ndarray:
            numbers = values[use.leaf].astype(float).reshape(-1)[use.index]
            return use.factor * numbers + use.shift

        self.hidden, self.gates = cell.hidden, cell.gates
        self._matrices = [used(use) for use in cell.of_carry]
        self._biases = [
            [sum(map(used, side), np.zeros(cell.hidden)) for side in cell.bias(gate)]
            for gate in range(cell.gates)
        ]

    def lstms(self, c: np.ndarray, h: np.ndarray) -> Iterator[tuple[Gates, list[np.ndarray]]]:
        """Yield what each order of an LSTM's gates makes of the carry."""
        blocks = [
            h @ matrix + first + second
            for matrix, (first, second) in zip(self._matrices, self._biases, strict=True)
        ]
        for order in itertools.permutations("ifgo"):
            a = dict(zip(order, blocks, strict=True))
            for forget in (0.0, 1.0, -1.0):
                new = _sigmoid(a["f"] + forget) * c + _sigmoid(a["i"]) * np.tanh(a["g"])
                yield Gates("".join(order), forget), [new, _sigmoid(a["o"]) * np.tanh(new)]

    def grus(self, h: np.ndarray) -> Iterator[tuple[Gates, list[np.ndarray]]]:
        """Yield what each kind of a GRU makes of the carry."""
        for order in ("rzn", "zrn"):
            matrix, bias = ({g: some[order.index(g)] for g in "rzn"} for some in
                            (self._matrices, self._biases))  # fmt: skip
            r, z = (_sigmoid(h @ matrix[g] + sum(bias[g])) for g in "rz")
            late = np.tanh(bias["n"][0] + r * (h @ matrix["n"] + bias["n"][1]))
            early = np.tanh(sum(bias["n"]) + (r * h) @ matrix["n"])
            for is_early, n in ((False, late), (True, early)):
                for inverted, part in ((False, z), (True, 1 - z)):
                    gates = Gates(order, inverted=inverted, early=is_early)
                    yield gates, [part * h + (1 - part) * n]


@dataclasses.dataclass
class _Loop:
    """A loop over time: the program of one step, and the values with which it starts."""

    body: Any
    consts: list[Any]
    carry: list[Any]
    inputs: list[Any]

    def differs(self, other: "_Loop") -> bool:
        pairs = zip(self.consts, other.consts, strict=True)
        return any(eqx.is_inexact_array(a) and not np.array_equal(a, b) for a, b in pairs)

    def gates(self, numbers: _Numbers) -> Gates | None:
        """Return the gates by whose formula a turn changes the carry."""
        places = [
            i
            for i, leaf in enumerate(self.carry)
            if np.ndim(leaf) and leaf.shape[-1] == numbers.hidden and eqx.is_inexact_array(leaf)
        ]
        turn, generator = jax.jit(jaxpr_as_fun(self.body)), np.random.default_rng(1)
        lstm = numbers.gates == LSTM
        for chosen in itertools.permutations(places, 2 if lstm else 1):
            carry = list(self.carry)
            for place in chosen:
                drawn = generator.uniform(-1, 1, carry[place].shape)
                carry[place] = jnp.asarray(drawn, carry[place].dtype)
            before = [np.asarray(carry[place], float) for place in chosen]
            outs = turn(*self.consts, *carry, *self.inputs)
            after = [np.asarray(outs[place], float) for place in chosen]
            close = _CLOSE.get(carry[chosen[0]].dtype.itemsize, _CLOSE_ELSE)
            for gates, wanted in numbers.lstms(*before) if lstm else numbers.grus(*before):
                gaps = [np.abs(a - b).max() for a, b in zip(after, wanted, strict=True)]
                if max(gaps) < close:
                    return gates
        return None


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _noting_loops(loops: list[_Loop]) -> Callable[[JaxprEqn, list[Any]], list[Any]]:
    """Return how to evaluate an equation and note the loops over time in it, in their order."""

    def equation(eqn: JaxprEqn, ins: list[Any]) -> list[Any]:
        p = eqn.params
        if eqn.primitive.name == "scan":
            n, carried = scan_parts(eqn)
            m = n + carried
            first = [leaf[-1 if p["reverse"] else 0] for leaf in ins[m:]]
            loops.append(_Loop(p["jaxpr"], ins[:n], ins[n:m], first))
        inner = called(eqn)
        return bind(eqn, ins) if inner is None else evaluate(*inner, ins, equation)

    return equation
