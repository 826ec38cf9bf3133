"""Binary classification by one logit: yes-or-no questions of whole examples, tokens or pixels."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.experiments.batches import BatchKeys
from solstice.experiments.precision import widened
from solstice.experiments.sigmoid import (
    LossFn,
    check_binary,
    losses_of,
    mean_logits,
    sigmoid_cross_entropy,
)
from solstice.experiments.supervised import OTHER_NAMES, MetricsFn, SupervisedExperiment
from solstice.experiments.task import Names, Task, check_array, check_smoothing, keep_checked
from solstice.metrics.base import Metrics
from solstice.metrics.binary import BinaryMetrics
from solstice.metrics.checks import as_binary, check_mask
from solstice.metrics.classification import ClassificationMetrics
from solstice.metrics.combine import MetricsDict
from solstice.signatures import explained


class BinaryClassificationExperiment(SupervisedExperiment):
    """Trains and measures a network that answers a yes-or-no question with one logit.

    Outputs are logits `(...)` or `(..., 1)`, targets are 0 or 1 and `(...)`; a mask is of that
    shape or of its leading axes. Batches are as in `ClassificationExperiment`. Steps return the
    `ClassificationMetrics` of two classes (`accuracy`, `f1_class_1`, ...; class 1 is a logit above
    0) and `BinaryMetrics` (`roc_auc`, `pr_auc`, `brier_score`, `ece`), as one `MetricsDict`.

    Attributes:
        model: The network, adapted.
        optimizer: The optimizer, adapted and initialised.
        key: The PRNG key of training; None if the network draws no random numbers.
        ema: The moving average of the parameters, which evaluation uses; None without one.

    >>> import equinox as eqx, jax, numpy as np, optax, solstice
    >>> x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    >>> y = x[:, 0] > 0
    >>> exp = solstice.BinaryClassificationExperiment(
    ...     eqx.nn.MLP(2, 1, 8, 1, key=jax.random.key(0)), optax.adam(0.05)
    ... )
    >>> exp = exp.train(num_epochs=30, train_ds=[(x, y)], progress=False)
    >>> results = exp.test([(x, y)], progress=False)
    >>> results["accuracy"] > 0.95, results["roc_auc"] > 0.95
    (True, True)
    >>> exp(x).shape, exp.predict(x).shape
    ((64, 1), (64,))
    """

    @explained(**OTHER_NAMES)
    def __init__(
        self,
        model: Any,
        optimizer: Any,
        *,
        key: Array | int | None = None,
        example_input: Any = None,
        loss: LossFn = sigmoid_cross_entropy,
        label_smoothing: float = 0.0,
        positive_weight: float = 1.0,
        metrics: MetricsFn | None = None,
        ignore_index: int | None = None,
        batch_keys: BatchKeys = ("image", "label", "mask", "weight"),
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
            loss: A function of logits and targets `(...)` that returns a loss for each position.
            label_smoothing: Between 0 and 1: this share of each target is spread evenly over 0 and
                1.
            positive_weight: The weight of the losses of positives (targets of 1).
            metrics: Your own metrics, as in `SupervisedExperiment`: a function `(outputs, targets,
                mask) -> Metrics`.
            ignore_index: A target to ignore, such as -1.
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
            BinaryClassification(
                loss, label_smoothing=label_smoothing, positive_weight=positive_weight
            ),
            model,
            optimizer,
            key=key,
            example_input=example_input,
            metrics=metrics,
            ignore_index=ignore_index,
            batch_keys=batch_keys,
            ema_decay=ema_decay,
            compute_dtype=compute_dtype,
            accumulate_steps=accumulate_steps,
        )

    def predict(self, x: Any) -> Int[Array, "..."]:
        """Return 1 where yes is more probable, 0 elsewhere, for a batch of inputs."""
        return self.decide(self(x))

    def decide(self, logits: Array) -> Int[Array, "..."]:
        """Return 1 where logits are above 0, 0 elsewhere; without a last axis of size 1."""
        column = logits.ndim > 1 and logits.shape[-1] == 1
        return ((logits[..., 0] if column else logits) > 0).astype(jnp.int32)

    def average_outputs(self, logits: Array) -> Array:
        """Return the mean of an ensemble's probabilities, as logits."""
        return mean_logits(logits)


@dataclasses.dataclass(frozen=True, repr=False)
class BinaryClassification(Task):
    """The task of a yes-or-no question, for a `SupervisedExperiment`.

    Its arguments are those of `BinaryClassificationExperiment`.

    >>> import equinox as eqx, jax, optax
    >>> from solstice.experiments import BinaryClassification, SupervisedExperiment
    >>> exp = SupervisedExperiment(
    ...     BinaryClassification(positive_weight=10),
    ...     eqx.nn.Linear(2, 1, key=jax.random.key(0)),
    ...     optax.sgd(0.1),
    ... )
    >>> exp.task.positive_weight
    10.0
    """

    outputs_are: ClassVar[str] = "logits of yes-or-no questions"

    loss: LossFn = sigmoid_cross_entropy
    _: dataclasses.KW_ONLY
    label_smoothing: float = 0.0
    positive_weight: float = 1.0

    def __post_init__(self) -> None:
        keep_checked(
            self,
            loss=arguments.function(self.loss, "loss", "logits, targets"),
            label_smoothing=check_smoothing(self.label_smoothing),
            positive_weight=arguments.number(self.positive_weight, "positive_weight", above=0),
        )

    def check_outputs(self, outputs: Any, targets: Any = None) -> None:
        check_array(outputs, "one array of logits, one per question")
        if targets is None:
            return
        if targets.shape not in (outputs.shape, outputs.shape[:-1]) or (
            targets.ndim < outputs.ndim and outputs.shape[-1] != 1
        ):
            raise InvalidValueError(
                f"The network is expected to return one logit for each target, of the targets' "
                f"shape, {describe(targets)}, or with one more axis of size 1; it returned "
                f"{describe(outputs)}. Change its last layer to one output, or the targets' shape. "
                f"With a logit for each class, use ClassificationExperiment; with one for each of "
                f"several labels, MultiLabelExperiment."
            )

    def names(self, outputs: Any) -> Names:
        return Names(2)

    def check_targets(self, targets: Any, real: np.ndarray) -> None:
        check_binary(targets, real)

    def losses(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        return losses_of(
            self.loss,
            outputs.reshape(targets.shape),
            targets,
            smoothing=self.label_smoothing,
            positive_weight=self.positive_weight,
        )

    def metrics(self, outputs: Array, targets: Array, loss: Array, mask: Array | None) -> Metrics:
        logits = widened(outputs.reshape(targets.shape))
        # The decisions warn of targets that are neither 0 nor 1, once.
        labels, binary = as_binary(targets)
        real = check_mask(mask, targets) & binary
        return MetricsDict(
            ClassificationMetrics(logits > 0, targets, loss, 2, mask=mask),
            BinaryMetrics(jax.nn.sigmoid(logits), labels, mask=real),
        )
