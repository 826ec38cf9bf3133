"""Flat: a pytree as its arrays and one static structure.

A compiled call handles it as cheaply as a list, since structures are compared by identity, or else
by a cached hash.
"""

from collections.abc import Iterable
from typing import NamedTuple, Self, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidTypeError
from solstice.static import Static
from solstice.tree.names import path_name
from solstice.tree.pytree import PyTree, PyTreeDef

_T = TypeVar("_T")


def snapshot(exp: _T) -> _T:
    """Return a copy of an experiment that stays valid after later steps.

    A callback that keeps an experiment beyond its hook needs one, since the next step donates the
    buffers of the one it got.

    >>> import jax.numpy as jnp, solstice
    >>> class KeepBest(solstice.Callback):
    ...     def on_epoch_end(self, exp, epoch, mode):
    ...         self.best = solstice.snapshot(exp)
    """
    return Flat.of(exp).copy().whole()


def copied(arrays: list[PyTree]) -> list[PyTree]:
    """Return copies of arrays on the same devices; if arrays span processes, all must call it.

    >>> copied([jax.numpy.ones(2)])
    [Array([1., 1.], dtype=float32)]
    """
    if all(getattr(array, "is_fully_addressable", True) for array in arrays):
        # Unlike jnp.copy, it compiles nothing. jax may still share the memory of numpy arrays.
        own = [one if isinstance(one, jax.Array) else np.array(one) for one in arrays]
        for one in own:
            if isinstance(one, np.ndarray) and one.dtype.kind in "OSUMm":
                raise InvalidTypeError(
                    f"A leaf is expected to be an array of numbers; one is {describe(one)}."
                )
        return jax.device_put(own, may_alias=False)
    return [jax.jit(jnp.copy, out_shardings=array.sharding)(array) for array in arrays]


@jax.tree_util.register_pytree_with_keys_class
class Flat:
    """A flattened pytree: its arrays, and everything else in one static structure.

    It is a pytree of these arrays, and much cheaper to pass to a compiled call.

    >>> import jax.numpy as jnp
    >>> flat = Flat.of({"by": jnp.ones(2), "name": "twice"})
    >>> len(flat.arrays), flat.whole()
    (1, {'by': Array([1., 1.], dtype=float32), 'name': 'twice'})
    """

    __slots__ = ("arrays", "structure")

    def __init__(self, arrays: list[PyTree], structure: "Structure") -> None:
        self.arrays: list[PyTree] = arrays
        self.structure: Structure = structure

    @classmethod
    def of(cls, tree: PyTree, like: "Structure | None" = None) -> Self:
        """Flatten a tree; a structure equal to `like` becomes `like`, which is cheap to compare."""
        leaves, treedef = jax.tree.flatten(tree)
        places = tuple(_ARRAY if eqx.is_array(leaf) else Static(leaf) for leaf in leaves)
        structure = Structure(treedef, places)
        arrays = [leaf for leaf, place in zip(leaves, places, strict=True) if place is _ARRAY]
        return cls(arrays, like if like is not None and structure.same_tree(like) else structure)

    def leaves(self) -> list[PyTree]:
        """Return the tree's leaves, in its order."""
        if self.structure.only_arrays:
            return self.arrays
        arrays = iter(self.arrays)
        return [next(arrays) if one is _ARRAY else one.value for one in self.structure.places]

    def whole(self) -> PyTree:
        """Rebuild the tree."""
        return jax.tree.unflatten(self.structure.treedef, self.leaves())

    def copy(self) -> Self:
        """Return a copy whose arrays may be donated."""
        return type(self)(copied(self.arrays), self.structure)

    def tree_flatten(self) -> tuple[list[PyTree], "Structure"]:
        return self.arrays, self.structure

    def tree_flatten_with_keys(self) -> tuple[list[tuple[object, PyTree]], "Structure"]:
        keys = map(jax.tree_util.SequenceKey, range(len(self.arrays)))
        return list(zip(keys, self.arrays, strict=True)), self.structure

    @classmethod
    def tree_unflatten(cls, structure: "Structure", arrays: Iterable[PyTree]) -> Self:
        return cls(list(arrays), structure)


class Placement(NamedTuple):
    """Where a tree's arrays and a step's outs are on a mesh."""

    arrays: tuple[jax.sharding.NamedSharding, ...]
    outs: jax.sharding.NamedSharding


class Structure:
    """A pytree's structure and its non-array leaves, hashed once.

    Attributes:
        treedef: jax's structure.
        places: For each leaf, a static value or the mark of an array.
        only_arrays: Whether all are.
        placement: Where a compiled step keeps the arrays; None leaves it to the compiler.
    """

    __slots__ = ("_hash", "only_arrays", "placement", "places", "treedef")

    def __init__(
        self,
        treedef: PyTreeDef,
        places: tuple[Static[PyTree], ...],
        placement: Placement | None = None,
    ) -> None:
        self.treedef: PyTreeDef = treedef
        self.places: tuple[Static[PyTree], ...] = places
        self.placement: Placement | None = placement
        self.only_arrays: bool = all(one is _ARRAY for one in places)
        self._hash = hash((treedef, places))

    def placed(self, placement: Placement | None) -> "Structure":
        """Return the same structure with another placement."""
        return Structure(self.treedef, self.places, placement)

    def same_tree(self, other: "Structure") -> bool:
        """Return whether both are the structure of one tree, placement aside."""
        return (
            self._hash == other._hash
            and self.places == other.places
            and self.treedef == other.treedef
        )

    def leaves(self) -> list[tuple[str, Static[PyTree] | None]]:
        """Return the name of each leaf's path, and its static value or None for an array."""
        numbered = jax.tree.unflatten(self.treedef, range(len(self.places)))
        paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(numbered)]
        statics = (None if one is _ARRAY else one for one in self.places)
        return list(zip(paths, statics, strict=True))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Structure)
            and self.same_tree(other)
            and self.placement == other.placement
        )


class _Array:
    """The mark of an array in a structure."""


_ARRAY = Static(_Array())
