"""Sample: a uniform sample of all examples, of a fixed size."""

from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32
from numpy.typing import ArrayLike

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.metrics.base import Metrics
from solstice.metrics.checks import as_array, check_examples, check_kind, check_mask, is_traced
from solstice.metrics.named import Values
from solstice.metrics.texts import decode_texts, encode_texts, of_equal_widths
from solstice.tree.fields import replace
from solstice.tree.keys import as_key, is_key
from solstice.tree.pytree import PyTree


class Sample(Metrics):
    """A uniform sample of at most `max_size` of the examples.

    Every example draws a priority of 64 random bits; those with the highest are kept. So merging is
    associative, commutative and unbiased (the bottom-k sketches of Cohen and Kaplan, "Summarizing
    data using bottom-k sketches", 2007). No two batches may share a key: fold the step into it, and
    the shard if each device has its own batch.

    Samples of two sizes merge to the smaller size; a larger one would not be uniform, since the
    smaller sample has dropped examples that rank above some of the larger.

    `compute()` gives the sampled arrays by their names (an array without a name is `sample`), the
    highest priority first; texts are an array of Python strings. With fewer examples the arrays are
    shorter; under jit, the rest are zeros, and texts are not computed.

    Attributes:
        values: The sampled examples, `max_size` along the first axis of each array; texts as
            numbers, which `compute()` decodes.

    >>> import jax, jax.numpy as jnp, solstice
    >>> keys = jax.random.split(jax.random.key(0), 100)
    >>> steps = [
    ...     solstice.metrics.Sample(jnp.arange(8) + 8 * i, key=key, max_size=4)
    ...     for i, key in enumerate(keys)
    ... ]
    >>> solstice.reduce(steps).compute()["sample"].shape
    (4,)
    >>> said = {"question": ["2 + 2", "3 * 3"], "answer": ["4", "9"]}
    >>> answers = solstice.metrics.Sample(said, key=0, max_size=1).compute()
    >>> (answers["question"][0], answers["answer"][0]) in [("2 + 2", "4"), ("3 * 3", "9")]
    True
    """

    values: PyTree
    _priorities: UInt32[Array, "max_size 2"]
    _known: Bool[Array, " max_size"]

    def __init__(
        self, values: PyTree, *, key: ArrayLike, max_size: int, mask: ArrayLike | None = None
    ) -> None:
        """Sample one batch.

        Args:
            values: An array, or a tree of them, with examples along the first axis. Texts are a
                list of `str`, or a numpy array of them.
            key: A PRNG key for only this batch; or one key for each example, which makes the sample
                independent of the batching.
            max_size: How many examples to keep.
            mask: True (or 1) where an example is real, `(examples,)`.

        Raises:
            ValueError: The arrays differ in their first axis, or `max_size` is not positive.
            TypeError: The key is neither one key nor one for each example, or an array is neither
                of numbers nor of texts.
        """
        max_size = arguments.count(max_size, "max_size", most=2**24)
        given = values
        values = jax.tree.map(
            lambda leaf: as_array(leaf, "values", "arrays of numbers or texts"),
            encode_texts(values),
        )
        size = check_examples(values, given)
        real = check_mask(mask, jnp.zeros(size), "the examples")
        known, priorities, values = _highest(
            real, jnp.where(real[:, None], _draw(key, size), 0), values, min(size, max_size)
        )
        absent = max(0, max_size - size)
        self._known, self._priorities, self.values = jax.tree.map(
            lambda array: jnp.pad(array, [(0, absent)] + [(0, 0)] * (array.ndim - 1)),
            (known, priorities, values),
        )

    def merge(self, other: Self) -> Self:
        """Return a sample of both sets of examples, of the smaller size.

        Raises:
            UsageError: `other` is another kind of metric, or has other arrays.
        """
        axis = self._known.ndim - 1  # the samples of an ensemble's members come first
        if not _are_alike(self, other, axis):
            check_kind(self, other)  # raises and says what differs
        size = min(self._known.shape[axis], other._known.shape[axis])
        ours, theirs = of_equal_widths(self.values, other.values)

        def of_both(*both: tuple[Array, Array, PyTree]) -> tuple[Array, Array, PyTree]:
            known, priorities, values = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *both)
            return _highest(known, priorities, values, size)

        for _ in range(axis):
            of_both = jax.vmap(of_both)
        known, priorities, values = of_both(
            (self._known, self._priorities, ours), (other._known, other._priorities, theirs)
        )
        return replace(self, _known=known, _priorities=priorities, values=values)

    def compute(self) -> Values:
        """Return the sampled arrays by name."""
        values = self.values
        if not is_traced(self):
            known, values = jax.device_get((self._known, values))
            values = jax.tree.map(lambda array: array[: known.sum()], values)
        values = decode_texts(values)
        return dict(values) if isinstance(values, Mapping) else {"sample": values}


def _are_alike(one: Sample, other: object, axis: int) -> bool:
    """Return whether two samples hold the same arrays, of any number of examples."""
    if type(other) is not type(one) or jax.tree.structure(other) != jax.tree.structure(one):
        return False

    def shapes(sample: Sample, values: PyTree) -> list[tuple[int, ...]]:
        every = [array.shape for array in jax.tree.leaves((sample._known, values))]
        return [shape[:axis] + shape[axis + 1 :] for shape in every]

    ours, theirs = of_equal_widths(one.values, other.values)
    return shapes(one, ours) == shapes(other, theirs)


def _draw(key: ArrayLike, size: int) -> UInt32[Array, "size 2"]:
    if getattr(key, "ndim", 0) > 0 and not is_key(key):
        keys = as_array(key, "key", "PRNG keys")
        typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
        if keys.ndim != (1 if typed else 2) or len(keys) != size:
            raise InvalidTypeError(
                f"key is expected to be one PRNG key or {size}, one for each example; it is "
                f"{describe(key)}."
            )
        return jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
    return jax.random.bits(as_key(key), (size, 2), jnp.uint32)


def _highest(
    known: Array, priorities: Array, values: PyTree, size: int
) -> tuple[Array, Array, PyTree]:
    """Return the `size` real examples with the highest priorities, the highest first."""
    order = jnp.lexsort((priorities[:, 1], priorities[:, 0], known))[::-1][:size]
    chosen = known[order]
    # Zeros where there is no example, so nothing of a masked one is kept.
    kept = jax.tree.map(
        lambda array: jnp.where(
            chosen.reshape(-1, *[1] * (array.ndim - 1)), array[order], jnp.zeros((), array.dtype)
        ),
        values,
    )
    return chosen, priorities[order], kept
