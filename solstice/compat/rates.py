"""Learning rates: what the optimizers of an experiment tell of theirs, and how to set them.

It knows optimizers by their protocol.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.optimizer import Optimizer
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.metrics.checks import is_traced
from solstice.tree.names import path_name
from solstice.tree.pytree import PyTree

_T = TypeVar("_T")


def set_learning_rate(exp: _T, rate: float | Array | Callable[[Array], Array]) -> _T:
    """Return an experiment whose optimizers take their next steps at another learning rate.

    Everything else of their state stays, and no step is compiled anew. To set that of one of
    several optimizers, `solstice.replace(exp, opt=set_learning_rate(exp.opt, rate))`.

    Args:
        exp: An experiment, an optimizer that is initialised, or another pytree with optimizers.
        rate: The rate, at least 0; an array of one for each member of an ensemble; or a function
            of the present rate, such as `lambda rate: rate / 10`.

    Raises:
        TypeError: There is no optimizer, or `rate` is no number.
        ValueError: An optimizer's rate cannot be set; the message says how it can be.

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
        arguments.function(given, "rate", "rate")
    elif not eqx.is_array(given) or given.dtype.kind not in "fiuV":  # V: bfloat16 and narrower
        given = arguments.number(given, "rate", least=0)
    elif not is_traced(given) and not (given >= 0).all():
        raise InvalidValueError(f"rate is expected to be at least 0; it is {given}.")
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


def _optimizers(tree: PyTree) -> list[tuple[str, Optimizer]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, Optimizer)
    )
    return [(path_name(path), leaf) for path, leaf in leaves if isinstance(leaf, Optimizer)]
