"""Metrics of other libraries, as metrics of Solstice.

Objects with `merge` and `compute` (clu's metrics) work unchanged. For scikit-learn's functions, use
`solstice.metrics.Collect`.
"""

import copy
import sys
from collections.abc import Mapping
from typing import Any, Self

import equinox as eqx
from numpy.typing import ArrayLike

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, UsageError
from solstice.metrics.base import Metrics, is_metrics
from solstice.metrics.collect import Collect
from solstice.metrics.directions import Direction, better
from solstice.metrics.named import Values
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.pytree import PyTree


def as_metrics(metric: Any) -> Any:
    """Return any supported metric as one with `merge` and `compute`.

    - With `merge` and `compute` (a `Metrics`, clu's): unchanged.
    - A `flax.nnx` metric, `nnx.MultiMetric` included: an `NNXMetrics`, if its merge is known.
    - Any other object with `update` and `compute`: an `UpdatedMetrics`.

    The latter two have an `update` that returns a new metric: keep a fresh metric in the
    experiment, and return `self.metrics.update(...)` as the step's outs.

    Args:
        metric: An instance of one of these.

    Raises:
        TypeError: It is none of them, or a class.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from solstice import compat
    >>> fresh = compat.as_metrics(nnx.MultiMetric(loss=nnx.metrics.Average("loss")))
    >>> step = fresh.update(loss=jnp.array([1.0, 2.0]))
    >>> float(step.merge(fresh.update(loss=jnp.array([6.0]))).compute()["loss"])
    3.0
    """
    if is_metrics(metric):
        return metric
    if isinstance(metric, type):
        raise InvalidTypeError(
            f"An instance of a metric is expected; it got the class {metric.__name__!r}. Make one "
            f"first: {metric.__name__}(...)."
        )
    if "flax.nnx" in sys.modules and isinstance(metric, sys.modules["flax.nnx"].Metric):
        from solstice.compat.nnx_metrics import NNXMetrics

        return NNXMetrics(metric) if NNXMetrics.knows(metric) else UpdatedMetrics(metric)
    if _is_updated(metric):
        return UpdatedMetrics(metric)
    raise InvalidTypeError(
        f"A metric is expected, an object with `merge` and `compute`, or with `update` and "
        f"`compute`; it is {describe(metric)}. For a function of all examples, as scikit-learn's: "
        f"solstice.metrics.Collect((targets, scores), functions={{'name': function}})."
    )


def _is_updated(metric: object) -> bool:
    methods = (getattr(metric, name, None) for name in ("update", "compute"))
    return not isinstance(metric, type) and all(map(callable, methods))


class UpdatedMetrics(Metrics):
    """A mutable metric, which gets every example's values on the host when it is computed.

    Such an object cannot be merged, so its inputs are collected; `compute` passes them to a copy of
    the object, batch by batch, without masked examples.

    >>> import numpy as np, solstice
    >>> class Median:
    ...     def __init__(self):
    ...         self.seen = []
    ...
    ...     def update(self, errors):
    ...         self.seen.extend(errors)
    ...
    ...     def compute(self):
    ...         return {"median_error": np.median(self.seen)}
    >>> fresh = solstice.compat.as_metrics(Median())
    >>> steps = [fresh.update(np.array([4.0, 9.0])), fresh.update(np.array([5.0]))]
    >>> float(solstice.reduce(steps).compute()["median_error"])
    5.0
    """

    inputs: Collect | None
    _metric: Static[Any] = eqx.field(static=True)

    def __init__(self, metric: Any) -> None:
        """Copy a metric, which does not change.

        Args:
            metric: An object with `update` and `compute`; its `compute` returns a dict, or a value
                that is named after its class.
        """
        if not _is_updated(metric):
            raise InvalidTypeError(
                f"metric is expected to be an object with `update` and `compute`; it is "
                f"{describe(metric)}."
            )
        self.inputs = None
        self._metric = Static(copy.deepcopy(metric))

    def update(self, *args: PyTree, mask: ArrayLike | None = None, **kwargs: PyTree) -> Self:
        """Return the metric of some more examples.

        Args:
            *args: The arguments of the object's `update`: arrays with examples along the first
                axis.
            mask: True (or 1) where an example is real.
            **kwargs: The same, by name.
        """
        inputs = Collect((args, kwargs), mask=mask)
        return replace(self, inputs=inputs if self.inputs is None else self.inputs.merge(inputs))

    def merge(self, other: Self) -> Self:
        """Return the metric of both sets of examples.

        Raises:
            UsageError: `other` is another kind of metric.
        """
        if type(other) is not type(self) or type(other._metric.value) is not type(
            self._metric.value
        ):
            raise UsageError(
                f"A {self._name()} merges only with metrics of the same kind; it got "
                f"{describe(other)}. Give every step the same metric."
            )
        if self.inputs is None or other.inputs is None:
            return other if self.inputs is None else self
        return replace(self, inputs=self.inputs.merge(other.inputs))

    def compute(self) -> Values:
        """Return what the object computes from all examples.

        Raises:
            UsageError: Called under jit.
        """
        metric = copy.deepcopy(self._metric.value)
        for args, kwargs in () if self.inputs is None else self.inputs.parts():
            metric.update(*args, **kwargs)
        computed = metric.compute()
        return dict(computed) if isinstance(computed, Mapping) else {self._name(): computed}

    def better(self, name: str) -> Direction | None:
        """Return the direction from the object's `better`, if it has one, or from the name."""
        return better(self._metric.value, name)

    def _name(self) -> str:
        return type(self._metric.value).__name__.lower()
