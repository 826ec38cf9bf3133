"""The names of a tree's leaves: their paths as strings, such as "model/params/dense/kernel".

Names tell leaves apart, not containers: a list and a tuple of the same leaves have the same ones.
"""

from collections.abc import Iterable
from typing import Any

import jax
from jaxtyping import PyTree

from solstice.errors import InvalidValueError


def path_name(path: tuple[Any, ...]) -> str:
    """Return a jax key path as one string of names, joined by slashes.

    >>> path_name(jax.tree_util.tree_leaves_with_path({"dense": [1.0]})[0][0])
    'dense/0'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten_with_paths(tree: PyTree) -> tuple[list[tuple[str, Any]], Any]:
    """Return the (path, leaf) pairs of a tree, in its order, and its structure.

    As `jax.tree.flatten_with_path`, with paths as strings; `jax.tree.unflatten(structure, leaves)`
    puts the tree together again.

    Raises:
        ValueError: Two paths have one name, as "a/b" beside {"a": {"b": ...}} do.

    >>> flatten_with_paths({"dense": [1.0, 2.0]})
    ([('dense/0', 1.0), ('dense/1', 2.0)], PyTreeDef({'dense': [*, *]}))
    """
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    named = [(path_name(path), leaf) for path, leaf in pairs]
    seen = set()
    for name, _ in named:
        if name in seen:
            raise InvalidValueError(
                f"Two leaves of the tree are named {name!r}; rename one of them."
            )
        seen.add(name)
    return named, structure


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by the names of their paths, in the tree's order.

    Raises:
        ValueError: Two paths have one name.

    >>> leaves_by_path({"dense": [1.0, 2.0]})
    {'dense/0': 1.0, 'dense/1': 2.0}
    """
    return dict(flatten_with_paths(tree)[0])


def paths(tree: PyTree) -> list[str]:
    """Return the names of the leaves' paths, in the tree's order.

    Raises:
        ValueError: Two paths have one name.

    >>> paths({"dense": [1.0, 2.0], "scale": 3.0})
    ['dense/0', 'dense/1', 'scale']
    """
    return list(leaves_by_path(tree))


def leaf_names(structure: Any) -> list[str]:
    """Return the names of the leaves' paths in a tree's structure.

    >>> leaf_names(jax.tree.structure({"dense": [1.0, 2.0]}))
    ['dense/0', 'dense/1']
    """
    return paths(jax.tree.unflatten(structure, range(structure.num_leaves)))


def tree_difference(expected: Any, found: Any) -> str:
    """Say in a few words how two structures differ, for an error message.

    >>> tree_difference(jax.tree.structure({"w": 1, "b": 2}), jax.tree.structure({"w": 1}))
    "they lack 'b'"
    """
    names = names_difference(leaf_names(expected), leaf_names(found))
    return names or f"those were {expected}, these are {found}"


def names_difference(expected: Iterable[str], found: Iterable[str]) -> str:
    """Say which names are missing and which are new; an empty string where none is.

    >>> names_difference(["a", "b"], ["b", "c"])
    "they lack 'a' and they have 'c' besides"
    """
    expected, found = dict.fromkeys(expected), dict.fromkeys(found)
    missing = [repr(name) for name in expected if name not in found]
    unknown = [repr(name) for name in found if name not in expected]
    parts = [f"they lack {_few(missing)}"] * bool(missing)
    parts += [f"they have {_few(unknown)} besides"] * bool(unknown)
    return " and ".join(parts)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
