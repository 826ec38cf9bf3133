"""jit: a compiled step, which the trainer runs fused.

Fused means: between steps the experiment stays flat, a list of arrays that goes into one compiled
call and comes out of it, its buffers donated. What is static is compared by identity, so that a
step costs no Python over the tree. Called directly, a step is an ordinary pure call.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Self, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from solstice.experiment import check_result
from solstice.static import Static
from solstice.tree import describe

_T = TypeVar("_T")


def jit(step: Callable[..., Any]) -> Any:
    """Return a compiled `train_step` or `eval_step`; use it as a decorator.

    Called directly, the step is a pure call that leaves its experiment and its batch alive. The
    trainer recognises it and runs it fused, with the experiment's buffers donated. As under
    `equinox.filter_jit`, an experiment's arrays are traced and everything else is static: a Python
    number that changes with each step compiles each step anew; make it an array.

    Args:
        step: A function of (self, batch) that returns (new experiment, outs).

    Raises:
        TypeError: It is no such function.

    >>> import jax.numpy as jnp, solstice
    >>> class Count(solstice.Experiment):
    ...     steps: jnp.ndarray
    ...
    ...     @solstice.jit
    ...     def train_step(self, batch):
    ...         return solstice.replace(self, steps=self.steps + 1), None
    ...
    ...     def eval_step(self, batch):
    ...         return self, None
    >>> exp = Count(jnp.zeros((), int))
    >>> int(exp.train_step(None)[0].steps), int(exp.steps)
    (1, 0)
    >>> int(solstice.train(exp, 3, [1.0, 2.0], progress=False).steps)
    6
    """
    if not inspect.isfunction(step) or len(inspect.signature(step).parameters) != 2:
        raise TypeError(
            f"solstice.jit is expected to decorate a step, a method of (self, batch); it got "
            f"{describe(step)}. For any other function, use jax.jit or equinox.filter_jit."
        )
    return Step(step)


def snapshot(exp: _T) -> _T:
    """Return a copy of an experiment, with arrays of its own, that outlives the step it is from.

    A callback that keeps an experiment beyond its hook needs one: the next fused step takes the
    buffers of the one it was given.

    >>> import jax.numpy as jnp, solstice
    >>> class KeepBest(solstice.Callback):
    ...     def on_epoch_end(self, exp, epoch, mode):
    ...         self.best = solstice.snapshot(exp)
    """
    return Flat.of(exp).copy().whole()


class Step:
    """A compiled step: what `solstice.jit` makes of a method."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._pure = jax.jit(self._changes)
        self._fused = jax.jit(self._flat_step, donate_argnums=0)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, exp: Any, batch: Any) -> tuple[Any, Any]:
        """Take the step; what it is given stays alive, and comes back itself if nothing changed."""
        flat = Flat.of(exp)
        new, outs = self.pure(flat, batch)
        return exp if new is flat else new.whole(), outs

    def pure(self, flat: "Flat", batch: Any) -> tuple["Flat", Any]:
        """Take the step on a flat experiment; that very one comes back if nothing changed."""
        changes, outs = self._pure(flat, batch)
        if isinstance(changes, Flat):
            new = changes
        elif changes:
            arrays = list(flat.arrays)
            for i, array in changes.items():
                arrays[i] = array
            new = Flat(arrays, flat.structure)
        else:
            new = flat
        return new, outs.whole()

    def fused(self, flat: "Flat", batch: Any) -> tuple["Flat", Any]:
        """Take the step on a flat experiment, whose buffers it takes."""
        new, outs = self._fused(flat, batch)
        return new, outs.whole()

    def _flat_step(self, flat: "Flat", batch: Any) -> tuple["Flat", "Flat"]:
        exp = flat.whole()
        new, outs = check_result(exp, self._function.__name__, self._function(exp, batch))
        return Flat.of(new, like=flat.structure), Flat.of(outs)

    def _changes(self, flat: "Flat", batch: Any) -> tuple[Any, "Flat"]:
        """Return the arrays that the step changes, by position; others would only be copied."""
        new, outs = self._flat_step(flat, batch)
        if new.structure is not flat.structure:
            return new, outs
        pairs = enumerate(zip(new.arrays, flat.arrays, strict=True))
        return {i: array for i, (array, before) in pairs if array is not before}, outs


@jax.tree_util.register_pytree_with_keys_class
class Flat:
    """A pytree taken apart: its arrays, and everything else in one static structure.

    It is a pytree itself, of these arrays, and much cheaper to hand to a compiled call.

    >>> flat = Flat.of({"by": jnp.ones(2), "name": "twice"})
    >>> len(flat.arrays), flat.whole()
    (1, {'by': Array([1., 1.], dtype=float32), 'name': 'twice'})
    """

    __slots__ = ("arrays", "structure")

    def __init__(self, arrays: list[Any], structure: "Structure") -> None:
        self.arrays = arrays
        self.structure = structure

    @classmethod
    def of(cls, tree: Any, like: "Structure | None" = None) -> Self:
        """Take a tree apart; a structure equal to `like` is `like` itself, cheap to compare."""
        leaves, treedef = jax.tree.flatten(tree)
        places = tuple(_ARRAY if eqx.is_array(leaf) else Static(leaf) for leaf in leaves)
        structure = Structure(treedef, places)
        arrays = [leaf for leaf, place in zip(leaves, places, strict=True) if place is _ARRAY]
        return cls(arrays, like if like is not None and structure == like else structure)

    def whole(self) -> Any:
        """Put the tree together again."""
        structure = self.structure
        if structure.only_arrays:
            return jax.tree.unflatten(structure.treedef, self.arrays)
        arrays = iter(self.arrays)
        leaves = [next(arrays) if one is _ARRAY else one.value for one in structure.places]
        return jax.tree.unflatten(structure.treedef, leaves)

    def copy(self) -> Self:
        """Return it with arrays of its own, which may be donated."""
        return type(self)([jnp.copy(array) for array in self.arrays], self.structure)

    def tree_flatten(self) -> tuple[list[Any], "Structure"]:
        return self.arrays, self.structure

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], "Structure"]:
        keys = map(jax.tree_util.SequenceKey, range(len(self.arrays)))
        return list(zip(keys, self.arrays, strict=True)), self.structure

    @classmethod
    def tree_unflatten(cls, structure: "Structure", arrays: Any) -> Self:
        return cls(list(arrays), structure)


class Structure:
    """What of a pytree is no array: its treedef and its other leaves; hashed once."""

    __slots__ = ("_hash", "only_arrays", "places", "treedef")

    def __init__(self, treedef: Any, places: tuple[Static[Any], ...]) -> None:
        self.treedef = treedef
        self.places = places
        self.only_arrays = all(one is _ARRAY for one in places)
        self._hash = hash((treedef, places))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Structure)
            and self._hash == other._hash
            and self.places == other.places
            and self.treedef == other.treedef
        )


class _Array:
    """Stands in a structure where an array was."""


_ARRAY = Static(_Array())
