"""The optimizers of `jax.example_libraries.optimizers`.

They keep the parameters in their state. Here the model keeps them: the adapter stores the rest of
the state, and inserts the parameters for each step.
"""

from typing import NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.example_libraries import optimizers
from jaxtyping import Array

from solstice.arguments import describe
from solstice.compat.leaves import check_own_leaves
from solstice.compat.optimizer import (
    Optimizer,
    Signature,
    carried,
    check_params,
    check_trees,
    keep_types,
    no_rate,
    signature,
)
from solstice.errors import InvalidTypeError
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.naming import leaf_names
from solstice.tree.overwritten import set_apart, trained
from solstice.tree.ownership import owned
from solstice.tree.pytree import PyTree, PyTreeDef

_NAME = "JaxOptimizer"


class _Layout(NamedTuple):
    """The structure of the optimizer's state: its tree, and which leaf each parameter is."""

    structure: PyTreeDef
    places: tuple[int, ...]


class JaxOptimizer(Optimizer):
    """An optimizer triple `(init, update, get_params)` with its state.

    Its rate is inside its functions, so `learning_rate()` is None.

    Attributes:
        step: How many steps it has taken; schedules are functions of it.
        state: The leaves of the optimizer's state that are not parameters, in a tuple.

    >>> import jax.numpy as jnp
    >>> from jax.example_libraries import optimizers
    >>> from solstice.compat import JaxOptimizer
    >>> params = {"w": jnp.ones(2)}
    >>> opt = JaxOptimizer(optimizers.momentum(0.5, 0.9)).init(params)
    >>> params, opt = opt({"w": jnp.ones(2)}, params)
    >>> params["w"].tolist(), int(opt.step), len(opt.state)
    ([0.5, 0.5], 1, 1)
    """

    step: PyTree
    state: PyTree
    wants: tuple[str, ...] = eqx.field(static=True)
    _optimizer: Static[optimizers.Optimizer] = eqx.field(static=True)
    _layout: Static[_Layout] | None = eqx.field(static=True)
    _signature: Static[Signature] | None = eqx.field(static=True)

    def __init__(self, optimizer: optimizers.Optimizer) -> None:
        """Adapt an optimizer; `init` initialises it.

        Raises:
            TypeError: It is not an optimizer triple.
        """
        if not isinstance(optimizer, tuple) or list(map(callable, optimizer)) != [True] * 3:
            raise InvalidTypeError(
                f"{_NAME} is expected to get an optimizer of jax.example_libraries.optimizers, "
                f"such as optimizers.adam(1e-3); it got {describe(optimizer)}."
            )
        self.step = None
        self.state = None
        self.wants = ()
        self._optimizer = Static(optimizers.Optimizer(*optimizer))
        self._layout = None
        self._signature = None

    def init(self, params: PyTree) -> Self:
        check_params(params)
        whole, params = params, trained(params)
        own = jax.tree.map(jnp.asarray, self._optimizer.value.init_fn(params))
        leaves, structure = jax.tree.flatten(own)
        layout = _Layout(structure, self._find_params(own, params))
        return replace(
            self,
            step=jnp.zeros((), jnp.int32),
            state=tuple(owned([leaf for i, leaf in enumerate(leaves) if i not in layout.places])),
            _layout=Static(layout),
            _signature=signature(whole),
        )

    def __call__(self, grads: PyTree, params: PyTree, **extras: PyTree) -> tuple[PyTree, Self]:
        check_trees(_NAME, self._signature, gradients=grads, parameters=params)
        check_own_leaves(_NAME, state=self.state)
        grads, params, _, finish = set_apart(grads, params, {})
        _, update, get_params = self._optimizer.value
        structure, places = self._layout.value  # pyright: ignore[reportOptionalMemberAccess]
        at_place = dict(zip(places, jax.tree.leaves(params), strict=True))
        rest = iter(self.state)
        leaves = [at_place[i] if i in at_place else next(rest) for i in range(structure.num_leaves)]
        own = update(self.step, grads, jax.tree.unflatten(structure, leaves))
        kept = tuple(leaf for i, leaf in enumerate(jax.tree.leaves(own)) if i not in at_place)
        opt = replace(self, step=self.step + 1, state=keep_types(kept, self.state))
        return finish(keep_types(get_params(own), params)), opt

    def retarget(self, params: PyTree) -> Self:
        new = self.init(params)
        if self.step is None:
            return new
        anew = new._by_param()
        kept = carried(anew, self._by_param())
        return replace(new, step=self.step, state=tuple(kept[name] for name in anew))

    def _by_param(self) -> dict[str, Array]:
        """Return the leaves of the state by their parameter's path and their number there."""
        assert self._layout is not None and self._signature is not None
        structure, places = self._layout.value
        own = jax.tree.unflatten(structure, range(structure.num_leaves))
        if isinstance(own, optimizers.OptimizerState):
            paths = leaf_names(own.tree_def)
            names = [
                f"{path}/{i}"
                for path, leaves in zip(paths, own.packed_state, strict=True)
                for i in range(len(leaves))
            ]
        else:
            names = leaf_names(structure)
        kept = [name for i, name in enumerate(names) if i not in places]
        return dict(zip(kept, self.state, strict=True))

    def eval_params(self, params: PyTree) -> PyTree:
        return params

    def learning_rate(self) -> Array | None:
        return None

    def with_learning_rate(self, rate: object) -> Self:
        raise no_rate(_NAME, "Optimizers of jax.example_libraries have it in their functions")

    def _find_params(self, own: PyTree, params: PyTree) -> tuple[int, ...]:
        """Find by tracing which leaves of the optimizer's state `get_params` returns.

        Raises:
            TypeError: It returns something else, such as a leaf in another shape.
        """
        try:
            jaxpr = jax.make_jaxpr(self._optimizer.value.params_fn)(own).jaxpr
            places = tuple(map(jaxpr.invars.index, jaxpr.outvars))
        except (TypeError, ValueError) as error:
            raise InvalidTypeError(
                f"{_NAME}: an optimizer's get_params is expected to return leaves of its state as "
                f"they are, so that the model can keep them; this one computes them (sm3 reshapes "
                f"them). Use another optimizer, such as optax.sm3 instead of sm3."
            ) from error
        if len(places) != len(jax.tree.leaves(params)):
            raise InvalidTypeError(
                f"{_NAME}: an optimizer's get_params is expected to return the "
                f"{len(jax.tree.leaves(params))} parameters; it returned {len(places)}."
            )
        return places
