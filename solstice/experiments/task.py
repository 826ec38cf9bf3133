"""Task: what a `SupervisedExperiment` learns."""

import abc
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.metrics.base import Metrics
from solstice.tree.reprs import Shown


class Names(NamedTuple):
    """How class or label names relate to predictions.

    Attributes:
        number: How many names there are.
        each: Whether there is a prediction for each name; otherwise, a prediction is the index of a
            name.
    """

    number: int
    each: bool = False


class Task(Shown, abc.ABC):
    """A task: the form of targets and outputs, a loss and a metric.

    Ready-made ones are `Classification`, `BinaryClassification`, `MultiLabel` and `Regression`. A
    task is an immutable value, and equal tasks share a compiled step. This one asks a yes-or-no
    question for each class:

    >>> import jax, jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> from solstice.experiments import SupervisedExperiment, Task
    >>> from solstice.metrics import Mean, MetricsDict
    >>> class YesOrNo(Task):
    ...     def check_outputs(self, outputs, targets=None):
    ...         if targets is not None and targets.shape != outputs.shape:
    ...             raise ValueError("a target of 0 or 1 is expected for each output")
    ...
    ...     def check_targets(self, targets, real):
    ...         if not ((targets == 0) | (targets == 1))[real].all():
    ...             raise ValueError("targets are expected to be 0 or 1")
    ...
    ...     def losses(self, outputs, targets):
    ...         return jax.nn.softplus(outputs) - targets * outputs, None
    ...
    ...     def metrics(self, outputs, targets, loss, mask):
    ...         right = (outputs > 0) == (targets > 0)
    ...         return MetricsDict(accuracy=Mean(right, mask=mask))
    >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
    >>> tags = jnp.array([[1, 1, 0], [1, 0, 1], [0, 1, 0]])
    >>> exp = SupervisedExperiment(
    ...     YesOrNo(), stax.serial(stax.Dense(3)), optax.sgd(0.5), example_input=x, key=0
    ... )
    >>> exp.train(50, [(x, tags)], progress=False).test([(x, tags)], progress=False)
    {'accuracy': 1.0}
    """

    # A description of the network's outputs, for users of an export.
    outputs_are: ClassVar[str] = "outputs"

    @abc.abstractmethod
    def check_outputs(self, outputs: Any, targets: Any = None) -> None:
        """Raise unless a network's outputs (arrays or their shapes) fit the task."""

    def for_outputs(self, outputs: Any) -> Self:
        """Return the task for a network with these outputs; raise if they do not fit it.

        An experiment calls it when it is created, if it has an example, and with its first batch. A
        task that reads something from the outputs returns a new task with it, since a task never
        changes: compiled steps are looked up by it.

        Args:
            outputs: Arrays or their shapes.
        """
        self.check_outputs(outputs)
        return self

    def target_axes(self, outputs: Any) -> int | None:
        """Return the number of axes of targets for such outputs; None if that varies.

        If a first batch has another number, `check_outputs` is called with its outputs.
        """
        return None

    def names(self, outputs: Any) -> Names | None:
        """Return how class names relate to predictions; None if they do not.

        Args:
            outputs: The network's outputs, or their shapes.
        """
        return None

    @abc.abstractmethod
    def check_targets(self, targets: Any, real: np.ndarray) -> None:
        """Raise if a first batch's targets are wrong; runs on the host, so it can read values."""

    @abc.abstractmethod
    def losses(self, outputs: Array, targets: Array) -> tuple[Array, Array | None]:
        """Return a loss for each position, and which have one; None if all do."""

    @abc.abstractmethod
    def metrics(self, outputs: Array, targets: Array, loss: Array, mask: Array | None) -> Metrics:
        """Return a batch's metrics; `loss` is its mean loss."""


def keep_checked(task: Task, **values: Any) -> None:
    """Set the fields of a new frozen task to what their checks returned."""
    for name, value in values.items():
        object.__setattr__(task, name, value)


def check_smoothing(label_smoothing: Any) -> float:
    """Return `label_smoothing` as a float, or raise."""
    return arguments.number(label_smoothing, "label_smoothing", least=0, below=1)


def check_losses(losses: Any, shape: tuple[int, ...], called: str) -> None:
    """Raise unless a user's loss returned one for each position.

    Raises:
        ValueError: It returned something else, such as their mean.
    """
    if getattr(losses, "shape", None) != shape:
        raise InvalidValueError(
            f"{called} is expected to return a loss for each position, of shape {shape}; it "
            f"returned {describe(losses)}. Leave the mean to the experiment, which knows the mask."
        )


def check_shown(shown: np.ndarray, right: np.ndarray, expected: str, remedy: str) -> None:
    """Raise unless all targets of a first batch are right.

    Args:
        shown: The targets that count.
        right: True where one is right.
        expected: What is expected of them: the start of the message.
        remedy: What to do: the end of the message.

    Raises:
        ValueError: Some are wrong.

    >>> check_shown(np.array([0, 7]), np.array([True, False]), "Expected are 0 or 1", "Mask them.")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: Expected are 0 or 1; 1 of 2 are not, such as 7. Mask them.
    """
    wrong = shown[~right]
    if wrong.size:
        values = ", ".join(map(str, np.unique(wrong)[:5]))
        raise InvalidValueError(
            f"{expected}; {wrong.size} of {shown.size} are not, such as {values}. {remedy}"
        )


def check_array(outputs: Any, what: str) -> None:
    """Raise unless a network's outputs are one array, or the shape of one.

    Raises:
        TypeError: They are something else, even if it has a shape and a dtype.
    """
    if not isinstance(outputs, jax.Array | jax.ShapeDtypeStruct | np.ndarray):
        kind, remedy = describe(outputs), ""
        if hasattr(outputs, "shape"):
            kind = f"a {type(outputs).__module__}.{type(outputs).__qualname__}, which is none"
            remedy = (
                " Return the plain array that it holds: with an adapter's "
                "call=lambda network, *inputs: network(*inputs).array, say."
            )
        raise InvalidTypeError(
            f"The network is expected to return {what}; it returned {kind}.{remedy}"
        )
