"""Best: whether a run's experiment is the best so far, by what its validation or evaluation says.

It saves nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from solstice.callbacks.base import Callback
from solstice.callbacks.evaluation import EvaluationCallback
from solstice.errors import InvalidValueError, UsageError
from solstice.metrics import Accumulator, is_metrics
from solstice.metrics.accumulator import rebuilt
from solstice.tree import describe

_Mode = Literal["min", "max"]
By = Literal[True] | tuple[str, _Mode] | tuple[str, _Mode, str] | None


class Best:
    """Compares each validation of a run, or each evaluation, with the best one before.

    Args:
        by: A metric and "min" or "max", with the name of an evaluation's dataset where it is not
            the validation's; True for the validation's metrics' own `is_better_than(other)`; None
            for nothing, so that none is the best.

    >>> best = Best(("accuracy", "max"))
    >>> best.compare({"accuracy": 0.5}, "the validation")
    >>> best.take(), best.take()
    ({'metric': 'accuracy', 'mode': 'max', 'value': 0.5}, None)
    """

    def __init__(self, by: By) -> None:
        pair = isinstance(by, tuple | list) and len(by) in (2, 3) and by[1] in ("min", "max")
        if not (by is None or by is True or pair):
            raise InvalidValueError(
                f"best is expected to be a metric and 'min' or 'max', such as ('accuracy', "
                f"'max'), and the name of an evaluation's dataset if it is not the validation's; "
                f"or True where the metrics have is_better_than(other); it is {describe(by)}."
            )
        self._by = by
        # The dataset whose metric it is, and the callback that evaluates it; None: the validation.
        self._dataset = by[2] if isinstance(by, tuple | list) and len(by) == 3 else None
        self._evaluation: EvaluationCallback | None = None
        self.needs_validation = by is not None and self._dataset is None
        self.begin(())

    def begin(self, callbacks: Iterable[Callback]) -> None:
        """Forget everything; an evaluation is looked for among a run's callbacks."""
        self._window = Accumulator()
        self._value: Any = None
        self._found: dict[str, Any] | None = None
        self._evaluations = 0
        evaluating = [one for one in callbacks if isinstance(one, EvaluationCallback)]
        having = [one for one in evaluating if self._dataset in one.names]
        self._evaluation = having[0] if having else None

    def check(self) -> None:
        """Raise a UsageError if the evaluation that it is to look at is not there."""
        if self._dataset is not None and self._evaluation is None:
            raise UsageError(
                f"CheckpointingCallback(best=) looks for an evaluation of {self._dataset!r}, and "
                f"the run has no EvaluationCallback with a dataset of that name."
            )

    def add(self, outs: Any) -> None:
        """Take in the outs of a step of the validation."""
        if not self.needs_validation:
            return
        if not is_metrics(outs):
            raise UsageError(
                f"CheckpointingCallback(best=) reads the Metrics of the validation; its step "
                f"returned {describe(outs)}."
            )
        self._window.add(outs)

    def end_validation(self) -> None:
        """Compare the validation that has just ended."""
        merged = self._window.pop()
        if merged is None:
            return
        if self._by is True:
            self._compare_themselves(merged)
        else:
            self.compare(merged.compute(), "the validation")

    def look(self) -> None:
        """Compare the evaluation's results where there are new ones."""
        evaluation = self._evaluation
        if evaluation is not None and evaluation.evaluations > self._evaluations:
            self._evaluations = evaluation.evaluations
            dataset = str(self._dataset)
            self.compare(evaluation.results[dataset], f"the evaluation of {dataset!r}")

    def compare(self, computed: Mapping[str, Any], source: str) -> None:
        """Compare what metrics say with what the best said.

        Raises:
            UsageError: The metric is not among them.
        """
        assert isinstance(self._by, tuple | list)
        metric, mode = self._by[:2]
        if metric not in computed:
            raise UsageError(
                f"CheckpointingCallback(best=) looks for {metric!r}; {source} gives "
                f"{', '.join(computed)}."
            )
        value = float(computed[metric])
        sign = 1 if mode == "max" else -1
        if self._value is None or sign * value > sign * self._value:
            self._value = value
            self._found = {"metric": metric, "mode": mode, "value": value}

    def _compare_themselves(self, metrics: Any) -> None:
        name = type(metrics).__name__
        if not hasattr(metrics, "is_better_than"):
            raise UsageError(
                f"CheckpointingCallback(best=True) asks the validation's metrics for "
                f"is_better_than(other), which {name} does not have. Define it, or name one of its "
                f"numbers: best=('accuracy', 'max')."
            )
        if self._value is None or metrics.is_better_than(rebuilt(self._value, metrics)):
            self._value = jax.tree.leaves(metrics)
            numbers = {k: float(v) for k, v in metrics.compute().items() if np.ndim(v) == 0}
            self._found = {"metric": name, "mode": "is_better_than", "value": numbers}

    @property
    def found(self) -> bool:
        """Whether the experiment is the best since `take` was last called."""
        return self._found is not None

    def take(self) -> dict[str, Any] | None:
        """Return, once, by what the experiment is the best; None if it is not."""
        found, self._found = self._found, None
        return found

    def get_state(self) -> dict[str, Any]:
        """Return what a resume needs, as plain containers."""
        window = self._window.get_state()
        return {"value": self._value, "evaluations": self._evaluations, "window": window}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned."""
        self._value, self._evaluations = state["value"], int(state["evaluations"])
        self._window = Accumulator(state["window"])
