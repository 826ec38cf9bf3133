"""Other inputs of an example's kind, one leaf changed in each.

In a mask of ones nothing is masked: a network that ignores it gives the same outputs there.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from solstice.tree.kinds import is_typed_key
from solstice.tree.naming import flatten_with_paths
from solstice.tree.pytree import PyTree


def disturbed(inputs: tuple[PyTree, ...]) -> Iterator[tuple[str, tuple[PyTree, ...]]]:
    """Yield the name of each leaf, and inputs in which about half of its values are others.

    Booleans are flipped, whole numbers are drawn from their range (with 0 and 1), and floats become
    0. The first of each row stays: a mask that leaves nothing is no example of one. Keys are left
    out.

    >>> [(name, int(x.sum())) for name, (_, x) in disturbed((np.eye(1), np.ones(8, bool)))]
    [('0', 8), ('1', 4)]
    """
    pairs, structure = flatten_with_paths(inputs)
    alone = len(inputs) == 1
    for i, (path, leaf) in enumerate(pairs):
        if is_typed_key(leaf) or not np.size(leaf):
            continue
        leaves = [one for _, one in pairs]
        leaves[i] = _other(np.asarray(leaf))
        name = path.partition("/")[2] if alone and "/" in path else path
        yield name, jax.tree.unflatten(structure, leaves)


def _other(leaf: np.ndarray) -> np.ndarray:
    generator = np.random.default_rng(0)
    if leaf.dtype.kind == "b":
        changed: Any = ~leaf
    elif leaf.dtype.kind in "iu":
        least, most = min(leaf.min(), 0), max(leaf.max(), 1)
        changed = generator.integers(least, most, leaf.shape, leaf.dtype, endpoint=True)
        changed = np.where(changed == leaf, np.where(leaf == least, most, least), changed)
    else:
        changed = np.zeros_like(leaf)
    kept = generator.uniform(size=leaf.shape) < 0.5
    if leaf.ndim and leaf.shape[-1] > 1:
        kept[..., 0] = True
    else:
        kept &= leaf.size > 1
    return np.where(kept, leaf, changed).astype(leaf.dtype)
