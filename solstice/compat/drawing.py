"""Networks that take a key: whether they need it, and what to do without one."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from solstice.compat.model import Model, is_shaped, missing_key, random_evaluation
from solstice.tree.dependence import depends_on
from solstice.tree.fields import replace
from solstice.tree.programs import program
from solstice.tree.pytree import PyTree


def needs_key(model: Model, inputs: tuple[PyTree, ...], key: Array) -> bool:
    """Return whether a training call with `key` differs from one without a key.

    It is traced, never run. A call differs if the network raises without a key, if outputs or state
    depend on the key or are computed differently without it, or if only the backward pass uses it,
    as for stochastic rounding of gradients. It does not differ if a layer gets a key that it does
    not use, as in `stax.serial`.

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

    def forward(key: Array | None, arrays: PyTree) -> PyTree:
        return model(*eqx.combine(arrays, rest), key=key, train=True)

    def gradient(key: Array, arrays: PyTree) -> PyTree:
        def total(params: PyTree) -> Array:
            given = eqx.combine(arrays, rest)
            outputs, _ = replace(model, params=params)(*given, key=key, train=True)
            floats = filter(eqx.is_inexact_array, jax.tree.leaves(outputs))
            return sum((jnp.abs(leaf).sum() for leaf in floats), jnp.zeros(()))

        return jax.grad(total)(model.params)

    with_key = program(forward, key, arrays)
    if with_key.used[0]:
        return True
    try:
        if with_key.steps != program(forward, None, arrays).steps:
            return True
        return with_key.has_own_derivatives and program(gradient, key, arrays).used[0]
    except Exception:  # noqa: BLE001 - with the key, the same call has just been traced
        return True


def run_with_key(
    run: Callable[[Array | None], PyTree],
    key: Array | None,
    *,
    train: bool,
    adapter: str,
    remedy: str,
) -> Any:
    """Return `run(key)`; if it fails without a key, raise a clear error or evaluate with any key.

    For libraries that do not raise a clear error without a key. Some networks require a key in
    evaluation and then do not use it.

    Args:
        run: Calls the network with a key or without one.
        key: The key, or None.
        train: Whether the network trains.
        adapter: The adapter's name, for the errors.
        remedy: What to do about a network that draws random numbers in evaluation.

    Raises:
        ValueError: It needs a key to train, or draws random numbers in evaluation.
    """
    try:
        return run(key)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        if key is not None or not runs(run, jax.random.key(0)):
            raise
        if train:
            raise missing_key(adapter) from error
        return run_with_any_key(run, error, adapter, remedy)


def run_with_any_key(
    run: Callable[[Array], PyTree], error: Exception, adapter: str, remedy: str
) -> Any:
    """Return the outputs in evaluation of a network that requires a key but does not use it.

    Raises:
        ValueError: It uses the key: it draws random numbers.
    """
    key = jax.random.key(0)
    if depends_on(run, key):
        raise random_evaluation(adapter, remedy) from error
    return run(key)


def runs(run: Callable[..., PyTree], *arguments: Any) -> bool:
    """Return whether a function runs on these arguments; traced, never run."""
    try:
        jax.eval_shape(run, *arguments)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return True
