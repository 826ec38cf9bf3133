"""ScheduledCallback: does anything with the experiment when a trigger fires.

It decides neither what is done nor when; it keeps what came of it.
"""

import abc
from collections.abc import Callable
from typing import Any

from solstice.callbacks.base import Callback
from solstice.errors import InvalidTypeError
from solstice.experiment import Experiment
from solstice.tree import describe
from solstice.triggers import Trigger, check_trigger


class TriggeredCallback(Callback, abc.ABC):
    """A callback that acts on the experiment when a trigger fires.

    The run gives it a way to the experiment, so that it is put together only when needed, and tells
    it of each completed epoch, which no hook does.

    >>> from solstice.callbacks import ScheduledCallback, TriggeredCallback
    >>> from solstice.triggers import Every
    >>> isinstance(ScheduledCallback(print, Every(epochs=1)), TriggeredCallback)
    True
    """

    needs_experiment = False

    @abc.abstractmethod
    def attach(self, experiment: Callable[[], Any], steps_per_call: int = 1) -> None:
        """Called before `on_run_start` with what returns the experiment as it is.

        Where a call takes several steps, hooks get the list of its batches.
        """

    @abc.abstractmethod
    def after_epoch(self, exp: Experiment, epochs: int) -> None:
        """Called when `epochs` epochs are completed, validation included."""


class ScheduledCallback(TriggeredCallback):
    """Calls `action(exp, step)` whenever a trigger fires, and keeps its last result.

    Args:
        action: Takes the experiment and the index of the training step just completed; what it
            keeps of the experiment must be a `solstice.snapshot`. It may raise
            `EarlyStoppingException`.
        when: The trigger; one that counts epochs fires after the epoch's validation.
        name: What the result is called; by default the action's own name.

    Attributes:
        results: The last result by `name`; empty until the trigger has fired. A resume starts
            with none.

    Raises:
        TypeError: `action` cannot be called, or `when` is no trigger.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> from solstice.triggers import Every
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> looks = solstice.ScheduledCallback(
    ...     lambda exp, step: (step, exp.predict(x).tolist()), Every(steps=20), name="classes"
    ... )
    >>> exp = exp.train(50, [(x, y)], callbacks=[looks], progress=False)
    >>> looks.results
    {'classes': (39, [0, 1, 1, 0])}
    """

    def __init__(
        self, action: Callable[[Any, int], Any], when: Trigger, name: str | None = None
    ) -> None:
        if not callable(action):
            raise InvalidTypeError(
                f"action is expected to be a function of (exp, step); it is {describe(action)}."
            )
        check_trigger(when, "when")
        self._action = action
        self._when = when
        self._name = getattr(action, "__name__", type(action).__name__) if name is None else name
        self._experiment: Callable[[], Any] | None = None
        self.results: dict[str, Any] = {}
        self._begin()

    def _begin(self) -> None:
        self._watch = self._when.start()
        self._completed = 0

    def attach(self, experiment: Callable[[], Any], steps_per_call: int = 1) -> None:
        self._experiment = experiment

    def on_run_start(self, exp: Experiment) -> None:
        self._begin()

    def on_step_end(
        self, outs: Any, exp: Experiment | None, global_step: int, mode: str, batch: Any
    ) -> None:
        if mode != "train":
            return
        self._completed = global_step + 1
        if self._watch.after_step(self._completed):
            self._act(self._experiment() if exp is None and self._experiment else exp)

    def after_epoch(self, exp: Experiment, epochs: int) -> None:
        if self._watch.after_epoch(epochs):
            self._act(exp)

    def on_run_end(self, exp: Experiment, error: BaseException | None) -> None:
        self._experiment = None  # it would keep the whole run alive

    def get_state(self) -> dict[str, Any]:
        return {"watch": self._watch.get_state(), "completed": self._completed}

    def set_state(self, state: dict[str, Any]) -> None:
        self._watch.set_state(state["watch"])
        self._completed = int(state["completed"])

    def _act(self, exp: Any) -> None:
        self.results[self._name] = self._action(exp, self._completed - 1)
