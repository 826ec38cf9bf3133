"""Moves weights to a network of another library, and checks that both compute the same."""

import warnings
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.model import Model, as_inputs
from solstice.compat.surgery.wrapped import WrappedModel, merge
from solstice.compat.weights.blind import doubled, hidden, telling
from solstice.compat.weights.disturbed import disturbed
from solstice.compat.weights.divergence import first_divergence
from solstice.compat.weights.leaves import float_leaves, with_leaves
from solstice.compat.weights.matching import MismatchError, candidates
from solstice.compat.weights.pairs import ClashError, Pair, values
from solstice.compat.weights.proof import (
    TOLERANCE,
    Arrays,
    UnprovenError,
    difference,
    drawn,
    evaluation,
    is_finite,
)
from solstice.compat.weights.roles import trace
from solstice.compat.weights.unequal import causes, has_one_order, unlike
from solstice.compat.weights.uses import BIAS, Trace
from solstice.compat.weights.whole import whole
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.names import few
from solstice.tree.pytree import PyTree

_M = TypeVar("_M", bound=Model)
# Biases drawn at random are about 0.3; relu6 ends at 6.
_LARGE, _GROSS = 40, 1e-3
_WHAT = "a compat.Model, such as exp.model or compat.as_model(network, example, key=key)"


def convert(model: Model, *, like: _M, example: PyTree, strict: bool = True) -> _M:
    """Return `like` with the weights of `model`: the same network in another library.

    A trace of each call shows how, and in which order, the networks use their leaves; leaves are
    matched by that, not by names or layouts. All orders of a recurrent cell's gates are tried. Then
    both networks run on the example, once with random weights and once with `model`'s, and must
    agree. Neither model changes.

    The result continues training as `model` would: running averages are copied, and their
    correction for the first steps (`Model.settle_averages`) is over.

    Args:
        model: The network with the weights. A wrapped one (`compat.lora`, `compat.quantize`) is
            merged first.
        like: A network of the same architecture, in any library, not wrapped. The result has its
            structure, dtypes and placement.
        example: A batch of inputs; several as a tuple. Use one that needs every weight: a table of
            positions, for example, needs sequences of full length, and attention two positions. In
            place of an array of one number, such as zeros, numbers are drawn.
        strict: Whether a weight that changes no output on the example is an error; otherwise, a
            warning names it. Some networks show a weight on no example: 3x3 kernels on maps of one
            pixel, for example, are used at their centre only.

    Raises:
        TypeError: An argument is of a wrong type, or this is called under a jax transformation.
        ValueError: The networks use their weights differently (the message names the first place),
            their outputs on the example differ by more than 1e-5 of the largest, the outputs of
            `like` do not depend on some of its weights there, which the message names, or with
            other values of an input, such as a mask, outputs differ.

    >>> import equinox as eqx, flax.linen as nn, jax, jax.numpy as jnp
    >>> from solstice import compat
    >>> x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    >>> flax = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    >>> model = compat.as_model(flax, x, key=0)
    >>> like = compat.as_model(eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(1)))
    >>> converted = compat.convert(model, like=like, example=x)
    >>> type(converted).__name__, bool(jnp.allclose(converted(x)[0], model(x)[0], atol=1e-5))
    ('EquinoxModel', True)
    """
    arguments.instance(model, "model", Model, _WHAT)
    arguments.instance(like, "like", Model, _WHAT)
    if isinstance(like, WrappedModel):
        raise InvalidTypeError(
            "like is expected to be a network's own model; it is a WrappedModel, whose factors or "
            "quantized values no other network has. Convert first, then wrap: "
            "compat.lora(compat.convert(model, like=compat.merge(like), example=x), ...)."
        )
    strict = arguments.flag(strict, "strict")
    given = as_inputs(example)
    arguments.check_untraced((model, like, given), "convert()")
    source = _Side(merge(model), telling(given))
    reference = source.run(source.arrays)
    if not is_finite(reference):
        source = _Side(source.model, given)
        reference = source.run(source.arrays)
    target = _Side(like.settle_averages(), source.inputs)
    if not is_finite(reference):
        raise UnprovenError(
            "convert() proves its result by outputs; those of model on the example are not finite."
        )
    _check_outputs(reference, target.run(target.arrays))
    _check_used(target.trace)
    try:
        pairs = _first_equal(source, target, reference)
    except MismatchError as error:
        raise MismatchError(
            f"convert() takes two networks of one architecture, model (the source) and like "
            f"(the target). {error} Give a `like` that uses weights of the same sizes in the same "
            f"layers.",
            target=error.target,
            source=error.source,
        ) from error
    pairs = whole(pairs, source.arrays, target.arrays)
    arrays = values(pairs, source.arrays, target.arrays)
    if not (gap := difference(target.run(target.arrays | arrays), reference)) <= TOLERANCE:
        raise InvalidValueError(_refusal(gap, pairs, source, target, source.arrays, arrays))
    _check_far(pairs, source, target)
    _check_inputs(pairs, source, target)
    _check_shown(target, strict=strict)
    _check_doubled(source, target, arrays)
    return with_leaves(target.model, arrays).settle_averages()


class _Side(Generic[_M]):
    """One of the two networks, its values, and its trace."""

    def __init__(self, model: _M, inputs: tuple[PyTree, ...]) -> None:
        self.model = model
        self.inputs = inputs
        self.arrays = float_leaves(model)
        self.run = evaluation(model, inputs)
        try:
            self.trace = trace(model, inputs)
        except Exception as error:
            error.add_note(
                f"convert() runs both networks on its example, {describe(inputs)}; the "
                f"{type(model).__name__} failed on it. If it takes other axes, such as channels "
                f"first, adapt it with a call that turns them: "
                f"call=lambda net, x: jax.vmap(net)(x.transpose(0, 3, 1, 2))."
            )
            raise


def _first_equal(source: _Side[Any], target: _Side[Any], reference: PyTree) -> tuple[Pair, ...]:
    """Return the first pairing with which the outputs are equal, on values drawn at random."""
    probe = drawn(source.trace.uses, source.arrays)
    goal = source.run(probe)
    if not is_finite(goal):
        probe, goal = source.arrays, reference
    best: tuple[float, tuple[Pair, ...], Arrays, Arrays] | None = None
    clash: ClashError | None = None
    for pairs in candidates(target.trace.uses, source.trace.uses):
        given, wanted = probe, goal
        try:
            try:
                found = values(pairs, given, target.arrays)
            except ClashError:  # a tied leaf, for which the network's own values may agree
                given, wanted = source.arrays, reference
                found = values(pairs, given, target.arrays)
        except ClashError as error:
            clash = error
            continue
        gap = difference(target.run(target.arrays | found), wanted)
        if gap <= TOLERANCE:
            return pairs
        if best is None or gap < best[0]:
            best = gap, pairs, given, found
        if has_one_order(source.trace) and unlike(source.trace, target.trace):
            break  # no order of layers compensates for another epsilon or activation
    if best is None and clash is not None:
        raise clash
    assert best is not None  # `candidates` yields one at least, or raises
    gap, pairs, given, found = best
    raise InvalidValueError(_refusal(gap, pairs, source, target, given, found))


def _check_far(pairs: Sequence[Pair], source: _Side[Any], target: _Side[Any]) -> None:
    """Raise if outputs differ when biases are large: an activation saturates in one network only.

    Rounding grows with the biases, so only a difference that no rounding explains counts.
    """
    probe = drawn(source.trace.uses, source.arrays)
    for use in source.trace.uses:
        if use.role == BIAS:
            probe[use.leaf].reshape(-1)[use.index.reshape(-1)] *= _LARGE
    goal = source.run(probe)
    try:
        found = values(pairs, probe, target.arrays)
    except ClashError:  # a tied leaf, whose values agree in the network alone
        return
    if is_finite(goal) and difference(target.run(target.arrays | found), goal) > _GROSS:
        raise InvalidValueError(
            "convert() is expected to give a network that computes the same for activations of any "
            "size; with large biases, the outputs differ. Probably an activation or a clip "
            "saturates in one network only, as relu6 does. Give `like` the hyper-parameters of "
            "model."
        )


def _check_inputs(pairs: Sequence[Pair], source: _Side[Any], target: _Side[Any]) -> None:
    """Raise if one network ignores an input that the other takes, or they take it differently."""
    probe = drawn(source.trace.uses, source.arrays)
    try:
        found = target.arrays | values(pairs, probe, target.arrays)
    except ClashError:  # a tied leaf, whose values agree in the network alone
        probe, found = (
            source.arrays,
            {**target.arrays, **values(pairs, source.arrays, target.arrays)},
        )
    goal = source.run(probe)
    for name, inputs in disturbed(source.inputs):
        its, ours = source.run(probe, inputs), target.run(found, inputs)
        taken = [difference(its, goal) > TOLERANCE, difference(ours, goal) > TOLERANCE]
        if taken[0] != taken[1]:
            reads, ignores = ("model", "like") if taken[0] else ("like", "model")
            raise InvalidValueError(
                f"convert() is expected to give a network that computes the same for all inputs; "
                f"with other values of input {name!r}, the outputs of {reads} change, and those of "
                f"{ignores} do not: it ignores this input, such as a mask. On the example, "
                f"{describe(source.inputs)}, that does not show. Give a `like` that takes the same "
                f"inputs as model."
            )
        if is_finite(its) and is_finite(ours) and (gap := difference(ours, its)) > _GROSS:
            raise InvalidValueError(
                f"convert() is expected to give a network that computes the same for all inputs; "
                f"with other values of input {name!r} than those of the example, outputs differ by "
                f"{gap:.2g} of the largest. Probably a mask or a position is taken in another "
                f"sense. Give an example with such values, to see from which layer on they differ."
            )


def _refusal(
    gap: float,
    pairs: tuple[Pair, ...],
    source: _Side[Any],
    target: _Side[Any],
    given: Arrays,
    found: Arrays,
) -> str:
    """Describe by how much outputs differ, from which layer on, and why that may be."""
    last, first = first_divergence(
        pairs, (source.model, given), (target.model, {**target.arrays, **found}), source.inputs
    )
    place = f"from {first.leaf} of like on" if first else "after the last layer"
    if last is not None:
        place = f"up to {last.leaf} of like they agree, and differ {place}"
    else:
        place = f"they differ {place}"
    return (
        f"convert() is expected to give outputs that differ by at most {TOLERANCE:g} of the "
        f"largest; they differ by {gap:.2g}: {place}. {causes(gap, source.trace, target.trace)}"
    )


def _check_outputs(reference: PyTree, outputs: PyTree) -> None:
    forms = [
        (jax.tree.structure(one), [np.shape(leaf) for leaf in jax.tree.leaves(one)])
        for one in (reference, outputs)
    ]
    if forms[0] != forms[1]:
        raise InvalidValueError(
            f"convert() takes two networks whose outputs have one shape; on the example, those of "
            f"model are {describe(reference)} and those of like {describe(outputs)}."
        )


def _check_used(uses: Trace) -> None:
    """Raise if the outputs do not depend on a parameter of `like`."""
    idle = [path for path in uses.unused if path.startswith("params/")]
    if idle:
        raise UnprovenError(
            f"convert() finds by use what each parameter of like is for; on this example, its "
            f"outputs do not depend on {', '.join(idle[:3])}. Give an example that needs them, or "
            f"a `like` without them."
        )


def _check_doubled(source: _Side[Any], target: _Side[Any], arrays: Arrays) -> None:
    """Raise where outputs differ for two rows, or two positions, if the example has one."""
    for axis, inputs in doubled(source.inputs):
        try:
            goal = evaluation(source.model, inputs)(source.arrays)
            found = evaluation(target.model, inputs)({**target.arrays, **arrays})
        except Exception:  # noqa: BLE001 - it takes one only, and says so in its library's words
            continue
        if is_finite(goal) and (gap := difference(found, goal)) > _GROSS:
            raise InvalidValueError(
                f"convert() is expected to give a network that computes the same for inputs of any "
                f"size; with two entries along axis {axis}, where the example has one, outputs "
                f"differ by {gap:.2g} of the largest. One of the networks may mix rows, or take "
                f"the last position where the other takes the mean. Give an example with several, "
                f"to see from which layer on they differ."
            )


def _check_shown(target: _Side[Any], *, strict: bool) -> None:
    """Raise, or warn, if the example hides weights of `like`, so that outputs prove nothing."""
    uses = hidden(target.model, target.inputs, target.trace.uses, target.run)
    if not uses:
        return
    leaves = list(dict.fromkeys(use.leaf for use in uses))
    why = (
        f"convert() proves by outputs that two networks are the same; on this example, "
        f"{describe(target.inputs)}, those of like are the same whatever {few(leaves)} "
        f"{'is' if len(leaves) == 1 else 'are'}, or a part of it. A softmax over one position, "
        f"the first step of a recurrent cell, a norm of one value and a kernel over one pixel "
        f"hide weights. Give an example of longer sequences, larger images or more rows, with "
        f"values that differ"
    )
    if strict:
        raise UnprovenError(f"{why}. If no example shows them, pass strict=False.")
    warnings.warn(f"{why}.", stacklevel=3)
