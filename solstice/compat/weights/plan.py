"""Decides what goes where in `compat.load`: by names first, then by a trace, then by outputs."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from solstice.compat.model import Model
from solstice.compat.weights.assign import Assignment, Match, assign, tied_pairs
from solstice.compat.weights.averages import numbered_averages
from solstice.compat.weights.cell_matches import CellMatch, match_cells
from solstice.compat.weights.ema import averages, holds_averages
from solstice.compat.weights.exchanges import Matched, ambiguous, nearest_exchange, undecided
from solstice.compat.weights.files.sources import Source
from solstice.compat.weights.flattened import flat_of
from solstice.compat.weights.gates import find_gates
from solstice.compat.weights.layers import prefix, traced_layers
from solstice.compat.weights.layouts import Layouts, as_written
from solstice.compat.weights.leaves import (
    float_leaves,
    model_leaves,
    numbers_like,
    with_leaves,
)
from solstice.compat.weights.named import read_names
from solstice.compat.weights.pairs import BY_GATES, BY_NAME, BY_OUTPUTS, Pair, left_parts, values
from solstice.compat.weights.proof import TOLERANCE, as_expected, difference, evaluation
from solstice.compat.weights.recurrent import cells_of
from solstice.compat.weights.report import LoadedLeaf, LoadReport, check_left
from solstice.compat.weights.roles import trace
from solstice.compat.weights.transposed import says_groups
from solstice.compat.weights.turned import turnings
from solstice.compat.weights.unequal import explained
from solstice.compat.weights.uses import LAYERS, MEAN, TRANSPOSED, VARIANCE, Trace
from solstice.compat.weights.words import OUT_IN, is_ignored, says_layout
from solstice.tree.kinds import is_typed_key
from solstice.tree.names import few
from solstice.tree.pytree import PyTree

# The largest difference, as a part of the largest output, that rounding may be.
_COARSE = 1e-3
# Kinds of matches that are certain.
_SURE = (BY_NAME, BY_GATES)


class Plan:
    """The known matches.

    Attributes:
        model: The model that is loaded into.
        source: Where the arrays come from.
        names: From the arrays to use, to the names to match them by.
        reasons: Why some arrays may be left over.
        by_name: From leaves that were matched by name to their arrays.
    """

    def __init__(
        self, model: Model, source: Source, names: Mapping[str, str], reasons: Sequence[str] = ()
    ) -> None:
        self.model, self.source, self.names = model, source, dict(names)
        self.by_name: dict[str, str] = {}
        self._found = Assignment([], [], [])
        self._cells: list[CellMatch] = []
        self._layouts: Layouts | None = None
        self._ties: list[Pair] = []
        self._trace: Trace | None = None
        self._how: str | None = None
        self._notes = list(source.notes)
        self._reasons = list(reasons)

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
            same = same and not (word in OUT_IN and self._may_be_foreign(name, leaf, leaves))
            if same or np.ndim(old) < 2 or not says_layout(word):
                self.by_name[leaf] = name

    def _may_be_foreign(self, name: str, leaf: str, leaves: Mapping[str, Any]) -> bool:
        """Say whether a square kernel may be of torch, which keeps transposed ones otherwise.

        Only Equinox gives a bias the axes of the kernel.
        """
        shape = self.source.arrays[name].shape
        if len(shape) < 3 or shape[0] != shape[1]:
            return False
        bias = self.source.arrays.get(f"{name.removesuffix('weight')}bias")
        own = leaves.get(f"{prefix(leaf)}/bias")
        return "." in name or (bias is not None and own is not None and bias.ndim != own.ndim)

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

    def match_uses(self, inputs: PyTree, *, averaged: bool = True) -> None:
        """Match the rest by the roles that a trace gives to leaves.

        Args:
            inputs: Of the model.
            averaged: Whether averages of other arrays are to be used too.
        """
        self._trace = trace(self.model, inputs)
        named = {use.leaf for use in self._trace.uses if use.role in LAYERS} & set(self.by_name)
        for use in self._trace.uses if not named else ():
            if flat_of([use]):  # a library with other names may order the elements otherwise
                self.by_name.pop(use.leaf, None)
        weights = {name: new for name, new in self.rest.items() if self._is_weight(name)}
        if not averaged and not holds_averages(float_leaves(self.model)):
            for name in (left := averages(weights, self.source.arrays)):
                del weights[name]
            if left:
                self._notes.append(f"Averages of other arrays were left out: {few(left, 4)}.")
        uses = [as_written(use) for use in self._trace.uses if use.leaf not in self.by_name]
        outside, cells = cells_of(uses)
        arrays = self.source.arrays
        wanted = {use.shape for use in outside if use.role == TRANSPOSED}
        words, reasons = numbered_averages(arrays)
        self._reasons += reasons
        named = read_names(
            arrays,
            {name: new for name, new in weights.items() if words.get(name, name)},
            in_order=self.source.in_order,
            wanted=wanted,
            loops=bool(cells),
            words=words,
        )
        gates = find_gates(self.model, inputs, cells)
        self._cells, reasons = match_cells(cells, gates, named.cells, arrays)
        self._reasons += reasons
        self._found = assign(traced_layers(outside), named.layers)
        self._ties = tied_pairs(self._found)
        for layer in self._found.sources:
            name, left = layer.main.leaf, {one.main.shape for one in self._found.targets}
            self._reasons += says_groups(name, arrays[name].shape, left & wanted)
        shapes = {name: array.shape for name, array in arrays.items()}
        self._layouts = Layouts(self._trace, self._found.matches, shapes)
        self._found.matches[:] = map(self._layouts.of, self._found.matches)

    def settle(self, inputs: tuple[PyTree, ...], outputs: PyTree) -> None:
        """Swap layers of equal shapes until the model gives some outputs.

        Raises:
            UnequalOutputsError: No tried assignment does.
        """
        base = self._based()
        run, floats = evaluation(base, inputs), float_leaves(base)
        best, tries = math.inf, 0

        def given(matches: list[Matched]) -> dict[str, np.ndarray]:
            return values(self._pairs(matches), self.source.arrays, floats)

        def gap(matches: list[Matched], least: float = 0.0) -> float:
            found = run(floats | given(matches))
            return difference(found, as_expected(outputs, found), least=least)

        def far(matches: list[Matched]) -> float:
            nonlocal best, tries
            tries += 1
            best = min(best, found := gap(matches))
            return found

        def exchanged(one: Any, other: Any) -> Matched:
            new = one.exchanged(other)
            return self._layouts.of(new) if self._layouts and isinstance(new, Match) else new

        matches = nearest_exchange(self._all, far, exchanged)
        groups = ambiguous(matches)
        doubts = any(match.doubt for match in matches)
        # Small outputs of large numbers are not exact.
        absolute = gap(matches, 1.0)
        if best > TOLERANCE and (absolute > TOLERANCE or best > _COARSE):
            suspects = [
                pair.target.leaf for group in groups for one in group for pair in one.pairs()
            ]
            suspects += [match.pairs()[0].target.leaf for match in matches if match.doubt]
            epsilons = self._trace.epsilons if self._trace else ()
            shown = absolute if absolute > TOLERANCE else best
            fixed = len(self.by_name)
            raise explained(shown, TOLERANCE, suspects, epsilons, tries=tries, fixed=fixed)
        numbers = given(matches)

        def fits(other: list[Matched]) -> bool:
            new = given(other)
            same = all(np.array_equal(new[leaf], numbers[leaf]) for leaf in new)
            return not same and gap(other) <= max(TOLERANCE, 10 * best)

        left = undecided(matches, fits, exchanged)
        settled = [
            one if one in left else dataclasses.replace(one, group=None, doubt="")
            for one in matches
        ]
        self._found.matches[:] = [one for one in settled if isinstance(one, Match)]
        self._cells = [one for one in settled if isinstance(one, CellMatch)]
        self._how = BY_OUTPUTS if tries > 1 or groups or doubts else ""
        if left:
            self._notes.append(
                f"The given outputs do not decide about {len(left)} layers, such as that of "
                f"{left[0].pairs()[0].target.leaf!r}: another assignment gives the same. Pass an "
                f"example with more, and more varied, numbers."
            )
            return
        if groups:
            self._notes.append(
                f"The given outputs decided between layers of equal shapes, at try {tries}."
            )
        if doubts or (tries > 1 and not groups):
            self._notes.append(f"The given outputs decided between layouts, at try {tries}.")

    def finish(self, *, strict: bool) -> tuple[Any, LoadReport]:
        """Return the loaded model and the report, with a warning about ambiguous matches.

        Raises:
            ValueError: Something is unmatched on either side, and `strict` is True.
        """
        pairs, base = self._pairs(self._all), self._based()
        self._notes += dict.fromkeys(match.doubt for match in self._all if match.doubt)
        leaves, floats = model_leaves(base), float_leaves(base)
        loaded = with_leaves(base, values(pairs, self.source.arrays, floats))
        if self._has_statistics(pairs):
            loaded = with_leaves(loaded.settle_averages(), self._plain())
        given = {pair.target.leaf for pair in pairs} | set(self.by_name)
        parts = left_parts(pairs, floats)
        idle = set(self._trace.unused) if self._trace else set()
        missing = {
            leaf: array.shape
            for leaf, array in floats.items()
            if (leaf not in given or leaf in parts)
            and not (leaf in idle and leaf.startswith("state/"))
        }
        unused, ignored = self._unused(pairs)
        if strict:
            check_left(self.source.place, missing, unused, self._reasons, self.source.parts)
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
        if said := report.warning:
            warnings.warn(said, stacklevel=3)
        return loaded, report

    @property
    def _all(self) -> list[Matched]:
        return [*self._found.matches, *self._cells]

    def _pairs(self, matches: Sequence[Matched]) -> list[Pair]:
        """Return all pairs, with what could have been meant as well."""
        others: dict[int, tuple[str, ...]] = {}
        for group in ambiguous(matches):
            mains = list(dict.fromkeys(match.leaf for match in group))
            for match in group:
                others[id(match)] = tuple(one for one in mains if one != match.leaf)
        pairs = [pair for match in matches for pair in match.pairs(others.get(id(match), ()))]
        return [*pairs, *self._ties]

    def _based(self) -> Any:
        """Return the model with the arrays matched by name, and averages as after long training."""
        model = self.model
        if self._has_statistics(self._pairs(self._all)):
            model = model.settle_averages()
        return with_leaves(model, self._plain())

    def _plain(self) -> dict[str, np.ndarray]:
        return {leaf: self.source.arrays[name] for leaf, name in self.by_name.items()}

    def _has_statistics(self, pairs: Sequence[Pair]) -> bool:
        return any(pair.target.role in (MEAN, VARIANCE) for pair in pairs)

    def _is_weight(self, name: str) -> bool:
        weight = self.source.arrays[name].dtype.kind not in "iub" and not is_ignored(name)
        return weight and name not in self.source.parts

    def _unused(self, pairs: Sequence[Pair]) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
        """Return the unused arrays: those that should have been used, and the others."""
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
        doubts = {
            use.leaf: match.doubt
            for match in self._found.matches
            for use in match.target.uses
            if use is match.target.main or flat_of([use])
        }
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
                others = tuple(dict.fromkeys(one for pair in some for one in pair.others))
                how = some[0].how
                if self._how and how not in _SURE and not (others or doubts.get(leaf)):
                    how = self._how
            else:
                continue
            cast = _cast([arrays[name] for name in names], old)
            said = ", ".join(filter(None, ("" if turned == "as it is" and cast else turned, cast)))
            doubt = doubts.get(leaf, "")
            yield LoadedLeaf(leaf, tuple(names), how, said, others, doubt)


def _is_like(array: np.ndarray, leaf: Any) -> bool:
    """Return whether an array can replace a leaf without a change of its layout."""
    leaf = numbers_like(leaf)
    floats = all(jax.numpy.issubdtype(one.dtype, np.inexact) for one in (array, leaf))
    return array.shape == leaf.shape and (floats or array.dtype.kind == leaf.dtype.kind)


def _is_same(array: np.ndarray, other: np.ndarray) -> bool:
    return array.ndim > 1 and array.dtype == other.dtype and array.tobytes() == other.tobytes()


def _cast(arrays: Sequence[np.ndarray], leaf: Any) -> str:
    found = {array.dtype.name for array in arrays} - {leaf.dtype.name}
    return f"{found.pop()} to {leaf.dtype.name}" if found and not is_typed_key(leaf) else ""
