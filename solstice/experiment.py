"""What an experiment is: an immutable pytree with a training and an evaluation step.

It knows neither the trainer that runs it nor the libraries it is made of.
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

    A subclass declares its fields, as any `equinox.Module` does, and defines its steps as pure
    functions. `solstice.jit` compiles a step, and the trainer runs it fused; a step may also be
    undecorated, `jax.jit`ted or `equinox.filter_jit`ted. Change fields with `solstice.replace`.

    Only `train_step` must be defined. The other methods have defaults, which say what is missing
    where something needs them: validation and `test` need `eval_step`, `solstice.predict` needs
    `predict`.

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
        """Evaluate one batch; return the experiment to go on with and the step's outs."""
        raise _missing(self, "eval_step", "A batch is to be evaluated")

    def predict(self, inputs: Any, /) -> Any:
        """Return predictions for a batch of inputs, with examples along their first axes."""
        raise _missing(self, "predict", "Something is to be predicted")

    def check_batch(self, batch: Any, /) -> None:
        """Raise for a bad batch; called on the host with the first of each mode of a run."""

    def batch_inputs(self, batch: Any, /) -> Any:
        """Return what of a batch `predict` takes: the first element of a tuple or list, or all."""
        return batch[0] if type(batch) in (tuple, list) else batch

    def with_mask(self, batch: Any, real: Any, /) -> Any:
        """Return a batch of which only some examples count; None: the experiment takes no masks.

        Args:
            batch: The batch, padded.
            real: True where an example is real, `(batch,)`.
        """
        return None

    def learns_from_whole_batches(self, batch: Any, /) -> bool:
        """Say whether training learns from what a mask leaves out too, as batch norm does.

        Training batches are then not padded, where that can be chosen.

        Args:
            batch: A training batch, with its mask.
        """
        return False

    def average_outputs(self, outputs: Any, /) -> Any:
        """Return the average of the outputs of the members of an ensemble, along their first axis.

        Here it is the mean; for a classifier's logits, say, that of the probabilities is right.
        """
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), outputs)

    def decide(self, outputs: Any, /) -> Any:
        """Return what is predicted where these are the outputs, which an ensemble has averaged.

        None: nothing is decided, and an ensemble predicts the mean of its members' predictions.
        """
        return None

    def innermost(self) -> "Experiment":
        """Return the experiment that an ensemble, also one of ensembles, is made of; or itself.

        Its class says what can be done: it is asked whether it defines `eval_step` and `decide`.
        """
        return self

    def learning_rates(self) -> dict[str, Any] | None:
        """Return its learning rates, numbers or arrays, by the names that a log has for them.

        None: those that its `compat.Optimizer`s tell, `learning_rate` of the only one, with its
        path before it where there are several.
        """
        return None


def check_defines(exp: Any, method: str, why: str) -> None:
    """Raise, before a run, where an experiment has only the default of a method that it needs.

    Args:
        exp: The experiment.
        method: The method's name.
        why: What needs it, such as "val_ds is given".

    Raises:
        TypeError: It is not defined.
    """
    # How an ensemble predicts is its own; how it evaluates, its members'.
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
