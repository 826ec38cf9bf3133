"""Whether training a network takes a key: found by tracing it, never by running it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from solstice.compat.model import Model, is_shaped
from solstice.tree import replace
from solstice.tree.programs import has_own_derivatives, program


def needs_key(model: Model, inputs: tuple[Any, ...], key: Array) -> bool:
    """Say whether a training call with `key` does something else than one without a key.

    It does where the network raises without one, where outputs or state are computed from it or
    are others without it, and where it is used in the backward pass alone, as a gradient's
    stochastic rounding is. It does not where a layer is given a key that it has no use for, as
    each one in a `stax.serial` is.

    >>> import jax.numpy as jnp
    >>> from jax.example_libraries import stax
    >>> from solstice.compat import StaxModel
    >>> x, key = jnp.ones((2, 3)), jax.random.key(0)
    >>> dense, drop = stax.Dense(4), stax.Dropout(0.5)
    >>> needs_key(StaxModel(stax.serial(dense, stax.Relu), x, key=key), (x,), key)
    False
    >>> needs_key(StaxModel(stax.serial(dense, drop), x, key=key), (x,), key)
    True
    """
    arrays, rest = eqx.partition(inputs, is_shaped)

    def forward(key: Array | None, arrays: PyTree) -> Any:
        return model(*eqx.combine(arrays, rest), key=key, train=True)

    def gradient(key: Array, arrays: PyTree) -> PyTree:
        def total(params: PyTree) -> Array:
            given = eqx.combine(arrays, rest)
            outputs, _ = replace(model, params=params)(*given, key=key, train=True)
            floats = filter(eqx.is_inexact_array, jax.tree.leaves(outputs))
            return sum((jnp.abs(leaf).sum() for leaf in floats), jnp.zeros(()))

        return jax.grad(total)(model.params)

    (used, *_), steps = program(forward, key, arrays)
    if used:
        return True
    try:
        if steps != program(forward, None, arrays)[1]:
            return True
        return has_own_derivatives(forward, key, arrays) and program(gradient, key, arrays)[0][0]
    except Exception:  # noqa: BLE001 - with the key, the same call has just been traced
        return True
