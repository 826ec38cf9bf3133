"""TriggeredCallback: the base of callbacks that act when a trigger fires.

It decides when to act; a subclass defines the action.
"""

import abc
import math
from collections.abc import Callable

from solstice import arguments
from solstice.callbacks.base import Callback
from solstice.loggers.outlets import Outlets
from solstice.tree.pytree import PyTree
from solstice.triggers import Moment, Trigger, check_trigger


class TriggeredCallback(Callback, abc.ABC):
    """Calls `act(exp, step)` whenever a trigger fires.

    A trigger fires after a training step, or once an epoch and its validation are over. The
    experiment is rebuilt only then. A subclass defines `act`; if it defines hooks or a state, they
    must call those of this class with `super()`.

    Args:
        when: The trigger.
        outlets: Where it logs; None for nowhere. This class opens, closes and saves them.

    Attributes:
        acts_on_experiment: Whether `act` reads the experiment; otherwise it may get None.

    Raises:
        TypeError: `when` is not a trigger.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> from solstice.triggers import Every
    >>> class Norm(solstice.callbacks.TriggeredCallback):
    ...     def act(self, exp, step):
    ...         print(step, solstice.tree.norm(exp.model.params) > 0)
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> exp = exp.train(2, [(x, y)] * 3, callbacks=[Norm(Every(epochs=1))], progress=False)
    2 True
    5 True
    """

    needs_experiment = False
    needs_batch = False
    acts_on_experiment = True

    def __init__(self, when: Trigger, outlets: Outlets | None = None) -> None:
        check_trigger(when, "when")
        self._when = when
        outlets = Outlets([]) if outlets is None else outlets
        self._outlets = arguments.instance(outlets, "outlets", Outlets, "Outlets(logging_fn)")
        self._experiment: Callable[[], PyTree] | None = None
        self._begin_run()

    def _begin_run(self) -> None:
        self._watch = self._when.start()
        # Training steps completed, and the epoch's index.
        self._completed = self._epoch = 0

    @abc.abstractmethod
    def act(self, exp: PyTree, step: int) -> None:
        """Called when the trigger fires.

        Args:
            exp: The experiment; to keep it, keep a `solstice.snapshot`.
            step: The index of the training step just completed.
        """

    def attach(self, experiment: Callable[[], PyTree], steps_per_call: int = 1) -> None:
        """Called before `on_run_start` with a function that returns the current experiment.

        If a call takes several steps, hooks get the list of its batches.
        """
        self._experiment = experiment

    def on_run_start(self, exp: PyTree) -> None:
        self._begin_run()

    def on_epoch_start(self, exp: PyTree, epoch: int, mode: str) -> None:
        self._epoch = epoch
        self._outlets.open()

    def on_step_end(
        self, outs: PyTree, exp: PyTree, global_step: int, mode: str, batch: PyTree
    ) -> None:
        if mode != "train":
            return
        self._completed = global_step + 1
        if self._watch.after_step(self._completed):
            if exp is None and self.acts_on_experiment and self._experiment is not None:
                exp = self._experiment()
            self.act(exp, global_step)

    def after_epoch(self, exp: PyTree, epochs: int) -> None:
        """Called when `epochs` epochs are completed, validation included."""
        if self._watch.after_epoch(epochs):
            self.act(exp, self._completed - 1)

    def on_run_end(self, exp: PyTree, error: BaseException | None) -> None:
        self._experiment = None  # it would keep the whole run alive
        self._outlets.close()

    def get_state(self) -> dict[str, PyTree]:
        return {
            "watch": self._watch.get_state(),
            "completed": self._completed,
            "epoch": self._epoch,
            "sinks": self._outlets.get_state(),
        }

    def set_state(self, state: dict[str, PyTree]) -> None:
        self._begin_run()
        self._watch.set_state(state["watch"])
        self._completed, self._epoch = int(state["completed"]), int(state["epoch"])
        self._outlets.set_state(state["sinks"])


class Never(Trigger):
    """A trigger that never fires, for a callback without one."""

    def fires(self, before: Moment, after: Moment) -> bool:
        return False

    def next_step(self, steps: int) -> float:
        return math.inf
