"""Texts as arrays, so that metrics with strings can be merged and saved."""

from collections.abc import Iterable
from typing import TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.tree.pytree import PyTree

# Widths are powers of two, so that there are few shapes to compile for.
_NARROWEST = 16


class Texts(eqx.Module):
    """Texts as numbers, one row per text.

    Attributes:
        codes: Each character's code point plus one; 0 after the end of a text.

    >>> Texts.of(["the cat", ""]).strings().tolist()
    ['the cat', '']
    """

    codes: UInt32[Array, "*texts width"]

    @classmethod
    def of(cls, texts: Iterable[object]) -> "Texts":
        """Return texts as numbers; keeps all characters, also NUL."""
        texts = [str(text) for text in texts]
        longest = max(map(len, texts), default=0)
        codes = np.zeros((len(texts), _width(longest)), np.uint32)
        for row, text in zip(codes, texts, strict=True):
            row[: len(text)] = np.array([ord(character) for character in text], np.uint32) + 1
        return cls(jnp.asarray(codes))

    def strings(self) -> np.ndarray:
        """Return the texts as an array of Python strings; not possible under jit."""
        texts = ["".join(chr(code - 1) for code in row if code) for row in np.asarray(self.codes)]
        return np.array(texts, object)


def encode_texts(values: PyTree) -> PyTree:
    """Return a tree with its arrays and lists of strings as `Texts`.

    Raises:
        TypeError: An array is neither of numbers nor of strings.

    >>> encode_texts({"name": ["cat", "dog"], "loss": np.ones(2)})["name"].codes.shape
    (2, 16)
    """
    return jax.tree.map(_encode, values, is_leaf=_is_list_of_texts)


def decode_texts(values: PyTree) -> PyTree:
    """Return the tree that `encode_texts` was called on, with texts as arrays of strings."""
    return jax.tree.map(
        lambda node: node.strings() if _is_texts(node) else node, values, is_leaf=_is_texts
    )


def of_equal_widths(one: PyTree, other: PyTree) -> tuple[PyTree, PyTree]:
    """Return two trees of one structure, with the narrower of two texts padded."""

    def widened(node: object, like: PyTree) -> object:
        if not _is_texts(node):
            return node
        absent = max(0, like.codes.shape[-1] - node.codes.shape[-1])
        axes = [(0, 0)] * (node.codes.ndim - 1)
        return Texts(jnp.pad(node.codes, [*axes, (0, absent)]))

    return (
        jax.tree.map(widened, one, other, is_leaf=_is_texts),
        jax.tree.map(widened, other, one, is_leaf=_is_texts),
    )


def _encode(leaf: object) -> object:
    if isinstance(leaf, list | tuple):
        return Texts.of(leaf)
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "UTO" and leaf.ndim == 1:
        texts = leaf.tolist()
        if all(isinstance(text, str) for text in texts):
            return Texts.of(texts)
    if isinstance(leaf, str) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "USTO"):
        raise InvalidTypeError(
            f"Texts among values are expected to be a list of str, one per example, or an array of "
            f"them; one is {describe(leaf)}."
        )
    return leaf


def _is_texts(node: object) -> TypeGuard[Texts]:
    return isinstance(node, Texts)


def _is_list_of_texts(node: PyTree) -> bool:
    return type(node) in (list, tuple) and bool(node) and all(isinstance(one, str) for one in node)


def _width(longest: int) -> int:
    return max(_NARROWEST, 1 << max(longest - 1, 0).bit_length())
