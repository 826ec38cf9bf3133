"""Stax networks (`jax.example_libraries.stax`): a pair of an init and an apply function."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import equinox as eqx
import jax
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.drawing import run_with_key
from solstice.compat.flags import Flags, accepts, check_train, find_flags, flag_values, has_default
from solstice.compat.model import (
    Example,
    Keys,
    Model,
    as_inputs,
    bind_call,
    check_call,
    join_params,
    random_evaluation,
    single_key,
    split_params,
)
from solstice.errors import InvalidTypeError
from solstice.static import Static
from solstice.tree.dependence import depends_on
from solstice.tree.keys import as_key
from solstice.tree.pytree import PyTree, PyTreeDef

_NAME = "StaxModel"


class StaxModel(Model):
    """A Stax network.

    A Stax layer's mode is fixed when it is built, so a network with dropout is two pairs of
    functions over the same parameters: give the second one's apply function as `eval_apply`.

    >>> import jax, jax.numpy as jnp
    >>> from jax.example_libraries import stax
    >>> from solstice.compat import StaxModel
    >>> def network(mode):
    ...     return stax.serial(stax.Dense(8), stax.Dropout(0.9, mode=mode), stax.Dense(2))
    >>> x = jnp.ones((2, 3))
    >>> model = StaxModel(network("train"), x, key=jax.random.key(0), eval_apply=network("test")[1])
    >>> model(x)[0].shape
    (2, 2)
    """

    params: PyTree
    frozen: PyTree
    state: None
    _tree: Static[PyTreeDef] = eqx.field(static=True)
    _functions: Static[tuple[Callable[..., PyTree], ...]] = eqx.field(static=True)
    _call: Static[Callable[..., PyTree] | None] = eqx.field(static=True)
    _flags: Flags = eqx.field(static=True)
    _example: Example = eqx.field(static=True)
    _random_evaluation: bool = eqx.field(static=True)

    def __init__(
        self,
        network: tuple[Callable[..., PyTree], Callable[..., PyTree]],
        example: PyTree,
        *,
        key: Array | int,
        eval_apply: Callable[..., PyTree] | None = None,
        flags: Mapping[str, bool] | None = None,
        call: Callable[..., PyTree] | None = None,
    ) -> None:
        """Initialise the network as `init(key, example.shape)` does.

        Args:
            network: The pair of functions.
            example: A batch's input, or a `jax.ShapeDtypeStruct`; a tuple is several. The init
                function gets the shape of each array in it.
            key: The key of the initialisation.
            eval_apply: The apply function of evaluation; None uses the pair's apply function.
            flags: The keywords that say whether it trains, with their values in training; None
                finds them among the apply function's parameters.
            call: Called as `call(apply, params, inputs, rng=..., **keywords)` instead of `apply`.
        """
        if not (isinstance(network, tuple) and list(map(callable, network)) == [True, True]):
            raise InvalidTypeError(
                f"network is expected to be a Stax (init, apply) pair; it is {describe(network)}."
            )
        init, apply = network
        if eval_apply is not None:
            arguments.function(eval_apply, "eval_apply", "params, inputs", more=True)
        check_call(call)
        inputs = as_inputs(example)
        self._example = Example(inputs)
        shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), inputs)
        self._functions = Static((apply, eval_apply or apply))
        self._call = Static(call)
        self._flags = find_flags(call or apply, flags)
        _, weights = init(as_key(key), shapes[0] if len(shapes) == 1 else shapes)
        self._tree = Static(jax.tree.structure(weights))
        self.params, self.frozen = split_params(weights)
        self.state = None
        self._random_evaluation = depends_on(self._evaluate, jax.random.key(0), inputs, {})

    def __call__(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        if not check_train(train, _NAME):
            if self._random_evaluation:
                raise random_evaluation(
                    _NAME,
                    "Pass the apply function of the same network in mode 'test': eval_apply=.",
                )
            # Dropout requires a key in evaluation too, and then does not use it.
            return self._evaluate(jax.random.key(0), inputs, kwargs), self
        key = single_key(key, _NAME)

        def run(key: Array | None) -> PyTree:
            return self._forward(key, inputs, kwargs, train=True)

        return run_with_key(run, key, train=True, adapter=_NAME, remedy=""), self

    @property
    def example(self) -> tuple[PyTree, ...]:
        return self._example.inputs

    def unwrap(self) -> PyTree:
        """Return the parameters for the apply function."""
        return join_params(self, self._tree)

    def _evaluate(
        self, key: Array, inputs: tuple[PyTree, ...], kwargs: dict[str, PyTree]
    ) -> PyTree:
        return self._forward(key, inputs, kwargs, train=False)

    def _forward(
        self,
        key: Array | None,
        inputs: tuple[PyTree, ...],
        kwargs: dict[str, PyTree],
        *,
        train: bool,
    ) -> Any:
        train_apply, eval_apply = self._functions.value
        apply = train_apply if train else eval_apply
        kept = key is None and has_default(apply, "rng")
        rng = {"rng": key} if accepts(apply, "rng") and not kept else {}
        joined = inputs[0] if len(inputs) == 1 else inputs
        kwargs = rng | flag_values(self._flags, train) | kwargs
        return bind_call(apply, self._call.value)(join_params(self, self._tree), joined, **kwargs)
