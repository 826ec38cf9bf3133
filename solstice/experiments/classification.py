"""Classification with any network and any optimizer: images, tokens of a sequence, pixels.

It knows what a label and a logit are. It knows no framework: what differs between them is behind
`compat.Model` and `compat.Optimizer`.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.experiments.supervised import SupervisedExperiment
from solstice.experiments.task import Task
from solstice.metrics import ClassificationMetrics
from solstice.metrics.checks import check_label_type, check_labels
from solstice.tree import describe

LossFn = Callable[[Array, Array], Array]


def softmax_cross_entropy(
    logits: Float[Array, "*positions classes"], labels: Int[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """Return the negative log-probability of each label under the softmax of its logits, in nats.

    >>> import jax.numpy as jnp
    >>> softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
    Array([1.3862944, 1.3862944], dtype=float32)
    """
    # Picked by comparison: a gather's gradient is a scatter, a kernel of its own on every device.
    chosen = labels[..., None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(chosen, logits, 0).sum(-1)


class ClassificationExperiment(SupervisedExperiment):
    """Trains a network to tell classes apart, and measures how well it does.

    The network's outputs are logits `(..., classes)`, labels and mask are `(...)`. A batch is
    `(x, y)`, `(x, y, mask)` or a mapping; an `x` that is a tuple is several inputs. Steps return
    `ClassificationMetrics`; masked positions count neither there nor in the loss.

    Attributes:
        model: The network, adapted.
        optimizer: The optimizer, adapted and initialised.
        key: What random numbers in training come from; None where the network draws none.
        ema: The moving average of the parameters, which evaluation uses; None without one.
        num_classes: The size of the outputs' last axis.

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
        track: Literal["confusion", "totals"] = "confusion",
        per_class: bool = True,
        perplexity: bool = False,
        batch_keys: tuple[str, ...] = ("image", "label", "mask", "weight"),
        ema_decay: float | None = None,
        compute_dtype: Any = None,
        accumulate_steps: int = 1,
    ) -> None:
        """Adapt and initialise the network and the optimizer.

        Args:
            model: Any network that `compat.as_model` takes, or a `Model`.
            optimizer: Any optimizer that `compat.as_optimizer` takes, or an `Optimizer`; it is
                initialised with the model's parameters.
            num_classes: How many classes there are; None reads it from the network's output for
                `example_input`.
            key: A seed or PRNG key, split into one to initialise the network with and one for
                training. Not needed when the network is initialised and draws no random numbers.
            example_input: A batch's inputs (of any length), or their `jax.ShapeDtypeStruct`s.
            loss: From logits `(..., classes)` and labels `(...)` to a loss for each position.
            label_smoothing: Between 0 and 1: this share of each target is spread evenly over all
                classes (Szegedy et al., 2016).
            class_weights: `(classes,)`: what the losses of each class are multiplied by.
            top_k: As in `ClassificationMetrics`, as are `track`, `per_class` and `perplexity`.
            track: See `top_k`.
            per_class: See `top_k`.
            perplexity: See `top_k`.
            batch_keys: The names of inputs, labels, mask and example weights in batches that are
                mappings.
            ema_decay: As in `SupervisedExperiment`, as are `compute_dtype` and
                `accumulate_steps`.
            compute_dtype: See `ema_decay`.
            accumulate_steps: See `ema_decay`.

        Raises:
            TypeError: The network or the optimizer is of no known kind.
            ValueError: Something is missing: the key, the example, the number of classes; or the
                outputs' last axis is not `num_classes`.
        """
        if not 0 <= label_smoothing < 1:
            raise InvalidValueError(
                f"label_smoothing is expected to be from 0 to below 1; it is {label_smoothing}."
            )
        reported = {"top_k": top_k, "track": track, "per_class": per_class}
        task = Classification(
            num_classes,
            loss,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            reported=reported | {"perplexity": perplexity},
        )
        super().__init__(
            task,
            model,
            optimizer,
            key=key,
            example_input=example_input,
            batch_keys=batch_keys,
            ema_decay=ema_decay,
            compute_dtype=compute_dtype,
            accumulate_steps=accumulate_steps,
        )
        if task.num_classes is None:
            raise InvalidValueError(
                "The number of classes is not known: pass num_classes=, or example_input=x[:1] to "
                "read it from the network's output."
            )

    @property
    def num_classes(self) -> int:
        task = self.task
        assert isinstance(task, Classification) and task.num_classes is not None
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
        """Return as logits the mean of the probabilities that an ensemble's members give."""
        logs = jax.nn.log_softmax(logits)
        return jax.nn.logsumexp(logs, axis=0) - jnp.log(logits.shape[0])


class Classification(Task):
    """The task of telling classes apart; see `ClassificationExperiment`.

    Two are equal if they would do the same, so that equal experiments share a compilation.
    """

    def __init__(
        self,
        num_classes: int | None,
        loss: LossFn,
        *,
        label_smoothing: float,
        class_weights: ArrayLike | None,
        reported: dict[str, Any],
    ) -> None:
        # None until the network's outputs were seen.
        self.num_classes = num_classes
        self._loss = loss
        self._smoothing = label_smoothing
        self._weights = None
        if class_weights is not None:
            self._weights = tuple(float(weight) for weight in np.asarray(class_weights))
            if num_classes is not None:
                self._check_weights()
        self._reported = reported

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((self.num_classes, self._loss, self._smoothing, self._weights))

    def check_outputs(self, outputs: Any, targets: Any = None) -> None:
        if not getattr(outputs, "shape", ()):
            raise InvalidTypeError(
                f"The network is expected to return one array of logits, with the classes as its "
                f"last axis; it returned {describe(outputs)}."
            )
        if self.num_classes is None:
            self.num_classes = outputs.shape[-1]
            self._check_weights()
        if outputs.shape[-1:] != (self.num_classes,):
            raise InvalidValueError(
                f"The network's outputs are expected to end in an axis of num_classes="
                f"{self.num_classes} logits; they are {describe(outputs)}. Change the last layer, "
                f"or num_classes."
            )
        if targets is not None and targets.shape != outputs.shape[:-1]:
            one_hot = targets.shape == outputs.shape
            raise InvalidValueError(
                f"Labels are expected to be one class a position, of shape {outputs.shape[:-1]}; "
                f"they are {describe(targets)}. "
                + (
                    "They look one-hot: pass labels.argmax(-1)."
                    if one_hot
                    else f"The network's outputs are {describe(outputs)}."
                )
            )

    def check_targets(self, targets: Any, real: np.ndarray) -> None:
        assert self.num_classes is not None
        check_label_type(targets, "labels")
        shown = np.asarray(targets)[real]
        wrong = shown[(shown < 0) | (shown >= self.num_classes)]
        if wrong.size:
            values = ", ".join(map(str, np.unique(wrong)[:5]))
            raise InvalidValueError(
                f"Labels are expected to be classes from 0 to {self.num_classes - 1}, since the "
                f"network has {self.num_classes} outputs; {wrong.size} of {shown.size} are not, "
                f"such as {values}. Number the classes from 0, widen the network, or mask them."
            )

    def losses(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        assert self.num_classes is not None
        labels = check_labels(targets, "labels")
        # Labels outside the classes have no loss; the metrics count them as invalid.
        valid = (labels >= 0) & (labels < self.num_classes)
        labels = jnp.where(valid, labels, 0)
        losses = self._loss(outputs, labels)
        if losses.shape != labels.shape:
            raise InvalidValueError(
                f"loss(logits, labels) is expected to return a loss for each position, of shape "
                f"{labels.shape}; it returned {describe(losses)}. Leave the mean to the "
                f"experiment, which knows the mask."
            )
        if self._smoothing:
            even = -jax.nn.log_softmax(outputs).mean(-1)
            losses = (1 - self._smoothing) * losses + self._smoothing * even
        if self._weights is not None:
            losses = losses * jnp.asarray(self._weights, losses.dtype)[labels]
        return losses, valid

    def metrics(
        self, outputs: Array, targets: Array, loss: Array, mask: Array | None
    ) -> ClassificationMetrics:
        assert self.num_classes is not None
        scores = outputs if self._reported["top_k"] else None
        return ClassificationMetrics(
            outputs.argmax(-1),
            targets,
            loss,
            self.num_classes,
            mask=mask,
            scores=scores,
            **self._reported,
        )

    def _check_weights(self) -> None:
        if self._weights is not None and len(self._weights) != self.num_classes:
            raise InvalidValueError(
                f"class_weights are expected to be one for each of the {self.num_classes} "
                f"classes; there are {len(self._weights)}."
            )
