"""Parameters that are overwritten by their gradient, such as the scales of an 8-bit network.

A backward pass returns a measured value (such as the largest gradient) as the gradient of such a
parameter; it is the new value. An optimizer step along it would be wrong.
"""

from collections.abc import Callable

import equinox as eqx
import jax

from solstice.tree.pytree import PyTree


class Overwritten(eqx.Module):
    """A wrapper around a leaf of `params` whose gradient is its next value.

    Adapters add it, and the init function of a `FunctionModel` may. Every `compat.Optimizer`
    returns the gradient as the new value; ready-made experiments do not average or scale it, nor
    compute it in a lower precision, and `freeze` skips it. The network gets the bare leaf.

    >>> import jax.numpy as jnp, optax
    >>> from solstice import compat
    >>> params = {"w": jnp.ones(2), "largest": compat.Overwritten(jnp.zeros(()))}
    >>> grads = {"w": jnp.ones(2), "largest": compat.Overwritten(jnp.array(7.0))}
    >>> opt = compat.OptaxOptimizer(optax.sgd(0.5)).init(params)
    >>> params, opt = opt(grads, params)
    >>> params["w"].tolist(), float(params["largest"].value)
    ([0.5, 0.5], 7.0)
    """

    value: PyTree


def trained(tree: PyTree) -> PyTree:
    """Return a tree like `params` with None for each overwritten leaf.

    >>> trained({"w": 1.0, "largest": Overwritten(None)})
    {'largest': None, 'w': 1.0}
    """
    return jax.tree.map(lambda node: None if is_box(node) else node, tree, is_leaf=is_box)


def overwrite(tree: PyTree, boxes: PyTree) -> PyTree:
    """Return `tree` with its overwritten leaves from `boxes`.

    Args:
        tree: A tree like `params`, with a box or None for each overwritten leaf.
        boxes: Gradients, or parameters.

    >>> overwrite({"w": 1.0, "largest": None}, {"w": 2.0, "largest": Overwritten(None)})
    {'largest': Overwritten(value=None), 'w': 1.0}
    """
    return jax.tree.map(
        lambda node, other: other if is_box(other) else node,
        tree,
        boxes,
        is_leaf=lambda node: node is None or is_box(node),
    )


def unboxed(tree: PyTree) -> PyTree:
    """Return a tree like `params` without boxes, for the network."""
    return jax.tree.map(lambda node: node.value if is_box(node) else node, tree, is_leaf=is_box)


def set_apart(
    grads: PyTree, params: PyTree, extras: dict[str, PyTree]
) -> tuple[PyTree, PyTree, dict[str, PyTree], Callable[[PyTree], PyTree]]:
    """Return the inputs of an optimizer's rule, and a function for the parameters it returns.

    Args:
        grads: The gradients that an `Optimizer` is called with.
        params: The parameters that it is called with.
        extras: The extras that it is called with: `grad` and `value_fn` among them use the rule's
            tree.
    """
    if not any(map(is_box, jax.tree.leaves(params, is_leaf=is_box))):
        return grads, params, extras, lambda after: after
    own = dict(extras)
    if "grad" in own:
        own["grad"] = trained(own["grad"])
    if "value_fn" in own:
        value_fn = own["value_fn"]
        own["value_fn"] = lambda some: value_fn(overwrite(some, params))
    return trained(grads), trained(params), own, lambda after: overwrite(after, grads)


def is_box(node: object) -> bool:
    """Return whether a node of a tree is a box."""
    return isinstance(node, Overwritten)
