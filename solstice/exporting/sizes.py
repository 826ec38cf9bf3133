"""Checks that a program for any number of examples is right for some numbers.

jax lets a network compare the unknown number with a constant, `x.shape[0] == 1`, and assumes that
they differ. So the network is traced for a few numbers. Where its operations are others than for
most of these, the exported program and the network are both run, and must agree. A branch on a
number that was not tried is not found.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from solstice.compat.weights.proof import difference
from solstice.exporting.programs import FixedSizeError, Traced, exported
from solstice.tree.programs import equations

Flat = Callable[[dict[str, Any], list[Any]], Any]
# Differences of shapes alone: an axis of one element is broadcast otherwise.
_SHAPES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}
_TOLERANCE = 1e-3  # of the largest output: two compilations differ by less, two branches by more


def check_sizes(
    function: Flat,
    arrays: dict[str, Any],
    program: Traced,
    sizes: Mapping[int, Sequence[jax.ShapeDtypeStruct]],
) -> None:
    """Raise if a program for any number of examples computes something else for one of some.

    Args:
        function: The traced function, of named arrays and inputs.
        arrays: The arrays.
        program: The function, traced for any number of examples.
        sizes: The inputs' shapes for each number of examples to try.

    Raises:
        ValueError: The network branches on the number of examples.
    """
    if any(jnp.issubdtype(one.dtype, jax.dtypes.extended) for one in next(iter(sizes.values()))):
        return
    found = {size: _operations(function, arrays, shapes) for size, shapes in sizes.items()}
    known = [one for one in found.values() if one is not None]
    usual = max(known, key=known.count) if known else None
    odd = [
        size
        for size, operations in found.items()
        if operations is not None and (operations != usual or known.count(operations) == 1)
    ]
    if not odd:
        return
    written = exported(program)
    for size in odd:
        inputs = _drawn(sizes[size])
        ours = jax.tree.leaves(written.call(program.weights, inputs))
        its = jax.tree.leaves(jax.jit(function)(arrays, inputs))
        if difference(ours, its) > _TOLERANCE:
            examples = "one example" if size == 1 else f"{size} examples"
            raise FixedSizeError(
                f"batch='any' is expected to suit a network whose program is the same for any "
                f"number of examples; for {examples}, this network and the program compute "
                f"different results. Remove any `if` on the number of examples (x.shape[0] == "
                f"{size}), or fix the number, as in batch=32."
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
