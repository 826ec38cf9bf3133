"""The recompile guard: when a step is traced again, it says what changed.

It looks only after a trace, so that a run whose input keeps its form pays nothing for it.
"""

import dataclasses
import logging
from typing import Any, Literal

import equinox as eqx
import jax

from solstice.errors import RecompileError
from solstice.flat import Flat
from solstice.static import Static
from solstice.tree import describe, path_name

_logger = logging.getLogger("solstice")

# The first trace is the compilation, the second often a shorter last batch.
_WARN_FROM = 3


class RecompileGuard:
    """Watches the traces of one compiled step during a run.

    Args:
        name: The step's name, for messages.
        how: "warn" logs each change once, as a warning from the third trace on; "error" raises at
            the second.

    >>> import jax.numpy as jnp
    >>> guard = RecompileGuard("train_step", "error")
    >>> flat = Flat.of({"weight": jnp.zeros(2)})
    >>> guard.traced(flat, [jnp.zeros(3)])
    >>> guard.traced(flat, [jnp.zeros(2)])
    Traceback (most recent call last):
        ...
    solstice.errors.RecompileError: train_step was compiled again, since its input changed: batch \
was float32[3] and is float32[2]. ...
    """

    def __init__(self, name: str, how: Literal["warn", "error"]) -> None:
        self._name = name
        self._how = how
        self._seen: _Signature | None = None
        self._traces = 0
        self._told: set[str] = set()

    def first(self, flat: Flat, batches: list[Any]) -> None:
        """Remember what a run starts with, though an earlier run may have compiled it already."""
        self._seen = _Signature(flat, batches)
        self._traces = 1

    def traced(self, flat: Flat, batches: list[Any]) -> None:
        """Tell what changed since the last trace.

        Raises:
            RecompileError: It was the second trace, and this is to be an error.
        """
        before, self._seen = self._seen, _Signature(flat, batches)
        self._traces += 1
        if before is None:
            return
        what = self._seen.changes_from(before)
        message = (
            f"{self._name} was compiled again, since its input changed: {what}. Give each step the "
            f"same shapes, dtypes and static values: drop or pad a shorter last batch, and keep a "
            f"number that changes in an array."
        )
        if self._how == "error":
            raise RecompileError(message)
        if what not in self._told:
            self._told.add(what)
            level = logging.WARNING if self._traces >= _WARN_FROM else logging.INFO
            _logger.log(level, "%s (Trace %d of this run.)", message, self._traces)


class _Signature:
    """What jax compiles for: the form of each array, and all that is static."""

    def __init__(self, flat: Flat, batches: list[Any]) -> None:
        self._structure = flat.structure
        self._arrays = list(map(_form, flat.arrays))
        leaves, self._batch_structure = jax.tree.flatten(batches)
        self._batch_leaves = list(map(_form, leaves))

    def changes_from(self, before: "_Signature") -> str:
        if self._structure.treedef != before._structure.treedef:
            return _tree_change(before._structure.treedef, self._structure.treedef, "experiment")
        if self._batch_structure != before._batch_structure:
            return _tree_change(before._batch_structure, self._batch_structure, "batches")
        changes = [
            f"{name} was {old} and is {new}"
            for (name, old), (_, new) in zip(before._named(), self._named(), strict=True)
            if old != new
        ]
        if not changes:
            return "no array and no static value did, so it must be a setting of jax"
        shown = "; ".join(changes[:4])
        return shown + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "")

    def _named(self) -> list[tuple[str, str]]:
        arrays = iter(self._arrays)
        experiment = [
            (name, _text(next(arrays)) if static is None else f"the static {static.value!r}")
            for name, static in self._structure.leaves()
        ]
        numbered = jax.tree.unflatten(self._batch_structure, self._batch_leaves)
        batches = [
            # A call of one step has one batch, which needs no number.
            (
                "/".join(["batch", *filter(None, [path_name(path[len(numbered) == 1 :])])]),
                _text(leaf),
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(numbered)
        ]
        return experiment + batches


def _form(leaf: Any) -> Any:
    return jax.typeof(leaf) if eqx.is_array_like(leaf) else leaf


def _text(form: Any) -> str:
    return describe(form) + (" (weakly typed)" if getattr(form, "weak_type", False) else "")


def _tree_change(before: Any, after: Any, name: str) -> str:
    """Say where two tree structures differ first: another node, or another static field of one."""
    old, new = (jax.tree.unflatten(one, range(one.num_leaves)) for one in (before, after))
    while True:
        (old_children, old_node), (new_children, new_node) = map(_one_level, (old, new))
        if old_node != new_node:
            return f"{name} was {_node_text(old, new)} and is {_node_text(new, old)}"
        pairs = zip(old_children, new_children, strict=True)
        different = (
            (a, b) for a, b in pairs if jax.tree.structure(a[1]) != jax.tree.structure(b[1])
        )
        (path, old), (_, new) = next(different)
        name = f"{name}/{path_name(path)}"


def _one_level(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda other: other is not node)


def _node_text(node: Any, other: Any) -> str:
    """Describe a node by what sets it apart from another one."""
    if type(node) is type(other) and dataclasses.is_dataclass(node):
        statics = [field.name for field in dataclasses.fields(node) if field.metadata.get("static")]
        changed = [
            f"{name}={describe(getattr(node, name))}"
            for name in statics
            if Static(getattr(node, name)) != Static(getattr(other, name))
        ]
        if changed:
            return f"a {type(node).__name__} with {', '.join(changed)}"
    keys = [path_name(path) for path, _ in _one_level(node)[0] if path]
    within = f" of {', '.join(keys[:5])}{', ...' * (len(keys) > 5)}" if keys else ""
    return "None" if node is None else f"a {type(node).__name__}{within}"
