"""History: keeps what a log says as a list of records, for a table or a picture afterwards."""

import time
from typing import Any

from solstice.callbacks.base import Callback
from solstice.callbacks.logging import to_host
from solstice.errors import UsageError
from solstice.experiment import Experiment
from solstice.metrics import Accumulator, is_metrics
from solstice.tree import describe

_ABOUT = ("mode", "epoch", "step", "time")


class HistoryCallback(Callback):
    """Keeps the metrics of every n steps, or of every epoch, in every mode.

    Windows and metrics are those of `LoggingCallback`: the metrics of a window are merged, and
    what is left of one is recorded when the epoch ends. The records of several runs follow one
    another; those of an interrupted run come back when it is resumed.

    Args:
        log_every_n_steps: The length of a window; None records once at each epoch's end.

    Attributes:
        records: Dicts with `mode`, `epoch`, `step` (training steps completed), `time` (seconds
            since 1970) and the metrics: numbers, arrays of numpy where a metric is one.

    Raises:
        ValueError: `log_every_n_steps` is not positive.
        UsageError: A step's outs are not `Metrics`, or a metric has the name of another field.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> history = solstice.HistoryCallback()
    >>> exp = exp.train(2, [(x, y)] * 3, [(x, y)], [history], progress=False)
    >>> [(record["mode"], record["epoch"], record["step"]) for record in history.records]
    [('train', 0, 3), ('val', 0, 3), ('train', 1, 6), ('val', 1, 6)]
    >>> figure = solstice.plots.learning_curves(history)
    """

    def __init__(self, log_every_n_steps: int | None = None) -> None:
        if log_every_n_steps is not None and log_every_n_steps < 1:
            raise ValueError(
                f"log_every_n_steps is expected to be at least 1, or None to record at each "
                f"epoch's end; it is {log_every_n_steps}."
            )
        self.records: list[dict[str, Any]] = []
        self._every = log_every_n_steps
        self._window = Accumulator()
        self._epoch = 0
        self._trained = 0
        # Steps of each mode completed in this run.
        self._steps: dict[str, int] = {}

    def on_run_start(self, exp: Experiment) -> None:
        self._window, self._steps = Accumulator(), {}

    def on_epoch_start(self, exp: Experiment, epoch: int, mode: str) -> None:
        self._epoch = epoch

    def on_step_end(
        self, outs: Any, exp: Experiment, global_step: int, mode: str, batch: Any
    ) -> None:
        if not is_metrics(outs):
            raise UsageError(
                f"HistoryCallback keeps Metrics (an object with `merge` and `compute`), but the "
                f"{mode} step of {type(exp).__name__} returned {describe(outs)} as its outs. "
                f"Return a Metrics from the step, or record in a Callback of your own."
            )
        self._window.add(outs)
        before, now = self._steps.get(mode, 0), global_step + 1
        self._steps[mode] = now
        if mode == "train":
            self._trained = now
        if self._every is not None and now // self._every > before // self._every:
            self._record(mode)

    def on_epoch_end(self, exp: Experiment, epoch: int, mode: str) -> None:
        self._record(mode)

    def get_state(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "epoch": self._epoch,
            "trained": self._trained,
            "steps": dict(self._steps),
            "window": self._window.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self.records = list(state["records"])
        self._epoch, self._trained = int(state["epoch"]), int(state["trained"])
        self._steps = {mode: int(steps) for mode, steps in state["steps"].items()}
        self._window = Accumulator(state["window"])

    def _record(self, mode: str) -> None:
        merged = self._window.pop()
        if merged is None:
            return
        metrics = to_host(merged.compute())
        if taken := [name for name in _ABOUT if name in metrics]:
            raise UsageError(
                f"A record has fields {', '.join(_ABOUT)} of its own, and the metrics have "
                f"{', '.join(taken)} too. Rename what `compute` returns."
            )
        about = (mode, self._epoch, self._trained, time.time())
        self.records.append(dict(zip(_ABOUT, about, strict=True)) | metrics)
