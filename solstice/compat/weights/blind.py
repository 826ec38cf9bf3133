"""What an example does not show: parts of weights that its outputs do not depend on.

A softmax over one position is 1 whatever query and key are; in its first step, a recurrent cell
multiplies zeros; of a kernel over one pixel, only the centre counts. Outputs prove nothing there.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from solstice.compat.model import Model
from solstice.compat.weights.leaves import float_leaves, with_leaves
from solstice.compat.weights.proof import TOLERANCE, Arrays, difference, drawn, is_finite
from solstice.compat.weights.uses import (
    BIAS,
    CONV,
    MATRICES,
    MATRIX,
    MEAN,
    TABLE,
    TRANSPOSED,
    Use,
)
from solstice.tree.kinds import is_typed_key
from solstice.tree.pytree import PyTree

# A unit may be off for some weights, as behind relu: after so many draws in which nothing more was
# seen of a part, the rest is hidden by the example. All of many units are never off at once.
_STILL, _STILL_OF_MANY, _MANY = 16, 3, 16
# Gradients below this part of the largest may be rounding.
_TINY = 1e-6


def telling(inputs: PyTree) -> PyTree:
    """Return inputs without constant arrays of floats: in those, no feature differs from another.

    They are drawn from [0, 1), which masks and logarithms take too.

    >>> telling(np.zeros(3)).round(2), telling(np.array([0.0, 1.0]))
    (array([0.64, 0.27, 0.04]), array([0., 1.]))
    """
    generator = np.random.default_rng(0)

    def one(leaf: Any) -> Any:
        constant = eqx.is_inexact_array_like(leaf) and np.size(leaf) > 1 and np.ptp(leaf) == 0
        if not constant:
            return leaf
        return generator.uniform(size=np.shape(leaf)).astype(np.asarray(leaf).dtype)

    return jax.tree.map(one, inputs)


def doubled(inputs: PyTree) -> Iterator[tuple[int, PyTree]]:
    """Yield an axis, and inputs with two entries along it where there is one: a batch, a sequence.

    >>> [(axis, larger.shape) for axis, larger in doubled(np.ones((1, 1, 8)))]
    [(0, (2, 1, 8)), (1, (1, 2, 8))]
    """
    generator = np.random.default_rng(0)

    def another(leaf: Any, axis: int) -> Any:
        leaf = np.asarray(leaf)
        if leaf.shape[axis : axis + 1] != (1,):
            return leaf
        if leaf.dtype.kind in "bc":
            return np.concatenate([leaf, leaf], axis)
        least, most = leaf.min(initial=0), leaf.max(initial=1)
        other = least + generator.uniform(size=leaf.shape) * (most - least)
        return np.concatenate([leaf, other.astype(leaf.dtype)], axis)

    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    if any(is_typed_key(leaf) for leaf in jax.tree.leaves(inputs)):
        return
    for axis in (0, 1):
        if any(shape[axis : axis + 1] == (1,) for shape in shapes):
            yield axis, jax.tree.map(lambda leaf, axis=axis: another(leaf, axis), inputs)


def hidden(
    model: Model,
    inputs: tuple[PyTree, ...],
    uses: Sequence[Use],
    run: Callable[[Arrays], PyTree],
) -> list[Use]:
    """Return the uses of parameters of which a part changes no output, whatever the weights are.

    A part is what gives one output of a layer, or one position of a kernel. Of a table, not all
    rows are expected to be looked up. What scales, as masked weights do, is judged as a whole. What
    is added is not judged: a norm or a softmax behind it may take it away in every example.

    Args:
        model: The network.
        inputs: The example.
        uses: What its trace found.
        run: Its evaluation on the example.
    """
    parts = [
        _Part(use, axes, np.ones_like(use.index.max(axes, keepdims=True), bool))
        for use in uses
        if use.role not in (BIAS, MEAN) and use.leaf.startswith("params") and use.index.size
        for axes in _taken_together(use)
    ]
    arrays = float_leaves(model)
    draws = _draws(uses, arrays, run)
    outputs = run(next(draws))
    gradient = _gradient(model, inputs, outputs)
    while any(part.is_open for part in parts):
        slopes = gradient(next(draws))
        if slopes is None:
            break
        least = _TINY * max(float(one.max(initial=0)) for one in slopes.values())
        for part in parts:
            if part.is_open:
                part.see(slopes[part.use.leaf], least)
    left = [part for part in parts if part.dark.any()]
    bases = [(base, run(base)) for base in itertools.islice(draws, 3 * bool(left))]
    unseen = [part.use for part in left if not _matters(part, bases, run)]
    return list({id(use): use for use in unseen}.values())


@dataclasses.dataclass(eq=False)
class _Part:
    """A use, cut along some axes.

    Attributes:
        use: The use.
        axes: Those over which elements are taken together.
        dark: Where no gradient was seen so far; of length 1 along `axes`.
        still: In how many draws nothing more was seen.
    """

    use: Use
    axes: tuple[int, ...]
    dark: np.ndarray
    still: int = 0

    @property
    def is_open(self) -> bool:
        """Whether another draw may show more."""
        last = len(self.use.shape) - 1
        of_many = len(self.use.shape) > 1 and last in self.axes and self.use.shape[-1] >= _MANY
        return bool(self.dark.any()) and self.still < (_STILL_OF_MANY if of_many else _STILL)

    def see(self, slopes: np.ndarray, least: float) -> None:
        """Take note of gradients of the leaf."""
        lines = slopes.reshape(-1)[self.use.index].max(self.axes, keepdims=True)
        new = self.dark & (lines > least)
        self.dark &= ~new
        self.still = 0 if new.any() else self.still + 1

    @property
    def elements(self) -> np.ndarray:
        """The positions in the leaf of what was not seen."""
        return self.use.index[np.broadcast_to(self.dark, self.use.shape)]


def _taken_together(use: Use) -> list[tuple[int, ...]]:
    """Return the axes over which elements are judged as one, in each way to judge a use."""
    every = tuple(range(len(use.shape)))
    if use.role in (CONV, TRANSPOSED):
        return [every[:-1], every[-2:]]  # for each output, and for each position
    if use.role in (MATRIX, MATRICES, TABLE):
        return [every[-2:-1]]
    return [every]


def _draws(
    uses: Sequence[Use], arrays: Arrays, run: Callable[[Arrays], PyTree]
) -> Iterator[Arrays]:
    """Yield random weights without end: around the given ones if others give no finite outputs."""
    free = is_finite(run(drawn(uses, arrays)))
    generator = np.random.default_rng(0)
    seed = 0
    while True:
        seed += 1
        yield (
            drawn(uses, arrays, seed)
            if free
            else {
                path: np.asarray(leaf * (1 + generator.normal(size=leaf.shape) / 8), leaf.dtype)
                for path, leaf in arrays.items()
            }
        )


def _gradient(
    model: Model, inputs: tuple[PyTree, ...], outputs: PyTree
) -> Callable[[Arrays], dict[str, np.ndarray] | None]:
    """Return a function of a model's arrays that gives the size of a gradient for each.

    It is that of a random sum of the outputs; None if the network has none.
    """
    generator = np.random.default_rng(0)
    weights = [
        generator.normal(size=np.shape(leaf)).astype(leaf.dtype)
        for leaf in jax.tree.leaves(outputs)
        if eqx.is_inexact_array(leaf)
    ]

    @jax.jit
    def pulled(arrays: Arrays, inputs: PyTree, weights: list[Any]) -> Any:
        def floats(arrays: Arrays) -> list[Any]:
            leaves = jax.tree.leaves(with_leaves(model, arrays)(*inputs)[0])
            return [leaf for leaf in leaves if eqx.is_inexact_array(leaf)]

        found = jax.vjp(floats, arrays)[1](weights)[0]
        return jax.tree.map(lambda leaf: jnp.nan_to_num(jnp.abs(leaf), posinf=0.0), found)

    def gradient(arrays: Arrays) -> dict[str, np.ndarray] | None:
        try:
            found = pulled(dict(arrays), inputs, weights)
        except (NotImplementedError, TypeError, ValueError):  # a loop of unknown length, a kernel
            return None
        return {path: np.asarray(leaf) for path, leaf in found.items()}

    return gradient


def _matters(
    part: _Part, bases: Sequence[tuple[Arrays, PyTree]], run: Callable[[Arrays], PyTree]
) -> bool:
    """Say whether the outputs change with what has no gradient, as behind `stop_gradient`."""
    leaf, elements = part.use.leaf, part.elements
    for (base, outputs), (other, _) in zip(bases, [*bases[1:], bases[0]], strict=True):
        changed = np.array(base[leaf])
        changed.reshape(-1)[elements] = np.asarray(other[leaf]).reshape(-1)[elements]
        if difference(run({**base, leaf: changed}), outputs) > TOLERANCE:
            return True
    return False
