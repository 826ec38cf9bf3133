"""Metrics: statistics with a `merge`, and a `compute` that reads them.

A metric holds sums, not averages, so that its values do not depend on how the examples were
batched, padded or ordered.
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
    """The statistics of some examples; merging two gives the statistics of all their examples.

    A subclass must obey these laws: `merge` is associative and commutative, any batching of the
    same examples gives the same values, masked examples do not count, and everything works under
    `jax.jit`.

    `better(name)` says whether smaller or larger values are better; by default that of the standard
    metric of this name. Only `merge` and `compute` must be defined.

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
        """Return the values, by name.

        A number or an array without a name is reported under the name of the class, in lowercase.
        """

    def better(self, name: str) -> Direction | None:
        """Return whether a number of `compute()` is better when smaller ("min") or larger ("max").

        None for neither. Early stopping, best checkpoints and ensembles use it. The default looks
        the name up: see `solstice.metrics.direction`.
        """
        return direction(name)

    def is_better_than(self, other: Any) -> bool:
        """Return whether this metric is better than another of its class.

        A subclass that defines it can choose the best checkpoint with `best=True`.

        Raises:
            UsageError: It is not defined.
        """
        raise UsageError(
            f"{type(self).__name__} is expected to define is_better_than(self, other), which "
            f"chooses the better of two; it does not define it."
        )

    def check(self) -> None:
        """Raise if the input was bad; called on the host with each mode's first outs."""

    def to_host(self) -> Self:
        """Return the metric with its data in host memory.

        A subclass that grows with the examples (see `Collect`) defines it, and is then merged on
        the host.
        """
        return self

    def left_out(self) -> tuple[Array, ...]:
        """Return arrays whose last axis ends with numbers of examples left out.

        A run calls it after each step, so return fields and compute nothing.
        """
        return ()

    def left_out_for(self) -> tuple[tuple[str, ...], ...]:
        """Return, for each of these arrays, what is wrong with the examples, per number.

        It follows the number of examples: "had a label that is not a class".
        """
        return ()


def is_metrics(value: object) -> bool:
    """Return whether `value` is a metric: whether its class has `merge` and `compute`.

    >>> is_metrics({"loss": 1.0})
    False
    """
    return _are_metrics(type(value))


@functools.cache
def _are_metrics(kind: type) -> bool:
    return callable(getattr(kind, "merge", None)) and callable(getattr(kind, "compute", None))


def check_metrics(metrics: PyTree) -> None:
    """Raise if something does not merge.

    Raises:
        UsageError: It has no `merge` and `compute`.
    """
    if not is_metrics(metrics):
        raise UsageError(
            f"metrics are expected to be Metrics (objects with `merge` and `compute`), which "
            f"merge; one is {describe(metrics)}. Return a Metrics from the step.{joining(metrics)}"
        )


def joining(outs: PyTree) -> str:
    """Return a sentence on how to combine several metrics; empty for anything else.

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
