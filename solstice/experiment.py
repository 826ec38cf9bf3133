"""Experiment: an immutable pytree with a training and an evaluation step.

It does not depend on the trainer or on any library.
"""

import abc
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp

from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.signatures import overrides
from solstice.tree.reprs import Shown


class Experiment(Shown, eqx.Module):
    """Everything a run needs (model, optimizer, keys, counters) and what one step does with it.

    A subclass declares its fields, like any `equinox.Module`, and defines its steps as pure
    functions. Decorate a step with `solstice.jit`, and the trainer runs it fused; `jax.jit`,
    `equinox.filter_jit` or no decorator work too. Change fields with `solstice.replace`.

    Only `train_step` must be defined. The other methods have defaults. Validation and `test` need
    `eval_step`, and `solstice.predict` needs `predict`.

    >>> import jax, jax.numpy as jnp, solstice
    >>> class Fit(solstice.Experiment):
    ...     weight: jax.Array
    ...
    ...     @solstice.jit
    ...     def train_step(self, batch):
    ...         x, y = batch
    ...         loss, slope = jax.value_and_grad(lambda w: jnp.mean((w * x - y) ** 2))(self.weight)
    ...         return solstice.replace(self, weight=self.weight - 0.1 * slope), loss
    >>> batch = (jnp.array([1.0, 2.0]), jnp.array([3.0, 6.0]))
    >>> fitted = solstice.train(Fit(jnp.zeros(())), 50, [batch], progress=False)
    >>> round(float(fitted.weight), 3)
    3.0
    """

    @abc.abstractmethod
    def train_step(self, batch: Any, /) -> tuple[Self, Any]:
        """Learn from one batch; return the new experiment and the step's outs.

        Outs are any pytree, usually a `Metrics`.
        """

    def eval_step(self, batch: Any, /) -> tuple[Self, Any]:
        """Evaluate one batch; return the experiment to continue with and the step's outs."""
        raise _missing(self, "eval_step", "A batch is evaluated")

    def predict(self, inputs: Any, /) -> Any:
        """Return predictions for a batch of inputs, with examples along their first axes."""
        raise _missing(self, "predict", "predict() is called")

    def check_batch(self, batch: Any, /) -> None:
        """Raise if a batch is bad; called on the host with each mode's first batch."""

    def batch_inputs(self, batch: Any, /) -> Any:
        """Return the inputs in a batch for `predict`: a tuple's or list's first element, or all."""
        return batch[0] if type(batch) in (tuple, list) else batch

    def with_mask(self, batch: Any, real: Any, /) -> Any:
        """Return a batch with some examples masked; None if the experiment takes no masks.

        Args:
            batch: The batch, padded.
            real: True where an example is real, `(batch,)`.
        """
        return None

    def learns_from_whole_batches(self, batch: Any, /) -> bool:
        """Return whether masked examples affect training too, as with batch norm.

        Training batches are then not padded, unless asked for.

        Args:
            batch: A training batch, with its mask.
        """
        return False

    def average_outputs(self, outputs: Any, /) -> Any:
        """Return the average of the outputs of the members of an ensemble, along their first axis.

        The default is the mean; a classifier should average the probabilities of its logits.
        """
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), outputs)

    def decide(self, outputs: Any, /) -> Any:
        """Return the prediction for outputs that an ensemble has averaged.

        If None, an ensemble predicts the mean of its members' predictions.
        """
        return None

    def innermost(self) -> "Experiment":
        """Return the member experiment of an ensemble, also a nested one, or the experiment itself.

        Its class is checked for `eval_step` and `decide`.
        """
        return self

    def learning_rates(self) -> dict[str, Any] | None:
        """Return the learning rates, numbers or arrays, by their names in a log.

        None means those of its `compat.Optimizer`s: `learning_rate`, with the optimizer's path
        before it if there are several.
        """
        return None


def check_defines(exp: Any, method: str, why: str) -> None:
    """Raise, before a run, if an experiment does not define a method that it needs.

    Args:
        exp: The experiment.
        method: The method's name.
        why: What needs it, such as "val_ds is given".

    Raises:
        TypeError: It is not defined.
    """
    # An ensemble defines how it predicts; its members define how they evaluate.
    asked = exp if method == "predict" else exp.innermost()
    if not overrides(asked, Experiment, method):
        raise _missing(asked, method, why)


def _missing(exp: Any, method: str, why: str) -> InvalidTypeError:
    argument = "inputs" if method == "predict" else "batch"
    return InvalidTypeError(
        f"{why}, which needs an experiment with a method `{method}`; {type(exp).__name__} has "
        f"none. Define `{method}(self, {argument})` on it."
    )


def check_result(exp: Experiment, step_name: str, result: Any) -> tuple[Any, Any]:
    """Check that a step returned a new experiment and the outs; return them.

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
    """Raise if it is not an experiment.

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
