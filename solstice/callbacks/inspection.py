"""InspectionCallback: logs values of the experiment's inside when a trigger fires.

What to look at is a function's business; `solstice.compat` has some to start from.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from solstice.callbacks.scheduled import ScheduledCallback, TriggeredCallback
from solstice.errors import InvalidTypeError
from solstice.experiment import Experiment
from solstice.flat import Flat
from solstice.loggers.outlets import LoggingFn, Outlets, SinkLike
from solstice.loggers.values import to_host
from solstice.tree import describe, leaves_by_path
from solstice.triggers import Trigger


class InspectionCallback(TriggeredCallback):
    """Logs what `values_fn(exp, batch)` returns whenever a trigger fires in training.

    It gets the experiment after a training step and the (last) batch of it, and is compiled; what
    it computes is paid for when the trigger fires, never by the training step. Numbers are logged
    as numbers; arrays as they are, which sinks that can show as histograms.

    Args:
        values_fn: Returns a tree of numbers and arrays; their names are their paths in it.
        when: The trigger.
        logging_fn: As in `EvaluationCallback`.
        mode: Under what mode the values are logged.
        jit: Whether to compile `values_fn`.

    Attributes:
        results: The last values by name, on the host.

    Raises:
        TypeError: An argument is not what it must be.

    >>> import flax.linen as nn, jax.numpy as jnp, optax, solstice
    >>> from solstice import compat
    >>> from solstice.triggers import Every
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         hidden = nn.relu(nn.Dense(8)(x))
    ...         self.sow("intermediates", "hidden", hidden)
    ...         return nn.Dense(2)(hidden)
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(Net(), optax.adam(0.1), example_input=x, key=0)
    >>> def inside(exp, batch):
    ...     return compat.intermediates(exp.model, batch[0]) | compat.training_norms(exp, batch)
    >>> looks = solstice.callbacks.InspectionCallback(inside, when=Every(steps=10))
    >>> exp = exp.train(10, [(x, y)], callbacks=[looks], progress=False)
    >>> list(looks.results), looks.results["hidden"].shape
    (['gradient_norm', 'hidden', 'parameter_norm'], (4, 8))
    """

    def __init__(
        self,
        values_fn: Callable[[Any, Any], Any],
        *,
        when: Trigger,
        logging_fn: LoggingFn | SinkLike | Sequence[LoggingFn | SinkLike] | None = None,
        mode: str = "inside",
        jit: bool = True,
    ) -> None:
        if not callable(values_fn):
            raise InvalidTypeError(
                f"values_fn is expected to be a function of (exp, batch); it is "
                f"{describe(values_fn)}."
            )
        self._outlets = Outlets(logging_fn)
        self._mode = mode
        self._values = _compiled(values_fn) if jit else values_fn
        self._schedule = ScheduledCallback(self._look, when, name=mode)
        self.results: dict[str, Any] = {}
        self._steps_per_call = 1
        self._epoch = 0
        self._batch: Any = None

    def attach(self, experiment: Callable[[], Any], steps_per_call: int = 1) -> None:
        self._schedule.attach(experiment, steps_per_call)
        self._steps_per_call = steps_per_call

    def on_run_start(self, exp: Experiment) -> None:
        self._schedule.on_run_start(exp)

    def on_epoch_start(self, exp: Experiment, epoch: int, mode: str) -> None:
        self._epoch = epoch
        self._outlets.open()

    def on_step_end(
        self, outs: Any, exp: Experiment | None, global_step: int, mode: str, batch: Any
    ) -> None:
        if mode == "train":
            self._batch = batch if self._steps_per_call == 1 else batch[-1]
        self._schedule.on_step_end(outs, exp, global_step, mode, batch)

    def after_epoch(self, exp: Experiment, epochs: int) -> None:
        self._epoch = epochs - 1
        self._schedule.after_epoch(exp, epochs)

    def on_run_end(self, exp: Experiment, error: BaseException | None) -> None:
        self._schedule.on_run_end(exp, error)
        self._batch = None
        self._outlets.close()

    def get_state(self) -> dict[str, Any]:
        return {"schedule": self._schedule.get_state(), "sinks": self._outlets.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self._schedule.set_state(state["schedule"])
        self._outlets.set_state(state["sinks"])

    def _look(self, exp: Any, step: int) -> None:
        if self._batch is None:  # resumed at the end of an epoch: no step has been taken since
            return
        self.results = to_host(leaves_by_path(self._values(exp, self._batch)))
        self._outlets.write(
            self.results, index=step, mode=self._mode, epoch=self._epoch, step=step + 1
        )


def _compiled(values_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    values_of = jax.jit(lambda flat, batch: Flat.of(values_fn(flat.whole(), batch)))
    return lambda exp, batch: values_of(Flat.of(exp), batch).whole()
