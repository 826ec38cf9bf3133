"""Flax NNX networks (`flax.nnx.Module`)."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from solstice.compat.flags import Flags, check_train, find_flags, flag_values
from solstice.compat.model import Keys, Model, bind_call, join_params, single_key, split_params
from solstice.errors import InvalidValueError
from solstice.static import Static
from solstice.tree import owned, replace

_NAME = "NNXModel"


class NNXModel(Model):
    """A Flax NNX network.

    `params` (with `frozen`) holds the `nnx.Param`s, `state` all other variables: `"vars"` batch
    statistics and the like, `"rngs"` the streams of random numbers. Without a key, a training step
    draws from these streams and advances them, as the network itself does; with a key, it draws
    from streams made of that key and leaves the stored ones alone.

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
    _tree: Static[Any] = eqx.field(static=True)
    # The graph in training and in evaluation, as it is before a call.
    _graphs: Static[tuple[Any, Any]] = eqx.field(static=True)
    _call: Static[Callable[..., Any] | None] = eqx.field(static=True)
    _flags: Flags = eqx.field(static=True)

    def __init__(
        self,
        module: nnx.Module,
        *,
        flags: Mapping[str, bool] | None = None,
        call: Callable[..., Any] | None = None,
    ) -> None:
        """Take the values over from an initialised module, which stays as it is.

        Args:
            module: The network.
            flags: Keywords of the call that say whether it trains, with their values in training.
                None finds them among the call's parameters. What `module.train()` and
                `module.eval()` set needs none.
            call: Called as `call(module, *inputs, ...)` instead of the module.
        """
        copy = nnx.clone(module)
        nnx.pop(copy, nnx.Intermediate)  # an earlier call may have sown
        copy.eval()
        evaluating = nnx.split(copy)[0]
        copy.train()
        training, weights, rngs, others = nnx.split(copy, nnx.Param, nnx.RngState, ...)
        self._graphs = Static((training, evaluating))
        self._call = Static(call)
        # A flag that is None by default is one that train() and eval() set.
        self._flags = find_flags(call or type(module).__call__, flags, skip_none=True)
        values = nnx.to_pure_dict(weights)
        self._tree = Static(jax.tree.structure(values))
        self.params, self.frozen = split_params(values)
        self.state = owned({"rngs": nnx.to_pure_dict(rngs), "vars": nnx.to_pure_dict(others)})

    def __call__(
        self, *inputs: Any, key: Keys = None, train: bool = False, **kwargs: Any
    ) -> tuple[Any, Self]:
        train = check_train(train, _NAME)
        module, kwargs, drawn = self._prepared(key, train, kwargs)
        outputs = bind_call(module, self._call.value)(*inputs, **kwargs)
        if not train:
            return outputs, self
        nnx.pop(module, nnx.Intermediate)  # sown values are not kept
        graph, _, rngs, others = nnx.split(module, nnx.Param, nnx.RngState, ...)
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
        self, *inputs: Any, key: Keys = None, train: bool = False, name: str, **kwargs: Any
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

    def unwrap(self) -> nnx.Module:
        """Return a module of its own with the current values, in training mode."""
        return nnx.clone(self._module(train=True, rngs=self.state["rngs"]))

    def _prepared(
        self, key: Keys, train: bool, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any], bool]:
        """Return the module and the keywords to call it with, and whether it draws from `key`."""
        rngs = self.state["rngs"]
        drawn = train and key is not None
        if drawn:
            rngs = _streams_from(single_key(key, _NAME), rngs)
        return self._module(train, rngs), flag_values(self._flags, train) | kwargs, drawn

    def _module(self, train: bool, rngs: PyTree) -> nnx.Module:
        training, evaluating = self._graphs.value
        graph = training if train else evaluating
        return nnx.merge(graph, join_params(self, self._tree), rngs, self.state["vars"])


def _streams_from(key: Any, rngs: PyTree) -> PyTree:
    """Return the streams with keys made of the one `key`, and counts of 0."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    leaves, structure = jax.tree.flatten(rngs)
    fresh = []
    for i, leaf in enumerate(leaves):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            fresh.append(jnp.zeros_like(leaf))
            continue
        one = jax.random.fold_in(key, i)
        fresh.append(jax.random.split(one, leaf.shape) if leaf.shape else one)
    return jax.tree.unflatten(structure, fresh)
