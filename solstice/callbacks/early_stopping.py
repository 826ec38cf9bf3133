"""Early stopping: ends a run when a criterion on its outs is met."""

from collections.abc import Callable
from typing import Any, Literal

from solstice.callbacks.base import Callback
from solstice.errors import EarlyStoppingException, UsageError
from solstice.experiment import Experiment
from solstice.loggers.values import to_host
from solstice.metrics import Accumulator, is_metrics
from solstice.tree import describe


class EarlyStoppingCallback(Callback):
    """Ends the run when `criterion_fn` says so of the training outs of the last n steps.

    Args:
        criterion_fn: Takes the list of the outs of the last `accumulate_every_n_steps` training
            steps, and returns whether to stop.
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

    def __init__(
        self, criterion_fn: Callable[[list[Any]], Any], accumulate_every_n_steps: int = 1
    ) -> None:
        if not callable(criterion_fn):
            raise TypeError(
                f"criterion_fn is expected to be a function of a list of outs; it is "
                f"{describe(criterion_fn)}."
            )
        if accumulate_every_n_steps < 1:
            raise ValueError(
                f"accumulate_every_n_steps is expected to be at least 1; it is "
                f"{accumulate_every_n_steps}."
            )
        self._criterion_fn = criterion_fn
        self._every = accumulate_every_n_steps
        self._outs: list[Any] = []

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

    def on_step_end(
        self, outs: Any, exp: Experiment, global_step: int, mode: str, batch: Any
    ) -> None:
        if mode != "train":
            return
        self._outs.append(outs)
        if (global_step + 1) % self._every == 0:
            window, self._outs = self._outs, []
            if self._criterion_fn(window):
                raise EarlyStoppingException(
                    f"the stopping criterion was met after {global_step + 1} training steps"
                )


class NoImprovement(Callback):
    """Ends the run once a metric has stopped improving; see `no_improvement`.

    A NaN is never an improvement.
    """

    def __init__(
        self, metric: str, *, mode: str, patience: int, min_delta: float, watch: str
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode is expected to be 'min' or 'max'; it is {mode!r}.")
        if watch not in ("train", "val"):
            raise ValueError(f"watch is expected to be 'train' or 'val'; it is {watch!r}.")
        if patience < 1:
            raise ValueError(f"patience is expected to be at least 1 pass; it is {patience}.")
        if min_delta < 0:
            raise ValueError(f"min_delta is expected to be at least 0; it is {min_delta}.")
        self._metric = metric
        self._sign = 1.0 if mode == "max" else -1.0
        self._patience = patience
        self._min_delta = min_delta
        self._watch = watch
        self._pass = Accumulator()
        self._best = -float("inf")
        self._waited = 0
        self._watched = False

    def on_run_start(self, exp: Experiment) -> None:
        self._best, self._waited, self._watched = -float("inf"), 0, False

    def on_epoch_start(self, exp: Experiment, epoch: int, mode: str) -> None:
        if mode == "train" and epoch > 0 and not self._watched:
            raise UsageError(
                f"Early stopping watches {self._metric!r} in {self._watch!r} passes, and there was "
                f"none in the first epoch. Give train() a val_ds, or watch='train'."
            )
        self._pass = Accumulator()

    def on_step_end(
        self, outs: Any, exp: Experiment, global_step: int, mode: str, batch: Any
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
        self._watched = True
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
        return {"best": self._best, "waited": self._waited, "watched": self._watched}

    def set_state(self, state: dict[str, Any]) -> None:
        self._best, self._waited = float(state["best"]), int(state["waited"])
        self._watched = bool(state["watched"])
