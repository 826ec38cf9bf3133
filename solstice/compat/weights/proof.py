"""Checks whether two networks compute the same, on random weights and on the real ones."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from solstice.arguments import describe
from solstice.compat.model import Model
from solstice.compat.weights.files.torch import from_tensor, is_tensor
from solstice.compat.weights.leaves import with_leaves
from solstice.compat.weights.uses import BIAS, CONV, MEAN, SCALE, TABLE, TRANSPOSED, VARIANCE, Use
from solstice.errors import InvalidValueError
from solstice.tree.pytree import PyTree

TOLERANCE = 1e-5

Arrays = Mapping[str, Any]


class UnprovenError(InvalidValueError):
    """An example cannot show whether two networks compute the same."""


def evaluation(model: Model, inputs: tuple[PyTree, ...]) -> Callable[..., PyTree]:
    """Return a compiled function of a model's arrays that gives its outputs in evaluation.

    It also takes other inputs of the same shapes.
    """

    def run(arrays: Arrays, inputs: tuple[PyTree, ...]) -> PyTree:
        with jax.default_matmul_precision("highest"):
            return with_leaves(model, arrays)(*inputs)[0]

    compiled = jax.jit(run)

    def outputs(arrays: Arrays, inputs: tuple[PyTree, ...] = inputs) -> PyTree:
        with failed_on(model, inputs):
            return jax.tree.map(np.asarray, compiled(dict(arrays), inputs))

    return outputs


@contextlib.contextmanager
def failed_on(model: Model, inputs: tuple[PyTree, ...]) -> Iterator[None]:
    """Add a note to an error of the network: which inputs it was called with."""
    try:
        yield
    except Exception as error:
        what = describe(inputs[0] if len(inputs) == 1 else inputs)
        error.add_note(
            f"The {type(model).__name__} failed on its example inputs, {what}. Give inputs as the "
            f"network takes them, of the same dtypes and number of axes."
        )
        raise


def difference(outputs: PyTree, reference: PyTree, *, least: float = 1.0) -> float:
    """Return the largest difference, as a part of the largest output (of 1, if that is greater).

    With `least=0`, of the largest output alone, unless all are 0. Infinite if trees or shapes
    differ, or if one is finite where the other is not.

    >>> difference([np.ones(3)], [np.array([1, 1, 1.5])])
    0.3333333333333333
    """
    if jax.tree.structure(outputs) != jax.tree.structure(reference):
        return math.inf
    both = zip(jax.tree.leaves(outputs), jax.tree.leaves(reference), strict=True)
    gaps = (_gap(np.asarray(ours), np.asarray(its), least) for ours, its in both)
    return max(gaps, default=0.0)


def _gap(ours: np.ndarray, its: np.ndarray, least: float) -> float:
    finite = np.isfinite(its)
    if ours.shape != its.shape or not np.array_equal(np.isfinite(ours), finite):
        return math.inf
    if not finite.any():
        return 0.0
    exact = np.promote_types(its.dtype, np.float64)
    its = its[finite].astype(exact)
    largest = max(least, float(np.abs(its).max())) or 1.0
    return float(np.abs(ours[finite].astype(exact) - its).max() / largest)


def drawn(uses: Sequence[Use], arrays: Arrays, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random values of a size that keeps activations near 1, all elements unequal.

    A new network's biases are all 0 and its scales all 1, which would hide that two of them are
    swapped.
    """
    generator = np.random.default_rng(seed)
    made = {path: np.array(leaf) for path, leaf in arrays.items()}
    for use in uses:
        normal = generator.normal(size=use.index.size)
        if use.role == VARIANCE:
            normal = 0.5 + np.abs(normal)
        elif use.role == SCALE:
            normal = 1 + 0.3 * normal
        elif use.role in (BIAS, MEAN):
            normal = 0.3 * normal
        elif use.role != TABLE:
            inputs = math.prod(use.shape[:-1]) if len(use.shape) > 1 else 1
            normal = normal / math.sqrt(inputs)
        if use.role not in (CONV, TRANSPOSED, VARIANCE):
            normal = (normal - use.shift) / use.factor
        flat = made[use.leaf].reshape(-1)
        flat[use.index.reshape(-1)] = normal.astype(flat.dtype)
    return made


def is_finite(outputs: PyTree) -> bool:
    """Return whether all outputs are finite."""
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs))


def as_expected(outputs: PyTree, found: PyTree) -> PyTree:
    """Return outputs that are expected as numpy's arrays, in the structure of those found.

    Raises:
        ValueError: They have another structure or other shapes; both are described.
    """

    def array(leaf: Any) -> np.ndarray:
        return from_tensor(leaf) if is_tensor(leaf) else np.asarray(leaf)

    try:
        alone = isinstance(found, np.ndarray)  # lists of numbers are no trees then
        expected = array(outputs) if alone else jax.tree.map(array, outputs)
    except ValueError:  # lists of no shape
        expected = None
    shapes = [jax.tree.map(np.shape, tree) for tree in (found, expected)]
    if shapes[0] != shapes[1] or any(
        leaf.dtype.kind in "OSU" for leaf in jax.tree.leaves(expected)
    ):
        raise InvalidValueError(
            f"outputs is expected to be like the model's own outputs, {describe(found)}; it is "
            f"{describe(outputs)}. Pass what the other network gives for the same inputs."
        )
    return expected
