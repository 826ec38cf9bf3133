"""FunctionModel: a network as a plain pair of functions."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import equinox as eqx
import jax
from jaxtyping import Array

from solstice import arguments
from solstice.compat.drawing import run_with_key
from solstice.compat.flags import (
    Flags,
    accepts,
    check_train,
    find_flags,
    flag_values,
    has_default,
    parameters,
)
from solstice.compat.leaves import owned_state
from solstice.compat.model import (
    Example,
    Keys,
    Model,
    as_inputs,
    bind_call,
    check_call,
    join_params,
    single_key,
    split_params,
)
from solstice.errors import InvalidTypeError
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.keys import as_key
from solstice.tree.pytree import PyTree, PyTreeDef

_NAME = "FunctionModel"


class FunctionModel(Model):
    """A network given as `init(key, *inputs)` and `apply(params, *inputs)`.

    If `apply` has a parameter `state`, `init` returns `(params, state)` and `apply` returns
    `(outputs, state)`. If it has a parameter `key` or `rng`, it gets the key of a training step,
    and None in evaluation (or its default, if that is not None).

    >>> import jax, jax.numpy as jnp
    >>> from solstice.compat import FunctionModel
    >>> def init(key, x):
    ...     return {"w": jax.random.normal(key, (x.shape[-1], 2))}
    >>> def apply(params, x):
    ...     return x @ params["w"]
    >>> model = FunctionModel(init, apply, jnp.ones((1, 3)), key=0)
    >>> model(jnp.ones((5, 3)))[0].shape
    (5, 2)
    """

    params: PyTree
    frozen: PyTree
    state: PyTree
    _tree: Static[PyTreeDef] = eqx.field(static=True)
    _functions: Static[tuple[Callable[..., PyTree], Callable[..., PyTree] | None]] = eqx.field(
        static=True
    )
    _flags: Flags = eqx.field(static=True)
    _example: Example = eqx.field(static=True)
    _has_state: bool = eqx.field(static=True)
    _key_name: str | None = eqx.field(static=True)
    # Whether that parameter has a default, which is kept if no key is given.
    _has_own_key: bool = eqx.field(static=True)

    def __init__(
        self,
        init: Callable[..., PyTree],
        apply: Callable[..., PyTree],
        example: PyTree,
        *,
        key: Array | int,
        flags: Mapping[str, bool] | None = None,
        call: Callable[..., PyTree] | None = None,
    ) -> None:
        """Initialise the network as `init(key, *example)` does.

        Args:
            init: Makes the parameters from a key and a batch's inputs.
            apply: The forward pass over a batch.
            example: A batch's inputs, or their `jax.ShapeDtypeStruct`s; a tuple is several inputs.
            key: The key of the initialisation.
            flags: The keywords that say whether it trains, with their values in training; None
                finds them among the parameters of `apply`.
            call: Called as `call(apply, params, *inputs, **keywords)` instead of `apply`.
        """
        check_call(call)
        inputs = as_inputs(example)
        names = ", ".join(f"input {i}" for i in range(len(inputs)))
        arguments.function(init, "init", f"key, {names}")
        arguments.function(apply, "apply", f"params, {names}" if call is None else None, more=True)
        function = call or apply
        self._functions = Static((apply, call))
        self._flags = find_flags(function, flags)
        self._has_state = "state" in parameters(function)
        self._key_name = next((name for name in ("key", "rng") if accepts(function, name)), None)
        name = self._key_name
        self._has_own_key = name is not None and has_default(function, name)
        self._example = Example(inputs)
        initial = init(as_key(key), *inputs)
        if self._has_state and not (type(initial) is tuple and len(initial) == 2):
            raise InvalidTypeError(
                f"{_NAME}: apply takes a state, so init is expected to return (params, state)."
            )
        weights, state = initial if self._has_state else (initial, None)
        self._tree = Static(jax.tree.structure(weights))
        self.params, self.frozen = split_params(weights)
        self.state = owned_state(state)

    def __call__(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        train = check_train(train, _NAME)
        key = single_key(key, _NAME) if train else None
        kwargs = flag_values(self._flags, train) | kwargs
        if self._has_state:
            kwargs = {"state": self.state} | kwargs

        def run(key: Array | None) -> tuple[PyTree, PyTree]:
            given = {}
            if self._key_name is not None and not (key is None and self._has_own_key):
                given = {self._key_name: key}
            apply = bind_call(*self._functions.value)
            result = apply(join_params(self, self._tree), *inputs, **(given | kwargs))
            return result if self._has_state else (result, None)

        if train:
            outputs, state = run_with_key(run, key, train=True, adapter=_NAME, remedy="")
            return outputs, replace(self, state=state)
        evaluate = lambda key: run(key)[0]  # noqa: E731
        remedy = "Give apply a flag such as `train`, and use it."
        return run_with_key(evaluate, None, train=False, adapter=_NAME, remedy=remedy), self

    @property
    def example(self) -> tuple[PyTree, ...]:
        return self._example.inputs

    def unwrap(self) -> Any:
        """Return `params`, or `(params, state)` of a network with state."""
        weights = join_params(self, self._tree)
        return (weights, self.state) if self._has_state else weights
