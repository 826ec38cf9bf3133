"""History: what a run logged, as a list of records in memory.

It logs as LoggingCallback does, and writes nothing.
"""

from typing import Any

from solstice.callbacks.base import Callback
from solstice.callbacks.logging import LoggingCallback
from solstice.experiment import Experiment
from solstice.loggers.values import decoded, encoded
from solstice.triggers import Trigger


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

    needs_experiment = False

    def __init__(
        self, log_every_n_steps: int | None = None, *, when: Trigger | None = None
    ) -> None:
        self._list = _List()
        self._logging = LoggingCallback(log_every_n_steps, self._list, when=when)

    @property
    def records(self) -> list[dict[str, Any]]:
        return self._list.records

    def on_run_start(self, exp: Experiment) -> None:
        self._logging.on_run_start(exp)

    def on_epoch_start(self, exp: Experiment, epoch: int, mode: str) -> None:
        self._logging.on_epoch_start(exp, epoch, mode)

    def on_step_end(
        self, outs: Any, exp: Experiment | None, global_step: int, mode: str, batch: Any
    ) -> None:
        self._logging.on_step_end(outs, exp, global_step, mode, batch)

    def on_epoch_end(self, exp: Experiment, epoch: int, mode: str) -> None:
        self._logging.on_epoch_end(exp, epoch, mode)

    def get_state(self) -> dict[str, Any]:
        return self._logging.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._logging.set_state(state)


class _List:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, record: Any) -> None:
        self.records.append(record.on_host())

    def flush(self) -> None:
        return

    def close(self) -> None:
        return

    def get_state(self) -> list[dict[str, Any]]:
        return [encoded(record) for record in self.records]

    def set_state(self, state: list[dict[str, Any]]) -> None:
        self.records = [decoded(record) for record in state]
