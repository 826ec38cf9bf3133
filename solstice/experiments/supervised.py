"""The supervised core: training and evaluation on batches with targets, whatever a target is.

What a target, a loss and a metric are is a `Task`'s; what is the same for all tasks (masks,
weights, averages of parameters, accumulation, mixed precision) is here, once.
"""

import functools
from collections.abc import Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from solstice.compat import Model, Optimizer, as_model, as_optimizer, overwrite
from solstice.compat.model import as_inputs
from solstice.errors import InvalidTypeError, InvalidValueError, MissingPackageError
from solstice.experiments.runnable import Runnable
from solstice.experiments.task import Task
from solstice.metrics import Metrics
from solstice.metrics.checks import check_mask
from solstice.static import Static
from solstice.step import jit
from solstice.tree import as_key, depends_on, describe, owned, replace


class SupervisedExperiment(Runnable):
    """Trains a network on targets, as a task says.

    A batch is `(x, y)`, `(x, y, mask)` or a mapping; an `x` that is a tuple is several inputs.
    Masked positions count nowhere. Losses, weighted ones too, are summed and divided by the number
    of real positions.

    Attributes:
        model: The network, adapted.
        optimizer: The optimizer, adapted and initialised.
        key: What random numbers in training come from; None where the network draws none.
        ema: The moving average of the parameters, which evaluation uses; None without one.
        loss_scale: For float16, what losses are multiplied by; it adapts itself. Otherwise None.
        task: What is learned; `Task` has an example of one's own.

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
    loss_scale: Any
    _task: Static[Task] = eqx.field(static=True)
    _batch_keys: tuple[str, ...] = eqx.field(static=True)
    _ema_decay: float | None = eqx.field(static=True)
    _compute_dtype: str | None = eqx.field(static=True)
    _accumulate_steps: int = eqx.field(static=True)
    # Whether the network draws random numbers in training; None when no example can tell.
    _draws: bool | None = eqx.field(static=True)
    # The structure of the network's inputs; None when no example tells.
    _inputs_tree: Any = eqx.field(static=True)

    def __init__(
        self,
        task: Task,
        model: Any,
        optimizer: Any,
        *,
        key: Array | int | None = None,
        example_input: Any = None,
        batch_keys: tuple[str, ...] = ("x", "y", "mask", "weight"),
        ema_decay: float | None = None,
        compute_dtype: Any = None,
        accumulate_steps: int = 1,
    ) -> None:
        """Adapt and initialise the network and the optimizer.

        Args:
            task: What is learned.
            model: Any network that `compat.as_model` takes, or a `Model`.
            optimizer: Any optimizer that `compat.as_optimizer` takes, or an `Optimizer`; it is
                initialised with the model's parameters.
            key: A seed or PRNG key, split into one to initialise the network with and one for
                training. Not needed when the network is initialised and draws no random numbers.
            example_input: A batch's inputs (of any length), or their `jax.ShapeDtypeStruct`s.
            batch_keys: The names of inputs, targets, mask and example weights in batches that are
                mappings.
            ema_decay: Keep a moving average of the parameters, `decay * average + (1 - decay) *
                parameters` after each step, and evaluate with it.
            compute_dtype: What the network computes in: "bfloat16", say, or "float16", with a loss
                scale that adapts itself. Parameters, state, losses and metrics stay as they are.
            accumulate_steps: Compute the gradient of a batch in so many parts, one after the
                other, which takes less memory and gives the whole batch's (batch norm aside, which
                sees each part).

        Raises:
            TypeError: The network or the optimizer is of no known kind.
            ValueError: Something is missing, or out of its range.
            ImportError: `compute_dtype` is given and jmp is not installed.
        """
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise InvalidValueError(
                f"ema_decay is expected to be between 0 and 1; it is {ema_decay}."
            )
        if accumulate_steps < 1:
            raise InvalidValueError(
                f"accumulate_steps is expected to be at least 1; it is {accumulate_steps}."
            )
        if len(batch_keys) not in (3, 4):
            raise InvalidValueError(
                f"batch_keys are expected to name inputs, targets and mask, and example weights if "
                f"there are any; they are {batch_keys!r}."
            )
        init_key, self.key = (None, None) if key is None else _two_keys(as_key(key))
        self.model = as_model(model, example_input, key=init_key)
        self.optimizer = as_optimizer(optimizer).init(self.model.params)
        self.ema = None if ema_decay is None else owned(self.model.params)
        self._task = Static(task)
        self._batch_keys = tuple(batch_keys)
        self._ema_decay = ema_decay
        self._accumulate_steps = accumulate_steps
        self._compute_dtype = None if compute_dtype is None else jnp.dtype(compute_dtype).name
        self.loss_scale = None
        if self._compute_dtype is not None:
            jmp = _jmp()
            if self._compute_dtype == "float16":
                self.loss_scale = owned(jmp.DynamicLossScale(jnp.float32(2**15)))
        self._draws = self._inputs_tree = None
        if example_input is not None:
            # Traced in training mode, so that a missing key is found here and not in a run.
            inputs = as_inputs(example_input)
            self._inputs_tree = jax.tree.structure(inputs)
            try:
                outputs = jax.eval_shape(lambda: self.model(*inputs, key=self.key, train=True)[0])
            except Exception as error:
                error.add_note(
                    f"The network was called on example_input, which is a batch such as x[:1], its "
                    f"first axis the examples; it is {describe(example_input)}."
                )
                raise
            task.check_outputs(outputs)
            self._draws = self.key is not None and self._draws_for(inputs, self.key)
            self.key = self.key if self._draws else None

    @property
    def task(self) -> Task:
        return self._task.value

    @jit
    def train_step(self, batch: Any) -> tuple[Self, Metrics]:
        """Take one optimizer step on the mean loss over the batch's real positions."""
        inputs, targets, mask, weight = self._unpack(batch)
        self._refuse_padding(inputs, mask)
        key, step_key = self._next_key(inputs)
        params = self.model.params
        if self._accumulate_steps == 1:
            loss_of = functools.partial(self._training_loss, inputs=inputs, key=step_key)
            loss_of = functools.partial(loss_of, targets=targets, mask=mask, weight=weight)
            found = jax.value_and_grad(loss_of, has_aux=True)(params)
            (loss, (outputs, model)), grads = found
        else:
            loss, outputs, model, grads = self._accumulated(inputs, targets, mask, weight, step_key)

        def value_fn(params: PyTree) -> Array:
            return self._training_loss(params, inputs, targets, mask, weight, step_key)[0]

        finite, loss_scale = None, self.loss_scale
        if loss_scale is not None:
            grads = overwrite(loss_scale.unscale(grads), grads)
            loss = loss_scale.unscale(loss)
            finite = _jmp().all_finite(grads)
            loss_scale = loss_scale.adjust(finite)
        new_params, optimizer = self.optimizer(
            grads, params, value=loss, grad=grads, value_fn=value_fn
        )
        if finite is not None:  # a step whose scaled loss overflowed is left out
            kept = (params, self.optimizer)
            new_params, optimizer = _jmp().select_tree(finite, (new_params, optimizer), kept)
        ema, decay = self.ema, self._ema_decay
        if decay is not None:
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, new_params)
            ema = overwrite(ema, new_params)
        model = replace(model, params=new_params)
        exp = replace(
            self, model=model, optimizer=optimizer, key=key, ema=ema, loss_scale=loss_scale
        )
        return exp, self.task.metrics(outputs, targets, loss, mask)

    @jit
    def eval_step(self, batch: Any) -> tuple[Self, Metrics]:
        """Measure one batch; the experiment comes back as it is."""
        inputs, targets, mask, weight = self._unpack(batch)
        outputs = self._outputs(inputs)
        loss = self._mean_loss(outputs, targets, mask, weight)
        return self, self.task.metrics(outputs, targets, loss, mask)

    def __call__(self, x: Any) -> Array:
        """Return the network's outputs for a batch of inputs, in evaluation mode."""
        return self._outputs(as_inputs(x))

    def check_batch(self, batch: Any) -> None:
        """Raise for a batch whose structure or targets are wrong; the trainer asks once a mode.

        Raises:
            TypeError: The batch is no pair, triple or mapping, or targets are of a wrong type.
            ValueError: Targets are out of their range, or shapes do not fit.
        """
        _, targets, mask, _ = self._unpack(batch)
        # On the host, where all of it is known: there is nothing to compile.
        real = np.True_ if mask is None else check_mask(mask, targets)
        self.task.check_targets(targets, np.broadcast_to(np.asarray(real), targets.shape))

    def batch_inputs(self, batch: Any) -> Any:
        """Return the inputs of a batch with or without targets, for `solstice.predict`.

        A mapping without any of the `batch_keys`, and a named tuple, are inputs themselves; so is
        any batch of the structure of `example_input`.
        """
        first = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if isinstance(batch, Mapping):
            named = self._entry(batch, self._batch_keys[0], among=self._batch_keys)
        elif isinstance(batch, list) or (type(batch) is tuple and len(batch) <= 3):
            named = first
        else:  # a named tuple is (x, y) only where x is known to be an input
            named = first if self._are_inputs(first) else batch
        return batch if self._are_inputs(batch) and not self._are_inputs(named) else named

    def _are_inputs(self, inputs: Any) -> bool:
        """Say whether something is known to have the structure of the network's inputs."""
        inputs = inputs if type(inputs) is tuple else (inputs,)
        return self._inputs_tree is not None and jax.tree.structure(inputs) == self._inputs_tree

    def with_mask(self, batch: Any, real: Any) -> Any:
        """Return a batch in which only the `real` examples count, of those that did.

        Args:
            batch: The batch, in any of its forms.
            real: True where an example is real, `(batch,)`.
        """
        _, targets, mask, _ = self._unpack(batch)
        whole = np.asarray(check_mask(mask, targets))
        mask = whole & np.asarray(real).reshape(-1, *[1] * (targets.ndim - 1))
        if isinstance(batch, Mapping):
            return {**batch, self._batch_keys[2]: mask}
        return (batch[0], batch[1], mask)

    @jax.jit
    def _outputs(self, inputs: tuple) -> Array:
        averaged = self.ema is not None
        params = self.ema if averaged else self.optimizer.eval_params(self.model.params)
        return self._forward(params, inputs)[0]

    def _forward(self, params: PyTree, inputs: tuple, **options: Any) -> tuple[Array, Model]:
        if self._compute_dtype is None:
            return replace(self.model, params=params)(*inputs, **options)
        cast, frozen = _policy(self._compute_dtype).cast_to_compute, self.model.frozen
        low = replace(
            self.model,
            params=overwrite(cast(params), params),
            frozen=None if frozen is None else overwrite(cast(frozen), frozen),
        )
        outputs, model = low(*cast(inputs), **options)
        state = jax.tree.map(lambda new, old: new.astype(old.dtype), model.state, self.model.state)
        outputs = _policy(self._compute_dtype).cast_to_output(outputs)
        return outputs, replace(self.model, params=params, state=state)

    def _training_loss(
        self,
        params: PyTree,
        inputs: tuple,
        targets: Array,
        mask: Array | None,
        weight: Array | None,
        key: Array | None,
        count: Any = None,
    ) -> tuple[Array, tuple[Array, Model]]:
        outputs, model = self._forward(params, inputs, key=key, train=True)
        loss = self._mean_loss(outputs, targets, mask, weight, count)
        return (loss if self.loss_scale is None else self.loss_scale.scale(loss)), (outputs, model)

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
        count = _count(targets, mask)
        keys = None if key is None else jax.random.split(key, parts)
        cut = jax.tree.map(
            lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), (inputs, targets, mask, weight)
        )

        def one(carry: tuple, part: tuple) -> tuple[tuple, Array]:
            grads, loss, state = carry
            (inputs, targets, mask, weight), key = part
            exp = replace(self, model=replace(self.model, state=state))
            loss_of = jax.value_and_grad(exp._training_loss, has_aux=True)
            # What a gradient overwrites goes from part to part, as state does.
            params = overwrite(self.model.params, grads)
            (more, (outputs, model)), new = loss_of(
                params, inputs, targets, mask, weight, key, count
            )
            grads = overwrite(jax.tree.map(jnp.add, grads, new), new)
            return (grads, loss + more, model.state), outputs

        zeros = jax.tree.map(jnp.zeros_like, self.model.params)
        zeros = overwrite(zeros, self.model.params)
        start = (zeros, jnp.zeros((), count.dtype), self.model.state)
        (grads, loss, state), outputs = jax.lax.scan(one, start, (cut, keys))
        outputs = outputs.reshape(-1, *outputs.shape[2:])
        return loss, outputs, replace(self.model, state=state), grads

    def _mean_loss(
        self, outputs: Array, targets: Array, mask: Any, weight: Any, count: Any = None
    ) -> Array:
        """Return the sum of the real positions' losses over their number, or over `count`."""
        self.task.check_outputs(outputs, targets)
        real = None if mask is None else check_mask(mask, targets)
        # Masked targets may be NaN, which would reach the gradient through a loss of 0 too.
        shown = targets if real is None else jnp.where(real, targets, 0)
        losses, valid = self.task.losses(outputs, shown)
        if real is not None:
            valid = real if valid is None else valid & real
        if weight is not None:
            losses = losses * weight.reshape(weight.shape + (1,) * (losses.ndim - weight.ndim))
        if valid is not None:
            losses = jnp.where(valid, losses, 0)
        return losses.sum() / (_count(targets, mask) if count is None else count)

    def _refuse_padding(self, inputs: tuple, mask: Any) -> None:
        """Raise where padded examples would change what the network keeps from a batch."""
        if mask is None or jnp.ndim(mask) != 1 or not jax.tree.leaves(self.model.state):
            return

        def state(inputs: tuple) -> Any:
            return self.model(*inputs, key=jax.random.key(0), train=True)[1].state

        if depends_on(state, inputs):
            raise InvalidValueError(
                "In training, examples that a mask leaves out still pass through this network, "
                "which updates its state from whole batches (batch norm does): two of them move "
                "its outputs by a third. Drop the last, shorter batch in training; padding is for "
                "evaluation."
            )

    def _next_key(self, inputs: tuple) -> tuple[Array | None, Array | None]:
        # Carrying a key costs a small step dearly, so only a network that draws has one.
        if self.key is None:
            return None, None
        key, step_key = jax.random.split(self.key)
        draws = self._draws_for(inputs, step_key) if self._draws is None else self._draws
        return (key, step_key) if draws else (self.key, step_key)

    def _draws_for(self, inputs: tuple, key: Array) -> bool:
        return depends_on(lambda key: self.model(*inputs, key=key, train=True), key)

    def _unpack(self, batch: Any) -> tuple[tuple, Array, Array | None, Array | None]:
        """Return a batch as (inputs, targets, mask, weight)."""
        mask = weight = None
        if isinstance(batch, Mapping):
            x, targets = (self._entry(batch, name) for name in self._batch_keys[:2])
            mask, *rest = (batch.get(name) for name in self._batch_keys[2:])
            weight = rest[0] if rest else None
        elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
            x, targets = batch[:2]
            mask = batch[2] if len(batch) == 3 else None
        else:
            raise InvalidTypeError(
                f"A batch is expected to be (x, y), (x, y, mask) or a mapping with "
                f"{', '.join(map(repr, self._batch_keys))}; it is {describe(batch)}."
            )
        inputs = x if type(x) is tuple else (x,)
        return inputs, _as_array(targets), mask, None if weight is None else jnp.asarray(weight)

    @staticmethod
    def _entry(batch: Mapping[str, Any], name: str, among: tuple[str, ...] | None = None) -> Any:
        """Return an entry of a batch; the batch itself if it has none of the names `among`."""
        if name in batch:
            return batch[name]
        if among is not None and not any(one in batch for one in among):
            return batch
        raise InvalidValueError(
            f"A batch that is a mapping is expected to have {name!r}; it has "
            f"{', '.join(map(repr, batch)) or 'nothing'}. Name its parts with batch_keys=."
        )


def _as_array(targets: Any) -> Any:
    """Return targets as an array; numpy's stay where they are until a compiled step takes them."""
    return targets if isinstance(targets, np.ndarray) else jnp.asarray(targets)


@jax.jit
def _two_keys(key: Array) -> tuple[Array, Array]:
    """Return `jax.random.split` of a key as two keys, with one program to compile for it."""
    one, two = jax.random.split(key)
    return one, two


def _count(targets: Array, mask: Any) -> Array:
    if mask is None:
        return jnp.float32(max(targets.size, 1))
    return jnp.maximum(check_mask(mask, targets).sum(), 1).astype(jnp.float32)


def _jmp() -> Any:
    try:
        import jmp
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "compute_dtype= needs the package jmp, which is not installed: "
            "pip install 'solstice[precision]'"
        ) from error
    return jmp


@functools.cache
def _policy(dtype: str) -> Any:
    return _jmp().get_policy(f"params=float32,compute={dtype},output=float32")
