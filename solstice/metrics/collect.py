"""Collect: every example's values in host memory, for functions that need all of them.

In a step it holds one batch, on the device. The first merge moves batches to host memory; they are
joined only when needed.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidValueError, UsageError
from solstice.metrics.base import Metrics
from solstice.metrics.checks import check_examples, check_mask_shape, check_mask_values, is_traced
from solstice.metrics.named import Values
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.pytree import PyTree, PyTreeDef


class Collect(Metrics):
    """The values of all real examples, in the order in which they were merged.

    `compute()` gives the results of `functions`; without functions, the joined numpy arrays by
    their names (an array without a name is `values`). For example, to keep a log-likelihood and the
    number of tokens of each sequence: `Collect({"log_likelihood": scores, "tokens": lengths})`.

    Merging moves values to host memory and drops masked ones, so device memory does not grow. Under
    jit, merging joins the arrays on the device, and `compute` does not work with a mask. With
    several processes, each gets the values of all, in the order of the global array.

    >>> import solstice
    >>> from sklearn.metrics import roc_auc_score
    >>> steps = [
    ...     solstice.metrics.Collect((targets, scores), functions={"roc_auc": roc_auc_score})
    ...     for targets, scores in [([0, 1], [0.2, 0.9]), ([1, 0], [0.6, 0.7])]
    ... ]
    >>> float(solstice.reduce(steps).compute()["roc_auc"])
    0.75
    >>> masked = solstice.metrics.Collect([1, 2, 3], mask=[True, False, True])
    >>> masked.compute()["values"].tolist()
    [1, 3]
    """

    _values: PyTree  # arrays, or the Parts in host memory
    _mask: Array | np.ndarray | None
    _structure: PyTreeDef = eqx.field(static=True)
    _functions: Static[dict[str, Callable[..., object]]] = eqx.field(static=True)

    def __init__(
        self,
        values: PyTree,
        *,
        mask: ArrayLike | None = None,
        functions: Mapping[str, Callable[..., object]] | None = None,
    ) -> None:
        """Take one batch.

        Args:
            values: An array, or a tuple, dict or other tree of them, with examples along the first
                axis.
            mask: True (or 1) where a value is real, of the arrays' shape or their leading axes.
            functions: Functions by the names of their results, called on the host with the joined
                array, with the arrays of a tuple in order, or with those of a dict by name.

        Raises:
            ValueError: The arrays differ in their first axis, or the mask does not match one.
            TypeError: A function is not callable.
        """
        given = values
        values = jax.tree.map(_as_array, values, is_leaf=lambda value: isinstance(value, list))
        check_examples(values, given)
        self._mask = None
        if mask is not None:
            self._mask = _as_array(mask, "mask")
            for array in jax.tree.leaves(values):
                check_mask_shape(self._mask, array, "the values")
            check_mask_values(self._mask)
            self._mask = self._mask.astype(bool)
        functions = {} if functions is None else arguments.mapping(functions, "functions")
        for name, function in functions.items():
            arguments.function(function, f"functions[{name!r}]")
        self._values = values
        self._structure = jax.tree.structure(values)
        self._functions = Static(functions)

    def merge(self, other: Self) -> Self:
        """Return all values of both, in host memory.

        Raises:
            UsageError: `other` is another kind of metric, or has other arrays or functions.
        """
        if type(other) is not type(self) or _kind(other) != _kind(self):
            found = _kind(other) if isinstance(other, Collect) else describe(other)
            raise UsageError(
                f"Collect merges with one of the same arrays and functions, {_kind(self)}; it got "
                f"{found}. Give every step the same metric."
            )
        if is_traced((self._values, other._values)):
            return _joined_on_device(self, other)
        return replace(self, _values=Parts(_on_host(self), _on_host(other)), _mask=None)

    def to_host(self) -> Self:
        """Return the metric with its values in host memory, without masked ones."""
        return replace(self, _values=_on_host(self), _mask=None)

    def parts(self) -> Iterator[PyTree]:
        """Yield the values of each batch in host memory, in the order they were merged."""
        if is_traced(self):
            raise UsageError(
                "Collect computes in host memory: call compute() outside of jit, or let a callback."
            )
        yield from _on_host(self)

    def compute(self) -> Values:
        """Return what the functions return, or the joined arrays.

        Raises:
            UsageError: Called under jit, with functions or a mask.
        """
        if is_traced(self) and self._mask is None and not self._functions.value:
            return _by_name(self._values)
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *self.parts())
        functions = self._functions.value
        if not functions:
            return _by_name(joined)
        return {name: _call(function, joined) for name, function in functions.items()}


class Parts:
    """Values in host memory: the parts of two others, joined without copying, and read in order.

    >>> list(Parts(Parts(Parts("a"), Parts("b")), Parts("c")))
    ['a', 'b', 'c']
    """

    __slots__ = ("_parts",)

    def __init__(self, *parts: PyTree) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[PyTree]:
        # A stack, not recursion: merging step by step nests as deep as there are steps.
        waiting: list[PyTree] = [self]
        while waiting:
            one = waiting.pop()
            if isinstance(one, Parts):
                waiting.extend(reversed(one._parts))
            else:
                yield one

    def __reduce__(self) -> tuple[type, tuple[PyTree, ...]]:
        return Parts, tuple(self)


# Functions, not methods: an Equinox module makes a new object for each method lookup, which would
# be most of the cost of a merge.


def _kind(one: Collect) -> tuple[PyTreeDef, list[str]]:
    return one._structure, list(one._functions.value)


def _on_host(one: Collect) -> Parts:
    if isinstance(one._values, Parts):
        return one._values
    values = jax.tree.map(_fetch, one._values)
    if one._mask is not None:
        mask = _fetch(one._mask)
        values = jax.tree.map(lambda array: array[mask], values)
    return Parts(values)


def _joined_on_device(one: Collect, other: Collect) -> Collect:
    if any(isinstance(each._values, Parts) for each in (one, other)):
        raise UsageError("A Collect in host memory cannot be merged under jit.")
    mask = None
    if one._mask is not None or other._mask is not None:
        mask = jnp.concatenate([_full_mask(one), _full_mask(other)])
    values = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), one._values, other._values)
    return replace(one, _values=values, _mask=mask)


def _full_mask(one: Collect) -> Array | np.ndarray:
    if one._mask is not None:
        return one._mask
    return jnp.ones(jax.tree.leaves(one._values)[0].shape[:1], bool)


def _as_array(value: ArrayLike, name: str = "values") -> Array | np.ndarray:
    if isinstance(value, np.ndarray | jax.Array):
        return value
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise InvalidValueError(
            f"{name} are expected to be arrays; they are {describe(value)}."
        ) from error


def _fetch(array: ArrayLike) -> np.ndarray:
    """Copy an array to host memory; if it spans processes, all of it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            return np.array(array.addressable_data(0))
        from jax.experimental import multihost_utils

        return np.array(multihost_utils.process_allgather(array, tiled=True))
    # A copy, since on the CPU numpy would otherwise keep the device's buffer.
    return np.array(array)


def _by_name(values: PyTree) -> Values:
    return dict(values) if isinstance(values, Mapping) else {"values": values}


def _call(function: Callable[..., object], values: PyTree) -> object:
    if isinstance(values, Mapping):
        return function(**values)
    if isinstance(values, tuple):
        return function(*values)
    return function(values)
