"""What a metric is: statistics with a `merge`, and a `compute` that reads them.

A metric holds sums, never averages, so that the answer cannot depend on how the examples
were batched, padded or ordered.
"""

import abc
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Self, TypeVar

import equinox as eqx
from jaxtyping import Array

from solstice.arguments import describe
from solstice.errors import UsageError
from solstice.metrics.directions import Direction, direction
from solstice.tree.pytree import PyTree
from solstice.tree.reprs import Shown

_T = TypeVar("_T")


class Metrics(Shown, eqx.Module):
    """The statistics of some examples; two of them merge into those of all examples.

    A subclass keeps its laws: `merge` is associative and commutative, any batching of the same
    examples gives the same answer, and everything works under `jax.jit`. Masked examples count
    nowhere.

    `better(name)` says which values of a number are better, for whoever looks for the best: that of
    the standard metric of this name. A subclass that knows better defines it. Only `merge` and
    `compute` must be defined.

    >>> import jax.numpy as jnp
    >>> import solstice
    >>> class MeanError(solstice.Metrics):
    ...     total: jnp.ndarray
    ...     count: jnp.ndarray
    ...
    ...     def merge(self, other):
    ...         return MeanError(self.total + other.total, self.count + other.count)
    ...
    ...     def compute(self):
    ...         return {"mean_error": self.total / self.count}
    >>> batches = [MeanError(jnp.array(2.0), jnp.array(1)), MeanError(jnp.array(4.0), jnp.array(3))]
    >>> float(solstice.reduce(batches).compute()["mean_error"])
    1.5
    """

    @abc.abstractmethod
    def merge(self, other: Any) -> Self:
        """Return the statistics of the examples of both."""

    @abc.abstractmethod
    def compute(self) -> Any:
        """Return what the statistics say, by name.

        A number or an array without a name is reported under the name of the class, in lowercase.
        """

    def better(self, name: str) -> Direction | None:
        """Return whether a number of `compute()` is better when smaller ("min") or larger ("max").

        None for neither. Early stopping, best checkpoints and ensembles ask. Here it is what the
        standard name says: see `solstice.metrics.direction`.
        """
        return direction(name)

    def is_better_than(self, other: Any) -> bool:
        """Return whether this metric is to be preferred to another of its class.

        A subclass that defines it can choose the best checkpoint: `best=True`.

        Raises:
            UsageError: It is not defined.
        """
        raise UsageError(
            f"{type(self).__name__} is expected to define is_better_than(self, other), by which "
            f"the better of two is chosen; it defines none."
        )

    def check(self) -> None:
        """Raise for bad input; called on the host with the outs of the first step of each mode."""

    def to_host(self) -> Self:
        """Return it with its data in host memory.

        A subclass that grows with the examples (see `Collect`) defines it, and is then merged
        there, whenever a loop folds the metrics of its steps.
        """
        return self

    def left_out(self) -> tuple[Array, ...]:
        """Return arrays that end (along their last axis) with numbers of examples left out.

        A run asks after each step, so nothing is computed here: the arrays are fields.
        """
        return ()

    def left_out_for(self) -> tuple[tuple[str, ...], ...]:
        """Return for each of these arrays what is wrong with the examples, a text a number.

        It goes on after the number of examples: "had a label that is no class".
        """
        return ()


def is_metrics(value: object) -> bool:
    """Say whether `value` can be merged and computed: whether its class has both methods.

    >>> is_metrics({"loss": 1.0})
    False
    """
    return _are_metrics(type(value))


@functools.cache
def _are_metrics(kind: type) -> bool:
    return callable(getattr(kind, "merge", None)) and callable(getattr(kind, "compute", None))


def check_metrics(metrics: PyTree) -> None:
    """Raise for what does not merge.

    Raises:
        UsageError: It has no `merge` and `compute`.
    """
    if not is_metrics(metrics):
        raise UsageError(
            f"metrics are expected to be Metrics (objects with `merge` and `compute`), which "
            f"merge; one is {describe(metrics)}. Return a Metrics from the step.{joining(metrics)}"
        )


def joining(outs: PyTree) -> str:
    """Return a sentence on how to make one metric of several; nothing for anything else.

    >>> import solstice
    >>> joining({"loss": solstice.metrics.Mean(1.0), "peak": solstice.metrics.Max(1.0)})
    ' To join several, return solstice.metrics.MetricsDict(loss=..., peak=...).'
    """
    values = list(outs.values() if isinstance(outs, Mapping) else outs if _is_listed(outs) else ())
    if not values or not all(is_metrics(one) or joining(one) for one in values):
        return ""
    given = "*metrics"
    if isinstance(outs, Mapping):
        named = all(isinstance(name, str) and name.isidentifier() for name in outs)
        given = ", ".join(f"{name}=..." for name in outs) if named else "**metrics"
    return f" To join several, return solstice.metrics.MetricsDict({given})."


def _is_listed(outs: PyTree) -> bool:
    return isinstance(outs, tuple | list)


def reduce(metrics: Iterable[_T]) -> _T:
    """Merge a list of metrics, first to last, into one.

    Args:
        metrics: Metrics of one kind, at least one.

    Raises:
        UsageError: The list is empty or holds something that does not merge.

    >>> import jax.numpy as jnp
    >>> import solstice
    >>> def batch(pred, target):
    ...     return solstice.ClassificationMetrics(pred, target, loss=0.5, num_classes=2)
    >>> both = solstice.reduce([batch([0, 1], [0, 1]), batch([0, 0], [0, 1])])
    >>> float(both.compute()["accuracy"])
    0.75
    """
    several = isinstance(metrics, Iterable) and getattr(metrics, "ndim", 1)
    found = list(metrics) if several else []
    if not found:
        raise UsageError(
            f"reduce() needs a list of metrics, at least one; it got {describe(metrics)}. Was the "
            f"dataset empty?"
        )
    for one in found:
        check_metrics(one)
    return functools.reduce(lambda left, right: left.merge(right), found)  # pyright: ignore[reportAttributeAccessIssue]
