"""Optax's gradient transformations."""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optax.tree_utils
from jaxtyping import Array, PyTree

from solstice.compat.optimizer import Optimizer, check_extras, check_trees
from solstice.compat.static import Static
from solstice.tree import owned, replace

_NAME = "OptaxOptimizer"

# What optimizers that look at the loss itself take: asked in this order, the first that works.
_OFFERS = ((), ("value",), ("value", "grad"), ("value", "grad", "value_fn"))


class OptaxOptimizer(Optimizer):
    """An Optax gradient transformation with its state.

    >>> import jax.numpy as jnp, optax
    >>> from solstice.compat import OptaxOptimizer
    >>> opt = OptaxOptimizer(optax.inject_hyperparams(optax.adam)(3e-4)).init(jnp.ones(2))
    >>> round(float(opt.learning_rate()), 6), opt.wants
    (0.0003, ())
    """

    state: PyTree
    wants: tuple[str, ...] = eqx.field(static=True)
    _transformation: Static[optax.GradientTransformation] = eqx.field(static=True)
    _structure: Any = eqx.field(static=True)

    def __init__(self, transformation: optax.GradientTransformation) -> None:
        self.state = None
        self.wants = ()
        self._transformation = Static(transformation)
        self._structure = None

    def init(self, params: PyTree) -> Self:
        state = owned(self._transformation.value.init(params))
        wants = self._find_wants(state, params)
        return replace(self, state=state, wants=wants, _structure=jax.tree.structure(params))

    def __call__(self, grads: PyTree, params: PyTree, **extras: Any) -> tuple[PyTree, Self]:
        check_trees(_NAME, self._structure, gradients=grads, parameters=params)
        extras = check_extras(_NAME, self.wants, extras)
        updates, state = self._transformation.value.update(grads, self.state, params, **extras)
        return optax.apply_updates(params, updates), replace(self, state=state)

    def eval_params(self, params: PyTree) -> PyTree:
        return params

    def learning_rate(self) -> Array | None:
        return optax.tree_utils.tree_get(
            self.state,
            "learning_rate",
            filtering=lambda path, value: eqx.is_array(value),  # not a schedule of that name
        )

    def _find_wants(self, state: PyTree, params: PyTree) -> tuple[str, ...]:
        """Find by tracing, never running, which extras an update needs."""
        update = self._transformation.value.update
        if not isinstance(self._transformation.value, optax.GradientTransformationExtraArgs):
            return ()

        def value_fn(params: PyTree) -> Array:
            return sum((jnp.sum(leaf.real) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

        extras = {"value": jnp.zeros(()), "grad": params, "value_fn": value_fn}
        failure: Exception | None = None
        for offer in _OFFERS:
            given = {name: extras[name] for name in offer}
            try:
                jax.eval_shape(lambda: update(params, state, params, **given))  # noqa: B023
            except TypeError as error:  # a missing argument
                failure = failure or error
            else:
                return offer
        raise TypeError(
            f"{_NAME}: this transformation's update runs with none of the extras that a training "
            f"step can give: {', '.join(_OFFERS[-1])}."
        ) from failure
