"""What an experiment is: an immutable pytree with a training and an evaluation step.

It knows neither the trainer that runs it nor the libraries it is made of.
"""

import abc
from typing import Any, Self

import equinox as eqx

from solstice.errors import InvalidTypeError
from solstice.tree import describe


class Experiment(eqx.Module):
    """Everything a run needs (model, optimizer, keys, counters) and what one step does with it.

    A subclass declares its fields, as any `equinox.Module` does, and defines both steps as pure
    functions. `solstice.jit` compiles a step, and the trainer runs it fused; a step may as well be
    undecorated, `jax.jit`ted or `equinox.filter_jit`ted. Change fields with `solstice.replace`.

    The trainer also uses two methods where a subclass has them:

    - `check_batch(batch)` is called on the host with the first batch of each mode of a run, before
      its step, and raises an error when the input is bad;
    - `predict(inputs)`, with `batch_inputs(batch)` to say what of a batch the inputs are, makes
      `solstice.predict` work.

    >>> import jax, jax.numpy as jnp, solstice
    >>> class Fit(solstice.Experiment):
    ...     weight: jax.Array
    ...
    ...     @solstice.jit
    ...     def train_step(self, batch):
    ...         x, y = batch
    ...         loss, slope = jax.value_and_grad(lambda w: jnp.mean((w * x - y) ** 2))(self.weight)
    ...         return solstice.replace(self, weight=self.weight - 0.1 * slope), loss
    ...
    ...     def eval_step(self, batch):
    ...         return self, None
    >>> batch = (jnp.array([1.0, 2.0]), jnp.array([3.0, 6.0]))
    >>> fitted = solstice.train(Fit(jnp.zeros(())), 50, [batch], progress=False)
    >>> round(float(fitted.weight), 3)
    3.0
    """

    @abc.abstractmethod
    def train_step(self, batch: Any) -> tuple[Self, Any]:
        """Learn from one batch; return the new experiment and the step's outs.

        Outs are any pytree, usually a `Metrics`.
        """

    @abc.abstractmethod
    def eval_step(self, batch: Any) -> tuple[Self, Any]:
        """Evaluate one batch; return the experiment to go on with and the step's outs."""


def check_result(exp: Experiment, step_name: str, result: Any) -> tuple[Any, Any]:
    """Return what a step returned, which must be a new experiment and the outs.

    Raises:
        TypeError: It is something else.
    """
    if type(result) is tuple and len(result) == 2 and isinstance(result[0], Experiment):
        return result
    raise InvalidTypeError(
        f"{type(exp).__name__}.{step_name} is expected to return a pair, (new experiment, outs); "
        f"it returned {describe(result)}."
    )


def check_experiment(exp: Any) -> None:
    """Raise for what is no experiment.

    Raises:
        TypeError: It is something else, or a class.
    """
    if not isinstance(exp, Experiment):
        what = (
            f"the class {exp.__name__!r}: pass an instance"
            if isinstance(exp, type)
            else describe(exp)
        )
        raise InvalidTypeError(
            f"exp is expected to be an instance of solstice.Experiment; it is {what}."
        )
