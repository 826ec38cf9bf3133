"""MetricsDict: several metrics as one, under names."""

from typing import Self

import equinox as eqx
import jax
from jaxtyping import Array

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, UnknownKeyError, UsageError
from solstice.metrics.base import Metrics, is_metrics, joining
from solstice.metrics.checks import check_kind
from solstice.metrics.directions import Direction, better, direction
from solstice.metrics.named import Values, named_values
from solstice.signatures import overrides
from solstice.tree.fields import replace
from solstice.tree.pytree import PyTree


class MetricsDict(Metrics):
    """Several metrics of any kinds, merged and computed together.

    A metric that computes one value is reported under its name in the dict; several values are
    reported as `name/value`. Metrics given without a name keep their own names.

    >>> import solstice
    >>> from solstice.metrics import Max, Mean, MetricsDict
    >>> step = MetricsDict(
    ...     solstice.RegressionMetrics([1.0, 2.0], [1.0, 4.0]), loss=Mean([0.5, 1.5]), peak=Max(7.0)
    ... )
    >>> computed = step.merge(step).compute()
    >>> list(computed), float(computed["loss"])
    (['mse', 'mae', 'r2', 'pearson', 'loss', 'peak'], 1.0)
    >>> float(step["peak"].compute()["max"])
    7.0
    """

    _metrics: tuple[PyTree, ...]
    _names: tuple[str | None, ...] = eqx.field(static=True)

    def __init__(self, *metrics: PyTree, **named: PyTree) -> None:
        """Combine metrics.

        Args:
            *metrics: Metrics that keep their own names.
            **named: Metrics by the names to report them under.

        Raises:
            TypeError: One of them is not a metric.
        """
        self._metrics = (*metrics, *named.values())
        self._names = (*[None] * len(metrics), *named)
        for one in self._metrics:
            if not is_metrics(one):
                raise InvalidTypeError(
                    f"MetricsDict is expected to get metrics (objects with `merge` and "
                    f"`compute`); it got {describe(one)}."
                    + (joining(one) or " Wrap a number: Mean(number).")
                )

    def __getitem__(self, name: str) -> PyTree:
        if not isinstance(name, str) or name not in self._names:
            raise UnknownKeyError(f"{name!r} is not one of the metrics {self._named()}.")
        return self._metrics[self._names.index(name)]

    def _shown(self) -> list[tuple[str, PyTree]]:
        held = vars(self)
        pairs = zip(held.get("_names", ()), held.get("_metrics", ()), strict=False)
        return [(name or "", one) for name, one in pairs]

    def merge(self, other: Self) -> Self:
        """Return the metrics of both sets of examples.

        Raises:
            UsageError: `other` is another kind of metric, or has other names or metrics.
        """
        if type(other) is not type(self):
            check_kind(self, other)
        if other._names != self._names:
            raise UsageError(
                f"MetricsDict merges with one of the same names, {self._named()}; it got "
                f"{other._named()}. Give every step the same metrics."
            )
        pairs = zip(self._metrics, other._metrics, strict=True)
        return replace(self, _metrics=tuple(one.merge(another) for one, another in pairs))

    def check(self) -> None:
        """Call the `check` of each metric."""
        for one in self._own():
            one.check()

    def left_out(self) -> tuple[Array, ...]:
        return tuple(array for one in self._own() for array in one.left_out())

    def left_out_for(self) -> tuple[tuple[str, ...], ...]:
        return tuple(texts for one in self._own() for texts in one.left_out_for())

    def compute(self) -> Values:
        """Return what the metrics compute.

        Raises:
            UsageError: Two values have the same name.
        """
        computed: Values = {}
        for name, one in zip(self._names, self._metrics, strict=True):
            for key, value in _values(name, one).items():
                if key in computed:
                    raise UsageError(
                        f"Two metrics compute {key!r}. Give one of them a name: "
                        f"MetricsDict(..., name=metric)."
                    )
                computed[key] = value
        return computed

    def better(self, name: str) -> Direction | None:
        """Return the direction from the metric that reports the number, or else from the name."""
        for label, one in zip(self._names, self._metrics, strict=True):
            if (own := _own_name(label, one, name)) and (said := better(one, own)):
                return said
        return direction(name)

    def _own(self) -> list[Metrics]:
        """Return the metrics of this library."""
        return [one for one in self._metrics if isinstance(one, Metrics)]

    def _named(self) -> str:
        return ", ".join(map(repr, self._names))


def check_apart(one: PyTree, other: PyTree) -> None:
    """Raise if two metrics compute a value of the same name, before anything is computed.

    The names of metrics that compute only on the host are not known here; for them,
    `MetricsDict.compute()` raises.

    Raises:
        UsageError: Two metrics do.
    """
    both = [name for name in _names(other) if name in _names(one)]
    if both:
        raise UsageError(
            f"metrics are expected to compute values of other names than those of the experiment's "
            f"{type(one).__name__}; a {type(other).__name__} computes {', '.join(both[:3])} too. "
            f"Put it under a name: solstice.metrics.MetricsDict(name=metric)."
        )


def _names(metrics: PyTree) -> list[str]:
    try:
        return list(jax.eval_shape(named_values, metrics))
    except Exception:  # noqa: BLE001 - whatever needs values, or makes no arrays
        return []


def _values(name: str | None, metric: PyTree) -> Values:
    """Return what a metric of the dict computes, by the names to report."""
    computed = named_values(metric)
    if name is None:
        return computed
    if len(computed) == 1:
        return {name: next(iter(computed.values()))}
    return {f"{name}/{key}": value for key, value in computed.items()}


def _own_name(label: str | None, metric: PyTree, name: str) -> str | None:
    """Return the metric's name of the value reported as `name`, if the value is the metric's."""
    if label is None:
        # Finding the owner takes a computation, which is only worth it for a metric that defines
        # `better`.
        knows = overrides(metric, Metrics, "better")
        return name if knows and name in named_values(metric) else None
    if name == label:
        return next(iter(named_values(metric)), None)
    return name.removeprefix(f"{label}/") if name.startswith(f"{label}/") else None
