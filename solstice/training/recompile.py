"""The recompile guard: when a step is compiled again, it reports what changed.

jax traces a step for each form of its input, and compiles it for each placement. The guard only
looks after a call that was new to jax, so it costs nothing while the input keeps its form.
"""

import dataclasses
import logging
from typing import Any, Literal

import equinox as eqx
import jax

from solstice.arguments import describe
from solstice.errors import RecompileError
from solstice.static import Static
from solstice.tree.flat import Flat
from solstice.tree.names import path_name

_logger = logging.getLogger("solstice")

# The second is often for a shorter last batch.
_WARN_FROM = 3


class RecompileGuard:
    """Watches the compilations of one step during a run.

    Args:
        name: The step's name, for messages.
        how: "warn" logs each change once, as a warning from the third compilation on; "error"
            raises at the second.

    >>> import jax.numpy as jnp
    >>> guard = RecompileGuard("train_step", "error")
    >>> flat = Flat.of({"weight": jnp.zeros(2)})
    >>> guard.met(flat, [jnp.zeros(3)], traced=True)
    >>> guard.met(flat, [jnp.zeros(2)], traced=True)
    Traceback (most recent call last):
        ...
    solstice.errors.RecompileError: train_step was compiled again, since its input changed: batch \
was float32[3] and is float32[2]. ...
    """

    def __init__(self, name: str, how: Literal["warn", "error"]) -> None:
        self._name = name
        self._how = how
        self._seen: _Signature | None = None
        self._compilations = 0
        self._told: set[str] = set()

    def first(self, flat: Flat, batches: list[Any]) -> None:
        """Remember the form that a run starts with; an earlier run may have compiled it already."""
        self._seen = _Signature(flat, batches)
        self._compilations = 1

    def met(self, flat: Flat, batches: list[Any], *, traced: bool) -> None:
        """Describe what changed since the last compilation.

        Args:
            flat: The experiment of a call that was new to jax.
            batches: Its batches.
            traced: Whether jax has traced the step for it; otherwise it was compiled only if the
                placement changed.

        Raises:
            RecompileError: It was the second compilation, and `how` is "error".
        """
        before, now = self._seen, _Signature(flat, batches)
        changes = [] if before is None else now.changes_from(before)
        if not changes and not traced:
            return
        self._seen = now
        self._compilations += 1
        if before is None:
            return
        what = _told(changes) or "no array or static value, so it must be a setting of jax"
        message = (
            f"{self._name} was compiled again, since its input changed: {what}. Give each step the "
            f"same shapes, dtypes, static values and devices: drop or pad a shorter last batch, "
            f"keep a number that changes in an array, and let sharding= place what is on several "
            f"devices."
        )
        if self._how == "error":
            leaf, old, new = changes[0] if changes else (None, None, None)
            raise RecompileError(message, leaf=leaf, before=old, after=new)
        if what not in self._told:
            self._told.add(what)
            count = self._compilations
            level = logging.WARNING if count >= _WARN_FROM else logging.INFO
            _logger.log(level, "%s (Compilation %d of this run.)", message, count)


def form_change(before: Flat, after: Flat) -> str | None:
    """Describe how an experiment's form differs, placement aside; None if it does not.

    >>> import jax.numpy as jnp
    >>> form_change(Flat.of({"weight": jnp.zeros(2)}), Flat.of({"weight": jnp.zeros(3)}))
    'weight was float32[2] and is float32[3]'
    """
    same = after.structure.same_tree(before.structure) and all(
        (old.shape, old.dtype) == (new.shape, new.dtype)
        for old, new in zip(before.arrays, after.arrays, strict=True)
    )
    return None if same else _told(_Signature(after, []).changes_from(_Signature(before, [])))


# A leaf's path, and what it was and is.
_Change = tuple[str, str, str]


def _told(changes: list[_Change]) -> str:
    parts = [f"{leaf} was {before} and is {after}" for leaf, before, after in changes[:4]]
    return "; ".join(parts + [f"and {len(changes) - 4} more"] * (len(changes) > 4))


class _Signature:
    """What jax compiles for: form and placement of each array, and all static values."""

    def __init__(self, flat: Flat, batches: list[Any]) -> None:
        self._structure = flat.structure
        self._arrays = list(map(_form, flat.arrays))
        leaves, self._batch_structure = jax.tree.flatten(batches)
        self._batch_leaves = list(map(_form, leaves))

    def changes_from(self, before: "_Signature") -> list[_Change]:
        if self._structure.treedef != before._structure.treedef:
            return [_tree_change(before._structure.treedef, self._structure.treedef, "experiment")]
        if self._batch_structure != before._batch_structure:
            return [_tree_change(before._batch_structure, self._batch_structure, "batches")]
        return [
            (name, *change)
            for (name, old), (_, new) in zip(before._named(), self._named(), strict=True)
            if (change := _change(old, new))
        ]

    def _named(self) -> list[tuple[str, "_Form"]]:
        arrays = iter(self._arrays)
        experiment = [
            (name, next(arrays) if static is None else _Form(static, None))
            for name, static in self._structure.leaves()
        ]
        numbered = jax.tree.unflatten(self._batch_structure, self._batch_leaves)
        batches = [
            # A call of one step has one batch, which needs no number.
            ("/".join(["batch", *filter(None, [path_name(path[len(numbered) == 1 :])])]), form)
            for path, form in jax.tree_util.tree_leaves_with_path(numbered)
        ]
        return experiment + batches


@dataclasses.dataclass(frozen=True)
class _Form:
    """What jax compiles for in one leaf: its type and its devices."""

    kind: Any
    place: Any

    @property
    def text(self) -> str:
        """The type in words; finding them takes longer than a small step."""
        if isinstance(self.kind, Static):
            return f"the static {self.kind.value!r}"
        weak = " (weakly typed)" if getattr(self.kind, "weak_type", False) else ""
        return describe(self.kind) + weak


def _form(leaf: Any) -> _Form:
    bound = isinstance(leaf, jax.Array) and leaf.committed
    kind = jax.typeof(leaf) if eqx.is_array_like(leaf) else leaf
    return _Form(kind, leaf.sharding if bound else None)


def _change(old: _Form, new: _Form) -> tuple[str, str] | None:
    if old.text != new.text:
        return old.text, new.text
    one, two = old.place, new.place
    if one == two:
        return None
    if one is not None and two is not None and one.is_equivalent_to(two, new.kind.ndim):
        return None
    return _place_text(one), _place_text(two)


def _place_text(place: Any) -> str:
    if place is None:
        return "on no certain device"
    if place.num_devices == 1:
        return f"on {next(iter(place.device_set))}"
    whole = "whole" if place.is_fully_replicated else f"split as {getattr(place, 'spec', place)}"
    return f"{whole} on {place.num_devices} devices"


def _tree_change(before: Any, after: Any, name: str) -> _Change:
    """Describe the first difference of two tree structures: a node, or a static field of one."""
    old, new = (jax.tree.unflatten(one, range(one.num_leaves)) for one in (before, after))
    while True:
        (old_children, old_node), (new_children, new_node) = map(_one_level, (old, new))
        if old_node != new_node:
            return name, _node_text(old, new), _node_text(new, old)
        pairs = zip(old_children, new_children, strict=True)
        different = (
            (a, b) for a, b in pairs if jax.tree.structure(a[1]) != jax.tree.structure(b[1])
        )
        (path, old), (_, new) = next(different)
        name = f"{name}/{path_name(path)}"


def _one_level(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda other: other is not node)


def _node_text(node: Any, other: Any) -> str:
    """Describe a node by how it differs from another one."""
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
