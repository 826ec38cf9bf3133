"""Keras 3 networks on the JAX backend (`keras.Model`, `keras.layers.Layer`)."""

import contextlib
import functools
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
from jaxtyping import Array
from keras.src.backend import get_keras_mask, set_keras_mask

from solstice import arguments
from solstice.compat.flags import Flags, check_train, find_flags, flag_values
from solstice.compat.keras_clone import clone, is_functional
from solstice.compat.model import (
    Keys,
    Model,
    bind_call,
    check_call,
    divide,
    join_params,
    single_key,
)
from solstice.compat.surgery.tags import tagged
from solstice.errors import InvalidValueError
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.overwritten import Overwritten
from solstice.tree.ownership import owned
from solstice.tree.pytree import PyTree, PyTreeDef

_NAME = "KerasModel"


class KerasModel(Model):
    """A built Keras network on the JAX backend.

    Variables are named by their position and name, such as `"00_dense/kernel"`, since Keras
    renumbers names with each network built. `state` holds the batch statistics and the seeds of
    dropout: without a key, a training step uses and advances these seeds, as the network does; with
    a key, it uses seeds made from the key and does not change the stored ones. Weights that Keras
    does not train (`layer.trainable = False`) are `frozen`; those that it overwrites with their
    gradient (float8) are each in a `compat.Overwritten`.

    >>> import jax.numpy as jnp, keras
    >>> from solstice.compat import KerasModel
    >>> network = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4)])
    >>> model = KerasModel(network)
    >>> model(jnp.ones((2, 3)))[0].shape, sorted(model.params)
    ((2, 4), ['00_dense/kernel', '01_dense/bias'])
    """

    params: dict[str, Array | None]
    frozen: dict[str, Array | None] | None
    state: dict[str, Array]
    _tree: Static[PyTreeDef] = eqx.field(static=True)
    _network: Static[Any] = eqx.field(static=True)
    # The network's variables by name, captured now, since the network may be trained elsewhere.
    _variables: Static[dict[str, Any]] = eqx.field(static=True)
    _call: Static[Callable[..., PyTree] | None] = eqx.field(static=True)
    _flags: Flags = eqx.field(static=True)

    def __init__(
        self,
        network: Any,
        *,
        flags: Mapping[str, bool] | None = None,
        call: Callable[..., PyTree] | None = None,
    ) -> None:
        """Copy the values of a built network, which does not change.

        Args:
            network: The network; it has been called or built once.
            flags: The keywords that say whether it trains, with their values in training; None
                is `training`, which every Keras layer takes.
            call: Called as `call(network, *inputs, ...)` instead of the network.
        """
        if keras.backend.backend() != "jax":
            raise InvalidValueError(
                f"{_NAME}: Keras runs on the backend {keras.backend.backend()!r} here, and JAX is "
                f"needed: set the environment variable KERAS_BACKEND=jax before importing keras."
            )
        arguments.instance(network, "network", keras.Layer, "a Keras network or layer")
        check_call(call)
        if not network.built:
            raise InvalidValueError(
                f"{_NAME}: the network {network.name!r} is not built, so it has no variables yet. "
                f"Call it once on a batch, or network.build(shape)."
            )
        if network.losses:
            _warn_of_losses(network)
        constrained = [v.path for v in network.trainable_variables if v.constraint is not None]
        if constrained:
            warnings.warn(
                f"{_NAME}: the network {network.name!r} constrains {constrained[0]!r}, which only "
                f"Keras's own training does after each step. Project the parameters in your own "
                f"your own, or leave the constraint out.",
                stacklevel=2,
            )
        self._network = Static(network)
        self._call = Static(call)
        self._flags = (
            (("training", True),)
            if call is flags is None
            else find_flags(call or network.call, flags)
        )
        variables = _named_variables(network)
        self._variables = Static(variables)
        values = {name: variable.value for name, variable in variables.items()}
        # A weight that Keras does not train is still among its layer's trainable ones.
        weights = {id(v) for layer in _layers(network) for v in layer._trainable_variables}
        constants = {name: values.pop(name) for name, v in variables.items() if id(v) in weights}
        trained = {
            name: variables[name].trainable and jnp.issubdtype(value.dtype, jnp.inexact)
            for name, value in constants.items()
        }
        for name in constants:  # such as the scales of float8 layers
            if getattr(variables[name], "overwrite_with_gradient", False):
                constants[name] = Overwritten(constants[name])
                trained[name] = Overwritten(trained[name])
        self._tree = Static(jax.tree.structure(constants))
        self.params, self.frozen = divide(owned(constants), trained)
        self.state = owned(values)

    def __call__(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        train = check_train(train, _NAME)
        kwargs = flag_values(self._flags, train) | kwargs
        network, variables = self._network.value, self._variables.value
        stored = {name: value for name, value in self.state.items() if _is_seed(name)}
        drawn = train and key is not None
        state = self.state | (_seeds_from(single_key(key, _NAME), stored) if drawn else {})
        values = join_params(self, self._tree) | state
        call = bind_call(network, self._call.value)
        if len(inputs) > 1 and is_functional(network):
            inputs = (list(inputs),)
        # Not network.stateless_call: it skips __call__, which is what passes `training` on.
        pairs = [(variables[name], values[name]) for name in variables]
        with keras.StatelessScope(pairs, collect_losses=True) as scope:
            outputs = call(*inputs, **kwargs)
        if not train:
            return outputs, self
        if scope.losses:
            _warn_of_losses(network)
        state = {name: scope.get_current_value(variables[name]) for name in state}
        return outputs, replace(self, state=state | (stored if drawn else {}))

    def tagged(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        """Call it with a tag at what each layer's `call` returns; see `compat.capture`."""
        with _tagging(self._network.value):
            return self(*inputs, key=key, train=train, **kwargs)

    def library_name(self, name: str) -> str:
        """Return a variable's position and path; sorted, they are in the network's order."""
        return name.removeprefix("params/").removeprefix("state/")

    def unwrap(self) -> Any:
        """Return a new Keras network with the current values.

        Raises:
            TypeError: Keras cannot clone it, or not with its shared layers.
        """
        copy = clone(_NAME, self._network.value)
        values = join_params(self, self._tree) | self.state
        for name, variable in zip(self._variables.value, copy.variables, strict=True):
            variable.assign(values[name])
        return copy


# A network is one object for all threads.
_lock = threading.RLock()


@contextlib.contextmanager
def _tagging(network: Any) -> Iterator[None]:
    """Put functions in the way of what the layers call, for as long as the network is called."""
    with _lock:
        changed = [
            (layer, name, path)
            for path, layer in _inner_layers(network).items()
            for name in ("call", "quantized_call")
            if name not in vars(layer)
        ]
        for layer, name, path in changed:
            # Not setattr, with which Keras looks for layers and variables.
            vars(layer)[name] = _tagged_call(path, getattr(layer, name))
        try:
            yield
        finally:
            for layer, name, _ in changed:
                del vars(layer)[name]


def _tagged_call(path: str, call: Callable[..., PyTree]) -> Callable[..., PyTree]:
    @functools.wraps(call)
    def tagged_call(*args: PyTree, **kwargs: PyTree) -> PyTree:
        outputs = call(*args, **kwargs)
        new = tagged(path, outputs)
        for before, after in zip(jax.tree.leaves(outputs), jax.tree.leaves(new), strict=True):
            mask = get_keras_mask(before)
            if mask is not None and after is not before:
                set_keras_mask(after, mask)
        return new

    return tagged_call


def _inner_layers(layer: Any, path: str = "", seen: set[int] | None = None) -> dict[str, Any]:
    """Return the layers of a network by their paths, each once.

    Of a name that Keras gave, the number is that in its parent: Keras counts all that it ever made.
    """
    found: dict[str, Any] = {}
    seen = {id(layer)} if seen is None else seen
    counts: dict[str, int] = {}
    for inner in layer._layers:
        name = re.sub(r"_\d+$", "", inner.name)
        if name.replace("_", "") != type(inner).__name__.lower():
            name = inner.name
        count = counts[name] = counts.get(name, -1) + 1
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        own = f"{path}{name}_{count}" if count else f"{path}{name}"
        found |= {own: inner} | _inner_layers(inner, f"{own}/", seen)
    return found


def _warn_of_losses(network: Any) -> None:
    warnings.warn(
        f"{_NAME}: the network {network.name!r} adds its own losses (regularizers, add_loss), "
        f"which a Model does not report. Use weight decay in the optimizer, or return them with "
        f"the outputs.",
        stacklevel=3,
    )


def _named_variables(network: Any) -> dict[str, PyTree]:
    own = {_snake_case(type(layer).__name__) for layer in _layers(network)} | {"seed_generator"}

    def given(part: str) -> str:
        base = re.sub(r"_\d+$", "", part)
        return base if base in own else part

    variables = network.variables
    width = max(2, len(str(len(variables))))
    named = {}
    for i, variable in enumerate(variables):
        parts = variable.path.split("/")
        inner = parts[1:] if len(parts) > 2 else parts  # without the network's name
        named[f"{i:0{width}}_{'/'.join(map(given, inner))}"] = variable
    return named


def _layers(network: Any) -> list[Any]:
    return list(network._flatten_layers())


def _snake_case(name: str) -> str:
    # As Keras names layers by their classes: Conv2D is "conv2d".
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", name).lower()


def _is_seed(name: str) -> bool:
    return name.endswith("seed_generator_state")


def _seeds_from(key: Array | None, seeds: dict[str, Array]) -> dict[str, Array]:
    """Return a fresh seed for each generator, made from `key`."""
    if key is None:
        return {}
    return {
        name: jax.random.bits(jax.random.fold_in(key, i), seed.shape, seed.dtype)
        for i, (name, seed) in enumerate(seeds.items())
    }
