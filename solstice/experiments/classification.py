"""Classification with any network and any optimizer: images, tokens of a sequence, pixels.

It knows labels and logits and no framework: `compat.Model` and `compat.Optimizer` hide those.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

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
from solstice.experiments.supervised import OTHER_NAMES, MetricsFn, SupervisedExperiment
from solstice.experiments.task import (
    Names,
    Task,
    check_array,
    check_losses,
    check_shown,
    check_smoothing,
    keep_checked,
)
from solstice.metrics.base import Metrics
from solstice.metrics.checks import (
    as_classes,
    check_label_type,
    check_labels,
    check_mask,
    check_whole,
    is_traced,
)
from solstice.metrics.classification import ClassificationMetrics
from solstice.metrics.combine import MetricsDict
from solstice.metrics.one_vs_rest import OneVsRestMetrics
from solstice.signatures import explained

LossFn = Callable[[Array, Array], Array]

_TRACKS: tuple[Literal["confusion"], Literal["totals"]] = ("confusion", "totals")
# With more classes, a matrix at each step would cost more than a small network's step.
_MOST_IN_A_MATRIX = 256


def softmax_cross_entropy(
    logits: Float[Array, "*positions classes"], labels: Int[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """Return the negative log-probability of each label under the softmax of its logits, in nats.

    >>> import jax.numpy as jnp
    >>> softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
    Array([1.3862944, 1.3862944], dtype=float32)
    """
    # Picked by comparison: a gather's gradient is a scatter, which takes a separate kernel.
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    chosen = labels.astype(jnp.int32)[..., None] == classes
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(chosen, logits, 0).sum(-1)


class ClassificationExperiment(SupervisedExperiment):
    """Trains and measures a classifier.

    The network's outputs are logits `(..., classes)`, labels and mask are `(...)`. Labels are
    integers, or floats with whole values. A batch is `(x, y)`, `(x, y, mask)` or a mapping; an `x`
    that is a tuple is several inputs. Steps return `ClassificationMetrics`; masked positions, and
    labels that are not a class, count neither there nor in the loss. A first batch with such labels
    raises an error; later ones are reported at the end of each pass.

    Attributes:
        model: The network, adapted.
        optimizer: The optimizer, adapted and initialised.
        key: The PRNG key of training; None if the network draws no random numbers.
        ema: The moving average of the parameters, which evaluation uses; None without one.
        num_classes: The size of the outputs' last axis; None if neither `num_classes` nor an
            example gave it; each step then reads it from the outputs.

    >>> import equinox as eqx, jax, numpy as np, optax, solstice
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(64, 2)).astype("float32")
    >>> y = (x[:, 0] > 0).astype("int32")
    >>> exp = solstice.ClassificationExperiment(
    ...     eqx.nn.MLP(2, 2, 8, 1, key=jax.random.key(0)), optax.adam(0.05), num_classes=2
    ... )
    >>> exp = exp.train(num_epochs=30, train_ds=[(x, y)], progress=False)
    >>> exp.test([(x, y)], progress=False)["accuracy"] > 0.95
    True
    >>> exp(x).shape, exp.predict(x).shape
    ((64, 2), (64,))
    """

    @explained(**OTHER_NAMES)
    def __init__(
        self,
        model: Any,
        optimizer: Any,
        num_classes: int | None = None,
        *,
        key: Array | int | None = None,
        example_input: Any = None,
        loss: LossFn = softmax_cross_entropy,
        label_smoothing: float = 0.0,
        class_weights: ArrayLike | None = None,
        top_k: int | tuple[int, ...] = (),
        track: Literal["confusion", "totals"] | None = None,
        per_class: bool = True,
        perplexity: bool = False,
        overlap: bool = False,
        ranking: bool = False,
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
            optimizer: Any optimizer that `compat.as_optimizer` takes, or an `Optimizer`; it is
                initialised with the model's parameters.
            num_classes: How many classes there are; None reads it from the network's outputs for
                `example_input`, for the example that a `Model` was initialised with, or for the
                first batch.
            key: A seed or PRNG key, split into one to initialise the network with and one for
                training. Not needed when the network is initialised and draws no random numbers.
            example_input: A batch's inputs (of any length), or their `jax.ShapeDtypeStruct`s; a
                run's first batches must have as many axes.
            loss: A function of logits `(..., classes)` and labels `(...)` that returns a loss for
                each position.
            label_smoothing: Between 0 and 1: this share of each target is spread evenly over all
                classes (Szegedy et al., 2016).
            class_weights: `(classes,)`: the weight of each class's losses.
            top_k: As in `ClassificationMetrics`, as are `per_class`, `perplexity` and `overlap`.
            track: What metrics keep: the "confusion" matrix, or only the "totals" of each class,
                which are enough for everything else. None keeps the matrix up to 256 classes; with
                1000 classes it is 4 MB a step, which takes as long as a small network.
            per_class: See `top_k`.
            perplexity: See `top_k`.
            overlap: See `top_k`.
            ranking: Whether metrics include `OneVsRestMetrics`: `auroc`, `average_precision` and
                `ece`. Steps then return a `MetricsDict`.
            metrics: Your own metrics, as in `SupervisedExperiment`: a function `(outputs, targets,
                mask) -> Metrics`.
            ignore_index: A label to ignore, such as 255 or -100.
            batch_keys: The names of inputs, labels, mask and example weights in batches that are
                mappings; several inputs are a tuple of names. If two names are given, the mask's
                name is "mask".
            ema_decay: As in `SupervisedExperiment`, as are `compute_dtype` and
                `accumulate_steps`.
            compute_dtype: See `ema_decay`.
            accumulate_steps: See `ema_decay`.

        Raises:
            TypeError: No adapter knows the network or the optimizer.
            ValueError: The key or the example is missing, the outputs are not logits, or their last
                axis is not `num_classes`.
        """
        task = Classification(
            num_classes,
            loss,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            top_k=top_k,
            track=track,
            per_class=per_class,
            perplexity=perplexity,
            overlap=overlap,
            ranking=ranking,
        )
        super().__init__(
            task,
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

    @property
    def num_classes(self) -> int | None:
        task = self.task
        assert isinstance(task, Classification)
        return task.num_classes

    def predict(self, x: Any) -> Int[Array, "..."]:
        """Return the most probable class of each position for a batch of inputs."""
        return self.decide(self(x))

    def decide(self, logits: Float[Array, "... classes"]) -> Int[Array, "..."]:
        """Return the most probable class of each position for logits."""
        return logits.argmax(-1)

    def average_outputs(
        self, logits: Float[Array, "members ... classes"]
    ) -> Float[Array, "... classes"]:
        """Return the mean of an ensemble's probabilities, as logits."""
        logs = jax.nn.log_softmax(logits)
        return jax.nn.logsumexp(logs, axis=0) - jnp.log(logits.shape[0])


@dataclasses.dataclass(frozen=True, repr=False)
class Classification(Task):
    """The task of classification, for a `SupervisedExperiment`.

    Its arguments are those of `ClassificationExperiment`. Tasks with equal arguments are equal, so
    equal experiments share a compilation.

    >>> import equinox as eqx, jax, jax.numpy as jnp, optax, solstice
    >>> from solstice.experiments import Classification, SupervisedExperiment
    >>> class Species(SupervisedExperiment):
    ...     def __init__(self, model, optimizer):
    ...         super().__init__(Classification(3, label_smoothing=0.1), model, optimizer)
    ...
    ...     def predict(self, x):
    ...         return [("cat", "dog", "owl")[i] for i in self(x).argmax(-1)]
    >>> exp = Species(eqx.nn.Linear(2, 3, key=jax.random.key(0)), optax.sgd(1.0))
    >>> x = 5 * jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> exp = solstice.train(exp, 20, [(x, jnp.arange(3))], progress=False)
    >>> exp.predict(x)
    ['cat', 'dog', 'owl']
    """

    outputs_are: ClassVar[str] = "logits, one for each class along the last axis"

    # None if no outputs were seen; each step then reads it from its outputs.
    num_classes: int | None = None
    loss: LossFn = softmax_cross_entropy
    _: dataclasses.KW_ONLY
    label_smoothing: float = 0.0
    class_weights: Any = None
    top_k: Any = ()
    track: Literal["confusion", "totals"] | None = None
    per_class: bool = True
    perplexity: bool = False
    overlap: bool = False
    ranking: bool = False

    def __post_init__(self) -> None:
        number, weights, track = self.num_classes, self.class_weights, self.track
        number = None if number is None else arguments.count(number, "num_classes")
        flags = ("per_class", "perplexity", "overlap", "ranking")
        keep_checked(
            self,
            num_classes=number,
            loss=arguments.function(self.loss, "loss", "logits, labels"),
            label_smoothing=check_smoothing(self.label_smoothing),
            class_weights=None if weights is None else _weights(weights),
            top_k=arguments.counts(self.top_k, "top_k", most=number),
            track=None if track is None else arguments.choice(track, "track", _TRACKS),
            **{name: arguments.flag(getattr(self, name), name) for name in flags},
        )
        if number is not None:
            self._check_weights(number)

    def for_outputs(self, outputs: Any) -> Self:
        self.check_outputs(outputs)
        return dataclasses.replace(self, num_classes=outputs.shape[-1])

    def target_axes(self, outputs: Any) -> int:
        return outputs.ndim - 1

    def check_outputs(self, outputs: Any, targets: Any = None) -> None:
        check_array(outputs, "one array of logits, with the classes as its last axis")
        if outputs.ndim < 2 or outputs.shape[-1] == 1:
            raise InvalidValueError(
                f"The network is expected to return a logit for each class, of shape (batch, ..., "
                f"classes) with two classes or more; it returned {describe(outputs)}, one number "
                f"per example. For two classes and one logit, use "
                f"BinaryClassificationExperiment; or give the network two outputs."
                + (
                    ""
                    if outputs.ndim > 1
                    else " Or was it called on a single example instead of a batch?"
                )
            )
        classes = outputs.shape[-1]
        if self.num_classes not in (None, classes):
            raise InvalidValueError(
                f"The network's outputs are expected to end in an axis of num_classes="
                f"{self.num_classes} logits; they are {describe(outputs)}. Change the last layer, "
                f"or num_classes."
            )
        self._check_weights(classes)
        if targets is not None and targets.shape != outputs.shape[:-1]:
            raise InvalidValueError(
                f"Labels are expected to be one class per position, of shape {outputs.shape[:-1]}; "
                f"they are {describe(targets)}. {_what_they_are(targets, outputs)}"
            )

    def names(self, outputs: Any) -> Names:
        return Names(outputs.shape[-1])

    def check_targets(self, targets: Any, real: np.ndarray) -> None:
        assert self.num_classes is not None
        check_label_type(targets, "labels")
        check_whole(targets, real, "labels")
        shown = np.asarray(targets)[real]
        check_shown(
            shown,
            (shown >= 0) & (shown < self.num_classes),
            f"Labels are expected to be classes from 0 to {self.num_classes - 1}, since the "
            f"network has {self.num_classes} outputs",
            "Number the classes from 0, widen the network, or mask them.",
        )

    def losses(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        # Labels that are not a class have no loss; the metrics count them as invalid.
        labels, valid = as_classes(check_labels(targets, "labels"), outputs.shape[-1])
        labels = jnp.where(valid, labels, 0)
        losses = self.loss(outputs, labels)
        check_losses(losses, labels.shape, "loss(logits, labels)")
        if self.label_smoothing:
            even = -jax.nn.log_softmax(outputs).mean(-1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * even
        if self.class_weights is not None:
            losses = losses * jnp.asarray(self.class_weights, losses.dtype)[labels]
        return losses, valid

    def metrics(self, outputs: Array, targets: Array, loss: Array, mask: Array | None) -> Metrics:
        number = outputs.shape[-1]
        decisions = ClassificationMetrics(
            outputs.argmax(-1),
            targets,
            loss,
            number,
            mask=mask,
            scores=outputs if self.top_k else None,
            top_k=self.top_k,
            track=self.track or _TRACKS[number > _MOST_IN_A_MATRIX],
            per_class=self.per_class,
            perplexity=self.perplexity,
            overlap=self.overlap,
        )
        if not self.ranking:
            return decisions
        # The decisions warn of labels that are not a class, once.
        real = check_mask(mask, targets) & as_classes(targets, number)[1]
        chances = jax.nn.softmax(widened(outputs))
        ranks = OneVsRestMetrics(chances, targets, mask=real, per_class=self.per_class)
        return MetricsDict(decisions, ranks)

    def _check_weights(self, num_classes: int) -> None:
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise InvalidValueError(
                f"class_weights are expected to be one for each of the {num_classes} classes; "
                f"there are {len(self.class_weights)}."
            )


def _weights(values: ArrayLike) -> tuple[float, ...]:
    weights = arguments.array(values, "class_weights").astype(np.float64)
    if weights.ndim != 1 or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise InvalidValueError(
            f"class_weights are expected to be finite numbers of at least 0, one for each class "
            f"and not all 0; they are {describe(values)}, {weights.tolist()}."
        )
    return tuple(weights.tolist())


def _what_they_are(targets: Any, outputs: Any) -> str:
    """Describe what labels of the wrong shape look like, and what to do with them."""
    if targets.shape != outputs.shape:
        return f"The network's outputs are {describe(outputs)}."
    multi_hot = (
        "multi-hot labels, of which several may be 1, are a question for each class: use "
        "MultiLabelExperiment."
    )
    if is_traced(targets):
        return (
            f"One-hot labels, with exactly one 1 a position, become classes by the index of that "
            f"1; {multi_hot}"
        )
    values = np.asarray(targets)
    if ((values == 0) | (values == 1)).all() and (values.sum(-1) == 1).all():
        return "They look one-hot: pass labels.argmax(-1)."
    return f"With an axis of classes, they are not class numbers; {multi_hot}"
