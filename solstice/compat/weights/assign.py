"""Matches layers of a source with layers of a model: by name, order of use, or similarity.

    first    norms are cut in two, if the source has their statistics apart
    then     layers with equal names, then with names that differ only in numbers, in their order
    then     the k-th layer of some roles and shapes goes to the k-th such layer in order of use
    then     fused and split projections, and layers of which only one has a bias
    last     if one side has more layers of a shape than the other, the most similar names

Nothing is guessed silently: if another layer of the same shape is possible, the pairs list it.
"""

import dataclasses
import difflib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from solstice.compat.weights.flattened import laid
from solstice.compat.weights.layers import Layer, normal, signature_of, without_numbers
from solstice.compat.weights.pairs import BY_LIKENESS, BY_NAME, BY_USE, TIED, Pair
from solstice.compat.weights.uses import MATRIX, MEAN, TABLE, TRANSPOSED, VARIANCE, Use

_T = TypeVar("_T")
_PARTS = (2, 3)  # a gate and a value in one array; query, key and value


# The names of attention layers.
_PROJECTIONS = {
    kind: {(name,) for name in names.split()}
    for kind, names in {
        "query": "q query q_proj query_proj query_dense",
        "key": "k key k_proj key_proj key_dense",
        "value": "v value v_proj value_proj value_dense",
        "output": "o out output o_proj out_proj output_proj output_dense attention_output",
    }.items()
}


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """A layer of the model and the layer of the source that goes there.

    Attributes:
        target: Of the model.
        source: Of the source.
        uses: How the source's layer is interpreted.
        how: How it was found.
        group: Which matches it could be exchanged with; None if a name decided.
        layouts: Its first use as it may be read, the likeliest first, and in which order the
            source has flattened features.
        layout: Which of them it is.
        doubt: Why another layout could be meant; empty if none could.
        channels_first: Whether the source's library flattens channels first.
    """

    target: Layer
    source: Layer
    uses: tuple[Use, ...]
    how: str
    group: Any = None
    layouts: tuple[tuple[Use, int], ...] = ()
    layout: int = 0
    doubt: str = ""
    channels_first: bool = False

    @property
    def leaf(self) -> str:
        """The source's leaf that the layer is named for."""
        return self.uses[0].leaf

    def exchanged(self, other: "Match") -> "Match":
        """Return the match with the source's layer of another."""
        uses = other.source.reading(signature_of(self.target.uses)) or other.uses
        return dataclasses.replace(self, source=other.source, uses=uses)

    def read(self, layout: int) -> "Match":
        """Return the match with its source read in another layout."""
        uses = (self.layouts[layout][0], *self.uses[1:])
        return dataclasses.replace(self, uses=uses, layout=layout)

    def pairs(self, others: tuple[str, ...] = ()) -> list[Pair]:
        """Return the uses of the model's layer with those of the source's."""
        left: dict[Any, list[Use]] = defaultdict(list)
        for use in self.uses:
            left[use.role, use.shape].append(use)
        pairs = []
        for use in self.target.uses:
            if found := left[use.role, use.shape]:
                # Each network keeps its own factor and shift.
                way = self.layouts[self.layout][1] if self.layouts else 0
                its = laid(use, found.pop(0), way, channels_first=self.channels_first)
                plain = dataclasses.replace(its, factor=use.factor, shift=use.shift)
                pairs.append(Pair(use, (plain,), self.how, others))
        return pairs


@dataclasses.dataclass
class Assignment:
    """The matches, and the unmatched layers on either side."""

    matches: list[Match]
    targets: list[Layer]
    sources: list[Layer]

    def add(
        self, target: Layer, source: Layer, uses: tuple[Use, ...], how: str, group: Any
    ) -> None:
        self.matches.append(Match(target, source, uses, how, group))
        self.targets.remove(target)
        self.sources.remove(source)


def assign(targets: Sequence[Layer], sources: Sequence[Layer]) -> Assignment:
    """Return the matched layers, and the unmatched ones.

    Args:
        targets: A model's layers, in order of use.
        sources: A source's layers, in its order.
    """
    found = Assignment([], list(targets), list(sources))
    _cut_norms(found)
    _by_name(found, normal)
    _by_name(found, lambda name: without_numbers(normal(name)))
    _by_projection(found)
    _by_order(found)
    _split(found)
    _by_order(found)
    _by_kernel(found)
    _by_main(found)
    _by_likeness(found)
    return found


def _grouped(layers: Iterable[_T], key: Callable[[_T], Any]) -> dict[Any, list[_T]]:
    groups: dict[Any, list[_T]] = defaultdict(list)
    for layer in layers:
        groups[key(layer)].append(layer)
    return groups


def _cut_norms(found: Assignment) -> None:
    """Separate statistics from scales and biases, where the source does not say what is of what."""
    apart = {
        signature_of(layer.uses)
        for layer in found.sources
        if {use.role for use in layer.uses} == {MEAN, VARIANCE}
    }
    for place, layer in reversed(list(enumerate(found.targets))):
        moments = tuple(use for use in layer.uses if use.role in (MEAN, VARIANCE))
        rest = tuple(use for use in layer.uses if use not in moments)
        whole = any(one.reading(signature_of(layer.uses)) for one in found.sources)
        if rest and signature_of(moments) in apart and not whole:
            parts = [Layer("", (moments,)), Layer(layer.name, (rest,))]
            found.targets[place : place + 1] = parts


def _by_name(found: Assignment, key: Callable[[str], tuple[str, ...]]) -> None:
    theirs = _grouped(found.sources, lambda layer: key(layer.name))
    for name, ours in _grouped(found.targets, lambda layer: key(layer.name)).items():
        its = theirs.get(name, [])
        if len(ours) != len(its) or not any(name):
            continue
        readings = [
            source.reading(signature_of(target.uses))
            for target, source in zip(ours, its, strict=True)
        ]
        if all(readings):
            for target, source, uses in zip(ours, its, readings, strict=True):
                # If names differ only in numbers, their order decides.
                alone = len(ours) == 1
                group = None if alone else (name, signature_of(target.uses))
                found.add(target, source, uses or (), BY_NAME, group)


def _by_projection(found: Assignment) -> None:
    """Match attention's projections of a kind in order of use, if names tell them apart."""
    for kind, words in _PROJECTIONS.items():
        ours = [layer for layer in found.targets if normal(layer.name)[-1:] in words]
        its = [layer for layer in found.sources if normal(layer.name)[-1:] in words]
        readings = [
            source.reading(signature_of(target.uses))
            for target, source in zip(ours, its, strict=False)
        ]
        if len(ours) == len(its) and all(readings):
            for target, source, uses in zip(ours, its, readings, strict=True):
                found.add(target, source, uses or (), BY_USE, (kind, signature_of(target.uses)))


def _by_order(found: Assignment) -> None:
    """Match in order of use: first by the likeliest reading of each source, then by any reading."""
    for depth in range(max((len(layer.readings) for layer in found.sources), default=0)):
        readings = _grouped(
            [layer for layer in found.sources if len(layer.readings) > depth],
            lambda layer: signature_of(layer.readings[depth]),  # noqa: B023
        )
        for signature, ours in _grouped(found.targets, lambda one: signature_of(one.uses)).items():
            its = readings.get(signature, [])
            if len(its) != len(ours):
                continue
            for target, source in zip(ours, its, strict=True):
                found.add(target, source, source.readings[depth], BY_USE, signature)


def _split(found: Assignment) -> None:
    """Split layers with several matrices side by side, if the other side has them separately."""
    for ours, theirs in ((found.targets, found.sources), (found.sources, found.targets)):
        wanted = {key for layer in ours for key in map(signature_of, layer.readings)}
        for layer in list(theirs):
            for parts in _PARTS:
                cut = [_cut(uses, parts) for uses in layer.readings]
                fits = [some for some in cut if some and signature_of(some[0]) in wanted]
                if not fits or any(key in wanted for key in map(signature_of, layer.readings)):
                    continue
                place = theirs.index(layer)
                theirs[place : place + 1] = [
                    Layer(f"{layer.name}/{which}", (uses,)) for which, uses in enumerate(fits[0])
                ]
                break


def _cut(uses: tuple[Use, ...], parts: int) -> list[tuple[Use, ...]]:
    if uses[0].role != MATRIX or any(use.shape[-1] % parts for use in uses):
        return []
    pieces = [np.split(use.index, parts, axis=-1) for use in uses]
    return [
        tuple(
            dataclasses.replace(use, index=some[i]) for use, some in zip(uses, pieces, strict=True)
        )
        for i in range(parts)
    ]


def _by_main(found: Assignment) -> None:
    """Match layers by their main use, if one has a bias and the other has none."""
    for (role, shape), ours in _grouped(found.targets, _main).items():
        its = [
            (layer, reading)
            for layer in found.sources
            if (reading := layer.main_reading(ours[0].main)) is not None
        ]
        if len(its) == len(ours):
            for target, (source, uses) in zip(ours, its, strict=True):
                found.add(target, source, uses, BY_USE, ("main", role, shape))


def _by_kernel(found: Assignment) -> None:
    """Match convolutions in order of use, plain or transposed: a square kernel may be of both."""
    for forms, its in _grouped(
        found.sources, lambda layer: frozenset(map(signature_of, layer.readings))
    ).items():
        ours = [layer for layer in found.targets if signature_of(layer.uses) in forms]
        if len(ours) == len(its) and any(layer.main.role == TRANSPOSED for layer in ours):
            for target, source in zip(ours, its, strict=True):
                uses = source.reading(signature_of(target.uses))
                found.add(target, source, uses or (), BY_USE, ("kernel", forms))


def _main(layer: Layer) -> Any:
    return layer.main.role, layer.main.shape


def _by_likeness(found: Assignment) -> None:
    """Match the most similar names first, if one side has more layers of a form than the other."""
    likenesses = sorted(
        (
            (-_likeness(target.name, source.name), i, j)
            for i, target in enumerate(found.targets)
            for j, source in enumerate(found.sources)
            if source.reading(signature_of(target.uses)) is not None
        ),
    )
    ours, theirs = list(found.targets), list(found.sources)
    # A source that two forms of layers could read, as a square table and a matrix, joins them.
    forms = {i: {signature_of(target.uses)} for i, target in enumerate(ours)}
    by_source = _grouped(likenesses, lambda one: one[2])
    for some in by_source.values():
        joined = frozenset[Any]().union(*(forms[i] for _, i, _ in some))
        for i in forms:
            if forms[i] & joined:
                forms[i] = set(joined)
    for _, i, j in likenesses:
        target, source = ours[i], theirs[j]
        if target in found.targets and source in found.sources:
            uses = source.reading(signature_of(target.uses))
            found.add(target, source, uses or (), BY_LIKENESS, ("like", frozenset(forms[i])))


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, "/".join(normal(name)), "/".join(normal(other))).ratio()


def tied_pairs(found: Assignment) -> list[Pair]:
    """Return pairs for unmatched matrices whose transpose is a table of the source.

    A source of tied weights holds the array once, as the embedding.
    """
    pairs = []
    tables = [use for match in found.matches for use in match.uses if use.role == TABLE]
    for target in list(found.targets):
        main = target.main
        same = [use for use in tables if main.role == MATRIX and use.shape == main.shape[::-1]]
        if len(target.uses) == 1 and len(same) == 1:
            (use,) = same
            turned = Use(use.leaf, MATRIX, use.index.T, factor=main.factor, shift=main.shift)
            pairs.append(Pair(main, (turned,), TIED))
            found.targets.remove(target)
    return pairs
