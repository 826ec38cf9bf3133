"""Leaves that are arrays, since a Python number would not be traced by a step."""

import equinox as eqx
import jax
import jax.numpy as jnp

from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.tree.naming import leaf_names
from solstice.tree.ownership import owned
from solstice.tree.pytree import PyTree


def owned_state(state: PyTree) -> PyTree:
    """Return a network's state with fresh arrays; numbers become arrays too.

    >>> owned_state({"calls": 0, "nothing": None})
    {'calls': Array(0, dtype=int32), 'nothing': None}
    """
    return owned(jax.tree.map(lambda x: jnp.asarray(x) if _is_number(x) else x, state))


def check_own_leaves(adapter: str, **trees: PyTree) -> None:
    """Raise if a leaf of a tree is not an array; the trees are given by name.

    A compiled step would treat a number as a constant, and return an array.

    Raises:
        TypeError: The message names the leaf.

    >>> check_own_leaves("PebbleModel", state={"rate": 0.1})
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: PebbleModel: every leaf is expected to be an array; \
'state/rate' is the float 0.1. Convert it: jnp.asarray(0.1, jnp.float32).
    """
    for name, tree in trees.items():
        leaves, structure = jax.tree.flatten(tree)
        if all(map(eqx.is_array, leaves)):
            continue
        names = leaf_names(structure)
        i = next(i for i, leaf in enumerate(leaves) if not eqx.is_array(leaf))
        dtype = "float32" if isinstance(leaves[i], float) else "int32"
        array = f"jnp.asarray({leaves[i]!r}, jnp.{dtype})" if _is_number(leaves[i]) else "an array"
        path = f"{name}/{names[i]}".rstrip("/")
        raise InvalidTypeError(
            f"{adapter}: every leaf is expected to be an array; {path!r} is "
            f"{describe(leaves[i])}. Convert it: {array}."
        )


def _is_number(leaf: object) -> bool:
    return isinstance(leaf, bool | int | float | complex)
