"""The first layer at which two networks that should be equal differ."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from solstice.compat.model import Model
from solstice.compat.weights.leaves import float_leaves
from solstice.compat.weights.pairs import Pair
from solstice.compat.weights.proof import difference
from solstice.compat.weights.roles import forward_jaxpr
from solstice.compat.weights.uses import LAYERS, Use
from solstice.tree.programs import bind, called, evaluate
from solstice.tree.pytree import PyTree

_FAR = 1e-4


def first_divergence(
    pairs: Sequence[Pair],
    model: tuple[Model, Mapping[str, Any]],
    like: tuple[Model, Mapping[str, Any]],
    inputs: tuple[PyTree, ...],
) -> tuple[Use | None, Use | None]:
    """Return the last layer of the target with equal results, and the first with different ones.

    A layer is a product, a convolution or a lookup outside of loops over time; its results are
    compared sorted, so that layouts do not matter. The first layer is None if no results are equal;
    the second is None if all are, and the difference comes later.

    Args:
        pairs: Which leaf goes with which.
        model: The source, with the values of its float leaves.
        like: The target likewise.
        inputs: What both are called with.
    """
    both = [pair for pair in pairs if _is_layer(pair.target) and len(pair.sources) == 1]
    both.sort(key=lambda pair: pair.target.step)
    theirs = _results(*model, inputs, {pair.sources[0].step for pair in both})
    ours = _results(*like, inputs, {pair.target.step for pair in both})
    last = None
    for pair in both:
        its, mine = theirs[pair.sources[0].step], ours[pair.target.step]
        if its.size != mine.size:  # fused with others
            continue
        if difference(np.sort(mine, axis=None), np.sort(its, axis=None)) > _FAR:
            return last, pair.target
        last = pair.target
    return last, None


def _is_layer(use: Use) -> bool:
    # Elsewhere libraries may add, scale and subtract in another order.
    return use.role in LAYERS and use.loop is None


def _results(
    model: Model, arrays: Mapping[str, Any], inputs: tuple[PyTree, ...], wanted: set[int]
) -> dict[int, np.ndarray]:
    """Return the first result of some operations of a model's evaluation."""
    jaxpr, consts = forward_jaxpr(model, inputs)

    def run(values: list[Any]) -> dict[int, Any]:
        kept: dict[int, Any] = {}
        steps = itertools.count()  # as `roles.trace` counts them

        def equation(eqn: JaxprEqn, ins: list[Any]) -> list[Any]:
            inner = called(eqn)
            if inner is not None:
                return evaluate(*inner, ins, equation)
            step, outs = next(steps), bind(eqn, ins)
            if step in wanted:
                kept[step] = outs[0]
            return outs

        with jax.default_matmul_precision("highest"):
            evaluate(jaxpr, consts, values, equation)
        return kept

    values = [arrays[path] for path in float_leaves(model)]
    found = jax.jit(run)([*values, *jax.tree.leaves(inputs)])
    return {step: np.asarray(value) for step, value in found.items()}
