"""Logging: merges the metrics of a window of steps and passes them to functions and sinks."""

from collections.abc import Mapping, Sequence
from typing import Any

from solstice import arguments
from solstice.arguments import describe
from solstice.callbacks.triggered import Never, TriggeredCallback
from solstice.errors import InvalidValueError, UsageError
from solstice.loggers.outlets import LoggingFn, Outlets, SinkLike
from solstice.loggers.rates import Rates
from solstice.loggers.records import compute, on_host
from solstice.loggers.values import decoded, encoded
from solstice.metrics.accumulator import Accumulator
from solstice.metrics.base import is_metrics, joining
from solstice.metrics.named import named_values
from solstice.tree.pytree import PyTree
from solstice.triggers import Every, Trigger


class LoggingCallback(TriggeredCallback):
    """Logs the metrics of every n training steps, or of every epoch, and those of each validation.

    The metrics of a window are merged, not averaged, so a record is the metric over all its
    examples. A window of training steps ends after each step whose number (counting from 1, over
    the whole run) is a multiple of `log_every_n_steps`, or when `when` fires; the rest is logged
    when the epoch ends. A trigger that counts epochs may make it longer: `when=Every(epochs=2)`
    merges two epochs; the rest is logged when the run ends. A pass of validation or test is always
    one record.

    A record also has the `learning_rate` of the last training step, if the optimizer gives it
    (`Experiment.learning_rates`) and no metric has that name.

    Args:
        log_every_n_steps: The length of a window of training steps; None logs once an epoch.
        logging_fn: One of these, or a list of several. A function is called as `logging_fn(metrics,
            step, mode)` with a dict of floats (or arrays), the index of the training step just
            completed (of the epoch, if only ends of epochs end windows; of the last step in a
            `test`) and the mode. A sink of `solstice.loggers` gets the whole record: mode, epoch,
            step (training steps completed; in a `test`, those of the last `train` that this
            callback saw), time and the metrics. None sends one line of the first ten metrics to the
            logger "solstice", which Python shows after `logging.basicConfig(level="INFO")`.
        when: A trigger that ends windows of training steps, instead of `log_every_n_steps`. One
            that counts epochs fires after the epoch's validation.

    Raises:
        ValueError: `log_every_n_steps` is not positive, or `when` is given too.
        UsageError: A step's outs are not `Metrics`.

    >>> import solstice
    >>> callback = solstice.LoggingCallback(
    ...     log_every_n_steps=50, logging_fn=lambda metrics, step, mode: print(mode, step, metrics)
    ... )
    >>> from solstice import loggers
    >>> callback = solstice.LoggingCallback(50, [loggers.Console(), loggers.JSONLines("log.jsonl")])
    """

    acts_on_experiment = False

    def __init__(
        self,
        log_every_n_steps: int | None = None,
        logging_fn: LoggingFn | SinkLike | Sequence[LoggingFn | SinkLike] | None = None,
        *,
        when: Trigger | None = None,
    ) -> None:
        if log_every_n_steps is not None:
            log_every_n_steps = arguments.count(log_every_n_steps, "log_every_n_steps")
        if log_every_n_steps is not None and when is not None:
            raise InvalidValueError(
                f"Windows end every log_every_n_steps={log_every_n_steps} steps or as `when` says, "
                f"which is {arguments.describe(when)}; give one of them."
            )
        if log_every_n_steps is not None:
            when = Every(steps=log_every_n_steps)
        super().__init__(Never() if when is None else when, Outlets(logging_fn))
        # Whether a window may span epochs, and whether only ends of epochs end windows.
        self._goes_on = self._when.counts_epochs
        self._by_epoch = when is None or all(part.counts_epochs for part in when.parts())
        self._trained = 0
        self._begin_windows()

    def _begin_windows(self) -> None:
        self._rates = Rates()
        # One for each mode: a validation may come within a window of training steps.
        self._windows: dict[str, Accumulator] = {}
        # The number of steps of each mode in the run.
        self._steps: dict[str, int] = {}

    def on_run_start(self, exp: PyTree) -> None:
        super().on_run_start(exp)
        self._begin_windows()

    def on_step_end(
        self, outs: PyTree, exp: PyTree, global_step: int, mode: str, batch: PyTree
    ) -> None:
        if not is_metrics(outs):
            raise UsageError(
                f"{type(self).__name__} logs Metrics (an object with `merge` and `compute`), but "
                f"the {mode} step returned {describe(outs)} as its outs. "
                f"Return a Metrics from the step, or log in your own Callback.{joining(outs)}"
            )
        window = self._windows.get(mode)
        if window is None:
            window = self._windows[mode] = Accumulator()
        window.add(outs)
        self._steps[mode] = global_step + 1
        if mode == "train":
            self._trained = global_step + 1
        super().on_step_end(outs, exp, global_step, mode, batch)

    def act(self, exp: PyTree, step: int) -> None:
        self._log("train")

    def on_epoch_end(self, exp: PyTree, epoch: int, mode: str) -> None:
        if mode != "train" or not self._goes_on:
            self._log(mode)

    def on_run_end(self, exp: PyTree, error: BaseException | None) -> None:
        if error is None:
            # After the save, so that a run resumed from it continues this window.
            self._log("train")
        super().on_run_end(exp, error)

    def get_state(self) -> dict[str, PyTree]:
        windows = {}
        for mode, window in self._windows.items():
            held = window.get_state(lambda metrics: on_host(self._computed(metrics)))
            if held is not None:
                said = encoded(held["computed"])
                windows[mode] = {"leaves": held["leaves"], "computed": said}
        return {
            **super().get_state(),
            "trained": self._trained,
            "steps": dict(self._steps),
            "windows": windows,
        }

    def set_state(self, state: dict[str, PyTree]) -> None:
        super().set_state(state)
        self._trained = int(state["trained"])
        self._steps = {mode: int(steps) for mode, steps in state["steps"].items()}
        self._windows = {
            mode: Accumulator({"leaves": held["leaves"], "computed": decoded(held["computed"])})
            for mode, held in state["windows"].items()
        }

    def _log(self, mode: str) -> None:
        merged = self._windows.pop(mode, Accumulator()).pop()
        if merged is None:
            return
        steps = self._steps[mode] if mode == "test" else self._trained
        self._outlets.write(
            self._rates.beside(self._computed(merged), self._experiment),
            index=self._epoch if self._by_epoch else steps - 1,
            mode=mode,
            epoch=self._epoch,
            step=self._trained,
        )

    def _computed(self, metrics: PyTree) -> Mapping[str, Any]:
        # Functions get exactly what `compute()` returns.
        return named_values(metrics) if self._outlets.wait else compute(metrics)
