"""Equinox networks (`equinox.Module`), which are written for one example."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.drawing import run_with_key, runs
from solstice.compat.flags import (
    Flags,
    binds,
    call_of,
    check_train,
    find_flags,
    flag_values,
    has_default,
    parameters,
    takes_more,
)
from solstice.compat.leaves import owned_state
from solstice.compat.model import (
    Keys,
    Model,
    bind_call,
    check_call,
    join_params,
    single_key,
    split_params,
)
from solstice.compat.surgery.tags import tagged_class
from solstice.errors import InvalidValueError
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.names import path_name
from solstice.tree.naming import leaves_by_path
from solstice.tree.overwritten import is_box
from solstice.tree.pytree import PyTree, PyTreeDef

_NAME = "EquinoxModel"


class EquinoxModel(Model):
    """An Equinox network, applied to each example of a batch.

    The call is `jax.vmap`ped over inputs (and array keywords) with the axis name of the network's
    batch norm; each example gets its own key, and a state is shared by all examples. The train flag
    sets `inference` in the whole network. `params` (with `frozen`) holds the module's arrays by
    path, which jax flattens faster than modules.

    >>> import equinox as eqx, jax, jax.numpy as jnp
    >>> from solstice.compat import EquinoxModel
    >>> model = EquinoxModel(eqx.nn.MLP(3, 4, 8, 1, key=jax.random.key(0)))
    >>> model(jnp.ones((2, 3)))[0].shape
    (2, 4)
    """

    params: OrderedDict[str, Array | None]
    frozen: OrderedDict[str, Array | None] | None
    state: eqx.nn.State | None
    _tree: Static[PyTreeDef] = eqx.field(static=True)
    # Everything but the arrays, in training and in evaluation, since `inference` flags differ.
    _rest: Static[tuple[PyTree, PyTree, PyTree]] = eqx.field(static=True)
    _call: Static[Callable[..., PyTree] | None] = eqx.field(static=True)
    _flags: Flags = eqx.field(static=True)
    _takes_key: bool = eqx.field(static=True)
    # Whether its `key` has a default, which is kept if no key is given.
    _has_own_key: bool = eqx.field(static=True)
    # Whether it takes arbitrary keywords, and so perhaps a key for an inner layer.
    _passes_key_on: bool = eqx.field(static=True)
    _state_by_name: bool = eqx.field(static=True)
    _axis_name: str = eqx.field(static=True)

    def __init__(
        self,
        module: Callable[..., PyTree],
        state: eqx.nn.State | None = None,
        *,
        flags: Mapping[str, bool] | None = None,
        call: Callable[..., PyTree] | None = None,
    ) -> None:
        """Copy the values of an initialised module.

        Args:
            module: The network, with the key (where it takes one) as its argument `key` and the
                state as its argument `state`, or the first one after the inputs; a call with
                neither does not change the state. A default of `key` is kept if no key is given.
            state: The state that `eqx.nn.make_with_state` returned with it.
            flags: Keywords of the call that say whether it trains, with their values in training.
                None finds them among the call's parameters.
            call: Called as `call(module, *inputs, ...)` instead of the mapped module, with whole
                batches, a `key` if it has such an argument, and the state if it takes one more
                argument.
        """
        arguments.instance(module, "module", eqx.Module, "an equinox.Module")
        if state is not None:
            what = "what eqx.nn.make_with_state returns with the module, or None"
            arguments.instance(state, "state", eqx.nn.State, what)
        check_call(call)
        if state is None and _has_initial_state(module):
            state = eqx.nn.State(module)
            module = eqx.nn.delete_init_state(module)
        if state is None and any(map(_is_index, jax.tree.leaves(module, is_leaf=_is_index))):
            raise InvalidValueError(
                f"{_NAME}: the network keeps state. Pass both parts of "
                f"`module, state = eqx.nn.make_with_state(Network)(...)`: "
                f"EquinoxModel(module, state)."
            )
        function = call_of(_NAME, module, call)
        names = parameters(function)
        if not jax.tree.leaves(state) and "state" not in names:
            state = None  # make_with_state of a network without state
        self._call = Static(call)
        self._passes_key_on = "key" not in names and takes_more(function)
        self._takes_key = "key" in names or self._passes_key_on
        self._has_own_key = has_default(function, "key") or self._passes_key_on
        self._state_by_name = "state" in names
        # A flag that is None by default is one that inference_mode() sets in the tree.
        self._flags = find_flags(function, flags, skip_none=True)
        self._axis_name = _axis_name(module)
        arrays, training = eqx.partition(eqx.nn.inference_mode(module, False), eqx.is_array)
        evaluating = eqx.filter(eqx.nn.inference_mode(module, True), eqx.is_array, inverse=True)
        # Ordered, so that the leaves keep the module's order: jax sorts the keys of a plain dict.
        weights = OrderedDict(leaves_by_path(arrays))
        for path, node in jax.tree_util.tree_leaves_with_path(arrays, is_leaf=is_box):
            if is_box(node) and (name := f"{path_name(path)}/value") in weights:
                weights[name] = node
        self._rest = Static((jax.tree.structure(arrays), training, evaluating))
        self._tree = Static(jax.tree.structure(weights))
        self.params, self.frozen = split_params(weights)
        self.state = owned_state(state)

    def __call__(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        return self._run(self._module(check_train(train, _NAME)), inputs, key, train, kwargs)

    def tagged(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        """Call it with a tag at what each sub-module's `__call__` returns; see `compat.capture`."""
        module = _with_tags(self._module(check_train(train, _NAME)))
        return self._run(module, inputs, key, train, kwargs)

    def _run(
        self,
        module: Any,
        inputs: tuple[PyTree, ...],
        key: Keys,
        train: bool,
        kwargs: dict[str, PyTree],
    ) -> tuple[PyTree, Self]:
        key = single_key(key, _NAME) if train else None
        kwargs = flag_values(self._flags, train) | kwargs

        def run(key: Array | None) -> tuple[PyTree, PyTree]:
            # A State can be used only once, and this model's must stay valid.
            state = jax.tree.map(lambda leaf: leaf, self.state)
            if self._call.value is None:
                return self._mapped(module, inputs, state, key, kwargs)
            return self._one(bind_call(module, self._call.value), inputs, state, key, kwargs)

        if key is not None and self._passes_key_on and not runs(run, key):
            key = None  # nothing inside takes it
        if train:
            outputs, state = run_with_key(run, key, train=True, adapter=_NAME, remedy="")
            return outputs, replace(self, state=state)
        evaluate = lambda key: run(key)[0]  # noqa: E731
        remedy = "Use `inference`, or give flags= that say how it evaluates."
        return run_with_key(evaluate, None, train=False, adapter=_NAME, remedy=remedy), self

    def settle_averages(self) -> Self:
        """Return the model as if each batch norm had already counted many steps.

        Evaluation divides moments by `1 - momentum ** counter`; here, the division becomes
        permanent.
        """
        module, state = self._module(train=False), jax.tree.map(lambda leaf: leaf, self.state)
        for norm in filter(_is_norm, jax.tree.leaves(module, is_leaf=_is_norm)):
            if norm.batch_counter is not None:
                count, moments = state.get(norm.batch_counter), state.get(norm.batch_state_index)
                part = _corrected(count, norm.momentum)
                part = part.reshape(part.shape + (1,) * (moments[0].ndim - part.ndim))
                # Broadcast first: XLA may turn a division by a broadcast value into a product.
                part = jnp.broadcast_to(part, moments[0].shape)
                moments = tuple((one / part).astype(one.dtype) for one in moments)
                state = state.set(norm.batch_state_index, moments)
                state = state.set(norm.batch_counter, jnp.full_like(count, 10**8))
            if norm.ema_first_time_index is not None:
                first = state.get(norm.ema_first_time_index)
                state = state.set(norm.ema_first_time_index, jnp.zeros_like(first))
        return replace(self, state=state)

    def library_name(self, name: str) -> str:
        """Return an array's path in the module, as in "layers/0/weight"; of the state, its own."""
        return name.removeprefix("params/")

    def unwrap(self) -> Any:
        """Return the module, or `(module, state)` of a network with state, in training mode."""
        module = self._module(train=True)
        return module if self.state is None else (module, jax.tree.map(lambda a: a, self.state))

    def _module(self, train: bool) -> Any:
        structure, training, evaluating = self._rest.value
        arrays = jax.tree.unflatten(structure, join_params(self, self._tree).values())
        return eqx.combine(arrays, training if train else evaluating)

    def _mapped(
        self,
        module: Any,
        inputs: tuple[PyTree, ...],
        state: PyTree,
        key: Array | None,
        kwargs: dict[str, PyTree],
    ) -> tuple[PyTree, PyTree]:
        # Array keywords are mapped over the examples; flags and names are shared.
        arrays, constants = eqx.partition(kwargs, eqx.is_array)
        keys = key
        if key is not None and self._takes_key:
            keys = jax.random.split(key, _batch_size(inputs))
        mapped = jax.vmap(
            lambda inputs, state, key, arrays: self._one(
                module, inputs, state, key, eqx.combine(arrays, constants)
            ),
            in_axes=(0, None, 0 if self._takes_key else None, 0),
            out_axes=(0, None),
            axis_name=self._axis_name,
        )
        try:
            return mapped(inputs, state, keys, arrays)
        except (AssertionError, AttributeError, IndexError, TypeError, ValueError) as error:
            whole = functools.partial(self._one, module, kwargs=kwargs)
            if not runs(whole, inputs, state, key):
                raise
            given, name = ", ".join(map(describe, inputs)), type(module).__name__
            raise InvalidValueError(
                f"{_NAME}: the module is expected to take one example, and is mapped over the "
                f"first axis of its inputs, {given}. That raised {type(error).__name__}: "
                f"{str(error).partition(chr(10))[0]} It runs on these inputs unmapped, though. "
                f"If {name} takes whole batches, pass call: {_NAME}(module, call=lambda module, x: "
                f"module(x)); if they are one example, give them a batch axis: x[None]."
            ) from error

    def _one(
        self,
        call: Any,
        inputs: tuple[PyTree, ...],
        state: PyTree,
        key: Any,
        kwargs: dict[str, PyTree],
    ) -> tuple[PyTree, PyTree]:
        if self._takes_key and not (key is None and self._has_own_key):
            kwargs = {"key": key} | kwargs
        if state is None or not self._has_room_for_state(inputs, kwargs):
            return call(*inputs, **kwargs), state
        if self._state_by_name:
            return call(*inputs, state=state, **kwargs)
        return call(*inputs, state, **kwargs)

    def _has_room_for_state(self, inputs: tuple[PyTree, ...], kwargs: dict[str, PyTree]) -> bool:
        """Return whether the call takes the state: a cache may belong to another method."""
        module = self._rest.value[1]
        function = call_of(_NAME, module, self._call.value)
        return self._state_by_name or binds(function, module, *inputs, self.state, **kwargs)


@functools.partial(jax.jit, static_argnums=1)
def _corrected(count: Array, momentum: float) -> Array:
    """Return what evaluation divides moments by; compiled as there, or its power rounds otherwise.

    In an ensemble, there is a count for each member.
    """
    return jnp.where(count == 0, 1, 1 - momentum**count)


def _is_norm(node: object) -> bool:
    return isinstance(node, eqx.nn.BatchNorm)


def _with_tags(node: PyTree, path: tuple[str, ...] = ()) -> PyTree:
    """Return a module whose sub-modules are of classes that tag what they return.

    It is rebuilt field by field, not as a tree, because modules in static fields count too.
    """
    if isinstance(node, eqx.Module) and not isinstance(node, type):
        tags = path and callable(node)
        cls = tagged_class(type(node), "/".join(path)) if tags else type(node)
        new = object.__new__(cls)
        for name, value in vars(node).items():
            object.__setattr__(new, name, _with_tags(value, (*path, name)))
        return new
    if type(node) is dict:  # whose order jax would not keep
        return {name: _with_tags(one, (*path, str(name))) for name, one in node.items()}
    children, structure = jax.tree_util.tree_flatten_with_path(node, lambda one: one is not node)
    return jax.tree.unflatten(
        structure,
        [one if one is node else _with_tags(one, (*path, path_name(at))) for at, one in children],
    )


def _is_index(node: object) -> bool:
    return isinstance(node, eqx.nn.StateIndex)


def _has_initial_state(module: Any) -> bool:
    indices = filter(_is_index, jax.tree.leaves(module, is_leaf=_is_index))
    return any(jax.tree.leaves(index.init) for index in indices)


def _axis_name(module: Any) -> str:
    """The axis that the network's batch norm averages over; "batch" if there is none."""

    def is_norm(node: object) -> bool:
        return isinstance(getattr(node, "axis_name", None), str)

    norms = filter(is_norm, jax.tree.leaves(module, is_leaf=is_norm))
    names = sorted({norm.axis_name for norm in norms})
    if len(names) > 1:
        raise InvalidValueError(
            f"{_NAME}: the network's layers average over the axes {', '.join(map(repr, names))}; "
            f"one batch axis is expected. Give them one axis_name, or pass call=."
        )
    return names[0] if names else "batch"


def _batch_size(inputs: tuple[PyTree, ...]) -> int:
    arrays = [leaf for leaf in jax.tree.leaves(inputs) if getattr(leaf, "ndim", 0)]
    if not arrays:
        raise InvalidValueError(
            f"{_NAME}: inputs are expected to have a leading batch axis; they are "
            f"{describe(inputs)}."
        )
    return arrays[0].shape[0]
