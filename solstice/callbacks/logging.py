"""Logging: merges the metrics of a window of steps and hands the numbers to a function.

It decides what is in a window, never where the numbers go.
"""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from solstice.callbacks.base import Callback
from solstice.errors import UsageError
from solstice.experiment import Experiment
from solstice.metrics import Accumulator, is_metrics
from solstice.tree import describe

_logger = logging.getLogger("solstice")

LoggingFn = Callable[[dict[str, Any], int, str], Any]


class LoggingCallback(Callback):
    """Logs the metrics of every n steps, or of every epoch, in every mode.

    The metrics of a window are merged, never averaged, so a log says what the metric says of all
    its examples. A window ends after each step whose number (counting from 1, over the whole
    run) is a multiple of `log_every_n_steps`, or under `steps_per_call` after the call that passes
    it; the rest is logged when the epoch ends.

    Args:
        log_every_n_steps: The length of a window; None logs once at each epoch's end.
        logging_fn: Called as `logging_fn(metrics, step, mode)` with a dict of floats (arrays
            where a metric is one), the index of the window's last step (of the epoch, when
            logging once an epoch) and the mode. None sends one line to the logger "solstice".

    Raises:
        ValueError: `log_every_n_steps` is not positive.
        UsageError: A step's outs are not `Metrics`.

    >>> import solstice
    >>> callback = solstice.LoggingCallback(
    ...     log_every_n_steps=50, logging_fn=lambda metrics, step, mode: print(mode, step, metrics)
    ... )
    """

    needs_experiment = False

    def __init__(
        self, log_every_n_steps: int | None = None, logging_fn: LoggingFn | None = None
    ) -> None:
        if log_every_n_steps is not None and log_every_n_steps < 1:
            raise ValueError(
                f"log_every_n_steps is expected to be at least 1, or None to log at each epoch's "
                f"end; it is {log_every_n_steps}."
            )
        if logging_fn is not None and not callable(logging_fn):
            raise TypeError(
                f"logging_fn is expected to be a function of (metrics, step, mode); it is "
                f"{describe(logging_fn)}."
            )
        self._every = log_every_n_steps
        self._logging_fn = logging_fn or _log_line
        self._window = Accumulator()
        self._completed: dict[str, int] = {}

    def on_run_start(self, exp: Experiment) -> None:
        self._completed = {}

    def on_epoch_start(self, exp: Experiment, epoch: int, mode: str) -> None:
        self._window = Accumulator()

    def on_step_end(
        self, outs: Any, exp: Experiment | None, global_step: int, mode: str, batch: Any
    ) -> None:
        if not is_metrics(outs):
            raise UsageError(
                f"LoggingCallback logs Metrics (an object with `merge` and `compute`), but the "
                f"{mode} step returned {describe(outs)} as its outs. "
                f"Return a Metrics from the step, or log in a Callback of your own."
            )
        self._window.add(outs)
        before, self._completed[mode] = self._completed.get(mode, 0), global_step + 1
        if self._every and self._completed[mode] // self._every > before // self._every:
            self._log(global_step, mode)

    def on_epoch_end(self, exp: Experiment, epoch: int, mode: str) -> None:
        self._log(epoch if self._every is None else self._completed.get(mode, 0) - 1, mode)

    def _log(self, step: int, mode: str) -> None:
        merged = self._window.pop()
        if merged is not None:
            self._logging_fn(to_host(merged.compute()), step, mode)


def to_host(computed: dict[str, Any]) -> dict[str, Any]:
    """Return computed metrics on the host: numbers as Python's, arrays as numpy's.

    >>> import jax.numpy as jnp
    >>> to_host({"loss": jnp.ones(()), "name": "a"})
    {'loss': 1.0, 'name': 'a'}
    """
    # device_get sorts the names; compute() may have ordered them with care.
    host = jax.device_get(computed)
    return {name: _to_python(host[name]) for name in computed}


def _to_python(value: Any) -> Any:
    is_number = isinstance(value, np.ndarray | np.generic) and value.ndim == 0
    return value.item() if is_number else value


def _log_line(metrics: dict[str, Any], step: int, mode: str) -> None:
    numbers = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in metrics.items()
    )
    _logger.info("%s %d: %s", mode, step, numbers)
