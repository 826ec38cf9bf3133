"""Forms: the trees of arrays that a program takes and returns, as JSON.

Trees are dicts, lists and tuples here. Any other node, such as a named tuple, becomes a dict of its
parts by name, so that reading a form needs none of the original classes.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.json import from_json, to_json
from solstice.tree.kinds import dtype_name, is_array
from solstice.tree.naming import leaves_by_path, tree_difference
from solstice.tree.pytree import PyTree
from solstice.tree.reprs import Shown
from solstice.tree.tensors import as_dtype

# Sizes that are known, and names of those that are not.
Shape = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class ArrayForm:
    """The shape and the type of an array; a size is a number or the name of an unknown one.

    >>> ArrayForm(("batch", 3), np.dtype("float32"))
    float32[batch,3]
    """

    shape: Shape
    dtype: np.dtype

    def __repr__(self) -> str:
        return f"{dtype_name(self.dtype)}[{','.join(map(str, self.shape))}]"


class Form(Shown):
    """A tree of arrays, whose leaves are numbered, and the form of each of them.

    >>> form = Form.of({"x": np.zeros((4, 2), np.float32)})
    >>> form.whole(), Form.from_dict(form.to_dict()).whole()
    ({'x': float32[4,2]}, {'x': float32[4,2]})
    """

    def __init__(self, tree: PyTree, arrays: Sequence[ArrayForm]) -> None:
        self.tree = tree
        self.arrays = tuple(arrays)
        # Which array each leaf is: parts of a dict come in the order of their names.
        self._order = jax.tree.leaves(tree)
        self.structure = jax.tree.structure(tree)

    @classmethod
    def of(cls, tree: PyTree) -> "Form":
        """Return the form of a tree of arrays, or of their shapes."""
        leaves, structure = jax.tree.flatten(tree)
        numbered = jax.tree.unflatten(structure, range(len(leaves)))
        return cls(_plain(numbered), [array_form(leaf.shape, leaf.dtype) for leaf in leaves])

    def to_dict(self) -> dict[str, Any]:
        """Return it in a form for `json.dumps`."""
        names = leaves_by_path(self.tree)
        arrays = {
            name: {"shape": list(self.arrays[i].shape), "dtype": dtype_name(self.arrays[i].dtype)}
            for name, i in names.items()
        }
        return {"tree": json.loads(to_json(self.tree)), "arrays": arrays}

    @classmethod
    def from_dict(cls, about: Mapping[str, Any]) -> "Form":
        """Return the form that `to_dict` encoded."""
        tree = from_json(json.dumps(about["tree"]))
        names = leaves_by_path(tree)
        if sorted(names.values()) != list(range(len(about["arrays"]))):
            raise InvalidValueError("arrays and tree of a form contradict each other")
        by_number = {i: about["arrays"][name] for name, i in names.items()}
        arrays = [
            ArrayForm(tuple(map(_size, by_number[i]["shape"])), as_dtype(by_number[i]["dtype"]))
            for i in range(len(by_number))
        ]
        return cls(tree, arrays)

    def whole(self, arrays: Sequence[PyTree] | None = None) -> PyTree:
        """Return the tree with these arrays; without, with the form of each."""
        given = self.arrays if arrays is None else arrays
        return jax.tree.unflatten(self.structure, [given[i] for i in self._order])

    def taken_apart(self, tree: PyTree, what: str) -> list[Any]:
        """Return the arrays of a tree of this form, in the order of their numbers.

        Args:
            tree: Any tree of the same parts.
            what: Its name in messages.

        Raises:
            TypeError: It has other parts, a leaf that is not an array, or a wrong dtype.
            ValueError: An array has another shape.
        """
        leaves, structure = jax.tree.flatten(tree)
        for leaf in leaves:
            if not is_array(leaf):
                raise InvalidTypeError(
                    f"{what} is expected to hold arrays, {self._described()}; it holds "
                    f"{describe(leaf)}. Convert it: np.asarray(..., np.float32)."
                )
        if structure != self.structure:
            numbered = _plain(jax.tree.unflatten(structure, range(len(leaves))))
            if jax.tree.structure(numbered) != self.structure:
                both = (jax.tree.structure(_whole(one)) for one in (self.tree, numbered))
                raise InvalidTypeError(
                    f"{what} is expected to be {self._described()}; it is "
                    f"{describe(_whole(tree))}{self._differs(*both)}."
                )
            leaves = [leaves[i] for i in jax.tree.leaves(numbered)]
        found = dict(zip(self._order, leaves, strict=True))
        arrays = [found[i] for i in range(len(leaves))]
        self._check_arrays(arrays, what)
        return arrays

    def _check_arrays(self, arrays: Sequence[Any], what: str) -> None:
        names = {i: name for name, i in leaves_by_path(_whole(self.tree)).items()}
        sizes: dict[str, int] = {}
        for i, (wanted, found) in enumerate(zip(self.arrays, arrays, strict=True)):
            part = f"{what}[{names[i]!r}]" if names[i] else what
            dtype = jax.dtypes.canonicalize_dtype(found.dtype, allow_extended_dtype=True)
            if dtype != wanted.dtype:
                raise InvalidTypeError(
                    f"{part} is expected to be {wanted}; it is {describe(found)}. The exported "
                    f"program takes no other type: {part}.astype({dtype_name(wanted.dtype)!r})."
                )
            if not _fits(wanted.shape, found.shape, sizes):
                raise InvalidValueError(
                    f"{part} is expected to be {wanted}; it is {describe(found)}"
                    f"{_why(wanted.shape, sizes)}."
                )

    def _differs(self, ours: Any, its: Any) -> str:
        """Say which parts differ, unless one array is expected, which has no parts."""
        return "" if jax.tree_util.treedef_is_leaf(ours) else f": {tree_difference(ours, its)}"

    def _described(self) -> str:
        return describe(_whole(self.whole()))


def _whole(tree: PyTree) -> PyTree:
    """Return the item of a tuple of one; messages name a single input that way."""
    return tree[0] if type(tree) is tuple and len(tree) == 1 else tree


def array_form(shape: Iterable[object], dtype: np.dtype) -> ArrayForm:
    """Return the form of arrays of a shape, whose sizes may be symbolic, and a dtype."""
    return ArrayForm(tuple(map(_size, shape)), dtype)


def _size(size: object) -> int | str:
    return size if isinstance(size, int) else str(size)


def _plain(tree: PyTree) -> PyTree:
    return from_json(to_json(tree))


def _fits(wanted: Shape, found: Sequence[int], sizes: dict[str, int]) -> bool:
    """Return whether a shape is as expected, and note the sizes of what has a name.

    A size that is computed from others, such as "2*length", is left to the program.
    """
    if len(wanted) != len(found):
        return False
    for one, size in zip(wanted, found, strict=True):
        if isinstance(one, int):
            if one != size:
                return False
        elif one.isidentifier() and (sizes.setdefault(one, size) != size or size < 1):
            return False
    return True


def _why(wanted: Shape, sizes: dict[str, int]) -> str:
    known = [
        f"{name} is {sizes[name]}" for name in wanted if isinstance(name, str) and name in sizes
    ]
    said = f", where {' and '.join(known)}" if known else ""
    return f"{said}; a size with a name is at least 1" if 0 in sizes.values() else said
