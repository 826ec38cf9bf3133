"""The subject of a Model's laws: a network, its inputs, and what is compiled once for all."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice import arguments
from solstice.compat.model import Model, as_inputs
from solstice.compat.surgery.capture import sub_modules
from solstice.compat.surgery.lora import suits
from solstice.compat.surgery.wrapped import weights_of
from solstice.compat.weights.leaves import model_leaves
from solstice.errors import InvalidValueError
from solstice.testing.law import check_returned, maker
from solstice.tree.fields import replace
from solstice.tree.pytree import PyTree

Native = Callable[..., Any]


class ModelSubject:
    """A network under the laws, for `law.check(subject)`; its arguments are `check_model`'s.

    What costs a compilation is made once and shared by all laws.

    Args:
        make_model: Makes the model from a key.
        inputs: A batch's inputs, of two examples or more; a tuple is several inputs.
        native: The library's own call, or None.
    """

    def __init__(
        self, make_model: Callable[[Array], Model], inputs: Any, native: Native | None = None
    ) -> None:
        self.make_model = maker(make_model, "make_model", "key", Model, "a compat.Model")
        leaves = jax.tree.leaves(inputs)
        arrays = [leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for leaf in leaves]
        shapes = {array.shape[:1] for array in arrays}
        numbers = all(array.dtype.kind not in "OSU" for array in arrays if eqx.is_array(array))
        if not numbers or len(shapes) != 1 or min(shapes) < (2,):
            raise InvalidValueError(
                f"The inputs of a batch are expected to be arrays of numbers, with at least 2 "
                f"examples along their first axis; they are {arguments.describe(inputs)}."
            )
        self.inputs = as_inputs(inputs)
        self.native: Any = native
        if native is not None:
            arguments.function(native, "native")
        # Now, and not when a law first asks: that may be while it traces.
        self.model = self.made(0)
        check_returned(self.model, "make_model", Model, "a compat.Model")
        self.batch_size = jax.tree.leaves(self.inputs)[0].shape[0]
        self.evaluate = jax.jit(lambda model, *inputs: model(*inputs)[0])
        self.train = jax.jit(lambda model, key, *inputs: model(*inputs, key=key, train=True))
        # Traced anew, so that a value captured while tracing shows.
        self.train_anew = jax.jit(lambda model, key, *inputs: model(*inputs, key=key, train=True))
        self.gradients = jax.jit(jax.grad(self.loss))
        stacked = (0, *(None for _ in self.inputs))
        self.evaluate_stack = jax.jit(
            jax.vmap(lambda model, *inputs: model(*inputs)[0], stacked, axis_size=2)
        )
        self.train_stack = jax.jit(
            jax.vmap(lambda model, key, *inputs: model(*inputs, key=key, train=True), (0, *stacked))
        )
        # Of its own, so that it shares no traces with another subject's.
        self.train_scan = jax.jit(functools.partial(_scan))
        # The library's own call and ours, by mode: one program each, from the same model, so that
        # the compiler sees the same.
        self.natively = (
            {
                train: (
                    jax.jit(lambda model, key, *x, t=train: model(*x, key=key, train=t)[0]),
                    jax.jit(
                        lambda model, key, *x, t=train: self.native(
                            model.unwrap(), *x, key=key, train=t
                        )
                    ),
                )
                for train in (False, True)
            }
            if native is not None
            else {}
        )

    def __str__(self) -> str:
        return f"{type(self.model).__name__}"

    @functools.lru_cache(maxsize=8)  # noqa: B019 - lives as long as the laws run
    def made(self, seed: int) -> Model:
        return self.make_model(jax.random.key(seed))

    @functools.cached_property
    def sub_modules(self) -> list[str] | None:
        """The paths of what can be captured and changed in the network; None if nothing can."""
        try:
            return sub_modules(self.model, *self.inputs) or None
        except Exception:  # noqa: BLE001 - other laws say what is wrong with its call
            return None

    @functools.cached_property
    def matrices(self) -> list[str] | None:
        """The paths of the weights that `compat.lora` adapts; None if there are none."""
        weights, _ = weights_of(self.model)
        return [weight.path for weight in weights if suits(weight)] or None

    @functools.cached_property
    def files(self) -> bool | None:
        """Whether weights can be saved; None if there are none or the package is missing."""
        return bool(model_leaves(self.model) and importlib.util.find_spec("safetensors")) or None

    def repeated(self) -> tuple[Any, ...]:
        """The inputs with the first example in every place."""
        return jax.tree.map(lambda x: jnp.repeat(x[:1], self.batch_size, axis=0), self.inputs)

    def loss(self, params: PyTree, model: Model, key: Array, *inputs: Any) -> Array:
        outputs, _ = replace(model, params=params)(*inputs, key=key, train=True)
        # Weights that differ, so that no output's gradient cancels another's.
        return sum(
            (
                (jnp.abs(leaf) * jnp.linspace(0.5, 1.5, leaf.size).reshape(leaf.shape)).sum()
                for leaf in jax.tree.leaves(outputs)
                if eqx.is_inexact_array(leaf)
            ),
            jnp.zeros(()),
        )


def _scan(model: Model, keys: Array, *inputs: Any) -> tuple[Model, Any]:
    def step(model: Model, key: Array) -> tuple[Model, Any]:
        outputs, model = model(*inputs, key=key, train=True)
        return model, outputs

    return jax.lax.scan(step, model, keys)
