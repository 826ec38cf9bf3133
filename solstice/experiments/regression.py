"""Regression with any network and any optimizer: numbers instead of classes."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.experiments.batches import BatchKeys
from solstice.experiments.supervised import OTHER_NAMES, MetricsFn, SupervisedExperiment
from solstice.experiments.task import Task, check_array, check_losses, check_shown, keep_checked
from solstice.metrics.regression import RegressionMetrics
from solstice.signatures import explained

LossFn = Callable[[Array, Array], Array]


def squared_error(outputs: Array, targets: Array) -> Array:
    """Return the squared difference at each position.

    >>> import jax.numpy as jnp
    >>> squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
    Array([0., 4.], dtype=float32)
    """
    return (outputs - targets) ** 2


class RegressionExperiment(SupervisedExperiment):
    """Trains and measures a network that predicts numbers.

    Outputs and targets are of one shape `(...)`; a mask is of that shape or of its leading axes.
    Batches are as in `ClassificationExperiment`, with the keys "x", "y", "mask" and "weight" if
    they are mappings. Steps return `RegressionMetrics`.

    Attributes:
        model: The network, adapted.
        optimizer: The optimizer, adapted and initialised.
        key: The PRNG key of training; None if the network draws no random numbers.
        ema: The moving average of the parameters, which evaluation uses; None without one.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> exp = solstice.RegressionExperiment(
    ...     stax.serial(stax.Dense(1)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> exp = exp.train(100, [(x, 3 * x + 1)], progress=False)
    >>> exp.test([(x, 3 * x + 1)], progress=False)["r2"] > 0.99
    True
    """

    @explained(**OTHER_NAMES | {"ignore_index": "a mask: batches (x, y, mask)"})
    def __init__(
        self,
        model: Any,
        optimizer: Any,
        *,
        key: Array | int | None = None,
        example_input: Any = None,
        loss: LossFn = squared_error,
        num_outputs: int | None = None,
        metrics: MetricsFn | None = None,
        batch_keys: BatchKeys = ("x", "y", "mask", "weight"),
        ema_decay: float | None = None,
        compute_dtype: DTypeLike | None = None,
        accumulate_steps: int = 1,
    ) -> None:
        """Adapt and initialise the network and the optimizer.

        Args:
            model: Any network that `compat.as_model` takes, or a `Model`.
            optimizer: Any optimizer that `compat.as_optimizer` takes, or an `Optimizer`.
            key: A seed or PRNG key; see `SupervisedExperiment`.
            example_input: A batch's inputs, or their `jax.ShapeDtypeStruct`s; a run's first batches
                must have as many axes.
            loss: A function of outputs and targets `(...)` that returns a loss for each position.
            num_outputs: The size of the last axis, to report metrics for each output.
            metrics: Your own metrics, as in `SupervisedExperiment`: a function `(outputs, targets,
                mask) -> Metrics`.
            batch_keys: The names of inputs, targets, mask and weights in mappings; several inputs
                are a tuple of names. If two names are given, the mask's name is "mask".
            ema_decay: As in `SupervisedExperiment`, as are `compute_dtype` and
                `accumulate_steps`.
            compute_dtype: See `ema_decay`.
            accumulate_steps: See `ema_decay`.

        Raises:
            TypeError: No adapter knows the network or the optimizer.
            ValueError: Something is missing or out of range.
        """
        super().__init__(
            Regression(loss, num_outputs),
            model,
            optimizer,
            key=key,
            example_input=example_input,
            metrics=metrics,
            batch_keys=batch_keys,
            ema_decay=ema_decay,
            compute_dtype=compute_dtype,
            accumulate_steps=accumulate_steps,
        )

    def predict(self, x: Any) -> Float[Array, "..."]:
        """Return the predicted numbers for a batch of inputs."""
        return self(x)


@dataclasses.dataclass(frozen=True, repr=False)
class Regression(Task):
    """The task of regression, for a `SupervisedExperiment`.

    Its arguments are those of `RegressionExperiment`.

    >>> import equinox as eqx, jax, jax.numpy as jnp, optax, solstice
    >>> from solstice.experiments import Regression, SupervisedExperiment
    >>> exp = SupervisedExperiment(
    ...     Regression(num_outputs=1), eqx.nn.Linear(2, 1, key=jax.random.key(0)), optax.sgd(0.1)
    ... )
    >>> batch = (jnp.eye(2), jnp.array([[2.0], [0.0]]))
    >>> exp = solstice.train(exp, 50, [batch], progress=False)
    >>> [name for name in exp.test([batch], progress=False) if name.startswith("r2")]
    ['r2', 'r2_output_0']
    """

    outputs_are: ClassVar[str] = "numbers"

    loss: LossFn = squared_error
    num_outputs: int | None = None

    def __post_init__(self) -> None:
        number = self.num_outputs
        keep_checked(
            self,
            loss=arguments.function(self.loss, "loss", "outputs, targets"),
            num_outputs=None if number is None else arguments.count(number, "num_outputs"),
        )

    def target_axes(self, outputs: Any) -> int:
        return outputs.ndim

    def check_outputs(self, outputs: Any, targets: Any = None) -> None:
        check_array(outputs, "one array")
        if targets is not None and targets.shape != outputs.shape:
            raise InvalidValueError(
                f"Targets are expected to have the shape of the network's outputs, "
                f"{describe(outputs)}; they are {describe(targets)}. If one has an extra axis of "
                f"size 1, add or drop it: y[..., None], outputs[..., 0]."
            )

    def check_targets(self, targets: Any, real: np.ndarray) -> None:
        if not jnp.isdtype(targets.dtype, ("bool", "integral", "real floating")):
            raise InvalidTypeError(
                f"Targets are expected to be real numbers; they are {describe(targets)}. Give real "
                f"and imaginary parts as a separate axis."
            )
        shown = np.asarray(targets).astype(np.float64)[real]
        check_shown(
            shown,
            np.isfinite(shown),
            "Targets are expected to be finite",
            "Mask them by batches (x, y, mask), with mask = np.isfinite(y), or fix the data.",
        )

    def losses(self, outputs: Array, targets: Array) -> tuple[Array, None]:
        losses = self.loss(outputs, _in_type_of(outputs, targets))
        check_losses(losses, targets.shape, "loss(outputs, targets)")
        return losses, None

    def metrics(
        self, outputs: Array, targets: Array, loss: Array, mask: Array | None
    ) -> RegressionMetrics:
        return RegressionMetrics(outputs, targets, loss, mask=mask, num_outputs=self.num_outputs)


def _in_type_of(outputs: Array, targets: Array) -> Array:
    """Return targets in the outputs' type of floats, unless their own is wider."""
    floats = jnp.issubdtype(targets.dtype, jnp.inexact)
    wider = floats and jnp.finfo(targets.dtype).bits > jnp.finfo(outputs.dtype).bits
    return targets if wider else targets.astype(outputs.dtype)
