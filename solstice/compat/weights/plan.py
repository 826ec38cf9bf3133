"""What goes where in `compat.load`: first what names say, then what a trace does, then outputs."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from solstice.compat.model import Model
from solstice.compat.weights.assign import Assignment, Match, ambiguous, assign, tied_pairs
from solstice.compat.weights.exchanges import nearest_exchange
from solstice.compat.weights.files.sources import Source
from solstice.compat.weights.flattened import channels_before, with_rows_of
from solstice.compat.weights.gates import find_gates
from solstice.compat.weights.layers import prefix, traced_layers
from solstice.compat.weights.leaves import (
    float_leaves,
    model_leaves,
    numbers_like,
    with_leaves,
)
from solstice.compat.weights.named import read_names
from solstice.compat.weights.named_cells import NamedCell
from solstice.compat.weights.pairs import BY_GATES, BY_NAME, BY_OUTPUTS, Pair, values
from solstice.compat.weights.proof import TOLERANCE, as_expected, difference, evaluation
from solstice.compat.weights.recurrent import LSTM, Cell, cells_of, way
from solstice.compat.weights.report import LoadedLeaf, LoadReport, check_left
from solstice.compat.weights.roles import trace
from solstice.compat.weights.turned import turnings
from solstice.compat.weights.unequal import explained
from solstice.compat.weights.uses import CONV, MATRIX, MEAN, TRANSPOSED, VARIANCE, Trace, Use
from solstice.compat.weights.words import is_ignored, is_out_in, says_layout, says_transposed
from solstice.tree.kinds import is_typed_key
from solstice.tree.pytree import PyTree

# How leaves were matched about which there is no doubt.
_SURE = (BY_NAME, BY_GATES)


class Plan:
    """What goes where, as far as it is known.

    Attributes:
        model: The model that is loaded into.
        source: Where the arrays come from.
        names: From the arrays to use, to the names to match them by.
        by_name: From leaves that were matched by name to their arrays.
    """

    def __init__(self, model: Model, source: Source, names: Mapping[str, str]) -> None:
        self.model, self.source, self.names = model, source, dict(names)
        self.by_name: dict[str, str] = {}
        self._found = Assignment([], [], [])
        self._cells: list[Pair] = []
        self._ties: list[Pair] = []
        self._trace: Trace | None = None
        self._how: str | None = None
        self._notes = list(source.notes)
        self._reasons: list[str] = []

    def match_names(self, leaves: Mapping[str, Any], *, sure: bool) -> None:
        """Match leaves with arrays of their own names and shapes.

        Args:
            leaves: The model's.
            sure: Whether a layout that depends on the library goes by the name alone: no trace
                will tell.
        """
        by_new = {new: name for name, new in self.names.items()}
        for leaf, old in leaves.items():
            name = by_new.get(self.model.library_name(leaf), by_new.get(leaf))
            if name is None and sure:
                name = by_new.get(self.model.library_name(leaf).replace("/", "."))
            if name is None or not _is_like(self.source.arrays[name], old):
                continue
            word = name.replace(".", "/").rpartition("/")[2]
            same = word == leaf.rpartition("/")[2] and (sure or not self.source.in_order)
            if same or np.ndim(old) < 2 or not says_layout(word):
                self.by_name[leaf] = name

    @property
    def rest(self) -> dict[str, str]:
        """Arrays that went nowhere by name, and are weights."""
        taken = set(self.by_name.values())
        return {name: new for name, new in self.names.items() if name not in taken}

    @property
    def is_open(self) -> bool:
        """Whether floats are left on both sides."""
        return None not in self.first_open

    @property
    def first_open(self) -> tuple[str | None, str | None]:
        """The first leaf, and the first array, that are left."""
        leaf = next((leaf for leaf in float_leaves(self.model) if leaf not in self.by_name), None)
        return leaf, next((name for name in self.rest if self._is_weight(name)), None)

    def match_uses(self, inputs: PyTree) -> None:
        """Match what is left by what a trace says that leaves are for."""
        self._trace = trace(self.model, inputs)
        weights = {name: new for name, new in self.rest.items() if self._is_weight(name)}
        named = read_names(self.source.arrays, weights, in_order=self.source.in_order)
        uses = [_as_named(use) for use in self._trace.uses if use.leaf not in self.by_name]
        outside, cells = cells_of(uses)
        self._match_cells(inputs, cells, named.cells)
        self._found = assign(traced_layers(outside), named.layers)
        self._ties = tied_pairs(self._found)
        channels = channels_before(self._trace.uses)
        for place, match in enumerate(self._found.matches):
            target, (use, *rest) = match.target.main, match.uses
            first, many = is_out_in(use.leaf), channels.get(target.step, 0)
            turned, doubt = with_rows_of(target, use, many, channels_first=first)
            self._found.matches[place] = dataclasses.replace(match, uses=(turned, *rest))
            self._notes += [doubt] if doubt else []
        guessed = {
            use.leaf: None
            for match in self._found.matches
            for use in match.uses
            if use.role == MATRIX and not says_layout(use.leaf)
        }
        self._notes += [f"The name {name!r} says no layout: it was guessed." for name in guessed]
        hinted = self._trace.padded_in_full or any(use.role == TRANSPOSED for use in uses)
        self._notes += [
            f"{use.leaf!r} has as many channels before as after, so its shape does not say whether "
            f"it is of a transposed convolution: it was read as of a plain one."
            for match in self._found.matches
            for use in match.uses
            if use.role == CONV
            and use.shape[-1] == use.shape[-2] > 1
            and (hinted or any(map(says_transposed, match.target.name.split("/"))))
            and not says_transposed(match.source.name)
        ]
        self._notes += [
            f"{match.uses[0].leaf!r} has as many channels before as after, and is of a transposed "
            f"convolution: its layout was guessed from its name."
            for match in self._found.matches
            if match.uses[0].role == TRANSPOSED and len(match.source.all_like(match.uses[0])) > 1
        ]

    def _match_cells(
        self, inputs: PyTree, ours: Sequence[Cell], theirs: Sequence[NamedCell]
    ) -> None:
        if len(ours) != len(theirs):
            self._reasons.append(
                f"The model has {len(ours)} loops over time, and the source {len(theirs)} "
                f"recurrent cells."
            )
            return
        found = find_gates(self.model, inputs, ours) if ours else []
        for cell, other, gates in zip(ours, theirs, found, strict=True):
            if gates is None or not cell.fits(other.cell):
                why = "has other sizes" if gates else "is of a kind whose gates are not known"
                self._reasons.append(f"The recurrent cell {other.name!r} {why}.")
                continue
            order = tuple(other.gates.index(gate) for gate in gates.order)
            more = other.forget - gates.forget
            forget = {gates.order.index("f"): more} if len(order) == LSTM and more else {}
            self._cells += [
                dataclasses.replace(pair, how=BY_GATES)
                for pair in way(order, offsets=forget)(cell, other.cell)
            ]

    def settle(self, inputs: tuple[PyTree, ...], outputs: PyTree) -> None:
        """Exchange alike layers until the model gives some outputs.

        Raises:
            UnequalOutputsError: No assignment that was tried does.
        """
        base = self._based()
        run, floats = evaluation(base, inputs), float_leaves(base)
        best, tries = math.inf, 0

        def far(matches: list[Match]) -> float:
            nonlocal best, tries
            tries += 1
            given = values(self._pairs(matches), self.source.arrays, floats)
            found = run(floats | given)
            best = min(best, gap := difference(found, as_expected(outputs, found)))
            return gap

        matches = nearest_exchange(self._found.matches, far)
        groups = ambiguous(self._found.matches if matches is None else matches)
        if matches is None:
            suspects = [match.target.main.leaf for group in groups for match in group]
            epsilons = self._trace.epsilons if self._trace else ()
            raise explained(best, TOLERANCE, suspects, epsilons, tries=tries)
        self._found.matches[:] = matches
        self._how = BY_OUTPUTS if tries > 1 or groups else ""
        if groups:
            self._notes.append(f"The outputs given decided between alike layers, at try {tries}.")

    def finish(self, *, strict: bool) -> tuple[Any, LoadReport]:
        """Return the loaded model and the report, with a warning of what is ambiguous.

        Raises:
            ValueError: Something is left over on either side, and `strict`.
        """
        pairs, base = self._pairs(self._found.matches), self._based()
        leaves, floats = model_leaves(base), float_leaves(base)
        loaded = with_leaves(base, values(pairs, self.source.arrays, floats))
        if self._has_statistics(pairs):
            loaded = with_leaves(loaded.settle_averages(), self._plain())
        given = {pair.target.leaf for pair in pairs} | set(self.by_name)
        parts = _left_parts(pairs, floats)
        idle = set(self._trace.unused) if self._trace else set()
        missing = {
            leaf: array.shape
            for leaf, array in floats.items()
            if (leaf not in given or leaf in parts)
            and not (leaf in idle and leaf.startswith("state/"))
        }
        unused, ignored = self._unused(pairs)
        if strict:
            check_left(self.source.place, missing, unused, self._reasons)
        report = LoadReport(
            source=self.source.place,
            rows=tuple(self._rows(pairs, leaves)),
            missing=missing,
            unused=unused,
            kept=tuple(leaf for leaf in leaves if leaf not in missing and leaf not in given),
            ignored=ignored,
            notes=(*self._notes, *self._reasons),
            _model=loaded,
            _epsilons=self._trace.epsilons if self._trace else (),
        )
        if alike := report.ambiguous:
            warnings.warn(
                f"load(): {len(alike)} leaves were matched by order alone, such as "
                f"{alike[0].leaf!r} with {alike[0].sources[0]!r}, and other arrays have their "
                f"form. Prove the result: report.check(inputs, outputs), or "
                f"load(..., example=inputs, outputs=outputs).",
                stacklevel=3,
            )
        return loaded, report

    def _pairs(self, matches: Sequence[Match]) -> list[Pair]:
        """Return all pairs, with what could have been meant as well."""
        others: dict[int, tuple[str, ...]] = {}
        for group in ambiguous(matches) if self._how is None else []:
            mains = list(dict.fromkeys(match.uses[0].leaf for match in group))
            for match in group:
                others[id(match)] = tuple(one for one in mains if one != match.uses[0].leaf)
        pairs = [pair for match in matches for pair in match.pairs(others.get(id(match), ()))]
        return [*pairs, *self._cells, *self._ties]

    def _based(self) -> Any:
        """Return the model with what went by name, and averages as after long training."""
        model = self.model
        if self._has_statistics(self._pairs(self._found.matches)):
            model = model.settle_averages()
        return with_leaves(model, self._plain())

    def _plain(self) -> dict[str, np.ndarray]:
        return {leaf: self.source.arrays[name] for leaf, name in self.by_name.items()}

    def _has_statistics(self, pairs: Sequence[Pair]) -> bool:
        return any(pair.target.role in (MEAN, VARIANCE) for pair in pairs)

    def _is_weight(self, name: str) -> bool:
        return self.source.arrays[name].dtype.kind not in "iub" and not is_ignored(name)

    def _unused(self, pairs: Sequence[Pair]) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
        """Return the arrays that went nowhere: those that should not have, and the others."""
        arrays = self.source.arrays
        taken = {use.leaf for pair in pairs for use in pair.sources}
        unused, ignored = {}, []
        for name in self.rest:
            if name in taken:
                continue
            counter = arrays[name].dtype.kind in "iub" and not arrays[name].ndim
            tied = next((one for one in taken if _is_same(arrays[name], arrays[one])), None)
            if tied:
                self._notes.append(f"{name!r} is tied to {tied!r}: their numbers are the same.")
            if tied or counter or is_ignored(name):
                ignored.append(name)
            else:
                unused[name] = arrays[name].shape
        return unused, tuple(ignored)

    def _rows(self, pairs: Sequence[Pair], leaves: Mapping[str, Any]) -> Iterator[LoadedLeaf]:
        by_leaf: dict[str, list[Pair]] = {}
        for pair in pairs:
            by_leaf.setdefault(pair.target.leaf, []).append(pair)
        arrays = self.source.arrays
        shapes = {name: array.shape for name, array in arrays.items()}
        wanted = {name: np.shape(leaf) for name, leaf in leaves.items()}
        for leaf, old in leaves.items():
            if leaf in self.by_name:
                names, turned, how, others = [self.by_name[leaf]], "as it is", BY_NAME, ()
            elif some := by_leaf.get(leaf):
                names = list(dict.fromkeys(use.leaf for pair in some for use in pair.sources))
                lines = [line for pair in some for line in turnings(pair, shapes, wanted)]
                turned = lines[0] if len(lines) == 1 else f"{len(lines)} parts"
                how = self._how if self._how and some[0].how not in _SURE else some[0].how
                others = tuple(dict.fromkeys(one for pair in some for one in pair.others))
            else:
                continue
            cast = _cast([arrays[name] for name in names], old)
            said = ", ".join(filter(None, ("" if turned == "as it is" and cast else turned, cast)))
            yield LoadedLeaf(leaf, tuple(names), how, said, others)


def _as_named(use: Use) -> Use:
    """Return a plain convolution's use as a transposed one's, if its layer is called one.

    Of stride 1, both are the same operation.
    """
    named = use.role == CONV and says_transposed(prefix(use.leaf))
    return dataclasses.replace(use, role=TRANSPOSED) if named else use


def _is_like(array: np.ndarray, leaf: Any) -> bool:
    """Say whether an array can replace a leaf without a change of its layout."""
    leaf = numbers_like(leaf)
    floats = all(jax.numpy.issubdtype(one.dtype, np.inexact) for one in (array, leaf))
    return array.shape == leaf.shape and (floats or array.dtype.kind == leaf.dtype.kind)


def _is_same(array: np.ndarray, other: np.ndarray) -> bool:
    return array.ndim > 1 and array.dtype == other.dtype and array.tobytes() == other.tobytes()


def _cast(arrays: Sequence[np.ndarray], leaf: Any) -> str:
    found = {array.dtype.name for array in arrays} - {leaf.dtype.name}
    return f"{found.pop()} to {leaf.dtype.name}" if found and not is_typed_key(leaf) else ""


def _left_parts(pairs: Sequence[Pair], leaves: Mapping[str, Any]) -> set[str]:
    """Return the leaves of which only a part got numbers."""
    counts: dict[str, int] = {}
    for pair in pairs:
        counts[pair.target.leaf] = counts.get(pair.target.leaf, 0) + pair.target.index.size
    return {leaf for leaf, count in counts.items() if count < leaves[leaf].size}
