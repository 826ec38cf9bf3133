"""Flax NNX metrics (`flax.nnx.Metric`) as immutable metrics that merge."""

import dataclasses
from typing import Any, Self

import equinox as eqx
from flax import nnx

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, UsageError
from solstice.metrics.base import Metrics
from solstice.metrics.named import Values
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.pytree import PyTree


class NNXMetrics(Metrics):
    """An NNX metric: an `Average`, `Accuracy` or `Welford`, or a `MultiMetric` of them.

    Sums are added; means and squares of `Welford` merge pairwise (Chan, Golub and LeVeque, 1979). A
    metric with several values, such as `Welford`, names them `name/value`.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from solstice.compat import NNXMetrics
    >>> fresh = NNXMetrics(nnx.MultiMetric(accuracy=nnx.metrics.Accuracy()))
    >>> step = fresh.update(logits=jnp.eye(4), labels=jnp.array([0, 1, 2, 0]))
    >>> float(step.merge(step).compute()["accuracy"])
    0.75
    """

    state: PyTree
    _graph: Static[Any] = eqx.field(static=True)

    def __init__(self, metric: nnx.Metric) -> None:
        """Copy the values of a metric, which does not change.

        Raises:
            TypeError: It is not known how this kind of metric merges.
        """
        if not self.knows(metric):
            raise InvalidTypeError(
                f"An NNX metric is expected to be an Average (or Accuracy), a Welford or a "
                f"MultiMetric of them, since it is not known how others merge; it is "
                f"{describe(metric)}. compat.as_metrics takes any."
            )
        self._graph, self.state = _split(metric)

    @staticmethod
    def knows(metric: nnx.Metric) -> bool:
        """Return whether it is known how this kind of metric merges."""
        if isinstance(metric, nnx.MultiMetric):
            return all(map(NNXMetrics.knows, _parts(metric).values()))
        return isinstance(metric, nnx.metrics.Average | nnx.metrics.Welford)

    def update(self, **values: PyTree) -> Self:
        """Return the metric of more examples; takes the arguments of the NNX metric's `update`."""
        metric = self.unwrap()
        metric.update(**values)
        return self._with(metric)

    def merge(self, other: Self) -> Self:
        """Return the metric of both sets of examples.

        Raises:
            UsageError: `other` is another kind of metric.
        """
        if type(other) is not type(self) or other._graph != self._graph:
            raise UsageError(
                f"NNXMetrics of {type(self.unwrap()).__name__} merges only with metrics of the "
                f"same kind; it got {describe(other)}. Give every step the same metric."
            )
        metric = self.unwrap()
        _add(metric, other.unwrap())
        return self._with(metric)

    def compute(self) -> Values:
        """Return what the metric computes; a value without a name is named after its class."""
        metric = self.unwrap()
        computed = metric.compute()
        if not isinstance(metric, nnx.MultiMetric):
            computed = {type(metric).__name__.lower(): computed}
        return _flat(computed)

    def unwrap(self) -> nnx.Metric:
        """Return the NNX metric, a new object, with these values."""
        return nnx.merge(self._graph.value, self.state)

    def _with(self, metric: nnx.Metric) -> Self:
        _, state = _split(metric)
        return replace(self, state=state)


def _split(metric: nnx.Metric) -> tuple[Static[Any], PyTree]:
    graph, state = nnx.split(metric)
    return Static(graph), nnx.to_pure_dict(state)


def _parts(metric: nnx.Metric) -> dict[str, nnx.Metric]:
    return {name: getattr(metric, name) for name in metric._metric_names}  # pyright: ignore[reportAttributeAccessIssue]


def _add(metric: Any, other: Any) -> None:
    """Let a metric also count what the other has counted."""
    if isinstance(metric, nnx.MultiMetric):
        for name, part in _parts(metric).items():
            _add(part, _parts(other)[name])
    elif isinstance(metric, nnx.metrics.Welford):
        count, another = metric.count[...], other.count[...]
        share = another / (count + another).clip(1)
        step = other.mean[...] - metric.mean[...]
        metric.m2[...] += other.m2[...] + step**2 * count * share
        metric.mean[...] += step * share
        metric.count[...] += another
    elif isinstance(metric, nnx.metrics.Average):
        metric.total[...] += other.total[...]
        metric.count[...] += other.count[...]


def _flat(computed: dict[str, Any]) -> dict[str, PyTree]:
    flat: dict[str, Any] = {}
    for name, value in computed.items():
        if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            flat |= {f"{name}/{field.name}": getattr(value, field.name) for field in fields}
        elif isinstance(value, dict):
            flat |= {f"{name}/{key}": one for key, one in _flat(value).items()}
        else:
            flat[name] = value
    return flat
