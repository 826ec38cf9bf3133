"""Supervised learning: training and evaluation on batches with targets, for any task.

A `Task` defines target, loss and metrics. What all tasks share is here: masks, weights, averages of
parameters, gradient accumulation, mixed precision.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.drawing import needs_key
from solstice.compat.model import Model, as_inputs, check_example, is_shaped
from solstice.compat.optimizer import Optimizer, carried
from solstice.compat.registry import as_model, as_optimizer
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.experiments import batches, precision
from solstice.experiments.batches import BatchKeys
from solstice.experiments.runnable import Runnable
from solstice.experiments.task import Task
from solstice.experiments.tasked import Tasked
from solstice.metrics.base import Metrics, is_metrics, joining
from solstice.metrics.checks import check_mask
from solstice.metrics.combine import MetricsDict, check_apart
from solstice.signatures import explained
from solstice.static import Aside, Static
from solstice.step import jit
from solstice.tree.dependence import depends_on
from solstice.tree.fields import replace
from solstice.tree.keys import as_key
from solstice.tree.overwritten import overwrite
from solstice.tree.ownership import owned
from solstice.tree.pytree import PyTree

# A function of outputs, targets and mask (None if all count) that returns metrics.
MetricsFn = Callable[[Array, Array, Array | None], Any]


class Seen(NamedTuple):
    """The shapes of an example's inputs and of the network's outputs for it."""

    inputs: tuple[Any, ...]
    outputs: Any


# What other libraries call an argument.
OTHER_NAMES = {
    "network": "model",
    "net": "model",
    "module": "model",
    "opt": "optimizer",
    "tx": "optimizer",
    "rng": "key",
    "rngs": "key",
    "seed": "key",
    "example": "example_input",
    "sample_input": "example_input",
    "input_shape": "example_input",
    "criterion": "loss",
    "loss_function": "loss",
    "n_classes": "num_classes",
    "classes": "num_classes",
    "precision": "compute_dtype",
    "mixed_precision": "compute_dtype",
    "policy": "compute_dtype",
    "dtype": "compute_dtype",
    "ema": "ema_decay",
    "accumulate_grad_batches": "accumulate_steps",
    "gradient_accumulation_steps": "accumulate_steps",
}


class SupervisedExperiment(Runnable, Tasked):
    """Trains a network on a task.

    A batch is `(x, y)`, `(x, y, mask)` or a mapping; an `x` that is a tuple is several inputs.
    Masked positions, and targets that the task cannot use, are left out. The loss is the sum of the
    (weighted) losses divided by the number of positions that count.

    Attributes:
        model: The network, adapted.
        optimizer: The optimizer, adapted and initialised.
        key: The PRNG key of training; None if the network draws no random numbers.
        ema: The moving average of the parameters, which evaluation uses; None without one. It is at
            least float32, and is cast to the parameters' types for evaluation.
        loss_scale: With float16, the automatic factor of the losses. Otherwise None.
        task: The task; see `Task` to write one.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> from solstice.experiments import SupervisedExperiment
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> isinstance(exp, SupervisedExperiment), type(exp.task).__name__
    (True, 'Classification')
    """

    model: Model
    optimizer: Optimizer
    key: Array | None
    ema: PyTree | None
    loss_scale: precision.LossScale | None
    _task: Static[Task] = eqx.field(static=True)
    _metrics: Static[MetricsFn | None] = eqx.field(static=True)
    _ignore_index: int | None = eqx.field(static=True)
    _batch_keys: BatchKeys = eqx.field(static=True)
    _ema_decay: float | None = eqx.field(static=True)
    _compute_dtype: str | None = eqx.field(static=True)
    _accumulate_steps: int = eqx.field(static=True)
    # Whether the network needs a key in training; None if there was no example to find out.
    _draws: bool | None = eqx.field(static=True)
    # What is known of an example, or None. Only the first batches are compared with it, so
    # experiments that differ only in it share their compiled steps.
    _seen: Aside[Seen | None] = eqx.field(static=True)

    @explained(**OTHER_NAMES)
    def __init__(
        self,
        task: Task,
        model: Any,
        optimizer: Any,
        *,
        key: Array | int | None = None,
        example_input: Any = None,
        metrics: MetricsFn | None = None,
        ignore_index: int | None = None,
        batch_keys: BatchKeys = ("x", "y", "mask", "weight"),
        ema_decay: float | None = None,
        compute_dtype: DTypeLike | None = None,
        accumulate_steps: int = 1,
    ) -> None:
        """Adapt and initialise the network and the optimizer.

        Args:
            task: The task.
            model: Any network that `compat.as_model` takes, or a `Model`.
            optimizer: Any optimizer that `compat.as_optimizer` takes, or an `Optimizer`; it is
                initialised with the model's parameters.
            key: A seed or PRNG key, split into one to initialise the network with and one for
                training. Not needed when the network is initialised and draws no random numbers.
            example_input: A batch's inputs (of any length), or their `jax.ShapeDtypeStruct`s; None
                uses the one that an adapted model was initialised with. A run's first batches must
                have as many axes.
            metrics: Your own metrics, reported with the task's: a function `(outputs, targets,
                mask) -> Metrics` of each batch, traced in the step. The mask is None if all
                positions count. Steps then return a `MetricsDict`. If a name is taken, wrap your
                metric in another one: `MetricsDict(name=metric)`.
            ignore_index: A target to ignore, such as 255 or -100.
            batch_keys: The names of inputs, targets, mask and example weights in batches that are
                mappings; if two names are given, the mask's name is "mask". Several inputs are a
                tuple of names. A mapping may hold more: the keys `(("input_ids", "attention_mask"),
                "label", "mask")` fit a batch of Hugging Face.
            ema_decay: Keep a moving average of the parameters, `decay * average + (1 - decay) *
                parameters` after each step, and evaluate with it.
            compute_dtype: The type that the network computes in, such as "bfloat16", or "float16"
                with an automatic loss scale. Parameters, state, losses and metrics keep their
                types. A step of float16 that overflows changes only the scale.
            accumulate_steps: Compute the gradient of a batch in this many parts, one after the
                other. It saves memory and gives the gradient of the whole batch (except that batch
                norm sees each part separately).

        Raises:
            TypeError: No adapter knows the network or the optimizer.
            ValueError: Something is missing or out of range.
        """
        arguments.instance(task, "task", Task, "a solstice.experiments.Task")
        if ema_decay is not None:
            ema_decay = arguments.number(ema_decay, "ema_decay", above=0, below=1)
        accumulate_steps = arguments.count(accumulate_steps, "accumulate_steps")
        if compute_dtype is not None:
            compute_dtype = precision.compute_dtype(compute_dtype)
        keys = batches.check_keys(batch_keys)
        if example_input is not None:
            example_input = batches.inputs_by_name(example_input, keys)
            check_example(example_input, "example_input")
        if metrics is not None:
            arguments.function(metrics, "metrics", "outputs, targets, mask")
        if ignore_index is not None:
            ignore_index = arguments.count(ignore_index, "ignore_index", least=-(2**31))
        self._metrics, self._ignore_index = Static(metrics), ignore_index
        self._batch_keys = keys
        init_key, self.key = (None, None) if key is None else _two_keys(as_key(key))
        self.model = as_model(model, example_input, key=init_key)
        self.optimizer = as_optimizer(optimizer).init(self.model.params)
        self.ema = None if ema_decay is None else owned(precision.widened(self.model.params))
        self._ema_decay = ema_decay
        self._accumulate_steps = accumulate_steps
        self._compute_dtype = compute_dtype
        self.loss_scale = precision.LossScale() if compute_dtype == "float16" else None
        self._draws, self._seen = None if key is not None else False, Aside(None)
        example = self.model.example if example_input is None else as_inputs(example_input)
        if any(map(is_shaped, jax.tree.leaves(example))):
            assert example is not None
            seen = self._look(example, given=example_input)
            task, self._seen = task.for_outputs(seen.outputs), Aside(seen)
            self._draws = self.key is not None and needs_key(self.model, example, self.key)
            self.key = self.key if self._draws else None
        self._task = Static(task)

    def _look(self, example: tuple[Any, ...], given: Any) -> Seen:
        """Return the network's outputs for an example, in training mode.

        With an example, a missing key is found here and not during a run.
        """
        key = jax.random.key(0) if self.key is None and given is None else self.key
        whose = "the example that it was made with" if given is None else "example_input"
        outputs = self._shape_of_outputs(
            example, key, f"{whose}, {describe(example if given is None else given)}"
        )
        return Seen(jax.tree.map(_shape, example), outputs)

    def _shape_of_outputs(self, inputs: tuple[Any, ...], key: Array | None, whose: str) -> Any:
        arrays, rest = eqx.partition(inputs, is_shaped)
        try:
            return jax.eval_shape(
                lambda arrays: self.model(*eqx.combine(arrays, rest), key=key, train=True)[0],
                arrays,
            )
        except Exception as error:
            error.add_note(
                f"The network was called on {whose}; it must be a batch such as x[:1], with "
                f"examples along its first axis."
            )
            raise

    @property
    def task(self) -> Task:
        return self._task.value

    @property
    def example(self) -> tuple[Any, ...] | None:
        """The shapes of an example's inputs, the batch axis included; None if none is known."""
        seen = self._seen.value
        return self.model.example if seen is None else seen.inputs

    @property
    def input_names(self) -> tuple[str, ...] | None:
        """The names of several inputs in batches that are mappings; None of a single input."""
        names = self._batch_keys[0]
        return names if isinstance(names, tuple) else None

    @jit
    def train_step(self, batch: Any) -> tuple[Self, Metrics]:
        """Take one optimizer step on the mean loss over the batch's positions that count."""
        parts = batches.unpack(batch, self._batch_keys)
        self._refuse_padding(parts.inputs, parts.mask)
        inputs, targets, mask, weight = batches.ignoring(parts, self._ignore_index)
        key, step_key = self._next_key(inputs)
        params = self.model.params

        def loss_fn(params: PyTree) -> tuple[Array, tuple[Array, Model]]:
            outputs, model = self._forward(params, inputs, key=step_key, train=True)
            return self._mean_loss(outputs, targets, mask, weight), (outputs, model)

        if self._accumulate_steps == 1:
            found = jax.value_and_grad(self._scaled(loss_fn), has_aux=True)(params)
            (loss, (outputs, model)), grads = found
        else:
            loss, outputs, model, grads = self._accumulated(inputs, targets, mask, weight, step_key)
        finite, loss_scale = None, self.loss_scale
        if loss_scale is not None:
            grads = overwrite(loss_scale.unscale(grads), grads)
            loss = loss_scale.unscale(loss)
            # The network's state may overflow by itself: a variance does so before a gradient.
            finite = precision.all_finite(grads)
            finite &= precision.stays_finite(model.state, self.model.state)
            loss_scale = loss_scale.adjust(finite)
        new_params, optimizer = self.optimizer(
            grads, params, value=loss, grad=grads, value_fn=lambda params: loss_fn(params)[0]
        )
        ema = self.ema
        if self._ema_decay is not None:
            ema = overwrite(precision.moved(ema, new_params, self._ema_decay), new_params)
        model = replace(model, params=new_params)
        exp = replace(self, model=model, optimizer=optimizer, key=key, ema=ema)
        if finite is not None:  # a step whose scaled loss overflowed changes nothing
            # An optimizer that stores its parameters has no earlier ones at the first step.
            kept = jax.tree.structure(optimizer) != jax.tree.structure(self.optimizer)
            before = replace(self, optimizer=optimizer) if kept else self
            exp = replace(precision.chosen(finite, exp, before), loss_scale=loss_scale)
        return exp, self._measure(outputs, targets, loss, mask)

    @jit
    def eval_step(self, batch: Any) -> tuple[Self, Metrics]:
        """Measure one batch; the experiment is returned unchanged."""
        parts = batches.unpack(batch, self._batch_keys)
        inputs, targets, mask, weight = batches.ignoring(parts, self._ignore_index)
        outputs = self._outputs(inputs)
        loss = self._mean_loss(outputs, targets, mask, weight)
        return self, self._measure(outputs, targets, loss, mask)

    def __call__(self, x: Any) -> Array:
        """Return the network's outputs for a batch of inputs, in evaluation mode.

        Several inputs are a tuple. Inputs may also be a mapping with the names in `batch_keys`, as
        a batch is.

        Raises:
            TypeError: It is a mapping or a list, and the network's example is an array; or it has
                another structure than the example, and the network fails on it.
            ValueError: They have a different number of axes than the network's example.
        """
        seen = self._seen.value
        example = None if seen is None else seen.inputs
        inputs = as_inputs(batches.inputs_by_name(x, self._batch_keys, example), "x")
        batches.check_axes(inputs, example)
        try:
            return self._outputs(inputs)
        except Exception as error:
            if example is None:
                error.add_note(f"The network was called on {describe(inputs)}.")
            elif how := batches.unlike_example(x, self._batch_keys, example):
                raise InvalidTypeError(how) from error
            raise

    def with_model(self, model: Model) -> Self:
        """Return the experiment with other parameters of its network frozen.

        The optimizer keeps its state for parameters that stay trained, and initialises it for new
        ones (`compat.Optimizer.retarget`). The moving average of new ones starts at their values.

        Args:
            model: This experiment's model after `compat.freeze` or `compat.unfreeze`; its outputs
                have the same shapes.

        First train only a head, then the whole network:

        >>> import jax.numpy as jnp, optax, solstice
        >>> from jax.example_libraries import stax
        >>> from solstice import compat
        >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
        >>> net = stax.serial(stax.Dense(8), stax.Relu, stax.Dense(2))
        >>> model = compat.as_model(net, x, key=0)
        >>> model = compat.freeze(model, lambda path, leaf: not path.startswith("2/"))
        >>> exp = solstice.ClassificationExperiment(model, optax.adam(0.1))
        >>> exp = exp.train(2, [(x, y)], progress=False)
        >>> exp = exp.with_model(compat.unfreeze(exp.model)).train(2, [(x, y)], progress=False)
        >>> solstice.tree.paths(exp.optimizer.state[0].mu)
        ['0/0', '0/1', '2/0', '2/1']
        """
        arguments.instance(model, "model", Model, "a compat.Model")
        ema = self.ema
        if ema is not None:
            ema = carried(owned(precision.widened(model.params)), ema)
        return replace(self, model=model, optimizer=self.optimizer.retarget(model.params), ema=ema)

    def check_batch(self, batch: Any) -> None:
        """Raise if a batch's structure or targets are wrong; the trainer calls it once per mode.

        Raises:
            TypeError: The batch is not a pair, triple or mapping, or targets have a wrong type.
            ValueError: It is a single example, targets are out of range, shapes do not match, the
                mask is not one of booleans, or weights are negative or not finite.
        """
        parts = batches.ignoring(batches.unpack(batch, self._batch_keys), self._ignore_index)
        batches.check_arrays(parts.inputs, self._batch_keys[0])
        task, seen = self.task, self._seen.value
        batches.check_batched(parts, None if seen is None else seen.inputs)
        real = batches.check_mask_of(parts, self._batch_keys)
        batches.check_weight_values(parts, real)
        # The network is traced for the shape of its outputs only if they are not known to match.
        axes = None if seen is None else task.target_axes(seen.outputs)
        if seen is None or axes not in (None, parts.targets.ndim):
            key = jax.random.key(0) if self.key is None else self.key
            whose = f"the inputs of this batch, {describe(parts.inputs)}"
            outputs = self._shape_of_outputs(parts.inputs, key, whose)
            task.check_outputs(outputs, parts.targets)
            task = task.for_outputs(outputs)
        task.check_targets(parts.targets, real)

    def batch_inputs(self, batch: Any) -> Any:
        """Return the inputs of a batch with or without targets, for `solstice.predict`.

        A mapping without any of the `batch_keys`, and a named tuple, are inputs themselves; so is
        any batch of the structure of the network's example.
        """
        seen = self._seen.value
        return batches.batch_inputs(batch, self._batch_keys, None if seen is None else seen.inputs)

    def with_mask(self, batch: Any, real: Any) -> Any:
        """Return the batch with all but the `real` examples masked.

        Args:
            batch: The batch, in any form.
            real: True where an example is real, `(batch,)`.
        """
        return batches.with_mask(batch, real, self._batch_keys)

    def learns_from_whole_batches(self, batch: Any) -> bool:
        """Return whether the network updates its state from whole batches, as batch norm does."""
        return self._keeps_state_of(batches.unpack(batch, self._batch_keys).inputs)

    @jax.jit
    def _outputs(self, inputs: tuple) -> Array:
        params = self.model.params
        if self.ema is not None:
            return self._forward(precision.like(self.ema, params), inputs)[0]
        return self._forward(self.optimizer.eval_params(params), inputs)[0]

    def _forward(self, params: PyTree, inputs: tuple, **options: Any) -> tuple[Array, Model]:
        if self._compute_dtype is None:
            return replace(self.model, params=params)(*inputs, **options)
        cast, frozen = partial(precision.cast, dtype=self._compute_dtype), self.model.frozen
        low = replace(
            self.model,
            params=overwrite(cast(params), params),
            frozen=None if frozen is None else overwrite(cast(frozen), frozen),
        )
        outputs, model = low(*cast(inputs), **options)
        state = precision.like(model.state, self.model.state)
        return precision.cast(outputs, "float32"), replace(self.model, params=params, state=state)

    def _scaled(self, loss_fn: Any) -> Any:
        """Return the function with its loss scaled for float16."""

        def scaled(params: PyTree) -> tuple[Array, Any]:
            loss, others = loss_fn(params)
            return (loss if self.loss_scale is None else self.loss_scale.scale(loss)), others

        return scaled

    def _accumulated(
        self, inputs: tuple, targets: Array, mask: Any, weight: Any, key: Array | None
    ) -> tuple[Array, Array, Model, PyTree]:
        """Return the loss, the outputs, the model and the gradient, part by part."""
        parts = self._accumulate_steps
        if len(targets) % parts:
            raise InvalidValueError(
                f"A batch is expected to divide into accumulate_steps={parts} parts; it has "
                f"{len(targets)} examples. Change its size, or drop the remainder."
            )
        # Which positions count is known once all parts are seen; until then, all real ones do.
        real = None if mask is None else check_mask(mask, targets)
        most = _number(real, targets)
        keys = None if key is None else jax.random.split(key, parts)
        cut = jax.tree.map(
            lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), (inputs, targets, mask, weight)
        )

        def one(carry: tuple, part: tuple) -> tuple[tuple, tuple]:
            grads, state = carry
            (inputs, targets, mask, weight), key = part
            exp = replace(self, model=replace(self.model, state=state))
            # Overwritten leaves are passed from part to part, like state.
            params = overwrite(self.model.params, grads)

            def loss_fn(params: PyTree) -> tuple[Array, tuple]:
                outputs, model = exp._forward(params, inputs, key=key, train=True)
                total, number = self._summed_loss(outputs, targets, mask, weight)
                return total / most.astype(total.dtype), (outputs, model.state, number)

            found = jax.value_and_grad(self._scaled(loss_fn), has_aux=True)(params)
            (loss, (outputs, state, number)), new = found
            grads = overwrite(jax.tree.map(jnp.add, grads, precision.widened(new)), new)
            return (grads, state), (loss, number, outputs)

        zeros = jax.tree.map(jnp.zeros_like, precision.widened(self.model.params))
        start = (overwrite(zeros, self.model.params), self.model.state)
        (grads, state), (losses, numbers, outputs) = jax.lax.scan(one, start, (cut, keys))
        share = most / jnp.maximum(numbers.sum(), 1)
        scaled = jax.tree.map(lambda grad: grad * share.astype(grad.dtype), grads)
        grads = overwrite(precision.like(scaled, self.model.params), grads)
        outputs = outputs.reshape(-1, *outputs.shape[2:])
        loss = losses.sum() * share.astype(losses.dtype)
        return loss, outputs, replace(self.model, state=state), grads

    def _measure(self, outputs: Array, targets: Array, loss: Array, mask: Any) -> Metrics:
        """Return the task's metrics of a batch, and the user's."""
        own = self.task.metrics(outputs, targets, loss, mask)
        if self._metrics.value is None:
            return own
        more = self._metrics.value(outputs, targets, mask)
        if not is_metrics(more):
            raise InvalidTypeError(
                f"metrics(outputs, targets, mask) is expected to return a Metrics (an object with "
                f"`merge` and `compute`); it returned {describe(more)}.{joining(more)}"
            )
        check_apart(own, more)
        return MetricsDict(own, more)

    def _mean_loss(self, outputs: Array, targets: Array, mask: Any, weight: Any) -> Array:
        total, number = self._summed_loss(outputs, targets, mask, weight)
        return total / jnp.maximum(number, 1).astype(total.dtype)

    def _summed_loss(
        self, outputs: Array, targets: Array, mask: Any, weight: Any
    ) -> tuple[Array, Array]:
        """Return the sum of the losses of the positions that count, and their number."""
        self.task.check_outputs(outputs, targets)
        real = None if mask is None else check_mask(mask, targets)
        # Masked targets may be NaN, which would reach the gradient through a loss of 0 too.
        zero = jnp.zeros((), targets.dtype)
        shown = targets if real is None else jnp.where(real, targets, zero)
        losses, valid = self.task.losses(precision.widened(outputs), shown)
        losses = precision.widened(losses)
        valid = batches.counted(real, valid)
        if weight is not None:
            weight = weight.reshape(weight.shape + (1,) * (losses.ndim - weight.ndim))
            weight = weight.astype(losses.dtype)
            losses = losses * (weight if valid is None else jnp.where(valid, weight, 0))
        if valid is not None:
            losses = jnp.where(valid, losses, 0)
        return losses.sum(), _number(valid, losses)

    def _refuse_padding(self, inputs: tuple, mask: Any) -> None:
        """Raise if padded examples would change the network's state."""
        if mask is not None and jnp.ndim(mask) == 1 and self._keeps_state_of(inputs):
            raise InvalidValueError(
                "In training, masked examples still pass through this network, "
                "which updates its state from whole batches (as batch norm does): two of them "
                "change its outputs by a third. Drop the last, shorter batch in training; "
                "padding is only for evaluation."
            )

    def _keeps_state_of(self, inputs: tuple) -> bool:
        """Return whether the network updates its state from the inputs of training."""

        def state(inputs: tuple) -> Any:
            return self.model(*inputs, key=jax.random.key(0), train=True)[1].state

        return bool(jax.tree.leaves(self.model.state)) and depends_on(state, inputs)

    def _next_key(self, inputs: tuple) -> tuple[Array | None, Array | None]:
        # Carrying a key slows a small step down, so only networks that need one get it.
        if self.key is None:
            return None, None
        key, step_key = jax.random.split(self.key)
        needed = self._draws
        if needed is None:
            needed = needs_key(self.model, inputs, step_key)
        return (key, step_key) if needed else (self.key, step_key)


@jax.jit
def _two_keys(key: Array) -> tuple[Array, Array]:
    """Return `jax.random.split` of a key as two keys; compiles only one program."""
    one, two = jax.random.split(key)
    return one, two


def _number(where: Array | None, values: Array) -> Array:
    """Return the number of True values, or of all values, as a float."""
    return jnp.float32(values.size) if where is None else where.sum().astype(jnp.float32)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_shaped(leaf) else leaf
