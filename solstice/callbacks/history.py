"""History: what a run logged, as a list of records in memory."""

from collections.abc import Sequence
from typing import Any

from solstice.callbacks.logging import LoggingCallback
from solstice.loggers.records import Record
from solstice.loggers.values import decoded, encoded
from solstice.tree.growing import Growing
from solstice.triggers import Trigger


class HistoryCallback(LoggingCallback):
    """Keeps the metrics of every n training steps, or of every epoch, and of each validation.

    Windows and metrics are those of `LoggingCallback`. Records of further runs are appended; a
    resumed run gets its earlier records back. A checkpoint writes only the records since the last
    one.

    Args:
        log_every_n_steps: The length of a window of training steps; None records once an epoch.
        when: A trigger that ends windows of training steps instead.

    Attributes:
        records: Dicts with `mode`, `epoch`, `step` (training steps completed), `time` (seconds
            since 1970) and the metrics: numbers, or numpy arrays.

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

    def __init__(
        self, log_every_n_steps: int | None = None, *, when: Trigger | None = None
    ) -> None:
        self._list = _List()
        super().__init__(log_every_n_steps, self._list, when=when)

    @property
    def records(self) -> list[dict[str, Any]]:
        return self._list.records


class _List:
    """A sink that keeps its records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, record: Record) -> None:
        self.records.append(record.on_host())

    def flush(self) -> None:
        return

    def close(self) -> None:
        return

    def get_state(self) -> Growing:
        return Growing(self.records, encoded)

    def set_state(self, state: Sequence[dict[str, Any]]) -> None:
        self.records = [decoded(record) for record in state]
