"""Flax Linen networks (`flax.linen.Module`)."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import equinox as eqx
import flax.core
import flax.errors
import flax.linen as nn
import jax
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.drawing import run_with_any_key
from solstice.compat.flags import Flags, call_of, check_train, find_flags, flag_values
from solstice.compat.leaves import owned_state
from solstice.compat.linen_collections import (
    persistent,
    refuse_special,
    take_weights,
    variables_of,
)
from solstice.compat.model import (
    Example,
    Keys,
    Model,
    as_inputs,
    check_call,
    check_key,
    join_params,
    missing_key,
    split_params,
)
from solstice.compat.surgery.tags import tag_calls
from solstice.errors import InvalidValueError
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.keys import as_key
from solstice.tree.pytree import PyTree, PyTreeDef

_NAME = "FlaxModel"


class FlaxModel(Model):
    """A Flax Linen network.

    `params` (with `frozen`) is the collection "params"; `state` holds the other collections that a
    training step updates in place. Collections that grow with each call (sown values) and
    perturbations are dropped. Leaves that a gradient overwrites (the scales of Flax's fp8 layers)
    are in `params`, each in a `compat.Overwritten`, under the collection's name.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from solstice.compat import FlaxModel
    >>> x = jnp.ones((2, 3))
    >>> model = FlaxModel(nn.Dense(4), x, key=jax.random.key(0))
    >>> model(x)[0].shape
    (2, 4)
    """

    params: PyTree
    frozen: PyTree
    state: dict[str, PyTree]
    _tree: Static[PyTreeDef] = eqx.field(static=True)
    _module: Static[nn.Module] = eqx.field(static=True)
    _method: Static[Any] = eqx.field(static=True)
    _flags: Flags = eqx.field(static=True)
    _example: Example = eqx.field(static=True)
    _streams: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        module: nn.Module,
        example: PyTree,
        *,
        key: Keys | int = None,
        variables: Mapping[str, PyTree] | None = None,
        streams: tuple[str, ...] = ("dropout",),
        flags: Mapping[str, bool] | None = None,
        call: Callable[..., PyTree] | str | None = None,
    ) -> None:
        """Initialise the network as `module.init(key, example)` does.

        Args:
            module: The network.
            example: A batch's inputs, or their `jax.ShapeDtypeStruct`s; a tuple is several inputs.
            key: The key of the initialisation, or a mapping of keys by stream; not needed with
                `variables`.
            variables: Values to start from instead of an initialisation.
            streams: The random streams the network draws from. One key serves all: the first stream
                gets the key itself, the others keys folded from it.
            flags: The keywords that say whether it trains, with their values in training; None
                finds them among the call's parameters.
            call: A method's name, or a function of (module, *inputs), to call instead of
                `module.__call__`; `model(*inputs, method=...)` calls another one.
        """
        arguments.instance(module, "module", nn.Module, "a flax.linen.Module")
        if variables is None and key is None:
            raise InvalidValueError(
                f"{_NAME}: key is None: pass a seed or a key to initialise the network, or "
                f"variables=."
            )
        if isinstance(call, str):
            arguments.choice(call, "call", _methods(module))
        else:
            check_call(call)
        inputs = as_inputs(example)
        self._example = Example(inputs)
        self._module = Static(module)
        self._method = Static(call)
        function = self._function(call)
        self._flags = find_flags(function, flags)
        self._streams = tuple(arguments.texts(streams, "streams"))
        if variables is None:
            off = flag_values(self._flags, train=False)
            rngs = self._rngs(key) if isinstance(key, Mapping) else as_key(key)
            given, off = _by_position(function, inputs, off)
            try:
                variables = module.init(rngs, *given, method=call, **off)
            except flax.errors.InvalidRngError as error:
                raise InvalidValueError(
                    f"{_NAME}: key is expected to be one key, or a mapping of one for each stream "
                    f"of the initialisation, 'params' among them; it is {describe(key)}."
                ) from error
        else:
            self._check_variables(variables, inputs)
        collections = dict(flax.core.unfreeze(variables))  # pyright: ignore[reportArgumentType]
        weights = take_weights(collections)
        refuse_special(_NAME, collections)
        self._tree = Static(jax.tree.structure(weights))
        self.params, self.frozen = split_params(weights)
        self.state = collections = owned_state(collections)
        if "cache" in collections:
            self._refuse_decoding(inputs)
        self.state = self._persistent(collections, inputs)

    def __call__(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        train = check_train(train, _NAME)
        # A list, even an empty one, makes apply return the changed collections too.
        outputs, state = self._apply(inputs, key, train, kwargs, list(self.state) if train else [])
        return outputs, replace(self, state=state) if train else self

    def intermediates(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, name: str, **kwargs: PyTree
    ) -> PyTree:
        """Return what the network sows into a collection; see `compat.intermediates`."""
        mutable = [name, *self.state] if check_train(train, _NAME) else [name]
        return self._apply(inputs, key, train, kwargs, mutable)[1].get(name, {})

    def tagged(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        """Call it with a tag at what each sub-module's `__call__` returns; see `compat.capture`."""
        with nn.intercept_methods(tag_calls(lambda module: "/".join(module.path))):
            return self(*inputs, key=key, train=train, **kwargs)

    @property
    def example(self) -> tuple[PyTree, ...]:
        return self._example.inputs

    def library_name(self, name: str) -> str:
        """Return an array's path among the variables, as in "batch_stats/BatchNorm_0/mean"."""
        name = name.removeprefix("state/")
        scales = f"params/{OVERWRITE_WITH_GRADIENT}/"
        return (
            name.removeprefix("params/").removesuffix("/value") if name.startswith(scales) else name
        )

    def unwrap(self) -> dict[str, PyTree]:
        """Return the variables, as `module.apply` takes them."""
        return variables_of(join_params(self, self._tree), self.state)

    def _apply(
        self,
        inputs: tuple[PyTree, ...],
        key: Keys,
        train: bool,
        kwargs: dict[str, PyTree],
        mutable: list[str],
    ) -> tuple[PyTree, PyTree]:
        """Return the outputs, and the collections named in `mutable` after the call."""
        method, flags = kwargs.pop("method", None), self._flags
        if method is None:
            method = self._method.value
        else:  # which has its own flags
            flags = find_flags(self._function(method), None)
        kwargs = flag_values(flags, train) | kwargs
        inputs, kwargs = _by_position(self._function(method), inputs, kwargs)

        def run(key: Keys) -> Any:
            variables, rngs = self.unwrap(), self._rngs(key)
            return self._module.value.apply(
                variables, *inputs, rngs=rngs, method=method, mutable=mutable, **kwargs
            )

        try:
            return run(key if train else None)
        except flax.errors.ModifyScopeVariableError as error:
            raise InvalidValueError(
                f"{_NAME}: a call is expected to change only state, in training; with "
                f"train={train}, this network changes another variable: {error} If it has a train "
                f"flag that was not recognised, name it: flags={{'my_flag': True}}."
            ) from error
        except flax.errors.InvalidRngError as error:
            if train:
                wanted = re.search(r'PRNG for "(.+?)"', str(error))
                raise missing_key(_NAME, wanted[1] if wanted else self._streams[0]) from error
            remedy = (
                "If it has a train flag that was not recognised, name it: flags={'my_flag': True}."
            )
            return run_with_any_key(run, error, _NAME, remedy)

    def _function(self, method: Any) -> Callable[..., PyTree]:
        module = self._module.value
        if isinstance(method, str):
            return getattr(type(module), method)
        return call_of(_NAME, module, method)

    def _rngs(self, key: Keys) -> dict[str, Array]:
        if isinstance(key, Mapping):
            return {name: check_key(one, _NAME) for name, one in key.items()}  # pyright: ignore[reportReturnType]
        if check_key(key, _NAME) is None:
            return {}
        # Never rngs=key, which gives all streams the same key. The network's other streams fall
        # back to "params", so that stream must be given too.
        names = (*self._streams, "params")
        return {name: jax.random.fold_in(key, i) if i else key for i, name in enumerate(names)}  # pyright: ignore[reportReturnType,reportArgumentType]

    def _check_variables(self, variables: PyTree, inputs: tuple[PyTree, ...]) -> None:
        """Raise if the given variables are not the network's."""
        arguments.check_leaves(arguments.mapping(variables, "variables"), "variables")
        function, off = self._function(self._method.value), flag_values(self._flags, train=False)
        given, off = _by_position(function, inputs, off)
        options: dict[str, Any] = {
            "rngs": self._rngs(jax.random.key(0)),
            "method": self._method.value,
            "mutable": flax.core.DenyList("params"),
        }
        try:
            jax.eval_shape(
                lambda tree: self._module.value.apply(tree, *given, **options, **off), variables
            )
        except (
            flax.errors.ScopeCollectionNotFound,
            flax.errors.ScopeParamNotFoundError,
            flax.errors.ScopeParamShapeError,
            flax.errors.ScopeVariableNotFoundError,
        ) as error:
            raise InvalidValueError(
                f"{_NAME}: variables are expected to be those of the network; they are "
                f"{describe(variables)}: {error}"
            ) from error

    def _persistent(
        self, collections: dict[str, PyTree], inputs: tuple[PyTree, ...]
    ) -> dict[str, PyTree]:
        """Keep the collections whose structure a training step does not change."""
        # Zeros of the shape of the example's activations, for derivatives.
        collections.pop("perturbations", None)
        if not collections:
            return {}

        def step(collections: dict[str, PyTree], inputs: tuple[PyTree, ...]) -> PyTree:
            on = flag_values(self._flags, train=True)
            given, on = _by_position(self._function(self._method.value), inputs, on)
            return self._module.value.apply(
                variables_of(join_params(self, self._tree), collections),
                *given,
                rngs=self._rngs(jax.random.key(0)),
                method=self._method.value,
                mutable=list(collections),
                **on,
            )[1]

        arguments.check_leaves(collections, f"{_NAME}: a collection of the network")
        before = jax.eval_shape(lambda tree: tree, collections)
        after = jax.eval_shape(step, collections, inputs)
        return persistent(_NAME, collections, before, after)

    def _refuse_decoding(self, inputs: tuple[PyTree, ...]) -> None:
        """Raise for a cache of decoding, which each call changes, also in evaluation."""
        try:
            jax.eval_shape(lambda: self(*inputs)[0])
        except ValueError as error:  # Flax's error for inputs that are not one position long
            raise InvalidValueError(
                f"{_NAME}: the network keeps a cache of what it has decoded (the collection "
                f"'cache'), which evaluation would have to change, and evaluation changes nothing. "
                f"Make it with decode=False to train it; to decode, use the module itself, on "
                f"model.unwrap()."
            ) from error


def _methods(module: nn.Module) -> list[str]:
    own = [name for name in dir(type(module)) if not hasattr(nn.Module, name)]
    return ["__call__", *(name for name in own if callable(getattr(type(module), name)))]


def _by_position(
    function: Callable[..., PyTree], inputs: tuple[PyTree, ...], kwargs: dict[str, PyTree]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments, by position where possible: `nn.remat` traces all keywords."""
    try:
        bound = inspect.signature(function).bind(None, *inputs, **kwargs)
    except TypeError:  # the call's own error says more
        return inputs, kwargs
    return bound.args[1:], bound.kwargs
