"""Runs a traced network, with the values at its tags collected or replaced.

The program is evaluated equation by equation. Inner programs (of a jit, a remat or a scan) are
rebuilt only if they contain a selected tag: they then also return the collected values, which a
scan stacks. It refuses to open loops of unknown length, branches and kernels.
"""

import collections
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn

from solstice.arguments import check_leaves, describe
from solstice.compat.surgery.tags import Form, derivative_p, tag_p, tagging
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.naming import tree_difference
from solstice.tree.programs import (
    bind,
    called,
    equations,
    evaluate,
    inner_programs,
    opened,
    scan_parts,
)
from solstice.tree.pytree import PyTree

Arrays = list[Any]
Change = Callable[[PyTree], PyTree]

_NUMBERS = (np.ndarray, np.generic, int, float, complex)
_PLAIN = ("closed_call", "core_call")
_JITS = ("jit", "pjit")
_REMATS = ("checkpoint", "remat", "remat2")
_OWN_DERIVATIVES = ("custom_jvp_call", "custom_vjp_call")
_OPENED = (*_PLAIN, *_JITS, *_REMATS, *_OWN_DERIVATIVES, "scan")


class Site(NamedTuple):
    """A tag in a program: a call of one sub-module.

    Attributes:
        path: The sub-module's path, with "#" and a number if there are several calls.
        name: The path alone.
        form: The structure of its value.
        shapes: The value's arrays, stacked by the scans around them.
        within: The operation around it that cannot be opened, such as "while"; None if there is
            none.
    """

    path: str
    name: str
    form: Form
    shapes: list[jax.ShapeDtypeStruct]
    within: str | None

    @property
    def is_of_arrays(self) -> bool:
        """Whether the whole value can be changed."""
        return not any(part is not None for part in self.form.parts)

    def arrays(self, value: PyTree, what: str, shapes: Arrays | None = None) -> Arrays:
        """Return the arrays of a value that replaces the one at this site.

        Args:
            value: The new value.
            what: What it is, for an error.
            shapes: The arrays there; by default, those over all steps of a scan.

        Raises:
            ValueError: It has another structure, shape or dtype.
        """
        check_leaves(value, what)
        shapes = self.shapes if shapes is None else shapes
        leaves, structure = jax.tree.flatten(value)
        if structure != self.form.structure:
            raise InvalidValueError(
                f"{what} is expected to be a tree like the value at {self.path!r}, "
                f"{describe(self.form.join(shapes))}; it is {describe(value)}: "
                f"{tree_difference(self.form.structure, structure)}."
            )
        own = list(zip(leaves, self.form.parts, strict=True))
        for leaf, part in own:
            if part is not None and not _is_same(leaf, part):
                raise InvalidValueError(
                    f"{what} is expected to keep the part that is not a jax array in the value at "
                    f"{self.path!r}, {describe(part)}: the network has already used it, so a "
                    "change would have no effect. Return it unchanged, or make it an array in the "
                    "network: jnp.asarray(...)."
                )
        arrays = [jnp.asarray(leaf) for leaf, part in own if part is None]
        for array, shape in zip(arrays, shapes, strict=True):
            if (array.shape, array.dtype) != (shape.shape, shape.dtype):
                raise InvalidValueError(
                    f"{what} is expected to be {describe(shape)}, as the value at {self.path!r}; "
                    f"it is {describe(array)}. Keep the shape and the dtype: jnp.zeros_like(value)."
                )
        # The dtype again, for a strong type: a scan does not take another one.
        return [
            array if jnp.issubdtype(array.dtype, jax.dtypes.extended) else array.astype(array.dtype)
            for array in arrays
        ]


class TaggedProgram:
    """What a function computes, traced with its tags.

    Attributes:
        sites: Its tags, in order of execution.
        differentiated: The names of tags that it takes a derivative through.
    """

    def __init__(self, function: Callable[..., PyTree], *args: PyTree) -> None:
        arrays, rest = eqx.partition(args, eqx.is_array)
        self._leaves = jax.tree.leaves(arrays)
        self._parts: PyTree = None

        def traced(arrays: PyTree) -> PyTree:
            outputs = function(*eqx.combine(arrays, rest))
            outputs, self._parts = eqx.partition(outputs, eqx.is_array)
            return outputs

        with tagging(True):
            program, shapes = jax.make_jaxpr(traced, return_shape=True)(arrays)
        self._jaxpr, self._consts = program.jaxpr, program.consts
        self._structure = jax.tree.structure(shapes)
        self.sites = _named(_sites(self._jaxpr))
        self.differentiated = {
            eqn.params["path"] for eqn in equations(self._jaxpr) if eqn.primitive is derivative_p
        }

    def run(
        self, kept: Collection[int], values: Mapping[int, Arrays], changes: Mapping[int, Change]
    ) -> tuple[PyTree, dict[int, PyTree]]:
        """Return the outputs, and the values at tags, by the number of the tag.

        Args:
            kept: Which values to return.
            values: The arrays to insert there.
            changes: The functions that change the values there, called in each step of a scan.
        """
        run = _Run(self.sites, kept, changes)
        outs, found = run(self._jaxpr, self._consts, self._leaves, 0, dict(values))
        outputs = eqx.combine(jax.tree.unflatten(self._structure, outs), self._parts)
        kept = sorted(kept)
        return outputs, {number: self.sites[number].form.join(found[number]) for number in kept}


class _Run:
    """One evaluation: tags are counted as they come, so that a program may be called twice."""

    def __init__(
        self, sites: list[Site], kept: Collection[int], changes: Mapping[int, Change]
    ) -> None:
        self._sites, self._kept, self._changes = sites, kept, changes

    def __call__(
        self, jaxpr: Jaxpr, consts: Any, given: Any, number: int, values: dict[int, Arrays]
    ) -> tuple[Arrays, dict[int, Arrays]]:
        """Evaluate a program whose first tag has the `number`."""
        found: dict[int, Arrays] = {}
        numbers = itertools.count(number)

        def equation(eqn: JaxprEqn, operands: Arrays) -> Arrays:
            inside = list(itertools.islice(numbers, _count(eqn)))
            if eqn.primitive is tag_p:
                (own,) = inside
                outs = self._at(own, operands, values)
                if own in self._kept:
                    found[own] = outs
                return outs
            if not any(i in values or i in self._changes or i in self._kept for i in inside):
                return bind(eqn, operands)
            outs, more = self._open(
                eqn, operands, inside, {i: values[i] for i in inside if i in values}
            )
            found.update(more)
            return outs

        return evaluate(jaxpr, consts, given, equation), found

    def _at(self, number: int, operands: Arrays, values: dict[int, Arrays]) -> Arrays:
        if number in values:
            return values[number]
        if number not in self._changes:
            return operands
        site = self._sites[number]
        changed = self._changes[number](site.form.join(operands))
        return site.arrays(changed, f"What edits[{site.path!r}] returns", operands)

    def _open(
        self, eqn: JaxprEqn, operands: Arrays, inside: list[int], values: dict[int, Arrays]
    ) -> tuple[Arrays, dict[int, Arrays]]:
        """Evaluate an equation that calls a program with selected tags."""
        name, params = eqn.primitive.name, eqn.params
        jaxpr, consts = called(eqn) or opened(params["jaxpr"])

        def call(operands: Arrays, values: dict[int, Arrays]) -> tuple[Arrays, dict[int, Arrays]]:
            return self(jaxpr, consts, operands, inside[0], values)

        if name == "scan":
            return _scan(call, eqn, jaxpr, operands, values)
        if name in _JITS:
            call.__name__ = params["name"]
            return jax.jit(call)(operands, values)
        if name in _REMATS:
            kept = {"policy": params["policy"], "prevent_cse": params["prevent_cse"]}
            return jax.checkpoint(call, **kept)(operands, values)
        if name in _OWN_DERIVATIVES:
            outs, found = _without_derivative(call(operands, values))
            edited = any(i in values or i in self._changes for i in inside)
            return (outs if edited else bind(eqn, operands)), found
        return call(operands, values)


def _scan(
    call: Callable[..., tuple[Arrays, dict[int, Arrays]]],
    eqn: JaxprEqn,
    jaxpr: Jaxpr,
    operands: Arrays,
    values: dict[int, Arrays],
) -> tuple[Arrays, dict[int, Arrays]]:
    """Evaluate a scan; collected values come out stacked, and inserted values go in stacked."""
    params = eqn.params
    closed, carried = scan_parts(eqn)
    consts, xs = operands[:closed], operands[closed + carried :]
    kinds: list[Any] = [one.aval for one in jaxpr.invars[closed : closed + carried]]
    carry = [
        jnp.asarray(one, kind.dtype) if not isinstance(one, jax.Array) else one
        for one, kind in zip(operands[closed : closed + carried], kinds, strict=True)
    ]

    def step(carry: Arrays, given: Any) -> Any:
        xs, values = given
        outs, found = call([*consts, *carry, *xs], values)
        return outs[:carried], (outs[carried:], found)

    loop = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, found) = jax.lax.scan(step, carry, (xs, values), **loop)
    return [*carry, *ys], found


def _sites(
    jaxpr: Jaxpr, lengths: tuple[int, ...] = (), within: str | None = None
) -> Iterator[Site]:
    """Yield the tags of a program in the order in which a run meets them."""
    for eqn in jaxpr.eqns:
        if eqn.primitive is tag_p:
            avals: list[Any] = [one.aval for one in eqn.outvars]
            shapes = [jax.ShapeDtypeStruct((*lengths, *aval.shape), aval.dtype) for aval in avals]
            name = eqn.params["path"]
            yield Site(name, name, eqn.params["form"].value, shapes, within)
            continue
        name = eqn.primitive.name
        stacked = (*lengths, eqn.params["length"]) if name == "scan" else lengths
        for inner in inner_programs(eqn):
            yield from _sites(inner, stacked, within or (None if name in _OPENED else name))


def _named(sites: Iterator[Site]) -> list[Site]:
    """Number the calls of sub-modules that are called several times."""
    every = list(sites)
    total = collections.Counter(site.name for site in every)
    counts = collections.defaultdict[str, Iterator[int]](itertools.count)
    return [
        site._replace(path=f"{site.name}#{next(counts[site.name])}")
        if total[site.name] > 1
        else site
        for site in every
    ]


def _count(eqn: JaxprEqn) -> int:
    inside = (one for jaxpr in inner_programs(eqn) for one in equations(jaxpr))
    return sum(one.primitive is tag_p for one in (eqn, *inside))


def _is_same(leaf: Any, part: Any) -> bool:
    """Return whether parts that are not jax arrays (numbers, numpy arrays) are unchanged."""
    if leaf is part:
        return True
    if isinstance(leaf, Tracer):
        return False
    if isinstance(part, _NUMBERS):  # which a compiled function returns as arrays
        return isinstance(leaf, (*_NUMBERS, jax.Array)) and np.array_equal(leaf, part)
    return type(leaf) is type(part) and bool(leaf == part)


@jax.custom_jvp
def _without_derivative(tree: PyTree) -> PyTree:
    return tree


@_without_derivative.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise InvalidTypeError(
        "A value cannot be differentiated: it is captured or "
        "changed inside a function with a custom derivative (jax.custom_vjp or custom_jvp), "
        "whose rule does not cover it. Select sub-modules outside of it, or take no derivative."
    )
