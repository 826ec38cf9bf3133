"""Learning rates: what the optimizers of an experiment tell of theirs, and how to set them.

It knows optimizers by their protocol.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.optimizer import Optimizer
from solstice.errors import InvalidTypeError
from solstice.metrics.checks import as_array
from solstice.tree.names import path_name
from solstice.tree.pytree import PyTree

_T = TypeVar("_T")
# What libraries of schedules call the count of steps.
_COUNTS = ("count", "step", "i")


def set_learning_rate(exp: _T, rate: float | Array | Callable[[Array], Array]) -> _T:
    """Return an experiment whose optimizers take their next steps at another learning rate.

    Everything else of their state stays, and no step is compiled anew. To set that of one of
    several optimizers, `solstice.replace(exp, opt=set_learning_rate(exp.opt, rate))`.

    Args:
        exp: An experiment, an optimizer that is initialised, or another pytree with optimizers.
        rate: The rate, finite and at least 0; an array or a list of one for each member of an
            ensemble; or a function of the present rate, such as `lambda rate: rate / 10`.

    Raises:
        TypeError: There is no optimizer, `rate` is no number, or it is a schedule, which is a
            function of the count of steps.
        ValueError: An optimizer's rate cannot be set, and the message says how it can be; or the
            rate, or what the function returns, is less than 0 or not finite.

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
    given: Any = rate
    if callable(given):
        _refuse_schedule(arguments.function(given, "rate", "rate"))
    elif isinstance(given, list | tuple | np.ndarray):
        given = as_array(given, "rate")
    elif not eqx.is_array(given):
        given = arguments.number(given, "rate", least=0)
    if not _optimizers(exp):
        raise InvalidTypeError(
            f"exp is expected to have a compat.Optimizer, whose rate is set; it is "
            f"{describe(exp)}. Adapt its optimizer with compat.as_optimizer."
        )
    return jax.tree.map(
        lambda node: node.with_learning_rate(given) if isinstance(node, Optimizer) else node,
        exp,
        is_leaf=lambda node: isinstance(node, Optimizer),
    )


def learning_rates(exp: PyTree) -> dict[str, Array]:
    """Return the rates that the optimizers in a tree tell, by name.

    The only one is `learning_rate`; of several optimizers, each one's path precedes.

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


def _refuse_schedule(rate: Callable[..., Any]) -> None:
    """Raise for a function of a count of steps, which the name of its argument tells."""
    try:
        takes = next(iter(inspect.signature(rate).parameters))
    except (TypeError, ValueError):  # as of some builtins
        return
    if takes in _COUNTS:
        raise InvalidTypeError(
            f"rate is expected to be a number or a function of the present rate; it is one of "
            f"{takes!r}, a schedule. Give that to the optimizer when it is made, such as "
            f"optax.inject_hyperparams(optax.adam)(learning_rate=schedule), or "
            f"compat.OptaxOptimizer(tx, learning_rate=schedule) for logs to tell it."
        )


def _optimizers(tree: PyTree) -> list[tuple[str, Optimizer]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, Optimizer)
    )
    return [(path_name(path), leaf) for path, leaf in leaves if isinstance(leaf, Optimizer)]
