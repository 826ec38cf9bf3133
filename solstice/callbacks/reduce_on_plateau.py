"""ReduceOnPlateau: a smaller learning rate once a metric has stopped improving."""

import logging
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from solstice import arguments
from solstice.callbacks.plateau import Plateau
from solstice.compat.rates import change_trained_rates
from solstice.metrics.directions import Direction
from solstice.tree.pytree import PyTree

_logger = logging.getLogger("solstice")


class ReduceOnPlateau(Plateau):
    """Multiplies the learning rate by a factor whenever a metric has stopped improving.

    `solstice.set_learning_rate` sets the rate of every optimizer, and of every member of an
    ensemble, after the epoch in which the patience ends; a group of `compat.by_path` that is
    entirely frozen keeps its own. The count of passes then restarts; the best value is kept. A
    resumed run continues with both.

    Args:
        metric: The name in `compute()`; `loss` finds `average_loss`.
        mode: Whether a smaller ("min") or a larger ("max") value is better. None asks the metric,
            which knows it for the standard names (`solstice.metrics.direction`).
        factor: The factor, between 0 and 1.
        patience: The number of passes in a row without improvement before the rate is reduced.
        min_delta: How much better than the best so far counts as an improvement.
        min_rate: The lowest rate to reduce to; a rate that is already lower stays.
        watch: The mode whose passes are watched: "val" or "train".

    Raises:
        ValueError: An argument is wrong; or, before the first step, the rate of the experiment's
            optimizer cannot be set.
        UsageError: In the run: there is no such metric, it is not a number, or its direction is not
            known.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> adam = optax.inject_hyperparams(optax.adam)(0.1)
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), adam, example_input=x, key=0
    ... )
    >>> reduce = solstice.callbacks.ReduceOnPlateau("accuracy", patience=5)
    >>> exp = exp.train(12, [(x, y)] * 3, [(x, y)], [reduce], progress=False)
    >>> round(float(exp.optimizer.learning_rate()), 4)
    0.01
    """

    purpose = "ReduceOnPlateau"

    def __init__(
        self,
        metric: str,
        *,
        mode: Direction | None = None,
        factor: float = 0.1,
        patience: int = 5,
        min_delta: float = 0.0,
        min_rate: float = 0.0,
        watch: Literal["val", "train"] = "val",
    ) -> None:
        self._factor = arguments.number(factor, "factor", above=0, below=1)
        self._min_rate = arguments.number(min_rate, "min_rate", least=0)
        super().__init__(metric, mode=mode, patience=patience, min_delta=min_delta, watch=watch)

    def _begin(self) -> None:
        super()._begin()
        # Why the rate is reduced after this epoch; None if it is not.
        self._due: str | None = None

    def on_run_start(self, exp: PyTree) -> None:
        super().on_run_start(exp)
        change_trained_rates(exp, lambda rate: rate)  # raises now if a rate cannot be set

    def act(self, why: str) -> None:
        self._waited, self._due = 0, why

    def revise(self, exp: PyTree) -> PyTree:
        """Return the experiment with the reduced rate, if it is due and the run continues."""
        if self._run_is_over() or self._due is None:
            return exp
        message = "The learning rate is multiplied by %g, but not below %g: %s."
        _logger.info(message, self._factor, self._min_rate, self._due)
        self._due = None
        return change_trained_rates(exp, self._smaller)

    def _smaller(self, rate: Array) -> Array:
        return jnp.minimum(rate, jnp.maximum(rate * self._factor, self._min_rate))

    def get_state(self) -> dict[str, PyTree]:
        return {**super().get_state(), "due": self._due}

    def set_state(self, state: dict[str, PyTree]) -> None:
        super().set_state(state)
        self._due = state["due"]
