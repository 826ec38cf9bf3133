"""Classification with any network and any optimizer: images, tokens of a sequence, pixels.

It knows what a label and a logit are. It knows no framework: what differs between them is behind
`compat.Model` and `compat.Optimizer`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from solstice import trainer
from solstice.callbacks import Callback
from solstice.compat import Model, Optimizer, as_model, as_optimizer
from solstice.compat.model import as_inputs
from solstice.experiment import Experiment
from solstice.metrics import Accumulator, ClassificationMetrics
from solstice.metrics.classification import check_labels, check_mask
from solstice.static import Static
from solstice.step import jit
from solstice.tree import as_key, depends_on, describe, replace

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


class ClassificationExperiment(Experiment):
    """Trains a network to tell classes apart, and measures how well it does.

    The network's outputs are logits `(..., classes)`, labels and mask are `(...)`. A batch is
    `(x, y)`, `(x, y, mask)` or a mapping; an `x` that is a tuple is several inputs. Steps return
    `ClassificationMetrics`; masked positions count neither there nor in the loss.

    Attributes:
        model: The network, adapted.
        optimizer: The optimizer, adapted and initialised.
        key: What random numbers in training come from; None where the network draws none.
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

    model: Model
    optimizer: Optimizer
    key: Array | None
    num_classes: int = eqx.field(static=True)
    _loss: Static[LossFn] = eqx.field(static=True)
    _batch_keys: tuple[str, str, str] = eqx.field(static=True)
    # Whether the network draws random numbers in training; None when no example can tell.
    _draws: bool | None = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        num_classes: int | None = None,
        *,
        key: Array | int | None = None,
        example_input: Any = None,
        loss: LossFn = softmax_cross_entropy,
        batch_keys: tuple[str, str, str] = ("image", "label", "mask"),
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
            batch_keys: The names of inputs, labels and mask in batches that are mappings.

        Raises:
            TypeError: The network or the optimizer is of no known kind.
            ValueError: Something is missing: the key, the example, the number of classes; or the
                outputs' last axis is not `num_classes`.
        """
        init_key, self.key = (None, None) if key is None else jax.random.split(as_key(key))
        self.model = as_model(model, example_input, key=init_key)
        self.optimizer = as_optimizer(optimizer).init(self.model.params)
        self._loss = Static(loss)
        self._batch_keys = tuple(batch_keys)  # pyright: ignore[reportAttributeAccessIssue]
        if len(self._batch_keys) != 3:
            raise ValueError(
                f"batch_keys are expected to name inputs, labels and mask; they are {batch_keys!r}."
            )
        if example_input is None:
            if num_classes is None:
                raise ValueError(
                    "The number of classes is not known: pass num_classes, or example_input to "
                    "read it from the network's output."
                )
            self.num_classes = num_classes
            self._draws = None
        else:
            # Traced in training mode, so that a missing key is found here and not in a run.
            inputs = as_inputs(example_input)
            outputs = jax.eval_shape(lambda: self.model(*inputs, key=self.key, train=True)[0])
            _check_array(outputs)
            self.num_classes = outputs.shape[-1] if num_classes is None else num_classes
            self._check_outputs(outputs)
            self._draws = self.key is not None and self._draws_for(inputs, self.key)
            self.key = self.key if self._draws else None

    @jit
    def train_step(self, batch: Any) -> tuple[Self, ClassificationMetrics]:
        """Take one optimizer step on the mean loss over the batch's real positions."""
        inputs, labels, mask = self._unpack(batch)
        key, step_key = self._next_key(inputs)

        def loss_of(params: Any) -> tuple[Array, tuple[Array, Model]]:
            logits, model = replace(self.model, params=params)(*inputs, key=step_key, train=True)
            return self._mean_loss(logits, labels, mask), (logits, model)

        params = self.model.params
        (loss, (logits, model)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        params, optimizer = self.optimizer(
            grads, params, value=loss, grad=grads, value_fn=lambda params: loss_of(params)[0]
        )
        model = replace(model, params=params)
        exp = replace(self, model=model, optimizer=optimizer, key=key)
        return exp, self._metrics(logits, labels, loss, mask)

    @jit
    def eval_step(self, batch: Any) -> tuple[Self, ClassificationMetrics]:
        """Measure one batch; the experiment comes back as it is."""
        inputs, labels, mask = self._unpack(batch)
        logits = self._logits(inputs)
        return self, self._metrics(logits, labels, self._mean_loss(logits, labels, mask), mask)

    def __call__(self, x: Any) -> Float[Array, "... classes"]:
        """Return the logits for a batch of inputs, in evaluation mode."""
        return self._logits(as_inputs(x))

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

    def train(
        self,
        num_epochs: int | None = None,
        train_ds: Any = None,
        val_ds: Any = None,
        callbacks: Iterable[Callback] | None = None,
        **options: Any,
    ) -> Self:
        """Return this experiment after training: `solstice.train` with it."""
        return trainer.train(self, num_epochs, train_ds, val_ds, callbacks, **options)

    def test(
        self, test_ds: Any, callbacks: Iterable[Callback] | None = None, **options: Any
    ) -> dict[str, float]:
        """Return the metrics over a whole dataset, by name."""
        total = _Total()
        trainer.test(self, test_ds, [total, *(callbacks or ())], **options)
        return {name: float(value) for name, value in total.metrics.pop().compute().items()}

    def check_batch(self, batch: Any) -> None:
        """Raise for a batch whose structure or labels are wrong; the trainer asks once a mode.

        Raises:
            TypeError: The batch is no pair, triple or mapping, or labels are not integers.
            ValueError: Labels are outside the classes, or shapes do not fit.
        """
        _, labels, mask = self._unpack(batch)
        shown = np.asarray(labels)[np.asarray(check_mask(mask, labels))]
        wrong = shown[(shown < 0) | (shown >= self.num_classes)]
        if wrong.size:
            values = ", ".join(map(str, np.unique(wrong)[:5]))
            raise ValueError(
                f"Labels are expected to be classes from 0 to {self.num_classes - 1}, since the "
                f"network has {self.num_classes} outputs; {wrong.size} of {shown.size} are not, "
                f"such as {values}. Number the classes from 0, widen the network, or mask them."
            )

    def batch_inputs(self, batch: Any) -> Any:
        """Return the inputs of a batch with or without labels, for `solstice.predict`."""
        if isinstance(batch, Mapping):
            return self._entry(batch, self._batch_keys[0])
        return batch[0] if isinstance(batch, tuple | list) else batch

    def with_mask(self, batch: Any, real: Any) -> Any:
        """Return a batch in which only the `real` examples count, of those that did.

        Args:
            batch: The batch, in any of its forms.
            real: True where an example is real, `(batch,)`.
        """
        _, labels, mask = self._unpack(batch)
        whole = np.asarray(check_mask(mask, labels))
        mask = whole & np.asarray(real).reshape(-1, *[1] * (labels.ndim - 1))
        if isinstance(batch, Mapping):
            return {**batch, self._batch_keys[2]: mask}
        return (batch[0], batch[1], mask)

    @jax.jit
    def _logits(self, inputs: tuple) -> Array:
        params = self.optimizer.eval_params(self.model.params)
        return replace(self.model, params=params)(*inputs)[0]

    def _next_key(self, inputs: tuple) -> tuple[Array | None, Array | None]:
        # Carrying a key costs a small step dearly, so only a network that draws has one.
        if self.key is None:
            return None, None
        key, step_key = jax.random.split(self.key)
        draws = self._draws_for(inputs, step_key) if self._draws is None else self._draws
        return (key, step_key) if draws else (self.key, step_key)

    def _draws_for(self, inputs: tuple, key: Array) -> bool:
        return depends_on(lambda key: self.model(*inputs, key=key, train=True), key)

    def _mean_loss(self, logits: Array, labels: Array, mask: Array | None) -> Array:
        self._check_outputs(logits, labels)
        # Labels outside the classes have no loss; the metrics count them as invalid.
        real = check_mask(mask, labels)
        valid = real & (labels >= 0) & (labels < self.num_classes)
        losses = self._loss.value(logits, jnp.where(valid, labels, 0))
        if losses.shape != labels.shape:
            raise ValueError(
                f"loss(logits, labels) is expected to return a loss for each position, of shape "
                f"{labels.shape}; it returned {describe(losses)}. Leave the mean to the "
                f"experiment, which knows the mask."
            )
        count = max(labels.size, 1) if mask is None else jnp.maximum(real.sum(), 1)
        return jnp.where(valid, losses, 0).sum() / count

    def _metrics(
        self, logits: Array, labels: Array, loss: Array, mask: Array | None
    ) -> ClassificationMetrics:
        return ClassificationMetrics(logits.argmax(-1), labels, loss, self.num_classes, mask=mask)

    def _check_outputs(self, outputs: Any, labels: Any = None) -> None:
        _check_array(outputs)
        if outputs.shape[-1:] != (self.num_classes,):
            raise ValueError(
                f"The network's outputs are expected to end in an axis of num_classes="
                f"{self.num_classes} logits; they are {describe(outputs)}. Change the last layer, "
                f"or num_classes."
            )
        if labels is not None and labels.shape != outputs.shape[:-1]:
            one_hot = labels.shape == outputs.shape
            raise ValueError(
                f"Labels are expected to be one class a position, of shape {outputs.shape[:-1]}; "
                f"they are {describe(labels)}. "
                + (
                    "They look one-hot: pass labels.argmax(-1)."
                    if one_hot
                    else f"The network's outputs are {describe(outputs)}."
                )
            )

    def _unpack(self, batch: Any) -> tuple[tuple, Array, Array | None]:
        """Return a batch as (inputs, labels, mask)."""
        if isinstance(batch, Mapping):
            x, labels = (self._entry(batch, name) for name in self._batch_keys[:2])
            mask = batch.get(self._batch_keys[2])
        elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
            x, labels = batch[:2]
            mask = batch[2] if len(batch) == 3 else None
        else:
            raise TypeError(
                f"A batch is expected to be (x, y), (x, y, mask) or a mapping with "
                f"{', '.join(map(repr, self._batch_keys))}; it is {describe(batch)}."
            )
        inputs = x if type(x) is tuple else (x,)
        return inputs, check_labels(labels, "labels"), mask

    @staticmethod
    def _entry(batch: Mapping[str, Any], name: str) -> Any:
        if name not in batch:
            raise ValueError(
                f"A batch that is a mapping is expected to have {name!r}; it has "
                f"{', '.join(map(repr, batch)) or 'nothing'}. Name its parts with batch_keys=."
            )
        return batch[name]


def _check_array(outputs: Any) -> None:
    if not getattr(outputs, "shape", ()):
        raise TypeError(
            f"The network is expected to return one array of logits, with the classes as its last "
            f"axis; it returned {describe(outputs)}."
        )


class _Total(Callback):
    """Merges the metrics of a whole test."""

    needs_experiment = False

    def __init__(self) -> None:
        self.metrics = Accumulator()

    def on_step_end(
        self, outs: Any, exp: Experiment | None, global_step: int, mode: str, batch: Any
    ) -> None:
        self.metrics.add(outs)
