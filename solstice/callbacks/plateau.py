"""Plateau: watches a metric from pass to pass, and acts once it has stopped improving.

A subclass defines the action.
"""

import abc
from collections.abc import Iterable, Mapping

from solstice import arguments
from solstice.arguments import describe
from solstice.callbacks.base import Callback
from solstice.errors import UsageError
from solstice.loggers.values import is_number, to_host
from solstice.metrics.accumulator import Accumulator
from solstice.metrics.base import is_metrics, joining
from solstice.metrics.directions import Direction, better, check_mode, known
from solstice.metrics.named import meant_name, named_values, reported_name
from solstice.tree.pytree import PyTree

_REMEDY = "mode='min' or mode='max'"


class Plateau(Callback, abc.ABC):
    """Calls `act(why)` after a number of passes in a row in which a metric did not improve.

    A NaN is never an improvement.

    Args:
        metric: The name in `compute()`; `loss` finds `average_loss`.
        mode: Which values are better; None asks the metric.
        patience: After how many such passes to act.
        min_delta: How much better than the best so far counts as an improvement.
        watch: The mode whose passes are watched.

    Attributes:
        purpose: Its name in messages.
    """

    needs_experiment = False
    needs_batch = False
    purpose: str

    def __init__(
        self,
        metric: str,
        *,
        mode: Direction | None,
        patience: int,
        min_delta: float,
        watch: str,
    ) -> None:
        check_mode(mode)
        check_watch(watch)
        self._metric = arguments.text(metric, "metric")
        self._given = mode
        self._patience = arguments.count(patience, "patience")
        self._min_delta = arguments.number(min_delta, "min_delta", least=0)
        self._watch = watch
        self.needs_validation: bool = watch == "val"
        self._begin()

    def _begin(self) -> None:
        self._pass = Accumulator()
        # The best value, signed so that larger is better.
        self._best, self._waited = -float("inf"), 0
        self._mode = self._given
        self._epoch_over = False

    @abc.abstractmethod
    def act(self, why: str) -> None:
        """Called after the pass that ends the patience, and after each that follows."""

    def improved(self, exp: PyTree) -> None:
        """Called after a pass that was the best so far."""

    def on_run_start(self, exp: PyTree) -> None:
        self._begin()

    def on_step_end(
        self, outs: PyTree, exp: PyTree, global_step: int, mode: str, batch: PyTree
    ) -> None:
        if mode != self._watch:
            return
        if not is_metrics(outs):
            raise UsageError(
                f"{self.purpose} on {self._metric!r} needs Metrics as the {mode} step's outs; "
                f"it got {describe(outs)}.{joining(outs)}"
            )
        self._pass.add(outs)

    def on_epoch_end(self, exp: PyTree, epoch: int, mode: str) -> None:
        merged = self._pass.pop() if mode == self._watch else None
        if merged is None:
            return
        name, number = self._number(merged)
        if self._mode is None:
            self._mode = known(better(merged, name), name, _REMEDY)
        sign = 1.0 if self._mode == "max" else -1.0
        if sign * number > self._best + self._min_delta:  # False for NaN
            self._best, self._waited = sign * number, 0
            self.improved(exp)
            return
        self._waited += 1
        if self._waited >= self._patience:
            passes = f"{self._waited} {mode} passes"
            if self._best == -float("inf"):
                self.act(f"{name} was finite in none of {passes}")
            else:
                self.act(f"{name} has not improved on {sign * self._best:.6g} in {passes}")

    def after_epoch(self, exp: PyTree, epochs: int) -> None:
        self._epoch_over = True

    def _run_is_over(self) -> bool:
        """Return whether a `revise` is the one at the run's end; call it once in each."""
        over, self._epoch_over = not self._epoch_over, False
        return over

    def get_state(self) -> dict[str, PyTree]:
        window = self._pass.get_state(self._computed)
        state = {"best": self._best, "waited": self._waited, "pass": window}
        return state if self._given is not None else {**state, "mode": self._mode}

    def set_state(self, state: dict[str, PyTree]) -> None:
        self._best, self._waited = float(state["best"]), int(state["waited"])
        self._mode = self._given or state.get("mode")
        self._pass = Accumulator(state["pass"])

    def check_names(self, names: Mapping[str, Direction | None]) -> None:
        if self._watch == "val":
            name = self._name(names)
            if self._mode is None:
                known(names[name], name, _REMEDY)

    def _name(self, names: Iterable[str]) -> str:
        name = reported_name(self._metric, names)
        if name is None:
            raise UsageError(
                f"{self.purpose} watches {self._metric!r}, which is not among the computed "
                f"metrics: {', '.join(names)}.{meant_name(self._metric, names)}"
            )
        return name

    def _number(self, metrics: PyTree) -> tuple[str, float]:
        computed = to_host(named_values(metrics))
        name = self._name(computed)
        if not is_number(computed[name]):
            raise UsageError(
                f"{self.purpose} watches a number; {name!r} is {describe(computed[name])}. Name "
                f"another metric, or compute a number of it."
            )
        return name, computed[name]

    def _computed(self, metrics: PyTree) -> dict[str, object]:
        """Return the computed metrics as plain values, for a checkpoint."""
        computed = named_values(metrics)
        name = reported_name(self._metric, computed)
        if self._mode is None and name is not None:
            self._mode = better(metrics, name)
        return computed


def check_watch(watch: object) -> None:
    """Raise unless `watch` is "val" or "train"."""
    arguments.choice(watch, "watch", ("train", "val"))
