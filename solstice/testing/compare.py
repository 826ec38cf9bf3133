"""Comparing pytrees in laws: bit for bit, or up to rounding; a difference names its leaf."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import PyTree

RTOL = 1e-5


def values(tree: PyTree) -> dict[str, np.ndarray]:
    """Return the arrays of a tree on the host by path, keys as their data.

    >>> values({"w": jnp.ones(2)})
    {'w': array([1., 1.], dtype=float32)}
    """
    return {
        name: _on_host(leaf) for name, leaf in leaves_by_path(tree).items() if eqx.is_array(leaf)
    }


def leaf_forms(tree: PyTree) -> tuple[Any, list[Any]]:
    """Return what decides whether a step recompiles: the structure and each leaf's type."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [
        (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) if eqx.is_array(leaf) else leaf
        for leaf in leaves
    ]


def assert_same_signature(left: PyTree, right: PyTree, what: str) -> None:
    """Raise if a structure, shape, dtype or weak type differs."""
    (left_structure, left_leaves), (right_structure, right_leaves) = map(leaf_forms, (left, right))
    if left_structure != right_structure:
        raise AssertionError(f"{what}: the tree changed from {left_structure} to {right_structure}")
    for path, a, b in zip(leaves_by_path(left), left_leaves, right_leaves, strict=True):
        if a != b:
            raise AssertionError(
                f"{what}: {path or 'the leaf'} changed from (shape, dtype, weak type) {a} to {b}"
            )


def assert_same_bits(left: PyTree, right: PyTree, what: str) -> None:
    """Raise if the trees differ in a single bit."""
    _compare(left, right, what, lambda a, b: a.tobytes() == b.tobytes())


def differ(left: PyTree, right: PyTree) -> bool:
    """Return whether some elements of two trees of one structure differ."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return any(bool(jnp.any(a != b)) for a, b in pairs)


def assert_close(left: PyTree, right: PyTree, what: str, rtol: float = RTOL) -> None:
    """Raise if the trees differ by more than rounding, relative to each leaf's largest value."""

    def close(a: np.ndarray, b: np.ndarray) -> bool:
        if not np.issubdtype(a.dtype, np.inexact) and a.dtype != jnp.bfloat16:
            return bool((a == b).all())
        # A half-precision leaf has fewer digits.
        tolerance = max(rtol, 4 * float(jnp.finfo(a.dtype).eps))
        a, b = (x.astype(np.complex128 if np.iscomplexobj(x) else np.float64) for x in (a, b))
        scale = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
        return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))

    _compare(left, right, what, close)


def _compare(left: PyTree, right: PyTree, what: str, equal: Any) -> None:
    left, right = values(left), values(right)
    if list(left) != list(right):
        raise AssertionError(f"{what}: the leaves are {list(left)} and {list(right)}")
    for path, a in left.items():
        b = right[path]
        if a.shape != b.shape or a.dtype != b.dtype:
            raise AssertionError(
                f"{what}: {path or 'the array'} is {a.dtype}{list(a.shape)} and "
                f"{b.dtype}{list(b.shape)}"
            )
        if not equal(a, b):
            raise AssertionError(
                f"{what}: {path or 'the array'} differs, {_excerpt(a)} and {_excerpt(b)}"
            )


def _excerpt(array: np.ndarray) -> str:
    flat = ", ".join(map(str, array.ravel()[:4]))
    return f"[{flat}{', ...' if array.size > 4 else ''}]"


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)
