"""Best: whether a run's experiment is the best so far, by a validation or evaluation.

It does not save anything.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import jax

from solstice.arguments import describe
from solstice.callbacks.base import Callback
from solstice.errors import InvalidValueError, UsageError
from solstice.loggers.values import is_number, to_host
from solstice.metrics.accumulator import Accumulator, Told, rebuilt
from solstice.metrics.base import Metrics, is_metrics, joining
from solstice.metrics.directions import Direction, better, direction, known
from solstice.metrics.named import meant_name, named_values, reported_name
from solstice.signatures import overrides
from solstice.tree.pytree import PyTree
from solstice.tree.tensors import damaged

_Mode = Direction | None
By = Literal[True] | str | tuple[str, _Mode] | tuple[str, _Mode, str] | None


class Best:
    """Compares each validation or evaluation of a run with the best one before.

    A NaN is never the best, and a number is better than none.

    Args:
        by: A metric whose direction is known; or a metric and "min" or "max", and for an evaluation
            the name of its dataset. True calls `is_better_than(other)` of the validation's metrics.
            With None, nothing is the best.

    >>> best = Best(("score", "max"))
    >>> best.compare({"score": 0.5}, "the validation")
    >>> best.take(), best.take()
    ({'metric': 'score', 'mode': 'max', 'value': 0.5}, None)
    """

    def __init__(self, by: By) -> None:
        several = (
            isinstance(by, tuple | list)
            and len(by) in (2, 3)
            and all(isinstance(name, str) and name for name in (by[0], *by[2:]))
            and (by[1] is None or (isinstance(by[1], str) and by[1] in ("min", "max")))
        )
        if not (by is None or by is True or (isinstance(by, str) and by) or several):
            raise InvalidValueError(
                f"best is expected to be a metric and 'min' or 'max', such as ('score', 'max'), "
                f"and the name of an evaluation's dataset if it is not the validation's; or a "
                f"metric with a known direction, such as 'accuracy'; or True if the metrics have "
                f"is_better_than(other); it is {describe(by)}."
            )
        metric, given, dataset = None, None, None
        if isinstance(by, str):
            metric = by
        elif isinstance(by, tuple | list):
            metric, given, dataset = (*by, None)[:3]
        self._by = by
        self._metric, self._given = metric, given
        # The metric's dataset and the callback that evaluates it; None for the validation.
        self._dataset = dataset
        self._evaluating: Callback | None = None
        self.needs_validation: bool = by is not None and dataset is None
        self.begin(())

    def begin(self, callbacks: Iterable[Callback]) -> None:
        """Reset the state; look for the evaluation among a run's callbacks."""
        self._window = Accumulator()
        self._value: PyTree = None
        self._mode = self._given
        self._found: dict[str, object] | None = None
        # The metrics when the run was saved: their class, and whether they are the best.
        self._verdict: tuple[str, bool] | None = None
        self._evaluations = 0
        name = self._dataset
        having = [] if name is None else [one for one in callbacks if one.evaluation(name)]
        self._evaluating = having[0] if having else None

    def check(self) -> None:
        """Raise a UsageError if there is no such evaluation."""
        if self._dataset is not None and self._evaluating is None:
            raise UsageError(
                f"CheckpointingCallback(best=) looks for an evaluation of {self._dataset!r}, and "
                f"the run has no EvaluationCallback with a dataset of that name."
            )

    def add(self, outs: PyTree) -> None:
        """Add the outs of a validation step."""
        if not self.needs_validation:
            return
        if not is_metrics(outs):
            raise UsageError(
                f"CheckpointingCallback(best=) reads the Metrics of the validation; its step "
                f"returned {describe(outs)}.{joining(outs)}"
            )
        self._window.add(outs)

    def end_validation(self) -> None:
        """Compare the validation that has just ended."""
        merged = self._window.pop()
        if merged is None:
            return
        if self._by is True:
            self._compare_themselves(merged)
            self._verdict = None
        else:
            self.compare(named_values(merged), "the validation", lambda name: better(merged, name))

    def look(self) -> None:
        """Compare the evaluation's results where there are new ones."""
        if self._evaluating is None or self._dataset is None:
            return
        found = self._evaluating.evaluation(self._dataset)
        if found is None or found.number <= self._evaluations:
            return
        self._evaluations = found.number
        if found.values is not None:
            self.compare(found.values, f"the evaluation of {self._dataset!r}", found.better)

    def compare(
        self,
        computed: Mapping[str, object],
        source: str,
        says: Callable[[str], _Mode] = direction,
    ) -> None:
        """Compare computed metrics with the best ones.

        Args:
            computed: The metrics, by name.
            source: Where they come from, for messages.
            says: Returns the direction of a name, if it was not given.

        Raises:
            UsageError: The metric is not among them, is not a number, or its direction is not
                known.
        """
        metric = self._name(computed, source)
        value = to_host({metric: computed[metric]})[metric]
        if not is_number(value):
            raise UsageError(
                f"CheckpointingCallback(best=) looks for a number; {metric!r} of {source} is "
                f"{describe(value)}. Name another metric, or compute a number of it."
            )
        if self._mode is None:
            self._mode = known(says(metric), metric, _remedy(metric))
        sign = 1 if self._mode == "max" else -1
        if math.isnan(value):
            return
        if self._value is None or sign * value > sign * self._value:
            self._value = float(value)
            self._found = {"metric": metric, "mode": self._mode, "value": self._value}

    def check_names(self, names: Mapping[str, Direction | None]) -> None:
        """Raise a UsageError if a validation's metric is not among them, or has no direction."""
        if self._metric is not None and self._dataset is None:
            metric = self._name(names, "the validation")
            if self._mode is None:
                known(names[metric], metric, _remedy(metric))

    def _name(self, names: Iterable[str], source: str) -> str:
        metric = reported_name(str(self._metric), names)
        if metric is None:
            raise UsageError(
                f"CheckpointingCallback(best=) looks for {self._metric!r}; {source} gives "
                f"{', '.join(names)}.{meant_name(str(self._metric), names)}"
            )
        return metric

    def _compare_themselves(self, metrics: PyTree) -> None:
        name = type(metrics).__name__
        if isinstance(metrics, Told):
            # They are from another process, which saved their class.
            if self._verdict is not None and self._verdict[1]:
                self._value = metrics.leaves
                name, numbers = self._verdict[0], _numbers(metrics)
                self._found = {"metric": name, "mode": "is_better_than", "value": numbers}
            return
        if not overrides(metrics, Metrics, "is_better_than"):
            raise UsageError(
                f"CheckpointingCallback(best=True) asks the validation's metrics for "
                f"is_better_than(other), which {name} does not have. Define it, or name one of its "
                f"numbers: best=('accuracy', 'max')."
            )
        if _is_better(metrics, self._best_like(metrics)):
            self._value = jax.tree.leaves(metrics)
            self._found = {"metric": name, "mode": "is_better_than", "value": _numbers(metrics)}

    @property
    def found(self) -> bool:
        """Whether the experiment became the best since the last call of `take`."""
        return self._found is not None

    def take(self) -> dict[str, object] | None:
        """Return, once, what made the experiment the best; None if it is not."""
        found, self._found = self._found, None
        return found

    def get_state(self) -> dict[str, PyTree]:
        """Return what a resume needs, as plain containers."""
        window = self._window.get_state(self._computed)
        return {
            "value": self._value,
            "mode": self._mode,
            "verdict": None if self._verdict is None else list(self._verdict),
            "evaluations": self._evaluations,
            "window": window,
        }

    def set_state(self, state: dict[str, PyTree]) -> None:
        """Continue from what `get_state` returned."""
        value, self._evaluations = state["value"], int(state["evaluations"])
        self._value = value if value is None else (list if self._by is True else float)(value)
        mode = state["mode"]
        if not (mode is None or (isinstance(mode, str) and mode in ("min", "max"))):
            raise damaged(
                "What the checkpoint says about the best", f"its mode is {describe(mode)}"
            )
        self._mode = self._given or mode
        verdict = state["verdict"]
        self._verdict = None if verdict is None else (str(verdict[0]), bool(verdict[1]))
        self._window = Accumulator(state["window"])

    def _computed(self, metrics: PyTree) -> dict[str, object]:
        """Return the computed metrics as plain values, for a checkpoint."""
        computed = named_values(metrics)
        metric = None if self._metric is None else reported_name(self._metric, computed)
        if self._mode is None and metric is not None:
            self._mode = better(metrics, metric)
        if self._by is True and overrides(metrics, Metrics, "is_better_than"):
            self._verdict = type(metrics).__name__, _is_better(metrics, self._best_like(metrics))
        return computed

    def _best_like(self, metrics: PyTree) -> PyTree:
        """Return the best metrics so far, with the structure of others; None if there are none."""
        return None if self._value is None else rebuilt(self._value, metrics)


def _is_better(metrics: PyTree, best: PyTree) -> bool:
    """Return whether metrics are better than the best so far, by their `is_better_than`.

    Only they know which of their numbers they compare. If that number is NaN, neither is better
    than the other, or both are; the one with fewer NaNs is then preferred.
    """
    new = _nans(metrics)
    if best is None:
        return not new or len(new) < len(_numbers(metrics))
    above, below = bool(metrics.is_better_than(best)), bool(best.is_better_than(metrics))
    return above if above != below else new < _nans(best)


def _nans(metrics: PyTree) -> set[str]:
    return {name for name, value in _numbers(metrics).items() if math.isnan(value)}


def _numbers(metrics: PyTree) -> dict[str, float]:
    host = to_host(named_values(metrics))
    return {name: float(value) for name, value in host.items() if is_number(value)}


def _remedy(metric: str) -> str:
    return f"best=({metric!r}, 'min') or ({metric!r}, 'max')"
