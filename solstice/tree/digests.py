"""Digests: a few bytes that show whether a tree's values are still the same.

They are SHA-256 of a leaf's dtype, shape and bytes: processors have instructions for it, so it
takes a third of the time of BLAKE2b. They detect damage; they are not a signature.
"""

import hashlib
import json

import jax
import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.tree.encoding import check_data, host_array
from solstice.tree.json import encode_leaf
from solstice.tree.kinds import OBJECT, is_array, kind
from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import PyTree


def digest(tree: PyTree) -> str:
    """Return one digest of a leaf, or of all leaves of a tree and their paths, in hexadecimal.

    Arrays with equal bits have equal digests, in jax or numpy, sharded or not; they are gathered to
    the host. Objects that are not data, such as functions, are ignored in a tree.

    Raises:
        TypeError: A leaf is not data, or is an array of something other than numbers.

    >>> import jax.numpy as jnp
    >>> digest(jnp.ones(2)) == digest(np.ones(2, np.float32))
    True
    >>> digest(jnp.ones(2)) == digest(jnp.ones((2, 1)))
    False
    """
    if tree is None or not jax.tree_util.all_leaves([tree]):
        return _digest(json.dumps(digests(tree)).encode())
    if kind(tree) == OBJECT:
        raise InvalidTypeError(
            f"The leaf of a digest is expected to be an array, a number or a string; it is "
            f"{describe(tree)}."
        )
    check_data(tree)
    return _leaf_digest(tree)


def digests(tree: PyTree) -> dict[str, str]:
    """Return the digest of each leaf of a tree by its path; leaves out objects that are not data.

    Raises:
        TypeError: A leaf is an array of something other than numbers.
        ValueError: Two paths have the same name.

    >>> {path: text[:8] for path, text in digests({"w": np.ones(2), "name": "a"}).items()}
    {'name': '521e19c7', 'w': 'b038d9d3'}
    """
    check_data(tree)
    leaves = leaves_by_path(tree).items()
    return {path: _leaf_digest(leaf) for path, leaf in leaves if kind(leaf) != OBJECT}


def _leaf_digest(leaf: object) -> str:
    if is_array(leaf):
        numbers = np.ascontiguousarray(host_array(leaf)).reshape(-1).view(np.uint8)
        return _digest(f"{kind(leaf)} ".encode(), numbers.data)
    return _digest(f"{kind(leaf)} {json.dumps(encode_leaf(leaf))}".encode())


def _digest(*parts: bytes | memoryview) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()
