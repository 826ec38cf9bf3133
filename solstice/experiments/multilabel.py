"""Classification with several labels for each example, such as the tags of an image."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

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
from solstice.metrics.checks import as_binary, check_mask
from solstice.metrics.combine import MetricsDict
from solstice.metrics.multilabel import MultiLabelMetrics
from solstice.metrics.one_vs_rest import OneVsRestMetrics
from solstice.signatures import explained


class MultiLabelExperiment(SupervisedExperiment):
    """Trains and measures a network that predicts any number of labels for each example.

    Outputs are logits `(..., labels)`, targets are 0 or 1 and of the same shape (multi-hot); a mask
    is of that shape or of its leading axes, so single labels may be unknown. Batches are as in
    `ClassificationExperiment`. Steps return `MultiLabelMetrics` (`accuracy`, `exact_match`,
    `f1_macro`, ...; a label holds where its logit is above 0) and `OneVsRestMetrics`
    (`auroc_macro`, `average_precision_macro`, ...), as one `MetricsDict`.

    Attributes:
        model: The network, adapted.
        optimizer: The optimizer, adapted and initialised.
        key: The PRNG key of training; None if the network draws no random numbers.
        ema: The moving average of the parameters, which evaluation uses; None without one.

    >>> import equinox as eqx, jax, numpy as np, optax, solstice
    >>> x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    >>> tags = np.stack([x[:, 0] > 0, x[:, 1] > 0, x.sum(1) > 0], axis=1)
    >>> exp = solstice.MultiLabelExperiment(
    ...     eqx.nn.MLP(2, 3, 8, 1, key=jax.random.key(0)), optax.adam(0.05)
    ... )
    >>> exp = exp.train(num_epochs=50, train_ds=[(x, tags)], progress=False)
    >>> results = exp.test([(x, tags)], progress=False)
    >>> results["f1_macro"] > 0.9, results["auroc_macro"] > 0.9
    (True, True)
    >>> exp.predict(x).shape
    (64, 3)
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
        positive_weight: ArrayLike = 1.0,
        per_class: bool = True,
        ranking: bool = True,
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
            loss: A function of logits and targets `(..., labels)` that returns a loss for each
                label.
            label_smoothing: Between 0 and 1: this share of each target is spread evenly over 0 and
                1.
            positive_weight: The weight of the losses of labels that hold (targets of 1): one
                number, or one for each label.
            per_class: Whether metrics report each label by itself.
            ranking: Whether metrics include `OneVsRestMetrics`, which take 32 kB per label and
                step.
            metrics: Your own metrics, as in `SupervisedExperiment`: a function `(outputs, targets,
                mask) -> Metrics`.
            ignore_index: A target to ignore, such as -1 for an unknown label.
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
            MultiLabel(
                loss,
                label_smoothing=label_smoothing,
                positive_weight=positive_weight,
                per_class=per_class,
                ranking=ranking,
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

    def predict(self, x: Any) -> Int[Array, "... labels"]:
        """Return 1 for each label that probably holds, 0 for the others, for a batch of inputs."""
        return self.decide(self(x))

    def decide(self, logits: Float[Array, "... labels"]) -> Int[Array, "... labels"]:
        """Return 1 where logits are above 0, 0 elsewhere."""
        return (logits > 0).astype(jnp.int32)

    def average_outputs(self, logits: Array) -> Array:
        """Return the mean of an ensemble's probabilities, as logits."""
        return mean_logits(logits)


@dataclasses.dataclass(frozen=True, repr=False)
class MultiLabel(Task):
    """The task of predicting several labels, for a `SupervisedExperiment`.

    Its arguments are those of `MultiLabelExperiment`.

    >>> import equinox as eqx, jax, optax
    >>> from solstice.experiments import MultiLabel, SupervisedExperiment
    >>> exp = SupervisedExperiment(
    ...     MultiLabel(positive_weight=[1, 1, 5]),
    ...     eqx.nn.Linear(2, 3, key=jax.random.key(0)),
    ...     optax.sgd(0.1),
    ... )
    >>> exp.task.positive_weight
    (1.0, 1.0, 5.0)
    """

    outputs_are: ClassVar[str] = "logits, one for each label along the last axis"

    loss: LossFn = sigmoid_cross_entropy
    _: dataclasses.KW_ONLY
    label_smoothing: float = 0.0
    positive_weight: Any = 1.0
    per_class: bool = True
    ranking: bool = True

    def __post_init__(self) -> None:
        keep_checked(
            self,
            loss=arguments.function(self.loss, "loss", "logits, targets"),
            label_smoothing=check_smoothing(self.label_smoothing),
            positive_weight=_weight(self.positive_weight),
            per_class=arguments.flag(self.per_class, "per_class"),
            ranking=arguments.flag(self.ranking, "ranking"),
        )

    def target_axes(self, outputs: Any) -> int:
        return outputs.ndim

    def check_outputs(self, outputs: Any, targets: Any = None) -> None:
        check_array(outputs, "one array of logits, with the labels as its last axis")
        weight = self.positive_weight
        if isinstance(weight, tuple) and outputs.shape[-1:] != (len(weight),):
            raise InvalidValueError(
                f"positive_weight is expected to be one number, or one for each label; there are "
                f"{len(weight)} numbers, and the network's outputs are {describe(outputs)}."
            )
        if targets is not None and targets.shape != outputs.shape:
            raise InvalidValueError(
                f"Targets are expected to be 0 or 1 for each label, of the shape of the network's "
                f"outputs, {describe(outputs)}; they are {describe(targets)}. Turn lists of label "
                f"numbers into rows of 0 and 1; for one class per example, use "
                f"ClassificationExperiment."
            )

    def names(self, outputs: Any) -> Names:
        return Names(outputs.shape[-1], each=True)

    def check_targets(self, targets: Any, real: np.ndarray) -> None:
        check_binary(targets, real)

    def losses(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        return losses_of(
            self.loss,
            outputs,
            targets,
            smoothing=self.label_smoothing,
            positive_weight=self.positive_weight,
        )

    def metrics(self, outputs: Array, targets: Array, loss: Array, mask: Array | None) -> Metrics:
        decisions = MultiLabelMetrics(
            outputs > 0, targets, loss, mask=mask, per_class=self.per_class
        )
        if not self.ranking:
            return decisions
        # The decisions warn of targets that are neither 0 nor 1, once.
        labels, binary = as_binary(targets)
        real = check_mask(mask, targets) & binary
        chances = jax.nn.sigmoid(widened(outputs))
        return MetricsDict(
            decisions, OneVsRestMetrics(chances, labels, mask=real, per_class=self.per_class)
        )


def _weight(value: Any) -> float | tuple[float, ...]:
    if not isinstance(value, list | tuple) and not getattr(value, "ndim", 0):
        return arguments.number(value, "positive_weight", above=0)
    weights = arguments.array(value, "positive_weight")
    if weights.ndim != 1 or not weights.size:
        raise InvalidValueError(
            f"positive_weight is expected to be one number, or one for each label; it is "
            f"{describe(value)}."
        )
    return tuple(arguments.number(one, "positive_weight", above=0) for one in weights.tolist())
