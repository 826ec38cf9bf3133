"""Haiku networks (`hk.transform`, `hk.multi_transform`, and both with state)."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array

from solstice.arguments import describe
from solstice.compat.flags import Flags, check_train, find_flags, flag_values, parameters
from solstice.compat.leaves import owned_state
from solstice.compat.model import (
    Example,
    Keys,
    Model,
    as_inputs,
    bind_call,
    check_call,
    join_params,
    missing_key,
    random_evaluation,
    single_key,
    split_params,
)
from solstice.compat.surgery.tags import tag_calls
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.static import Static
from solstice.tree.dependence import depends_on
from solstice.tree.fields import replace
from solstice.tree.keys import as_key
from solstice.tree.pytree import PyTree, PyTreeDef

_NAME = "HaikuModel"


class HaikuModel(Model):
    """A transformed Haiku function, or several of `hk.multi_transform`, with or without state.

    >>> import haiku as hk, jax, jax.numpy as jnp
    >>> from solstice.compat import HaikuModel
    >>> x = jnp.ones((2, 3))
    >>> model = HaikuModel(hk.transform(lambda x: hk.Linear(4)(x)), x, key=jax.random.key(0))
    >>> model(x)[0].shape
    (2, 4)

    With several functions, `call` chooses one:

    >>> def autoencoder():
    ...     encode, decode = hk.Linear(2), hk.Linear(3)
    ...     return lambda x: decode(encode(x)), {"encode": encode, "decode": decode}
    >>> def choose(apply, *arguments, name="encode"):
    ...     return apply[name](*arguments)
    >>> model = HaikuModel(hk.multi_transform(autoencoder), x, key=0, call=choose)
    >>> codes, _ = model(x)
    >>> codes.shape, model(codes, name="decode")[0].shape
    ((2, 2), (2, 3))
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
    _takes_key: bool = eqx.field(static=True)
    _random_evaluation: bool = eqx.field(static=True)

    def __init__(
        self,
        transformed: hk.Transformed
        | hk.TransformedWithState
        | hk.MultiTransformed
        | hk.MultiTransformedWithState,
        example: PyTree,
        *,
        key: Array | int,
        flags: Mapping[str, bool] | None = None,
        call: Callable[..., PyTree] | None = None,
    ) -> None:
        """Initialise the network as `transformed.init(key, example)` does.

        Args:
            transformed: The network.
            example: A batch's inputs, or their `jax.ShapeDtypeStruct`s; a tuple is several inputs.
            key: The key of the initialisation.
            flags: The keywords that say whether it trains, with their values in training; None
                finds them among the function's parameters.
            call: Called as `call(function, *arguments, **keywords)` instead of
                `function(*arguments, **keywords)`, both for `transformed.init` and `.apply`. For a
                multi-transformed network, it gets the tree of apply functions, to choose one;
                `transformed.init` is then called with only the example.

        Raises:
            ValueError: A multi-transformed network is given without `call`.
        """
        kinds = (
            hk.Transformed,
            hk.TransformedWithState,
            hk.MultiTransformed,
            hk.MultiTransformedWithState,
        )
        if not isinstance(transformed, kinds):
            raise InvalidTypeError(
                f"transformed is expected to be the result of hk.transform or one of its variants; "
                f"it is {describe(transformed)}."
            )
        check_call(call)
        inputs = as_inputs(example)
        self._example = Example(inputs)
        several = isinstance(transformed, hk.MultiTransformed | hk.MultiTransformedWithState)
        if several and call is None:
            raise InvalidValueError(
                f"{_NAME}: this network has several apply functions, {transformed.apply}. Choose "
                f"one: HaikuModel(..., call=lambda apply, *arguments: apply[0](*arguments))."
            )
        self._has_state = isinstance(
            transformed, hk.TransformedWithState | hk.MultiTransformedWithState
        )
        self._takes_key = "rng" in parameters(jax.tree.leaves(transformed.apply)[0])
        self._flags = find_flags(call or transformed.apply, flags)
        self._functions = Static((transformed.apply, call))
        if several:
            initial = transformed.init(as_key(key), *inputs)
        else:  # batch norm creates its statistics only in training
            on = flag_values(self._flags, train=True)
            initial = bind_call(transformed.init, call)(as_key(key), *inputs, **on)
        weights, state = initial if self._has_state else (initial, {})
        self._tree = Static(jax.tree.structure(weights))
        self.params, self.frozen = split_params(weights)
        self.state = owned_state(state)
        self._random_evaluation = depends_on(
            lambda key, inputs: self._forward(key, inputs, flag_values(self._flags, train=False))[
                0
            ],
            jax.random.key(0),
            inputs,
        )

    def __call__(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        train = check_train(train, _NAME)
        kwargs = flag_values(self._flags, train) | kwargs
        if not train:
            if self._random_evaluation:
                raise random_evaluation(
                    _NAME, "Give its function an argument `is_training` and use it."
                )
            # Some networks require a key and do not use it, so any key works.
            return self._forward(jax.random.key(0), inputs, kwargs)[0], self
        key = single_key(key, _NAME)
        try:
            outputs, state = self._forward(key, inputs, kwargs)
        except ValueError as error:
            if key is None and "PRNGKey" in str(error):
                raise missing_key(_NAME) from error
            raise
        return outputs, replace(self, state=state)

    def intermediates(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, name: str, **kwargs: PyTree
    ) -> PyTree:
        """Return the states whose names begin with `name`; see `compat.intermediates`."""
        kwargs = flag_values(self._flags, train) | kwargs
        key = single_key(key, _NAME) if train else jax.random.key(0)
        _, state = self._forward(key, inputs, kwargs)
        return {
            module: {one: value for one, value in states.items() if one.startswith(name)}
            for module, states in state.items()
        }

    def settle_averages(self) -> Self:
        """Return the model as if each moving average had counted many steps: `hidden` at `average`.

        Each training step divides Haiku's `hidden` by `1 - decay ** counter`.
        """
        settled = {
            module: one
            | {"hidden": one["average"], "counter": jnp.full_like(one["counter"], 10**8)}
            if one.keys() == {"average", "counter", "hidden"}
            else one
            for module, one in self.state.items()
        }
        return replace(self, state=settled)

    def tagged(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        """Call it with a tag at what each sub-module's `__call__` returns; see `compat.capture`."""
        with hk.intercept_methods(tag_calls(lambda module: module.module_name)):
            return self(*inputs, key=key, train=train, **kwargs)

    @property
    def example(self) -> tuple[PyTree, ...]:
        return self._example.inputs

    def unwrap(self) -> Any:
        """Return `params`, or `(params, state)` of a network with state, as `apply` takes them."""
        weights = join_params(self, self._tree)
        return (weights, self.state) if self._has_state else weights

    def _forward(
        self, key: Array | None, inputs: tuple[PyTree, ...], kwargs: dict[str, PyTree]
    ) -> tuple[PyTree, PyTree]:
        state = (self.state,) if self._has_state else ()
        rng = (key,) if self._takes_key else ()
        apply = bind_call(*self._functions.value)
        result = apply(join_params(self, self._tree), *state, *rng, *inputs, **kwargs)
        return result if self._has_state else (result, self.state)
