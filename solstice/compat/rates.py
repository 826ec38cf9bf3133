"""Learning rates of an experiment's optimizers: reading and setting them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.optimizer import Optimizer
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.metrics.checks import as_array
from solstice.tree.names import path_name
from solstice.tree.pytree import PyTree

_T = TypeVar("_T")
# Names of the step count in schedules.
_COUNTS = ("count", "step", "i")


def set_learning_rate(
    exp: _T, rate: float | Array | Callable[[Array], Array] | Mapping[str, Any]
) -> _T:
    """Return the experiment with another learning rate in its optimizers.

    The rest of their state stays, and no step recompiles. To set the rate of one of several
    optimizers, use `solstice.replace(exp, opt=set_learning_rate(exp.opt, rate))`.

    Args:
        exp: An experiment, an initialised optimizer, or another pytree with optimizers.
        rate: The rate, finite and at least 0; an array or a list of one for each member of an
            ensemble; or a function of the current rate, such as `lambda rate: rate / 10`. With
            `compat.by_path`, a mapping from globs to these, such as `{"head/*": 1e-3}`, sets the
            rates of these groups alone.

    Raises:
        TypeError: There is no optimizer, `rate` is not a number, or it is a schedule, that is, a
            function of the step count.
        ValueError: An optimizer's rate cannot be set (the message says what to do), the rate is
            less than 0 or not finite, or there is no such group.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> adam = optax.inject_hyperparams(optax.adam)(1e-3)
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), adam, example_input=jnp.ones((1, 4)), key=0
    ... )
    >>> exp = solstice.set_learning_rate(exp, 1e-4)
    >>> round(float(exp.optimizer.learning_rate()), 6)
    0.0001
    """
    given = _checked(rate)
    optimizers = _optimizers(exp)
    if not optimizers:
        raise InvalidTypeError(
            f"exp is expected to have a compat.Optimizer, whose rate is set; it is "
            f"{describe(exp)}. Adapt its optimizer with compat.as_optimizer."
        )
    for path, optimizer in optimizers:
        if isinstance(given, Mapping) and not optimizer.groups():
            raise InvalidValueError(
                f"rate is expected to be a mapping only for the groups of compat.by_path; it is "
                f"{rate!r}, and {path or 'exp'} is {describe(optimizer)}, without groups. Give one "
                f"number, or the rates of one optimizer: set_learning_rate(exp.opt, rate)."
            )
    return _mapped(exp, lambda optimizer: optimizer.with_learning_rate(given))


def change_trained_rates(exp: _T, change: Callable[[Array], Array]) -> _T:
    """Return the experiment with changed rates; groups that are frozen as a whole keep theirs."""
    return _mapped(exp, lambda one: one.with_learning_rate(one.for_trained(change)))


def learning_rates(exp: PyTree) -> dict[str, Array]:
    """Return the known rates of the optimizers in a tree, by name.

    A single one is `learning_rate`; with several optimizers, each one's path is before it.

    >>> import jax.numpy as jnp, optax
    >>> from solstice.compat import OptaxOptimizer
    >>> sgd, adam = (optax.inject_hyperparams(one)(0.5) for one in (optax.sgd, optax.adam))
    >>> learning_rates({"gen": OptaxOptimizer(sgd).init(jnp.ones(2)), "step": jnp.zeros(())})
    {'learning_rate': Array(0.5, dtype=float32)}
    """
    optimizers = _optimizers(exp)
    rates = {}
    for path, optimizer in optimizers:
        for name, rate in optimizer.learning_rates().items():
            rates[name if len(optimizers) == 1 else f"{path}/{name}"] = rate
    return rates


def _checked(rate: Any) -> Any:
    """Return a rate, or a mapping from globs to rates, with numbers and arrays checked."""
    if isinstance(rate, Mapping):
        return {glob: _checked(one) for glob, one in rate.items()}
    if callable(rate):
        _refuse_schedule(arguments.function(rate, "rate", "rate"))
        return rate
    if isinstance(rate, list | tuple | np.ndarray):
        return as_array(rate, "rate")
    return rate if eqx.is_array(rate) else arguments.number(rate, "rate", least=0)


def _mapped(tree: _T, change: Callable[[Optimizer], Optimizer]) -> _T:
    """Return a tree with each of its optimizers changed."""
    return jax.tree.map(
        lambda node: change(node) if isinstance(node, Optimizer) else node,
        tree,
        is_leaf=lambda node: isinstance(node, Optimizer),
    )


def _refuse_schedule(rate: Callable[..., Any]) -> None:
    """Raise for a function of a step count, by the name of its argument."""
    try:
        takes = next(iter(inspect.signature(rate).parameters))
    except (TypeError, ValueError):  # as for some builtins
        return
    if takes in _COUNTS:
        raise InvalidTypeError(
            f"rate is expected to be a number or a function of the current rate; it is one of "
            f"{takes!r}, a schedule. Give that to the optimizer when it is made, such as "
            f"optax.inject_hyperparams(optax.adam)(learning_rate=schedule), or "
            f"compat.OptaxOptimizer(tx, learning_rate=schedule) to log it."
        )


def _optimizers(tree: PyTree) -> list[tuple[str, Optimizer]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, Optimizer)
    )
    return [(path_name(path), leaf) for path, leaf in leaves if isinstance(leaf, Optimizer)]
