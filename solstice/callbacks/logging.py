"""Logging: merges the metrics of a window of steps and hands the numbers to functions and sinks.

It decides what is in a window, never where the numbers go.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from solstice.callbacks.base import Callback
from solstice.errors import InvalidValueError, UsageError
from solstice.experiment import Experiment
from solstice.loggers.outlets import LoggingFn, Outlets, SinkLike
from solstice.loggers.records import compute, on_host
from solstice.loggers.values import decoded, encoded
from solstice.metrics import Accumulator, is_metrics, named_values
from solstice.tree import describe
from solstice.triggers import Trigger, check_trigger


class LoggingCallback(Callback):
    """Logs the metrics of every n steps, or of every epoch, in every mode.

    The metrics of a window are merged, never averaged, so a log says what the metric says of all
    its examples. A window ends after each step whose number (counting from 1, over the whole
    run) is a multiple of `log_every_n_steps`, or after each training step at which `when` fires;
    the rest is logged when the epoch ends.

    Args:
        log_every_n_steps: The length of a window, in each mode; None logs at each epoch's end.
        logging_fn: One of these, or a list of several. A function is called as
            `logging_fn(metrics, step, mode)` with a dict of floats (arrays where a metric is
            one), the index of the window's last step (of the epoch, when logging once an epoch)
            and the mode. A sink of `solstice.loggers` gets the whole record: mode, epoch, step
            (training steps completed; in a `test`, those of the last `train` that this callback
            saw), time and the metrics. None sends one line to the logger
            "solstice", which Python shows after `logging.basicConfig(level="INFO")`.
        when: A trigger that ends windows of training steps, instead of `log_every_n_steps`; other
            modes log at the end of their pass.

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

    needs_experiment = False

    def __init__(
        self,
        log_every_n_steps: int | None = None,
        logging_fn: LoggingFn | SinkLike | Sequence[LoggingFn | SinkLike] | None = None,
        *,
        when: Trigger | None = None,
    ) -> None:
        if log_every_n_steps is not None and log_every_n_steps < 1:
            raise InvalidValueError(
                f"log_every_n_steps is expected to be at least 1, or None to log at each epoch's "
                f"end; it is {log_every_n_steps}."
            )
        if log_every_n_steps is not None and when is not None:
            raise InvalidValueError(
                f"Windows end every {log_every_n_steps} steps or as `when` says; give one of them."
            )
        if when is not None:
            check_trigger(when, "when")
        self._when = when
        self._every = log_every_n_steps
        self._outlets = Outlets(logging_fn)
        self._trained = 0
        self._begin()

    def _begin(self) -> None:
        self._watch = None if self._when is None else self._when.start()
        self._epoch = 0
        self._steps: dict[str, int] = {}
        # One for each mode: a validation may come within a window of training steps.
        self._windows: dict[str, Accumulator] = {}

    def on_run_start(self, exp: Experiment) -> None:
        self._begin()

    def on_epoch_start(self, exp: Experiment, epoch: int, mode: str) -> None:
        self._epoch = epoch
        self._outlets.open()

    def on_step_end(
        self, outs: Any, exp: Experiment | None, global_step: int, mode: str, batch: Any
    ) -> None:
        if not is_metrics(outs):
            raise UsageError(
                f"LoggingCallback logs Metrics (an object with `merge` and `compute`), but the "
                f"{mode} step returned {describe(outs)} as its outs. "
                f"Return a Metrics from the step, or log in a Callback of your own."
            )
        window = self._windows.get(mode)
        if window is None:
            window = self._windows[mode] = Accumulator()
        window.add(outs)
        before, steps = self._steps.get(mode, 0), global_step + 1
        self._steps[mode] = steps
        if mode == "train":
            self._trained = steps
        if self._ends_window(before, steps, mode):
            self._log(global_step, mode)

    def on_epoch_end(self, exp: Experiment, epoch: int, mode: str) -> None:
        once_an_epoch = self._every is None and self._when is None
        self._log(epoch if once_an_epoch else self._steps.get(mode, 0) - 1, mode)

    def on_run_end(self, exp: Experiment, error: BaseException | None) -> None:
        self._outlets.close()

    def get_state(self) -> dict[str, Any]:
        state = {
            "epoch": self._epoch,
            "trained": self._trained,
            "steps": dict(self._steps),
            "sinks": self._outlets.get_state(),
            "windows": {},
        }
        if self._watch is not None:
            state["when"] = self._watch.get_state()
        for mode, window in self._windows.items():
            held = window.get_state(lambda metrics: on_host(self._computed(metrics)))
            if held is not None:
                said = encoded(held["computed"])
                state["windows"][mode] = {"leaves": held["leaves"], "computed": said}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        self._begin()
        self._epoch, self._trained = int(state["epoch"]), int(state["trained"])
        self._steps = {mode: int(steps) for mode, steps in state["steps"].items()}
        if self._watch is not None and "when" in state:
            self._watch.set_state(state["when"])
        self._windows = {
            mode: Accumulator({"leaves": held["leaves"], "computed": decoded(held["computed"])})
            for mode, held in state["windows"].items()
        }
        self._outlets.set_state(state["sinks"])

    def _ends_window(self, before: int, steps: int, mode: str) -> bool:
        if self._every is not None:
            return steps // self._every > before // self._every
        return self._watch is not None and mode == "train" and self._watch.after_step(steps)

    def _log(self, index: int, mode: str) -> None:
        merged = self._windows.pop(mode, Accumulator()).pop()
        if merged is None:
            return
        metrics = self._computed(merged)
        self._outlets.write(metrics, index=index, mode=mode, epoch=self._epoch, step=self._trained)

    def _computed(self, metrics: Any) -> Mapping[str, Any]:
        # Functions get what `compute()` itself returns, to the last bit.
        return named_values(metrics) if self._outlets.wait else compute(metrics)
