"""Optimizer: one immutable pytree, the same for every library.

The helpers below are shared by the adapters; none of them names a framework.
"""

import abc
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path, tree_map_with_path
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.metrics.checks import is_traced
from solstice.static import Static
from solstice.tree.kinds import OBJECT, kind
from solstice.tree.naming import leaf_names, tree_difference
from solstice.tree.pytree import PyTree, PyTreeDef
from solstice.tree.reprs import Shown


class Optimizer(Shown, eqx.Module):
    """An optimizer and its state; calling it returns the new parameters and the new optimizer.

    >>> import jax, jax.numpy as jnp, optax
    >>> from solstice.compat import OptaxOptimizer
    >>> params = {"w": jnp.ones(3)}
    >>> opt = OptaxOptimizer(optax.sgd(0.5)).init(params)
    >>> params, opt = opt({"w": jnp.ones(3)}, params)
    >>> params["w"].tolist()
    [0.5, 0.5, 0.5]
    """

    # The extra arguments besides gradients and parameters: names such as "value" or "grad".
    wants: eqx.AbstractVar[tuple[str, ...]]

    @abc.abstractmethod
    def init(self, params: PyTree) -> Self:
        """Return the optimizer initialised for these parameters."""

    @abc.abstractmethod
    def __call__(self, grads: PyTree, params: PyTree, **extras: PyTree) -> tuple[PyTree, Self]:
        """Return the updated parameters and the optimizer to continue with.

        Args:
            grads: Gradients, a tree like `params`.
            params: The current parameters, a tree like those it was initialised with.
            **extras: The arguments named in `wants`, such as `value` (the loss), `grad` and
                `value_fn` (the loss as a function of the parameters); others are ignored.

        Raises:
            ValueError: It is not initialised, the trees, shapes or dtypes differ from those it was
                initialised with, or a wanted extra is missing.
        """

    @abc.abstractmethod
    def eval_params(self, params: PyTree) -> PyTree:
        """Return the parameters to evaluate with; most optimizers return `params`."""

    @abc.abstractmethod
    def learning_rate(self) -> Array | None:
        """Return the rate of the last step; None if it is not known.

        Before the first step, it is the rate of that step.
        """

    def retarget(self, params: PyTree) -> Self:
        """Return the optimizer for other parameters, after freezing or unfreezing some in a run.

        Parameters that stay (with the same path, shape and dtype) keep their state; new ones get a
        new state, as from `init`. Counts of steps are kept, so schedules continue, and so does
        Adam's bias correction, which then hardly corrects the new ones. An optimizer that is not
        initialised is initialised.

        Args:
            params: The parameters from now on.

        >>> import jax.numpy as jnp, optax
        >>> from solstice.compat import OptaxOptimizer
        >>> body, head = {"body": jnp.ones(1)}, {"head": jnp.ones(1)}
        >>> opt = OptaxOptimizer(optax.sgd(0.5, momentum=0.9)).init(head)
        >>> _, opt = opt(head, head)
        >>> opt = opt.retarget(body | head)
        >>> {name: float(trace[0]) for name, trace in opt.state[0].trace.items()}
        {'body': 0.0, 'head': 1.0}
        """
        return carried(self.init(params), self)

    def groups(self) -> dict[str, str]:
        """Return each parameter's group, by path; empty if there is only one."""
        return {}

    def learning_rates(self) -> dict[str, Array]:
        """Return the known rates, by their names in a log.

        It is `learning_rate` if that is known; an optimizer of several parts has more.
        """
        rate = self.learning_rate()
        return {} if rate is None else {"learning_rate": rate}

    def for_trained(self, rate: object) -> object:
        """Return a rate in the form that leaves groups without trained parameters unchanged.

        Args:
            rate: What `with_learning_rate` takes.
        """
        return rate

    def with_learning_rate(self, rate: object) -> Self:
        """Return the optimizer with another rate for the next steps; see `set_learning_rate`.

        Args:
            rate: A number, an array of the current rate's shape, or a function of the current rate;
                for an optimizer of groups also a mapping from their globs to these.

        Raises:
            ValueError: Its rate cannot be set.
        """
        raise no_rate(type(self).__name__, "Optimizers of this library keep it in their functions")


def carried(new: PyTree, old: PyTree) -> PyTree:
    """Return a tree with the leaves of another that have the same path, shape and dtype.

    Python numbers with the same path and type are taken too; other objects are not.

    >>> new = {"kept": jnp.zeros(1), "wider": jnp.zeros(2)}
    >>> carried(new, {"kept": jnp.ones(1), "wider": jnp.ones(1)})
    {'kept': Array([1.], dtype=float32), 'wider': Array([0., 0.], dtype=float32)}
    """
    before = {jax.tree_util.keystr(path): leaf for path, leaf in tree_leaves_with_path(old)}

    def one(path: Any, leaf: PyTree) -> PyTree:
        kept = before.get(jax.tree_util.keystr(path))
        return kept if kind(kept) == kind(leaf) != OBJECT else leaf

    return tree_map_with_path(one, new)


def no_rate(adapter: str, why: str) -> InvalidValueError:
    """Return the error of an optimizer whose learning rate cannot be set."""
    return InvalidValueError(
        f"{adapter}: its learning rate is expected to be a number in its state, which can be set. "
        f"{why}. Use an optimizer such as optax.inject_hyperparams(optax.adam)(1e-3), which keeps "
        f"it there, or one of Keras with a number."
    )


def new_rate(rate: Any, old: Array) -> Array:
    """Return a rate as an array like the one that it replaces.

    Args:
        rate: A number, an array or a function of the old one.
        old: The old rate.

    Raises:
        TypeError: It is not a number.
        ValueError: It has another shape, is less than 0, or not finite.

    >>> new_rate(lambda rate: rate / 2, jnp.ones(()))
    Array(0.5, dtype=float32)
    """
    value: Any = rate(old) if callable(rate) else rate
    name = "what rate returns" if callable(rate) else "rate"
    if not eqx.is_array(value):
        value = arguments.number(value, name, least=0)
    elif not any(jnp.issubdtype(value.dtype, of) for of in (jnp.integer, jnp.floating)):
        raise InvalidTypeError(f"{name} is expected to be a number; it is {describe(value)}.")
    with np.errstate(over="ignore"):  # infinite values raise below
        value = jnp.asarray(value, old.dtype)
    if not is_traced(value) and not ((value >= 0) & jnp.isfinite(value)).all():
        raise InvalidValueError(
            f"{name} is expected to be finite and at least 0; it is {value} in {old.dtype}, "
            f"where the current rate is {old}."
        )
    if value.shape not in ((), old.shape):
        raise InvalidValueError(
            f"rate is expected to be one number, or of the shape {old.shape} of the current one; "
            f"it is {describe(value)}."
        )
    return jnp.broadcast_to(value, old.shape)


class Signature(NamedTuple):
    """The structure and shapes of the parameters that an optimizer was initialised with."""

    structure: PyTreeDef
    leaves: tuple[jax.ShapeDtypeStruct, ...]


def check_params(params: PyTree) -> None:
    """Raise if a leaf of parameters is not an array of floats or complex numbers.

    Raises:
        TypeError: It is not, such as a Python number or integers.
    """
    for leaf in jax.tree.leaves(params):
        if not eqx.is_inexact_array(leaf):
            raise InvalidTypeError(
                f"params are expected to be a tree of arrays of floats, which have gradients; one "
                f"is {describe(leaf)}. Keep other leaves elsewhere, or as None."
            )


def signature(params: PyTree) -> Static[Signature]:
    """Return the description that `check_trees` compares later trees with.

    >>> signature({"w": jnp.ones(3)}).value.leaves
    (ShapeDtypeStruct(shape=(3,), dtype=float32),)
    """
    leaves, structure = jax.tree.flatten(params)
    return Static(Signature(structure, tuple(map(_shape_dtype, leaves))))


def _shape_dtype(leaf: PyTree) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def check_trees(adapter: str, expected: Static[Signature] | None, **trees: PyTree) -> None:
    """Raise if a tree is not like the parameters that the optimizer was initialised with.

    Raises:
        TypeError: A leaf is not an array.
        ValueError: The message names the first tree and leaf that differ.
    """
    if expected is None:
        raise InvalidValueError(
            f"{adapter} is not initialised: call `opt = opt.init(params)` once before the steps."
        )
    structure, leaves = expected.value
    for name, tree in trees.items():
        try:
            found = signature(tree).value
        except TypeError:
            arguments.check_leaves(tree, f"{adapter}: the tree of {name}")
            raise
        if found.structure != structure:
            difference = tree_difference(structure, found.structure)
        elif found.leaves != leaves:
            difference = _leaf_difference(structure, leaves, found.leaves)
        else:
            continue
        raise InvalidValueError(
            f"{adapter}: {name} are expected to be like the parameters it was initialised with; "
            f"{difference}. Pass those parameters and their gradients; after changing which "
            f"parameters are trained, exp.with_model(model) of a ready-made experiment, or "
            f"opt.retarget(params), keeps its state; opt.init(params) starts a new one."
        )


def _leaf_difference(structure: PyTreeDef, expected: tuple, found: tuple) -> str:
    path, was, now = next(
        leaf
        for leaf in zip(leaf_names(structure), expected, found, strict=True)
        if leaf[1] != leaf[2]
    )
    return f"{path!r} was {describe(was)} and is {describe(now)} here"


def check_extras(
    adapter: str, wants: tuple[str, ...], extras: dict[str, PyTree]
) -> dict[str, PyTree]:
    """Return the extras that the optimizer wants.

    Raises:
        ValueError: One is missing.
    """
    missing = [name for name in wants if name not in extras]
    if missing:
        raise InvalidValueError(
            f"{adapter}: this optimizer wants {', '.join(missing)} besides the gradients; pass "
            f"opt(grads, params, {', '.join(f'{name}=...' for name in wants)})."
        )
    return {name: extras[name] for name in wants}


def keep_types(new: PyTree, old: PyTree) -> PyTree:
    """Return `new` with the dtypes of `old`, strongly typed, so that no step recompiles.

    >>> keep_types(jnp.asarray(0.5), jnp.ones((), jnp.bfloat16)).dtype
    dtype(bfloat16)
    """
    return jax.tree.map(_keep_type, new, old)


def _keep_type(new: Array, old: Array) -> Array:
    # Checked first because a typed PRNG key cannot be cast.
    if new.dtype == old.dtype and not getattr(new, "weak_type", False):
        return new
    return jnp.asarray(new, old.dtype)
