"""Finds which gate is which in a network's recurrent cells by running their loops.

A cell's blocks are known from the trace, and which gate each is, from what the loop makes of
numbers: its matrices are set to zero and its biases to a number for each block, and one turn of the
loop changes a carry by the LSTM's formula for one order of the gates only.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, jaxpr_as_fun

from solstice.compat.model import Model, as_inputs
from solstice.compat.weights.leaves import float_leaves
from solstice.compat.weights.recurrent import LSTM, SIMPLE, Cell
from solstice.compat.weights.roles import forward_jaxpr
from solstice.tree.programs import bind, called, evaluate, scan_parts
from solstice.tree.pytree import PyTree

# Any four numbers whose gates differ well.
_NUMBERS = np.array([0.3, -0.8, 1.1, -0.4])
_CLOSE = 1e-4


@dataclasses.dataclass(frozen=True)
class Gates:
    """What a cell's blocks are.

    Attributes:
        order: One letter per block: input, forget, candidate, output, as "ifgo".
        forget: The constant that the network adds to the forget gate, besides the bias.
    """

    order: str
    forget: float = 0.0


def find_gates(model: Model, example: PyTree, cells: Sequence[Cell]) -> list[Gates | None]:
    """Return which gate each block of a model's cells is; None if unknown.

    It finds those of LSTMs with a bias, and of simple cells, which have one block.

    Args:
        model: The model.
        example: A batch's inputs.
        cells: Its cells, as its trace has them.
    """
    if all(cell.gates != LSTM for cell in cells):
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
        biases = cell.other_bias if len(cell.other_bias) == LSTM else cell.input_bias
        if cell.gates == SIMPLE:
            found.append(Gates("h"))
            continue
        if cell.gates != LSTM or len(biases) != LSTM:
            found.append(None)
            continue
        values = dict(zeros)
        for use, number in zip(biases, _NUMBERS, strict=True):
            values[use.leaf] = values[use.leaf].copy()
            values[use.leaf].reshape(-1)[use.index] = number
        changed = (
            loop
            for loop, before in zip(turns(values), at_rest, strict=True)
            if loop.differs(before)
        )
        loop = next(changed, None)
        found.append(None if loop is None else loop.lstm(cell.hidden))
    return found


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

    def lstm(self, hidden: int) -> Gates | None:
        """Return the order of gates by whose formula a turn changes the carry."""
        places = [
            i
            for i, leaf in enumerate(self.carry)
            if np.ndim(leaf) and leaf.shape[-1] == hidden and eqx.is_inexact_array(leaf)
        ]
        turn = jax.jit(jaxpr_as_fun(self.body))
        for cell, output in itertools.permutations(places, 2):
            carry = list(self.carry)
            c = np.linspace(-1, 1, carry[cell].size).reshape(carry[cell].shape)
            carry[cell] = jnp.asarray(c, carry[cell].dtype)
            after = turn(*self.consts, *carry, *self.inputs)
            new_c, new_h = np.asarray(after[cell], float), np.asarray(after[output], float)
            for order in itertools.permutations("ifgo"):
                for forget in (0.0, 1.0, -1.0):
                    b = dict(zip(order, _NUMBERS, strict=True))
                    want = _sigmoid(b["f"] + forget) * c + _sigmoid(b["i"]) * np.tanh(b["g"])
                    out = _sigmoid(b["o"]) * np.tanh(want)
                    if np.abs(want - new_c).max() < _CLOSE and np.abs(out - new_h).max() < _CLOSE:
                        return Gates("".join(order), forget)
        return None


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


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
