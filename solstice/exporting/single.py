"""Checks that a program for any number of examples is right for a single example.

jax lets a network compare the unknown number with a constant, `x.shape[0] == 1`, and assumes that
they differ. So the network is traced for one example and for two. If the operations differ, the
exported program and the network are both run on one example, and must agree.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from solstice.exporting.programs import FixedSizeError, Traced, exported
from solstice.tree.programs import equations

Flat = Callable[[dict[str, Any], list[Any]], Any]
# Differences of shapes alone: an axis of one element is broadcast otherwise.
_SHAPES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}
_TOLERANCE = 1e-3  # of the largest output: two compilations differ by less, two branches by more


def check_single(
    function: Flat,
    arrays: dict[str, Any],
    program: Traced,
    one: Sequence[jax.ShapeDtypeStruct],
    two: Sequence[jax.ShapeDtypeStruct],
) -> None:
    """Raise if a program for any number of examples computes something else for one.

    Args:
        function: The traced function, of named arrays and inputs.
        arrays: The arrays.
        program: The function, traced for any number of examples.
        one: The inputs' shapes for one example.
        two: Those for two.

    Raises:
        ValueError: The network branches on the number of examples.
    """
    if _operations(function, arrays, one) == _operations(function, arrays, two):
        return
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in one):
        return
    inputs = _drawn(one)
    ours = jax.tree.leaves(exported(program).call(program.weights, inputs))
    its = jax.tree.leaves(jax.jit(function)(arrays, inputs))
    if not all(map(_are_near, ours, its)):
        raise FixedSizeError(
            "batch='any' is expected to suit a network whose program is the same for any number of "
            "examples; for one example, this network and the program compute different results. "
            "Remove any `if` on the number of examples (x.shape[0] == 1), or fix the number, as in "
            "batch=32."
        )


def _operations(
    function: Flat, arrays: dict[str, Any], inputs: Sequence[jax.ShapeDtypeStruct]
) -> Counter[str] | None:
    """Return how often each operation occurs with its numbers; None if none are traced."""
    try:
        closed = jax.make_jaxpr(function)(arrays, list(inputs))
    except Exception:  # noqa: BLE001 - it refuses such a batch itself, whatever it raises
        return None
    return Counter(
        " ".join((eqn.primitive.name, *(str(a.val) for a in eqn.invars if isinstance(a, Literal))))
        for eqn in equations(closed.jaxpr)
        if eqn.primitive.name not in _SHAPES
    )


def _drawn(shapes: Sequence[jax.ShapeDtypeStruct]) -> list[np.ndarray]:
    """Return inputs: random numbers, and zeros where whole numbers may be positions."""
    generator = np.random.default_rng(0)
    return [
        generator.normal(size=leaf.shape).astype(leaf.dtype)
        if jnp.issubdtype(leaf.dtype, np.inexact)
        else np.zeros(leaf.shape, leaf.dtype)
        for leaf in shapes
    ]


def _are_near(ours: Any, its: Any) -> bool:
    ours, its = np.asarray(ours), np.asarray(its)
    if ours.shape != its.shape:
        return False
    if not jnp.issubdtype(its.dtype, np.inexact):
        return bool((ours == its).all())
    ours, its = (one.astype(np.promote_types(one.dtype, np.float64)) for one in (ours, its))
    largest = max(1.0, np.nanmax(np.abs(its), initial=0.0, where=np.isfinite(its)))
    return bool(np.isclose(ours, its, 0, _TOLERANCE * largest, equal_nan=True).all())
