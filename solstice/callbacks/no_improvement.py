"""NoImprovement: ends a run once a metric has stopped improving."""

import logging
from typing import Any

from solstice import arguments
from solstice.arguments import describe
from solstice.callbacks.base import Callback
from solstice.errors import EarlyStoppingException, UsageError
from solstice.loggers.values import is_number, to_host
from solstice.metrics.accumulator import Accumulator
from solstice.metrics.base import is_metrics, joining
from solstice.metrics.directions import Direction, better, check_mode, known
from solstice.metrics.named import meant_name, named_values, reported_name
from solstice.sharding.arrays import local_tree
from solstice.tree.encoding import from_host, host_array, key_impl
from solstice.tree.flat import Flat, Structure

_logger = logging.getLogger("solstice")


class NoImprovement(Callback):
    """Ends the run once a metric has stopped improving; see `no_improvement`.

    A NaN is never an improvement.
    """

    needs_experiment = False

    def __init__(
        self,
        metric: str,
        *,
        mode: Direction | None,
        patience: int,
        min_delta: float,
        watch: str,
        restore_best: bool,
    ) -> None:
        check_mode(mode)
        check_watch(watch)
        self._metric = arguments.text(metric, "metric")
        self._given = mode
        self._patience = arguments.count(patience, "patience")
        self._min_delta = arguments.number(min_delta, "min_delta", least=0)
        self._watch = watch
        self._restores = arguments.flag(restore_best, "restore_best")
        self.needs_validation: bool = watch == "val"
        self._begin()

    def _begin(self) -> None:
        self._pass = Accumulator()
        # The best value, with a sign that makes larger ones better.
        self._best, self._waited = -float("inf"), 0
        self._mode = self._given
        # The experiment of the best pass: its arrays, and what it is besides, which a resumed run
        # takes from its own. Whether an epoch has just ended, and not the run.
        self._arrays: list[Any] | None = None
        self._structure: Structure | None = None
        self._epoch_over = False

    def on_run_start(self, exp: Any) -> None:
        self._begin()

    def on_step_end(self, outs: Any, exp: Any, global_step: int, mode: str, batch: Any) -> None:
        if mode != self._watch:
            return
        if not is_metrics(outs):
            raise UsageError(
                f"Early stopping on {self._metric!r} needs Metrics as the {mode} step's outs; "
                f"it got {describe(outs)}.{joining(outs)}"
            )
        self._pass.add(outs)

    def on_epoch_end(self, exp: Any, epoch: int, mode: str) -> None:
        merged = self._pass.pop() if mode == self._watch else None
        if merged is None:
            return
        name, number = self._number(merged)
        if self._mode is None:
            self._mode = known(better(merged, name), name, "mode='min' or mode='max'")
        sign = 1.0 if self._mode == "max" else -1.0
        if sign * number > self._best + self._min_delta:  # which no NaN is
            self._best, self._waited = sign * number, 0
            if self._restores:
                kept = Flat.of(exp).copy()
                self._arrays, self._structure = kept.arrays, kept.structure
            return
        self._waited += 1
        if self._waited >= self._patience:
            passes = f"{self._waited} {mode} passes"
            if self._best == -float("inf"):
                raise EarlyStoppingException(f"{name} was finite in none of {passes}")
            raise EarlyStoppingException(
                f"{name} has not improved on {sign * self._best:.6g} in {passes}"
            )

    def after_epoch(self, exp: Any, epochs: int) -> None:
        self._epoch_over = True

    def revise(self, exp: Any) -> Any:
        """Return the experiment of the best pass at the run's end, if it is to be restored."""
        if self._epoch_over or self._arrays is None:
            self._epoch_over = False
            return exp
        _logger.info("The experiment is again what it was at the best %s.", self._metric)
        if self._structure is None:  # they come from a checkpoint
            flat = Flat.of(exp)
            pairs = zip(self._arrays, flat.arrays, strict=True)
            self._arrays = [from_host(host_array(a), like, key_impl(like)) for a, like in pairs]
            self._structure = flat.structure
        return Flat(self._arrays, self._structure).whole()

    def get_state(self) -> dict[str, Any]:
        window = self._pass.get_state(self._computed)
        state = {"best": self._best, "waited": self._waited, "pass": window}
        if self._restores:
            state["arrays"] = self._arrays and local_tree(self._arrays)
        return state if self._given is not None else {**state, "mode": self._mode}

    def set_state(self, state: dict[str, Any]) -> None:
        self._best, self._waited = float(state["best"]), int(state["waited"])
        self._mode = self._given or state.get("mode")
        self._pass = Accumulator(state["pass"])
        if self._restores:
            self._arrays, self._structure = state.get("arrays"), None

    def _number(self, metrics: Any) -> tuple[str, float]:
        computed = to_host(named_values(metrics))
        name = reported_name(self._metric, computed)
        if name is None:
            raise UsageError(
                f"Early stopping watches {self._metric!r}, which is none of the computed metrics: "
                f"{', '.join(computed)}.{meant_name(self._metric, computed)}"
            )
        if not is_number(computed[name]):
            raise UsageError(
                f"Early stopping watches a number; {name!r} is {describe(computed[name])}. Name "
                f"another metric, or compute a number of it."
            )
        return name, computed[name]

    def _computed(self, metrics: Any) -> dict[str, Any]:
        """Return what metrics say, for a checkpoint, from which nobody can ask them any more."""
        computed = named_values(metrics)
        name = reported_name(self._metric, computed)
        if self._mode is None and name is not None:
            self._mode = better(metrics, name)
        return computed


def check_watch(watch: Any) -> None:
    """Raise if that is no mode whose passes can be watched."""
    arguments.choice(watch, "watch", ("train", "val"))
