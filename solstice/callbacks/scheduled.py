"""ScheduledCallback: calls a function of the experiment when a trigger fires."""

from collections.abc import Callable
from typing import Any

from solstice import arguments
from solstice.callbacks.triggered import TriggeredCallback
from solstice.tree.pytree import PyTree
from solstice.triggers import Trigger


class ScheduledCallback(TriggeredCallback):
    """Calls `action(exp, step)` whenever a trigger fires, and keeps the last result.

    Args:
        action: Takes the experiment and the index of the training step just completed; if it keeps
            the experiment, it must keep a `solstice.snapshot`. It may raise
            `EarlyStoppingException`.
        when: The trigger; one that counts epochs fires after the epoch's validation.
        name: The name of the result; by default the function's name.

    Attributes:
        results: The last result by `name`; empty until the trigger has fired. It is not saved.

    Raises:
        TypeError: `action` is not callable, or `when` is not a trigger.

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
        self, action: Callable[[PyTree, int], object], when: Trigger, name: str | None = None
    ) -> None:
        arguments.function(action, "action", "exp, step")
        if name is not None:
            arguments.text(name, "name")
        super().__init__(when)
        self._action = action
        self._name = getattr(action, "__name__", type(action).__name__) if name is None else name
        self.results: dict[str, Any] = {}

    def act(self, exp: PyTree, step: int) -> None:
        self.results[self._name] = self._action(exp, step)
