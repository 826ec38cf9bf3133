"""Finds the roles of a source's arrays from their names and shapes.

A name's last part says the role and the layout: a `weight` is (out, in), a `kernel` (in, out).
If several readings are possible (an embedding's `weight` is a table), all are kept, the likeliest
first; the network that gets the arrays decides.
"""

import dataclasses
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Set

import numpy as np

from solstice.compat.weights.layers import Layer, prefix
from solstice.compat.weights.named_cells import NamedCell, split_cells
from solstice.compat.weights.transposed import transposed_layouts
from solstice.compat.weights.uses import (
    BIAS,
    MATRIX,
    SCALE,
    TABLE,
    TRANSPOSED,
    Use,
    conv_index,
)
from solstice.compat.weights.words import (
    DEPTHWISE_KERNEL,
    FUSED,
    IN_OUT,
    OUT_IN,
    POINTWISE_KERNEL,
    TABLES,
    TRANSPOSED_KERNEL,
    VECTORS,
    Entry,
    is_ignored,
    natural,
    says_transposed,
)

_LIKE_TABLES = re.compile(r"emb|wte|wpe|lookup|vocab|codebook", re.IGNORECASE)
_FROM_HEADS = re.compile(r"(^|[./_])(out|o|output|attention_output|output_dense)$")


@dataclasses.dataclass(frozen=True)
class Named:
    """The roles that the names of a source give.

    Attributes:
        layers: In the order of the names.
        cells: Likewise.
    """

    layers: list[Layer]
    cells: list[NamedCell]


def read_names(
    arrays: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    *,
    in_order: bool,
    wanted: Set[tuple[int, ...]] = frozenset(),
    loops: bool = True,
    words: Mapping[str, str] = types.MappingProxyType({}),
) -> Named:
    """Return the roles of arrays.

    Args:
        arrays: By the names they have in the source, which say roles and layouts.
        names: From those names to the ones to match by, which `rename` may have changed.
        in_order: Whether they are in the order of the network's definition. Otherwise they are
            sorted, by the numbers in their names.
        wanted: The shapes of the network's transposed kernels, which tell their groups.
        loops: Whether the network has recurrent cells; otherwise no array is of one.
        words: What some arrays are, in place of the last parts of their names.
    """
    order = list(names) if in_order else sorted(names, key=natural)
    entries = [
        Entry(
            name,
            names[name],
            np.arange(arrays[name].size).reshape(arrays[name].shape),
            words.get(name, ""),
        )
        for name in order
        if not is_ignored(name)
    ]
    entries = _numbered(entries)
    cells, entries = split_cells(entries) if loops else ([], entries)
    groups: dict[str, list[Entry]] = {}
    for entry in (part for one in _apart(entries) for part in _split(one)):
        groups.setdefault(entry.layer, []).append(entry)
    for name, group in list(groups.items()):
        # A matrix of an unknown name belongs to the one bias next to it.
        beside = groups.get(prefix(name), [])
        alone = sum(prefix(one) == prefix(name) for one in groups) == 1
        if alone and len(group) == 1 and [VECTORS.get(one.last) for one in beside] == [BIAS]:
            groups[prefix(name)] = [*groups.pop(name), *beside]
    layers = [_layer(name, group, wanted) for name, group in groups.items()]
    return Named(layers, cells)


def _numbered(entries: list[Entry]) -> list[Entry]:
    """Give the variables of a layer one number, if each has its own, as in `KerasModel`.

    A layer's are those that follow each other with one name and other last parts.
    """
    found = [re.match(r"(\d+)_(.*[./])?([^./]+)$", entry.new) for entry in entries]
    if not all(found):
        return entries
    numbered, words, layer, number = [], set(), "", ""
    for entry, match in zip(entries, found, strict=True):
        if match is None or match[2] != layer or match[3] in words:
            words, layer, number = set(), match and match[2], match and match[1]
        words.add(match and match[3])
        new = entry.new if match is None else f"{number}_{match[2] or ''}{match[3]}"
        numbered.append(dataclasses.replace(entry, new=new))
    return numbered


def _apart(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield entries with the depthwise part of Keras's separable convolutions as its own layer."""
    entries = list(entries)
    several = {prefix(entry.new) for entry in entries if entry.last == POINTWISE_KERNEL}
    for entry in entries:
        first = entry.last == DEPTHWISE_KERNEL and prefix(entry.new) in several
        yield dataclasses.replace(entry, within="depthwise") if first else entry


def _split(entry: Entry) -> list[Entry]:
    """Return the three projections of torch's attention, or the array itself."""
    found = FUSED.search(entry.name)
    if not found:
        return [entry]
    if found[2]:
        new = prefix(entry.new) + "/x"
        return [dataclasses.replace(entry, new=new, word="weight", within=found[2])]
    parts = np.split(entry.index, 3) if entry.index.shape[0] % 3 == 0 else []
    return [
        dataclasses.replace(entry, index=part, word=found[1], within=which)
        for which, part in zip("qkv", parts, strict=False)
    ] or [entry]


def _layer(name: str, group: list[Entry], wanted: Set[tuple[int, ...]]) -> Layer:
    vectors = [
        entry.use(VECTORS[entry.last], entry.index.reshape(-1))
        for entry in group
        if entry.last in VECTORS
    ]
    others = [entry for entry in group if entry.last not in VECTORS]
    if not others:
        # The main use of a norm is its scale, or whatever it has.
        vectors.sort(key=lambda use: use.role != SCALE)
        return Layer(name, (tuple(vectors),))
    first, *more = others
    rest = [*vectors, *(_readings(entry)[0] for entry in more)]
    bias = next((entry for entry in group if VECTORS.get(entry.last) == BIAS), None)
    readings, turned = _readings(first), _as_transposed(first, bias, wanted)
    said = says_transposed(name) or first.last == TRANSPOSED_KERNEL
    readings = [*turned, *readings] if said else [*readings, *turned]
    return Layer(name, tuple((reading, *rest) for reading in readings))


def _as_transposed(entry: Entry, bias: Entry | None, wanted: Set[tuple[int, ...]]) -> list[Use]:
    """Return the uses of an array in a transposed convolution.

    Where its stride is 1, the network that gets it may show it as a plain one.
    """
    if entry.index.ndim < 3 or entry.last not in OUT_IN | IN_OUT:
        return []
    layouts = transposed_layouts(entry, bias, wanted)
    uses = [entry.use(TRANSPOSED, index) for index in layouts]
    return [*uses, *(entry.use(*conv_index(index)) for index in layouts)]


def _readings(entry: Entry) -> list[Use]:
    """Return the roles that an array's name and shape allow, the likeliest first."""
    index, last = entry.index, entry.last
    flat = index.reshape(-1)
    as_bias, as_scale = entry.use(BIAS, flat), entry.use(SCALE, flat)
    if index.ndim < 2:
        known = last in OUT_IN | IN_OUT
        return [as_scale, as_bias] if known else [as_bias, as_scale]
    if index.ndim == 2:
        table, same = entry.use(TABLE, index), entry.use(MATRIX, index)
        turned = entry.use(MATRIX, index.T)
        if last in TABLES:
            return [table, turned, as_bias]
        if last in IN_OUT:
            return [same, table, as_bias]
        if last in OUT_IN and _LIKE_TABLES.search(entry.layer):
            return [table, turned, as_bias]
        if last in OUT_IN:
            # GPT-2's layers keep (in, out) under this name.
            alone = [] if index.shape[0] == index.shape[1] else [same]
            return [turned, table, *alone, as_bias]
        return [as_bias, table, same, turned, as_scale]
    if last in OUT_IN:
        return [entry.use(*conv_index(index.transpose(*range(2, index.ndim), 1, 0)))]
    if last in IN_OUT:
        conv = entry.use(*conv_index(index))
        # Keras's depthwise ones are (spatial..., channels, multiplier).
        each = entry.use(*conv_index(index.reshape(*index.shape[:-2], 1, -1)))
        if last == DEPTHWISE_KERNEL:
            return [each]
        if index.ndim > 3:
            return [conv, each]
        to_heads = entry.use(MATRIX, index.reshape(index.shape[0], -1))
        from_heads = entry.use(MATRIX, index.reshape(-1, index.shape[-1]))
        heads = (
            [from_heads, to_heads] if _FROM_HEADS.search(entry.layer) else [to_heads, from_heads]
        )
        return [*heads, conv]
    kernels = index, index.transpose(*range(2, index.ndim), 1, 0)
    return [as_bias, as_scale, *(entry.use(*conv_index(one)) for one in kernels)]
