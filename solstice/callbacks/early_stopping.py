"""Early stopping: ends a run when a criterion on its outs is met."""

from collections.abc import Callable
from typing import Any, Literal

import jax

from solstice.callbacks.base import Callback
from solstice.errors import EarlyStoppingException, InvalidTypeError, InvalidValueError, UsageError
from solstice.experiment import Experiment
from solstice.loggers.values import to_host
from solstice.metrics import Accumulator, is_metrics
from solstice.tree import describe


class EarlyStoppingCallback(Callback):
    """Ends the run when `criterion_fn` says so of the training outs of the last n steps.

    Args:
        criterion_fn: Takes the list of the outs of the last `accumulate_every_n_steps` training
            steps, and returns whether to stop. Under `steps_per_call`, each call has one outs.
        accumulate_every_n_steps: How many training steps, counted over the whole run, go into
            one list.

    Raises:
        ValueError: `accumulate_every_n_steps` is not positive.

    >>> import solstice
    >>> good_enough = solstice.EarlyStoppingCallback(
    ...     lambda outs: solstice.reduce(outs).compute()["accuracy"] > 0.99,
    ...     accumulate_every_n_steps=100,
    ... )
    """

    needs_experiment = False

    def __init__(
        self, criterion_fn: Callable[[list[Any]], Any], accumulate_every_n_steps: int = 1
    ) -> None:
        if not callable(criterion_fn):
            raise InvalidTypeError(
                f"criterion_fn is expected to be a function of a list of outs; it is "
                f"{describe(criterion_fn)}."
            )
        if accumulate_every_n_steps < 1:
            raise InvalidValueError(
                f"accumulate_every_n_steps is expected to be at least 1; it is "
                f"{accumulate_every_n_steps}."
            )
        self._criterion_fn = criterion_fn
        self._every = accumulate_every_n_steps
        self._outs: list[Any] = []
        # The leaves of those that a resumed run had; they are put together like the next outs.
        self._resumed: list[list[Any]] = []
        self._completed = 0

    @staticmethod
    def no_improvement(
        metric: str,
        *,
        mode: Literal["min", "max"] = "min",
        patience: int = 5,
        min_delta: float = 0.0,
        watch: str = "val",
    ) -> "Callback":
        """Return a callback that ends the run once a metric has stopped improving.

        Args:
            metric: The name in `compute()`.
            mode: Whether a smaller ("min") or a larger ("max") value is better.
            patience: After how many passes in a row without improvement the run ends.
            min_delta: How much better than the best so far counts as an improvement.
            watch: The mode whose passes are watched: "val" or "train".

        >>> import solstice
        >>> plateau = solstice.EarlyStoppingCallback.no_improvement(
        ...     "accuracy", mode="max", patience=3
        ... )
        """
        return NoImprovement(metric, mode=mode, patience=patience, min_delta=min_delta, watch=watch)

    def on_run_start(self, exp: Experiment) -> None:
        self._outs = []
        self._resumed: list[list[Any]] = []
        self._completed = 0

    def on_step_end(
        self, outs: Any, exp: Experiment | None, global_step: int, mode: str, batch: Any
    ) -> None:
        if mode != "train":
            return
        for leaves in self._resumed:
            self._outs.append(jax.tree.unflatten(jax.tree.structure(outs), leaves))
        self._resumed = []
        self._outs.append(outs)
        # One call may take several steps, past the end of a window.
        before, self._completed = self._completed, global_step + 1
        if self._completed // self._every > before // self._every:
            window, self._outs = self._outs, []
            if self._criterion_fn(window):
                raise EarlyStoppingException(
                    f"the stopping criterion was met after {global_step + 1} training steps"
                )

    def get_state(self) -> dict[str, Any]:
        outs = self._resumed + [jax.tree.leaves(one) for one in self._outs]
        return {"outs": outs, "completed": self._completed}

    def set_state(self, state: dict[str, Any]) -> None:
        self._outs, self._resumed = [], state["outs"]
        self._completed = int(state["completed"])


class NoImprovement(Callback):
    """Ends the run once a metric has stopped improving; see `no_improvement`.

    A NaN is never an improvement.
    """

    needs_experiment = False

    def __init__(
        self, metric: str, *, mode: str, patience: int, min_delta: float, watch: str
    ) -> None:
        if mode not in ("min", "max"):
            raise InvalidValueError(f"mode is expected to be 'min' or 'max'; it is {mode!r}.")
        if watch not in ("train", "val"):
            raise InvalidValueError(f"watch is expected to be 'train' or 'val'; it is {watch!r}.")
        if patience < 1:
            raise InvalidValueError(
                f"patience is expected to be at least 1 pass; it is {patience}."
            )
        if min_delta < 0:
            raise InvalidValueError(f"min_delta is expected to be at least 0; it is {min_delta}.")
        self._metric = metric
        self._sign = 1.0 if mode == "max" else -1.0
        self._patience = patience
        self._min_delta = min_delta
        self._watch = watch
        self.needs_validation = watch == "val"
        self._pass = Accumulator()
        self._best = -float("inf")
        self._waited = 0

    def on_run_start(self, exp: Experiment) -> None:
        self._best, self._waited = -float("inf"), 0
        self._pass = Accumulator()

    def on_step_end(
        self, outs: Any, exp: Experiment | None, global_step: int, mode: str, batch: Any
    ) -> None:
        if mode != self._watch:
            return
        if not is_metrics(outs):
            raise UsageError(
                f"Early stopping on {self._metric!r} needs Metrics as the {mode} step's outs; "
                f"it got {describe(outs)}."
            )
        self._pass.add(outs)

    def on_epoch_end(self, exp: Experiment, epoch: int, mode: str) -> None:
        merged = self._pass.pop() if mode == self._watch else None
        if merged is None:
            return
        computed = to_host(merged.compute())
        if self._metric not in computed:
            raise UsageError(
                f"Early stopping watches {self._metric!r}, which is none of the computed metrics: "
                f"{', '.join(computed)}."
            )
        value = self._sign * computed[self._metric]
        if value > self._best + self._min_delta:
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self._patience:
            raise EarlyStoppingException(
                f"{self._metric} has not improved on {self._sign * self._best:.6g} in "
                f"{self._waited} {mode} passes"
            )

    def get_state(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited, "pass": self._pass.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self._best, self._waited = float(state["best"]), int(state["waited"])
        self._pass = Accumulator(state["pass"])
