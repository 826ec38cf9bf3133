"""The names of a tree's leaves: their paths as strings, such as "model/params/dense/kernel".

Names identify leaves, not containers: a list and a tuple of the same leaves have the same names.
"""

from collections.abc import Callable

import jax

from solstice.arguments import function, instance
from solstice.errors import InvalidValueError
from solstice.tree.names import names_difference, path_name
from solstice.tree.pytree import PyTree, PyTreeDef


def flatten_with_paths(
    tree: PyTree, is_leaf: Callable[[PyTree], bool] | None = None
) -> tuple[list[tuple[str, PyTree]], PyTreeDef]:
    """Return the (path, leaf) pairs of a tree, in its order, and its structure.

    Like `jax.tree.flatten_with_path`, with paths as strings; `jax.tree.unflatten(structure,
    leaves)` rebuilds the tree.

    Args:
        tree: The tree.
        is_leaf: As in `jax.tree.flatten`: says whether to treat a node as a leaf.

    Raises:
        ValueError: Two paths have the same name, such as "a/b" and {"a": {"b": ...}}.

    >>> flatten_with_paths({"dense": [1.0, 2.0]})
    ([('dense/0', 1.0), ('dense/1', 2.0)], PyTreeDef({'dense': [*, *]}))
    >>> flatten_with_paths({"dense": [1.0, 2.0]}, is_leaf=lambda node: isinstance(node, list))[0]
    [('dense', [1.0, 2.0])]
    """
    if is_leaf is not None:
        function(is_leaf, "is_leaf", takes="node")
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    named = [(path_name(path), leaf) for path, leaf in pairs]
    seen = set()
    for name, _ in named:
        if name in seen:
            raise InvalidValueError(
                f"Two leaves of the tree are named {name!r}; rename one of them."
            )
        seen.add(name)
    return named, structure


def leaves_by_path(
    tree: PyTree, is_leaf: Callable[[PyTree], bool] | None = None
) -> dict[str, PyTree]:
    """Return the leaves of a tree by the names of their paths, in the tree's order.

    Args:
        tree: The tree.
        is_leaf: As in `flatten_with_paths`.

    Raises:
        ValueError: Two paths have the same name.

    >>> leaves_by_path({"dense": [1.0, 2.0]})
    {'dense/0': 1.0, 'dense/1': 2.0}
    """
    return dict(flatten_with_paths(tree, is_leaf)[0])


def paths(tree: PyTree, is_leaf: Callable[[PyTree], bool] | None = None) -> list[str]:
    """Return the names of the leaves' paths, in the tree's order.

    Args:
        tree: The tree.
        is_leaf: As in `flatten_with_paths`.

    Raises:
        ValueError: Two paths have the same name.

    >>> paths({"dense": [1.0, 2.0], "scale": 3.0})
    ['dense/0', 'dense/1', 'scale']
    """
    return list(leaves_by_path(tree, is_leaf))


def leaf_names(structure: PyTreeDef) -> list[str]:
    """Return the names of the leaves' paths in a tree's structure.

    >>> leaf_names(jax.tree.structure({"dense": [1.0, 2.0]}))
    ['dense/0', 'dense/1']
    """
    _check_structure(structure, "structure")
    return paths(jax.tree.unflatten(structure, range(structure.num_leaves)))


def tree_difference(expected: PyTreeDef, found: PyTreeDef) -> str:
    """Say briefly how two structures differ, for an error message.

    >>> tree_difference(jax.tree.structure({"w": 1, "b": 2}), jax.tree.structure({"w": 1}))
    "they lack 'b'"
    """
    _check_structure(expected, "expected")
    _check_structure(found, "found")
    both = expected, found
    bare = any(jax.tree_util.treedef_is_leaf(one) for one in both)  # whose leaf has no name
    names = "" if bare else names_difference(leaf_names(expected), leaf_names(found))
    return names or f"those were {expected}, these are {found}"


def _check_structure(structure: object, name: str) -> None:
    instance(
        structure, name, jax.tree_util.PyTreeDef, "a tree's structure, as jax.tree.structure(tree)"
    )
