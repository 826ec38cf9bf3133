"""What is known about a value while following the leaves through a network's program.

A value is a piece of the leaves (elements moved about), known (it depends on neither leaves nor
inputs) or a flow (it depends on the inputs). Reshapes, transposes, slices, and multiples and sums
with a known number only move the elements of leaves: `moved` does that, and anything else is a use.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from solstice.compat.weights.axes import Axis
from solstice.tree.programs import bind


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A value that is leaves' elements, moved about: `factor * element + shift`."""

    index: np.ndarray
    factor: float = 1.0
    shift: float = 0.0

    def moved(self, index: np.ndarray) -> "Piece":
        return dataclasses.replace(self, index=index)


class Known:
    """A value that depends on neither inputs nor float leaves; computed when it is asked for."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute: Callable[[], Any] | None = compute
        self._value: Any = None

    @property
    def value(self) -> Any:
        if self._compute is not None:
            self._value, self._compute = self._compute(), None
        return self._value

    def scalar(self) -> float | None:
        """The one number that all elements are, or None."""
        value = np.asarray(self.value)
        if value.size == 0 or not np.issubdtype(value.dtype, np.number):
            return None
        return float(value.flat[0]) if (value == value.flat[0]).all() else None


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """A value that depends on the inputs.

    Attributes:
        of: In a loop over time, whether it comes from this step's input or from the carry.
        parts: If it was just concatenated, along which axis, and the parts with their sizes.
        epsilon: A constant that was just added.
        uses: Places in the walk's uses of the matrices and biases that it is linear in.
        axes: Its axes; empty if they are not known.
        fixed: Whether it is computed from leaves alone, as what a norm in evaluation multiplies by.
    """

    of: str = ""
    parts: tuple[int, tuple[tuple[int, str], ...]] | None = None
    epsilon: float | None = None
    uses: tuple[int, ...] = ()
    axes: tuple[Axis, ...] = ()
    fixed: bool = False


Value = Piece | Known | Flow
SAME = {
    "convert_element_type", "copy", "copy_p", "optimization_barrier", "reduce_precision",
    "sharding_constraint", "stop_gradient",
}  # fmt: skip
LAYOUTS: dict[str, Callable[[np.ndarray, dict[str, Any]], np.ndarray]] = {
    "reshape": lambda index, p: index.reshape(p["new_sizes"]),
    "transpose": lambda index, p: index.transpose(p["permutation"]),
    "squeeze": lambda index, p: index.squeeze(tuple(p["dimensions"])),
    "rev": lambda index, p: np.flip(index, p["dimensions"]),
    "slice": lambda index, p: index[
        tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or [1] * index.ndim))
    ],
    "broadcast_in_dim": lambda index, p: _broadcast(index, p["shape"], p["broadcast_dimensions"]),
}
ARITHMETIC = {"add", "add_any", "sub", "mul", "div", "neg"}
ROOTS = {"integer_pow", "pow", "rsqrt", "sqrt"}
_PICKED = {"gather", "dynamic_slice", "select_n"}


def all_known(values: Sequence[Any]) -> list[Value]:
    """Return known values."""
    return [Known(lambda c=c: c) for c in values]


def moved(eqn: JaxprEqn, ins: list[Value]) -> list[Value] | None:
    """Return the result of an operation that only moves elements, or None."""
    name, p, first = eqn.primitive.name, eqn.params, ins[0]
    if name == "optimization_barrier":
        return list(ins)
    if isinstance(first, Piece):
        if name in SAME:
            return [first]
        if name in LAYOUTS and len(ins) == 1:
            return [first.moved(LAYOUTS[name](first.index, p))]
        if name == "split":
            cuts = np.cumsum(p["sizes"])[:-1]
            return [first.moved(part) for part in np.split(first.index, cuts, p["axis"])]
    pieces = [value for value in ins if isinstance(value, Piece)]
    known = [value for value in ins if isinstance(value, Known)]
    if name == "concatenate" and len(pieces) == len(ins) and _alike(pieces):
        index = np.concatenate([piece.index for piece in pieces], p["dimension"])
        return [pieces[0].moved(index)]
    if len(pieces) + len(known) < len(ins):
        return None
    if name in _PICKED and len(pieces) == 1:
        values = [
            value.value if isinstance(value, Known) else jnp.asarray(value.index)
            for value in ins
            if not isinstance(value, Flow)
        ]
        if name == "select_n":
            return _selected(values, ins, pieces[0])
        return [pieces[0].moved(np.asarray(bind(eqn, values)[0]))]
    if name in ARITHMETIC and len(pieces) == 1:
        return _affine(name, ins)
    return None


def computed(eqn: JaxprEqn, ins: list[Value], outputs: int) -> list[Value]:
    """Return the results of an equation whose operands are all known, computed when asked for."""

    def compute() -> list[Any]:
        values = [value.value for value in ins if isinstance(value, Known)]
        return bind(eqn, values)

    every = Known(compute)
    return [Known(lambda i=i: every.value[i]) for i in range(outputs)]


def _alike(pieces: Sequence[Piece]) -> bool:
    return len({(piece.factor, piece.shift) for piece in pieces}) == 1


def dependence(values: Sequence[Value]) -> str:
    """Describe what values in a loop depend on: "carry", "input" or nothing, ""."""
    kinds = {value.of for value in values if isinstance(value, Flow)}
    return "carry" if "carry" in kinds else "input" if "input" in kinds else ""


def linear_in(values: Sequence[Value]) -> tuple[int, ...]:
    """Return the places of the uses that values are linear in."""
    flows = [value for value in values if isinstance(value, Flow)]
    return tuple(dict.fromkeys(place for flow in flows for place in flow.uses))


def _affine(name: str, ins: list[Value]) -> list[Value] | None:
    """Return an element's multiple or sum with a known number, or None."""
    first = ins[0]
    if name == "neg" and isinstance(first, Piece):
        return [dataclasses.replace(first, factor=-first.factor, shift=-first.shift)]
    if len(ins) != 2 or name == "neg":
        return None
    second = ins[1]
    if isinstance(first, Piece) and isinstance(second, Known):
        piece, known, swapped = first, second, False
    elif isinstance(first, Known) and isinstance(second, Piece):
        piece, known, swapped = second, first, True
    else:
        return None
    number = known.scalar()
    if (
        number is None
        or (name == "div" and (swapped or not number))
        or (name == "mul" and not number)
    ):
        return None
    factor, shift = piece.factor, piece.shift
    if name == "mul":
        factor, shift = factor * number, shift * number
    elif name == "div":
        factor, shift = factor / number, shift / number
    elif name == "sub":
        factor, shift = (-factor, number - shift) if swapped else (factor, shift - number)
    else:
        shift += number
    return [Piece(piece.index, factor, shift)]


def _selected(values: list[Any], ins: list[Value], piece: Piece) -> list[Value] | None:
    if isinstance(ins[0], Piece):
        return None
    chosen = np.unique(np.asarray(values[0]).astype(int))
    if chosen.size != 1 or not isinstance(ins[1 + int(chosen[0])], Piece):
        return None
    return [piece]


def _broadcast(index: np.ndarray, shape: Any, kept: Any) -> np.ndarray:
    sizes = [1] * len(shape)
    for axis, dimension in enumerate(kept):
        sizes[dimension] = index.shape[axis]
    return np.broadcast_to(index.reshape(sizes), shape)


def distinct(index: np.ndarray) -> np.ndarray:
    """Return the distinct elements in the order in which they come."""
    once = index[tuple(0 if stride == 0 else slice(None) for stride in index.strides)]
    flat = np.ascontiguousarray(once).reshape(-1)
    _, first = np.unique(flat, return_index=True)
    return flat[np.sort(first)]


def axes_of(value: Value, shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """Return the axes of a value, new ones where they are not known."""
    if isinstance(value, Flow) and len(value.axes) == len(shape):
        return value.axes
    return tuple(Axis() for _ in shape)


def reshaped(
    axes: tuple[Axis, ...], before: tuple[int, ...], after: tuple[int, ...], step: int
) -> tuple[Axis, ...]:
    """Return the axes after a reshape, and note what it makes one, or several."""
    made: list[Axis] = []
    i = j = 0
    while i < len(before) or j < len(after):
        first, last = i, j
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        ours, its = math.prod(before[first:i]), math.prod(after[last:j])
        while ours != its:
            if (ours < its and i < len(before)) or j == len(after):
                i += 1
            else:
                j += 1
            ours, its = math.prod(before[first:i]), math.prod(after[last:j])
        held = [place for place in range(first, i) if before[place] > 1]
        given = [place for place in range(last, j) if after[place] > 1]
        kept = None
        if len(held) == len(given) == 1:
            kept = axes[held[0]]
        elif len(given) == 1:
            kept = Axis(tuple(before[place] for place in held), step)
        elif len(held) == 1:
            axes[held[0]].split(tuple(after[place] for place in given), step)
        made += [kept if kept and place in given else Axis() for place in range(last, j)]
    return tuple(made)


def is_fixed(ins: Sequence[Value]) -> bool:
    """Say whether values depend on leaves alone."""
    return all(value.fixed for value in ins if isinstance(value, Flow))


def picked_rows(name: str, p: Any, index: np.ndarray) -> list[int]:
    """Return the axes of a table along which a lookup picks."""
    sizes = p["slice_sizes"]
    picked = [d for d in range(index.ndim) if sizes[d] == 1 and index.shape[d] > 1]
    if name == "gather":
        numbers = p["dimension_numbers"]
        picked = picked or list(numbers.start_index_map)
    return picked or [0]
