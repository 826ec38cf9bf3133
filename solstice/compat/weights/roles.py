"""What each leaf of a network is for, and in which order leaves are used, from a trace of its call.

Names say little: `Dense_0` can be the last layer, and a norm's four vectors have one shape. The
operations of a forward pass say all: the leaf that a `dot_general` takes is a matrix, and its
dimension numbers say which axis is contracted. Here a call is traced and walked; every leaf is
followed through reshapes, transposes, slices and the like as an array of its own positions, to
its first real use. What is used in an operation not known here has that operation's name as role.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.interpreters import partial_eval

from solstice.compat.model import Model, as_inputs
from solstice.compat.weights.arrays import float_arrays, with_arrays
from solstice.compat.weights.uses import (
    BIAS,
    MATRIX,
    MEAN,
    SCALE,
    TABLE,
    VARIANCE,
    Trace,
    Use,
    conv_index,
)
from solstice.tree.programs import bind
from solstice.tree.pytree import PyTree


def trace(model: Model, example: PyTree) -> Trace:
    """Return how a model uses its float leaves in evaluation, in order.

    >>> import jax, jax.numpy as jnp
    >>> from jax.example_libraries import stax
    >>> from solstice import compat
    >>> x = jnp.ones((1, 3))
    >>> model = compat.as_model(stax.serial(stax.Dense(2), stax.Relu, stax.Dense(4)), x, key=0)
    >>> print(*trace(model, x).uses, sep=", ")
    params/0/0 (matrix 3x2), params/0/1 (bias 2), params/2/0 (matrix 2x4), params/2/1 (bias 4)
    """
    arrays = float_arrays(model)
    jaxpr, consts = forward_jaxpr(model, as_inputs(example))
    walk = _Walk(list(arrays), [leaf.size for leaf in arrays.values()])
    starts = zip(walk.starts, arrays.values(), strict=False)
    leaves = [_Piece(start + np.arange(leaf.size).reshape(leaf.shape)) for start, leaf in starts]
    flows = [_Flow()] * (len(jaxpr.invars) - len(leaves))
    outs = walk.run(jaxpr, [_Known(lambda c=c: c) for c in consts], [*leaves, *flows])
    walk.finish(outs)
    used = {use.leaf for use in walk.uses}
    unused = tuple(path for path in arrays if path not in used)
    return Trace(tuple(walk.uses), unused, tuple(walk.epsilons), walk.operations)


def forward_jaxpr(model: Model, inputs: tuple[PyTree, ...]) -> tuple[Any, list[Any]]:
    """Return the jaxpr of a model's evaluation, a function of its float leaves and of inputs.

    It holds only what the outputs depend on. Its constants come second.
    """
    arrays = float_arrays(model)

    def forward(values: list[jax.Array], inputs: PyTree) -> PyTree:
        return with_arrays(model, dict(zip(arrays, values, strict=True)))(*inputs)[0]

    closed = jax.make_jaxpr(forward)(list(arrays.values()), inputs)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals), True)
    return jaxpr, closed.consts


def inlined(eqn: Any) -> Any:
    """Return the jaxpr that an equation only calls, as one of `jit` does; None of any other."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return next((eqn.params[key] for key in keys if key in eqn.params), None)


def opened(jaxpr: Any) -> tuple[Any, list[Any]]:
    """Return a jaxpr, closed or open, and its constants."""
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, [])


@dataclasses.dataclass(frozen=True, eq=False)
class _Piece:
    """A value that is leaves' elements, moved about: `factor * element + shift`."""

    index: np.ndarray
    factor: float = 1.0
    shift: float = 0.0

    def moved(self, index: np.ndarray) -> "_Piece":
        return dataclasses.replace(self, index=index)


class _Known:
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
class _Flow:
    """A value that depends on the inputs.

    Attributes:
        of: In a loop over time, whether it comes from this step's input or from the carry.
        parts: If it was just concatenated, along which axis, and the parts with their sizes.
        epsilon: A constant that was just added.
        uses: Places in the walk's uses of the matrices and biases that it is linear in.
        merged: The sizes of axes that were just made one.
    """

    of: str = ""
    parts: tuple[int, tuple[tuple[int, str], ...]] | None = None
    epsilon: float | None = None
    uses: tuple[int, ...] = ()
    merged: tuple[int, ...] = ()


_Value = _Piece | _Known | _Flow
_SAME = {
    "convert_element_type", "copy", "copy_p", "optimization_barrier", "reduce_precision",
    "sharding_constraint", "stop_gradient",
}  # fmt: skip
_LAYOUTS: dict[str, Callable[[np.ndarray, dict[str, Any]], np.ndarray]] = {
    "reshape": lambda index, p: index.reshape(p["new_sizes"]),
    "transpose": lambda index, p: index.transpose(p["permutation"]),
    "squeeze": lambda index, p: index.squeeze(tuple(p["dimensions"])),
    "rev": lambda index, p: np.flip(index, p["dimensions"]),
    "slice": lambda index, p: index[
        tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or [1] * index.ndim))
    ],
    "broadcast_in_dim": lambda index, p: _broadcast(index, p["shape"], p["broadcast_dimensions"]),
}
_ARITHMETIC = {"add", "add_any", "sub", "mul", "div", "neg"}
_ROOTS = {"integer_pow", "pow", "rsqrt", "sqrt"}
_PICKED = {"gather", "dynamic_slice", "select_n"}


class _Walk:
    """Walks jaxprs, and notes uses."""

    def __init__(self, names: list[str], sizes: list[int]) -> None:
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.uses: list[Use] = []
        self.epsilons: list[float] = []
        self.operations: Counter[str] = Counter()
        self._names = names
        self._loop: int | None = None
        self._loops = 0
        self._step = -1
        self._unrolled = 0

    def run(self, jaxpr: Any, consts: Sequence[_Value], args: Sequence[_Value]) -> list[_Value]:
        """Walk a jaxpr whose arguments are known as `args`; return what its outputs are."""
        env: dict[Any, _Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> _Value:
            return _Known(lambda: atom.val) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            outs = self._equation(eqn, [read(atom) for atom in eqn.invars])
            env |= dict(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def finish(self, outs: Sequence[_Value]) -> None:
        """Note leaves that are outputs as they are."""
        for value in outs:
            if isinstance(value, _Piece):
                self._note("output", _distinct(value.index), "", value)

    def _equation(self, eqn: Any, ins: list[_Value]) -> list[_Value]:
        name, p = eqn.primitive.name, eqn.params
        outputs = len(eqn.outvars)
        inner = inlined(eqn)
        if inner is not None:
            return self.run(*_opened(inner), ins)
        if self._loop is None and not self._unrolled:
            self._step += 1
        if all(isinstance(value, _Known) for value in ins):
            return _computed(eqn, ins, outputs)
        self.operations[name] += 1
        if name == "scan":
            return self._scan(eqn, ins)
        if name == "while":
            return self._while(eqn, ins)
        if not any(isinstance(value, _Piece) for value in ins):
            return [self._flow(eqn, ins)] * outputs
        moved = self._moved(name, p, eqn, ins)
        if moved is not None:
            return moved
        before = len(self.uses)
        for place, value in enumerate(ins):
            if isinstance(value, _Piece):
                self._use(eqn, ins, place, value)
        new = tuple(range(before, len(self.uses)))
        linear = {"dot_general": new, "add": (*_linear_in(ins), *new)}.get(name, ())
        return [_Flow(_of(ins), uses=linear)] * outputs

    def _flow(self, eqn: Any, ins: list[_Value]) -> _Flow:
        name, of = eqn.primitive.name, _of(ins)
        flows = [place for place, value in enumerate(ins) if isinstance(value, _Flow)]
        first = next(value for value in ins if isinstance(value, _Flow))
        if name in _SAME:
            return first
        if name in _ROOTS and first.epsilon is not None:
            self.epsilons.append(first.epsilon)
        if name == "concatenate":
            axis = eqn.params["dimension"]
            sizes = [atom.aval.shape[axis] for atom in eqn.invars]
            parts = zip(sizes, [_of([value]) for value in ins], strict=True)
            return _Flow(of, (axis, tuple(parts)))
        shapes = eqn.invars[flows[0]].aval.shape, eqn.outvars[0].aval.shape
        if name in _LAYOUTS or name == "split":
            return _Flow(of, uses=first.uses, merged=_merged(*shapes))
        known = [value for value in ins if isinstance(value, _Known)]
        epsilon = known[0].scalar() if name == "add" and known else None
        alone = len(flows) == 1 and shapes[0] == shapes[1]
        return _Flow(of, epsilon=epsilon, merged=first.merged if alone else ())

    def _moved(self, name: str, p: Any, eqn: Any, ins: list[_Value]) -> list[_Value] | None:
        """Return what is no use but a move of elements, or None."""
        first = ins[0]
        if name == "optimization_barrier":
            return list(ins)
        if isinstance(first, _Piece):
            if name in _SAME:
                return [first]
            if name in _LAYOUTS and len(ins) == 1:
                return [first.moved(_LAYOUTS[name](first.index, p))]
            if name == "split":
                cuts = np.cumsum(p["sizes"])[:-1]
                return [first.moved(part) for part in np.split(first.index, cuts, p["axis"])]
        pieces = [value for value in ins if isinstance(value, _Piece)]
        known = [value for value in ins if isinstance(value, _Known)]
        if name == "concatenate" and len(pieces) == len(ins) and _alike(pieces):
            index = np.concatenate([piece.index for piece in pieces], p["dimension"])
            return [pieces[0].moved(index)]
        if len(pieces) + len(known) < len(ins):
            return None
        if name in _PICKED and len(pieces) == 1:
            values = [
                value.value if isinstance(value, _Known) else jnp.asarray(value.index)
                for value in ins
                if not isinstance(value, _Flow)
            ]
            if name == "select_n":
                return _selected(values, ins, pieces[0])
            return [pieces[0].moved(np.asarray(bind(eqn, values)[0]))]
        if name in _ARITHMETIC and len(pieces) == 1:
            return _affine(name, ins)
        return None

    def _use(self, eqn: Any, ins: list[_Value], place: int, piece: _Piece) -> None:
        name, p, index = eqn.primitive.name, eqn.params, piece.index
        factor, of, merged = piece.factor, "", ()
        if name == "dot_general":
            contracted, batch = (axes[place] for axes in p["dimension_numbers"])
            other = ins[1 - place]
            contracted = sorted(contracted)
            free = [d for d in range(index.ndim) if d not in contracted and d not in batch]
            index = index.transpose([*batch, *contracted, *free])
            head = index.shape[: len(batch)]
            rows = int(np.prod(index.shape[len(batch) : len(batch) + len(contracted)]))
            index = index.reshape(*head, rows, -1)
            role = "matrices" if batch else MATRIX
            if isinstance(other, _Flow) and math.prod(other.merged) == rows:
                merged = other.merged
            if self._loop is not None:
                of = _of([other])
                parts = other.parts if isinstance(other, _Flow) and not batch else None
                if parts is not None and p["dimension_numbers"][0][1 - place] == (parts[0],):
                    cuts = np.cumsum([size for size, _ in parts[1]])[:-1]
                    for part, (_, of) in zip(np.split(index, cuts), parts[1], strict=True):
                        self._note(role, part, of, piece)
                    return
        elif name == "conv_general_dilated" and place == 1:
            spec = p["dimension_numbers"].rhs_spec
            self.operations["transposed"] += any(size > 1 for size in p["lhs_dilation"])
            role, index = conv_index(index.transpose([*spec[2:], spec[1], spec[0]]))
        elif name in ("gather", "dynamic_slice") and place == 0:
            role = TABLE
            rows = _rows(name, p, index)
            rest = [d for d in range(index.ndim) if d not in rows]
            index = index.transpose([*rows, *rest])
            index = index.reshape(int(np.prod(index.shape[: len(rows)])), -1)
        elif name in _ARITHMETIC:
            index, of = _distinct(index), _of(ins)
            role = {"mul": SCALE, "neg": MEAN, "div": "dividend" if place == 0 else "divisor"}.get(
                name, BIAS
            )
            if name == "sub":
                role, factor = (MEAN, factor) if place == 1 else ("minuend", factor)
            if factor < 0 and role in (BIAS, SCALE, MEAN):
                role, factor = (BIAS if role == MEAN else MEAN), -factor
        elif name in _ROOTS:
            role, index = VARIANCE, _distinct(index)
            self.epsilons.append(piece.shift)
        else:
            role, index = name, _distinct(index)
        self._note(role, index, of, dataclasses.replace(piece, factor=factor), merged)

    def _note(
        self, role: str, index: np.ndarray, of: str, piece: _Piece, rows: tuple[int, ...] = ()
    ) -> None:
        """Note a use, or one for each leaf that its elements are of."""
        first, last = self._owner(index.min()), self._owner(index.max())
        parts = [index] if first == last else _blocks(index, self._owner(index))
        for part in parts:
            leaf = int(self._owner(part.flat[0]))
            index = part - self.starts[leaf]
            signed = role, index, self._loop, of, piece.factor, piece.shift, self._step, rows
            self.uses.append(Use(self._names[leaf], *signed))

    def _owner(self, positions: Any) -> Any:
        return np.searchsorted(self.starts, positions, "right") - 1

    def _scan(self, eqn: Any, ins: list[_Value]) -> list[_Value]:
        p = eqn.params
        n, m = p["num_consts"], p["num_consts"] + p["num_carry"]
        consts, carry, xs = ins[:n], ins[n:m], ins[m:]
        jaxpr, closed = _opened(p["jaxpr"])
        count = len(eqn.outvars)
        if any(isinstance(value, _Piece) for value in xs):  # layers, one after the other
            self._unrolled += 1
            order = range(p["length"])
            for step in reversed(order) if p["reverse"] else order:
                sliced = [
                    value.moved(value.index[step]) if isinstance(value, _Piece) else _Flow()
                    for value in xs
                ]
                outs = self.run(jaxpr, closed, [*consts, *carry, *sliced])
                carry = outs[: len(carry)]
            self._unrolled -= 1
            last = [_Flow() if isinstance(value, _Known) else value for value in carry]
            return [*last, *[_Flow()] * (count - len(carry))]
        for value in carry:
            if isinstance(value, _Piece):
                self._note("initial", _distinct(value.index), "", value)
        inside = [*consts, *[_Flow("carry")] * len(carry), *[_Flow("input")] * len(xs)]
        before = len(self.uses)
        self._in_loop(jaxpr, closed, inside)
        matrices = {use.of for use in self.uses[before:] if use.role == MATRIX}
        if matrices == {"carry"} and self._loop is None:  # inputs were multiplied before the loop
            for place in _linear_in(xs):
                use = self.uses[place]
                self.uses[place] = dataclasses.replace(use, loop=self._loops - 1, of="input")
        return [_Flow()] * count

    def _while(self, eqn: Any, ins: list[_Value]) -> list[_Value]:
        p = eqn.params
        skipped = p["cond_nconsts"]
        jaxpr, closed = _opened(p["body_jaxpr"])
        inside: list[_Value] = [
            value if isinstance(value, _Piece) or k < p["body_nconsts"] else _Flow("carry")
            for k, value in enumerate(ins[skipped:])
        ]
        self._in_loop(jaxpr, closed, inside)
        return [_Flow()] * len(eqn.outvars)

    def _in_loop(self, jaxpr: Any, closed: list[_Value], inside: list[_Value]) -> None:
        outer = self._loop
        if outer is None:
            self._loop, self._loops = self._loops, self._loops + 1
        self.run(jaxpr, closed, inside)
        self._loop = outer


def _opened(jaxpr: Any) -> tuple[Any, list[_Value]]:
    inner, consts = opened(jaxpr)
    return inner, [_Known(lambda c=c: c) for c in consts]


def _computed(eqn: Any, ins: list[_Value], outputs: int) -> list[_Value]:
    def compute() -> list[Any]:
        values = [value.value for value in ins if isinstance(value, _Known)]
        return bind(eqn, values)

    every = _Known(compute)
    return [_Known(lambda i=i: every.value[i]) for i in range(outputs)]


def _merged(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of the last axes that a reshape makes one, without those of one element."""
    kept = len(after) - 1
    if len(before) - kept < 2 or before[:kept] != after[:kept]:
        return ()
    sizes = tuple(size for size in before[kept:] if size > 1)
    return sizes if len(sizes) > 1 else ()


def _alike(pieces: Sequence[_Piece]) -> bool:
    return len({(piece.factor, piece.shift) for piece in pieces}) == 1


def _of(values: Sequence[_Value]) -> str:
    kinds = {value.of for value in values if isinstance(value, _Flow)}
    return "carry" if "carry" in kinds else "input" if "input" in kinds else ""


def _linear_in(values: Sequence[_Value]) -> tuple[int, ...]:
    flows = [value for value in values if isinstance(value, _Flow)]
    return tuple(dict.fromkeys(place for flow in flows for place in flow.uses))


def _affine(name: str, ins: list[_Value]) -> list[_Value] | None:
    """Return an element's multiple or sum with a known number, or None."""
    first = ins[0]
    if name == "neg" and isinstance(first, _Piece):
        return [dataclasses.replace(first, factor=-first.factor, shift=-first.shift)]
    if len(ins) != 2 or name == "neg":
        return None
    second = ins[1]
    if isinstance(first, _Piece) and isinstance(second, _Known):
        piece, known, swapped = first, second, False
    elif isinstance(first, _Known) and isinstance(second, _Piece):
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
    return [_Piece(piece.index, factor, shift)]


def _selected(values: list[Any], ins: list[_Value], piece: _Piece) -> list[_Value] | None:
    if isinstance(ins[0], _Piece):
        return None
    chosen = np.unique(np.asarray(values[0]).astype(int))
    if chosen.size != 1 or not isinstance(ins[1 + int(chosen[0])], _Piece):
        return None
    return [piece]


def _broadcast(index: np.ndarray, shape: Any, kept: Any) -> np.ndarray:
    sizes = [1] * len(shape)
    for axis, dimension in enumerate(kept):
        sizes[dimension] = index.shape[axis]
    return np.broadcast_to(index.reshape(sizes), shape)


def _distinct(index: np.ndarray) -> np.ndarray:
    """Return the distinct elements in the order in which they come."""
    once = index[tuple(0 if stride == 0 else slice(None) for stride in index.strides)]
    flat = np.ascontiguousarray(once).reshape(-1)
    _, first = np.unique(flat, return_index=True)
    return flat[np.sort(first)]


def _rows(name: str, p: Any, index: np.ndarray) -> list[int]:
    """Return the axes of a table along which a lookup picks."""
    sizes = p["slice_sizes"]
    picked = [d for d in range(index.ndim) if sizes[d] == 1 and index.shape[d] > 1]
    if name == "gather":
        numbers = p["dimension_numbers"]
        picked = picked or list(numbers.start_index_map)
    return picked or [0]


def _blocks(index: np.ndarray, owner: np.ndarray) -> list[np.ndarray]:
    """Cut an index where another leaf's elements begin, along its last axis or its first."""
    for axis in (owner.ndim - 1, 0):
        lines = np.moveaxis(owner, axis, 0).reshape(owner.shape[axis], -1)
        if (lines == lines[:, :1]).all():
            cuts = np.flatnonzero(np.diff(lines[:, 0])) + 1
            return np.split(index, cuts, axis)
    return [index[owner == leaf] for leaf in dict.fromkeys(owner.reshape(-1).tolist())]
