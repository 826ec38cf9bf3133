"""Flax NNX networks (`flax.nnx.Module`)."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx

from solstice import arguments
from solstice.compat.flags import Flags, call_of, check_train, find_flags, flag_values, parameters
from solstice.compat.leaves import owned_state
from solstice.compat.linen_collections import refuse_special
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
from solstice.tree.overwritten import Overwritten
from solstice.tree.pytree import PyTree, PyTreeDef

_NAME = "NNXModel"
# The type of variable that the bridge makes for the scales of Flax's fp8 layers.
_OVERWRITTEN = "_overwrite_with_gradient"
_Scale = nnx.variable_type_from_name(_OVERWRITTEN, allow_register=True)


class NNXModel(Model):
    """A Flax NNX network.

    `params` (with `frozen`) holds the `nnx.Param`s, and the leaves that a gradient overwrites (the
    scales of bridged fp8 layers), each in a `compat.Overwritten`. `state` holds all other
    variables: `"vars"` batch statistics and the like, `"rngs"` the streams of random numbers.
    Without a key, a training step uses and advances these streams, as the network does; with a key,
    it uses streams made from the key and does not change the stored ones; a call with a parameter
    `rngs` gets `nnx.Rngs(key)`.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from solstice.compat import NNXModel
    >>> model = NNXModel(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    >>> model(jnp.ones((2, 3)))[0].shape
    (2, 4)
    """

    params: PyTree
    frozen: PyTree
    state: dict[str, PyTree]
    _tree: Static[PyTreeDef] = eqx.field(static=True)
    # The graph in training and in evaluation, before a call.
    _graphs: Static[tuple[Any, Any]] = eqx.field(static=True)
    _call: Static[Callable[..., PyTree] | None] = eqx.field(static=True)
    _flags: Flags = eqx.field(static=True)
    _has_cache: bool = eqx.field(static=True)
    _takes_rngs: bool = eqx.field(static=True)

    def __init__(
        self,
        module: nnx.Module,
        *,
        flags: Mapping[str, bool] | None = None,
        call: Callable[..., PyTree] | None = None,
    ) -> None:
        """Copy the values of an initialised module, which does not change.

        Args:
            module: The network.
            flags: Keywords of the call that say whether it trains, with their values in training.
                None finds them among the call's parameters. What `module.train()` and
                `module.eval()` set needs no flag.
            call: Called as `call(module, *inputs, ...)` instead of the module.
        """
        arguments.instance(module, "module", nnx.Module, "a flax.nnx.Module")
        check_call(call)
        copy = nnx.clone(module)
        nnx.pop(copy, nnx.Intermediate)  # an earlier call may have sown
        copy.eval()
        evaluating = nnx.split(copy)[0]
        copy.train()
        training, *parts = nnx.split(copy, nnx.Param, nnx.RngState, _Scale, ...)
        weights, rngs, scales, others = map(nnx.to_pure_dict, parts)
        self._graphs = Static((training, evaluating))
        self._has_cache = bool(jax.tree.leaves(nnx.state(copy, nnx.Cache)))
        self._call = Static(call)
        function = call_of(_NAME, module, call)
        self._takes_rngs = "rngs" in parameters(function)
        # A flag that is None by default is one that train() and eval() set.
        self._flags = find_flags(function, flags, skip_none=True)
        _refuse_special(parts[-1])
        if jax.tree.leaves(scales):
            weights = {**weights, _OVERWRITTEN: jax.tree.map(Overwritten, scales)}
        self._tree = Static(jax.tree.structure(weights))
        self.params, self.frozen = split_params(weights)
        self.state = owned_state({"rngs": rngs, "vars": others})

    def __call__(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        return self._run(inputs, key, train, kwargs, lambda module: contextlib.nullcontext())

    def tagged(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        """Call it with a tag at what each sub-module's `__call__` returns; see `compat.capture`."""
        return self._run(inputs, key, train, kwargs, _tagging)

    def _run(
        self,
        inputs: tuple[PyTree, ...],
        key: Keys,
        train: bool,
        kwargs: dict[str, PyTree],
        around: Callable[[nnx.Module], contextlib.AbstractContextManager[None]],
    ) -> tuple[PyTree, Self]:
        """Call the module within the context `around`."""
        train = check_train(train, _NAME)
        module, kwargs, drawn = self._prepared(key, train, kwargs)
        cached = jax.tree.leaves(nnx.state(module, nnx.Cache)) if self._has_cache else []
        with around(module):
            outputs = bind_call(module, self._call.value)(*inputs, **kwargs)
        if cached:
            _refuse_decoding(cached, jax.tree.leaves(nnx.state(module, nnx.Cache)))
        if not train:
            return outputs, self
        nnx.pop(module, nnx.Intermediate)  # sown values are not kept
        graph, _, rngs, _, others = nnx.split(module, nnx.Param, nnx.RngState, _Scale, ...)
        if graph != self._graphs.value[0]:
            raise InvalidValueError(
                f"{_NAME}: the call changed the module itself (an attribute was set, or a Variable "
                f"was made in it), so the next step would be another program. Make all Variables "
                f"in __init__, and keep what changes in a Variable. Before:\n"
                f"{self._graphs.value[0]}\nAfter:\n{graph}"
            )
        state = {
            "rngs": self.state["rngs"] if drawn else nnx.to_pure_dict(rngs),
            "vars": nnx.to_pure_dict(others),
        }
        return outputs, replace(self, state=state)

    def intermediates(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, name: str, **kwargs: PyTree
    ) -> PyTree:
        """Return what the network sows as `nnx.Intermediate`; see `compat.intermediates`."""
        module, kwargs, _ = self._prepared(key, check_train(train, _NAME), kwargs)
        call = self._call.value

        def forward(module: nnx.Module) -> Any:
            return bind_call(module, call)(*inputs, **kwargs)

        if hasattr(nnx, "capture"):  # without it, newer versions warn
            return nnx.to_pure_dict(nnx.capture(forward, nnx.Intermediate)(module)[1])
        forward(module)
        return nnx.to_pure_dict(nnx.pop(module, nnx.Intermediate))

    def library_name(self, name: str) -> str:
        """Return an array's path in the module's state, as in "layers/0/kernel"."""
        name = re.sub(r"^(params|state/vars|state/rngs)/", "", name)
        scales = name.startswith(f"{_OVERWRITTEN}/")
        return name.removeprefix(f"{_OVERWRITTEN}/").removesuffix("/value") if scales else name

    def unwrap(self) -> nnx.Module:
        """Return a new module with the current values, in training mode."""
        return nnx.clone(self._module(train=True, rngs=self.state["rngs"]))

    def _prepared(
        self, key: Keys, train: bool, kwargs: dict[str, PyTree]
    ) -> tuple[Any, dict[str, Any], bool]:
        """Return the module and the keywords to call it with, and whether it draws from `key`."""
        rngs, flags = self.state["rngs"], dict[str, Any](flag_values(self._flags, train))
        drawn = train and key is not None
        if drawn:
            one = _typed(single_key(key, _NAME))
            rngs = _streams_from(one, rngs)
            if self._takes_rngs:
                flags["rngs"] = nnx.Rngs(one)
        return self._module(train, rngs), flags | kwargs, drawn

    def _module(self, train: bool, rngs: PyTree) -> nnx.Module:
        training, evaluating = self._graphs.value
        graph = training if train else evaluating
        weights = join_params(self, self._tree)
        scales = weights.get(_OVERWRITTEN, {})
        weights = {name: value for name, value in weights.items() if name != _OVERWRITTEN}
        return nnx.merge(graph, weights, rngs, scales, self.state["vars"])


@contextlib.contextmanager
def _tagging(module: nnx.Module) -> Iterator[None]:
    """Replace the classes of all sub-modules while the module is called.

    A subclass, not a wrapper, since Flax's transformations split and merge modules.
    """
    parts = [
        (part, type(part), "/".join(map(str, path)))
        for path, part in nnx.iter_modules(module)
        if path and callable(part)
    ]
    for part, cls, path in parts:
        object.__setattr__(part, "__class__", tagged_class(cls, path))
    try:
        yield
    finally:
        for part, cls, _ in parts:
            object.__setattr__(part, "__class__", cls)


def _refuse_special(variables: PyTree) -> None:
    """Raise for a bridged collection whose name says that it needs special treatment."""
    kinds = {type(one) for one in jax.tree.leaves(variables, is_leaf=_is_variable)}
    for kind in kinds & set(getattr(nnx.variablelib, "VariableTypeCache", {}).values()):
        refuse_special(_NAME, {nnx.variable_name_from_type(kind): None})


def _is_variable(node: object) -> bool:
    return isinstance(node, nnx.Variable)


def _refuse_decoding(before: list[Any], after: list[Any]) -> None:
    """Raise if a call changed a decoding cache, since the change would be lost."""
    if any(new is not old for new, old in zip(after, before, strict=True)):
        raise InvalidValueError(
            f"{_NAME}: the call changed a cache of what was decoded (an nnx.Cache), which a Model "
            f"does not keep: evaluation changes nothing. Make the module with decode=False, or "
            f"module.set_attributes(decode=False), to train it; to decode, use model.unwrap()."
        )


def _typed(key: Any) -> Any:
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if is_typed else jax.random.wrap_key_data(key)


def _streams_from(key: Any, rngs: PyTree) -> PyTree:
    """Return the streams with keys made from `key`, and counts of 0."""
    leaves, structure = jax.tree.flatten(rngs)
    fresh = []
    for i, leaf in enumerate(leaves):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            fresh.append(jnp.zeros_like(leaf))
            continue
        one = jax.random.fold_in(key, i)
        fresh.append(jax.random.split(one, leaf.shape) if leaf.shape else one)
    return jax.tree.unflatten(structure, fresh)
