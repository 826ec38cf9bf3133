"""What the arrays of a source are for, by the names that libraries give them and their shapes.

A name's last part says the role and the layout: a `weight` is (out, in), a `kernel` (in, out).
Where it leaves several readings open (an embedding's `weight` is a table), all are kept, the
likeliest first; the network that gets the arrays decides.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from solstice.compat.weights.files.hdf5 import natural
from solstice.compat.weights.layers import Layer, prefix
from solstice.compat.weights.recurrent import Cell
from solstice.compat.weights.uses import (
    BIAS,
    MATRIX,
    MEAN,
    SCALE,
    TABLE,
    VARIANCE,
    Use,
    conv_index,
)

_OUT_IN, _IN_OUT = {"weight"}, {"kernel", "w"}
_TABLES = {"embedding", "embeddings"}
_VECTORS = {
    **dict.fromkeys(("bias", "b", "beta", "offset"), BIAS),
    **dict.fromkeys(("scale", "gamma"), SCALE),
    **dict.fromkeys(("running_mean", "moving_mean", "mean"), MEAN),
    **dict.fromkeys(("running_var", "moving_variance", "var"), VARIANCE),
}
_RECURRENT = re.compile(r"(weight|bias)_(ih|hh)((?:_l\d+)?(?:_reverse)?)$")
_FUSED = re.compile(r"(?:in_proj_(weight|bias)|([qkv])_proj_weight)$")
_GATE = re.compile(r"(.*?)[./]?\b([ih])([a-z])_?$")  # NNX has "if_"
# What is no weight: counters, seeds, and the other half of Haiku's averages.
_IGNORED = re.compile(
    r"(^|[./])(num_batches_tracked|seed_generator_state|rngs[./](.*[./])?(count|key)|(mean|var)_ema[./](hidden|counter))$"
)
_LIKE_TABLES = re.compile(r"emb|wte|wpe|lookup|vocab|codebook", re.IGNORECASE)
_FROM_HEADS = re.compile(r"(^|[./_])(out|o|output|attention_output|output_dense)$")
# The gates in the order in which libraries keep them in one array.
_ORDERS = {1: "h", 3: "rzn", 4: "ifgo"}
_KERAS_ORDERS = {1: "h", 3: "zrn", 4: "ifgo"}


@dataclasses.dataclass(frozen=True, eq=False)
class NamedCell:
    """A recurrent cell of a source.

    Attributes:
        name: What its arrays' names begin with.
        cell: Its uses.
        gates: Which gate each block is, as "ifgo": input, forget, candidate, output.
        forget: What the network adds to the forget gate, beside the bias.
    """

    name: str
    cell: Cell
    gates: str
    forget: float = 0.0


@dataclasses.dataclass(frozen=True)
class Named:
    """What the names of a source say.

    Attributes:
        layers: In the order of the names.
        cells: Likewise.
        ignored: Names of what is no weight, such as counters.
    """

    layers: list[Layer]
    cells: list[NamedCell]
    ignored: tuple[str, ...]


def is_ignored(name: str) -> bool:
    """Say whether an array is no weight: a counter or a seed.

    >>> is_ignored("bn1.num_batches_tracked"), is_ignored("bn1.running_mean")
    (True, False)
    """
    return _IGNORED.search(name) is not None


def is_out_in(name: str) -> bool:
    """Say whether a name is one of libraries that keep (out, in), and channels first.

    >>> is_out_in("fc.weight"), is_out_in("fc/kernel")
    (True, False)
    """
    return re.split(r"[./]", name)[-1] in _OUT_IN


def says_layout(name: str) -> bool:
    """Say whether the last part of a name tells how an array lies.

    >>> says_layout("head.weight"), says_layout("head.mixing")
    (True, False)
    """
    last = re.split(r"[./]", name)[-1]
    known = last in _OUT_IN | _IN_OUT | _TABLES or last in _VECTORS or last == "recurrent_kernel"
    return bool(known or _RECURRENT.search(name) or _FUSED.search(name))


def read_names(
    arrays: Mapping[str, np.ndarray], names: Mapping[str, str], *, in_order: bool
) -> Named:
    """Return what arrays are for.

    Args:
        arrays: By the names they have in the source, which say roles and layouts.
        names: By those, the names to be matched by: a user's new ones.
        in_order: Whether they are in the order of the network's definition. Otherwise they are
            sorted, by the numbers in their names.
    """
    order = list(names) if in_order else sorted(names, key=natural)
    ignored = tuple(name for name in order if is_ignored(name))
    entries = [
        _Entry(name, names[name], np.arange(arrays[name].size).reshape(arrays[name].shape))
        for name in order
        if not is_ignored(name)
    ]
    cells, entries = _cells(_numbered(entries))
    groups: dict[str, list[_Entry]] = {}
    for entry in (part for one in entries for part in _split(one)):
        groups.setdefault(entry.layer, []).append(entry)
    layers = [_layer(name, group) for name, group in groups.items()]
    return Named(layers, cells, ignored)


def _numbered(entries: list["_Entry"]) -> list["_Entry"]:
    """Give the variables of a layer one number, where each has its own, as `KerasModel` names them.

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


@dataclasses.dataclass(frozen=True, eq=False)
class _Entry:
    """An array, or a part of one.

    Attributes:
        name: In the source.
        new: What it is to be matched by.
        index: Positions in the array.
        word: What the last part of its name would be, where it is a part of an array.
        within: What its layer's name ends with, likewise.
    """

    name: str
    new: str
    index: np.ndarray
    word: str = ""
    within: str = ""

    @property
    def last(self) -> str:
        name = re.sub(r"(mean|var)_ema[./]average$", r"\1", self.name)
        return self.word or re.split(r"[./]", name)[-1]

    @property
    def layer(self) -> str:
        known = self.last in _VECTORS or self.last in {*_OUT_IN, *_IN_OUT, *_TABLES}
        name = prefix(self.new) if known else self.new
        return f"{name}/{self.within}" if self.within else name

    def use(self, role: str, index: np.ndarray) -> Use:
        return Use(self.name, role, index)


def _split(entry: _Entry) -> list[_Entry]:
    """Return the three projections of torch's attention, or the array itself."""
    found = _FUSED.search(entry.name)
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


def _layer(name: str, group: list[_Entry]) -> Layer:
    vectors = [
        entry.use(_VECTORS[entry.last], entry.index.reshape(-1))
        for entry in group
        if entry.last in _VECTORS
    ]
    others = [entry for entry in group if entry.last not in _VECTORS]
    if not others:
        # The main use of a norm is its scale, or whatever it has.
        vectors.sort(key=lambda use: use.role != SCALE)
        return Layer(name, (tuple(vectors),))
    first, *more = others
    rest = [*vectors, *(_readings(entry)[0] for entry in more)]
    return Layer(name, tuple((reading, *rest) for reading in _readings(first)))


def _readings(entry: _Entry) -> list[Use]:
    """Return the roles that an array's name and shape allow, the likeliest first."""
    index, last = entry.index, entry.last
    flat = index.reshape(-1)
    as_bias, as_scale = entry.use(BIAS, flat), entry.use(SCALE, flat)
    if index.ndim < 2:
        known = last in _OUT_IN | _IN_OUT
        return [as_scale, as_bias] if known else [as_bias, as_scale]
    if index.ndim == 2:
        table, same = entry.use(TABLE, index), entry.use(MATRIX, index)
        turned = entry.use(MATRIX, index.T)
        if last in _TABLES:
            return [table, turned, as_bias]
        if last in _IN_OUT:
            return [same, table, as_bias]
        if last in _OUT_IN and _LIKE_TABLES.search(entry.layer):
            return [table, turned, as_bias]
        if last in _OUT_IN:
            # GPT-2's layers keep (in, out) under this name.
            alone = [] if index.shape[0] == index.shape[1] else [same]
            return [turned, table, *alone, as_bias]
        return [as_bias, table, same, turned, as_scale]
    if last in _OUT_IN:
        spatial = tuple(range(2, index.ndim))
        flipped = np.flip(index, spatial)
        return [
            entry.use(*conv_index(index.transpose(*spatial, 1, 0))),
            entry.use(*conv_index(flipped.transpose(*spatial, 0, 1))),  # of a transposed one
        ]
    if last in _IN_OUT:
        conv = entry.use(*conv_index(index))
        if index.ndim > 3:
            return [conv, entry.use(*conv_index(index.swapaxes(-1, -2)))]
        to_heads = entry.use(MATRIX, index.reshape(index.shape[0], -1))
        from_heads = entry.use(MATRIX, index.reshape(-1, index.shape[-1]))
        heads = (
            [from_heads, to_heads] if _FROM_HEADS.search(entry.layer) else [to_heads, from_heads]
        )
        return [*heads, conv]
    return [as_bias, as_scale]


def _cells(entries: list[_Entry]) -> tuple[list[NamedCell], list[_Entry]]:
    """Return the recurrent cells, and the arrays of no cell."""
    groups: dict[str, dict[str, _Entry]] = {}
    makers: dict[str, Callable[[str, dict[str, _Entry], int], NamedCell | None]] = {}
    kerases = {entry.layer for entry in entries if entry.last == "recurrent_kernel"}
    kerases |= {prefix(entry.new) for entry in entries if entry.last == "recurrent_kernel"}
    for entry in entries:
        group, part, maker = "", "", None
        gate = _GATE.match(entry.layer)
        if found := _RECURRENT.search(entry.name):
            group, part, maker = prefix(entry.new) + found[3], f"{found[1]}_{found[2]}", _of_torch
        elif prefix(entry.new) in kerases:
            group, part, maker = prefix(entry.new), entry.last, _of_keras
        elif gate and entry.last in ("kernel", "bias"):
            group, part, maker = gate[1] + "/", f"{gate[2]}{gate[3]}_{entry.last}", _of_flax
        elif re.search(r"(^|[./])lstm(_\d+)?[./]linear$", entry.layer) and entry.last in "wb":
            group, part, maker = entry.layer, entry.last, _of_haiku
        if maker is not None:
            groups.setdefault(group, {})[part] = entry
            makers[group] = maker
    # An Equinox cell has its one bias beside torch's names.
    for entry in entries:
        if entry.last in ("bias", "bias_n") and "weight_ih" in groups.get(prefix(entry.new), {}):
            groups[prefix(entry.new)][entry.last] = entry
    cells, used = [], set()
    for group, parts in groups.items():
        made = makers[group](group, parts, len(cells))
        if made is not None:
            cells.append(made)
            used |= {id(entry) for entry in parts.values()}
    return cells, [entry for entry in entries if id(entry) not in used]


def _made(name: str, uses: Iterable[Use], gates: str | None) -> NamedCell | None:
    cell = Cell(tuple(uses))
    return NamedCell(name, cell, gates) if gates and cell.gates == len(gates) else None


def _use(entry: _Entry, role: str, index: np.ndarray, loop: int, of: str) -> Use:
    return Use(entry.name, role, index, loop, of)


def _of_torch(name: str, parts: dict[str, _Entry], loop: int) -> NamedCell | None:
    if not {"weight_ih", "weight_hh"} <= set(parts):
        return None
    uses = [
        _use(parts["weight_ih"], MATRIX, parts["weight_ih"].index.T, loop, "input"),
        _use(parts["weight_hh"], MATRIX, parts["weight_hh"].index.T, loop, "carry"),
    ]
    for part, of in (("bias_ih", "input"), ("bias_hh", "carry"), ("bias", "carry")):
        if part in parts:
            uses.append(_use(parts[part], BIAS, parts[part].index, loop, of))
    rows, hidden = parts["weight_hh"].index.shape
    return _made(name, uses, _ORDERS.get(rows // hidden))


def _of_keras(name: str, parts: dict[str, _Entry], loop: int) -> NamedCell | None:
    if not {"kernel", "recurrent_kernel"} <= set(parts):
        return None
    uses = [
        _use(parts["kernel"], MATRIX, parts["kernel"].index, loop, "input"),
        _use(parts["recurrent_kernel"], MATRIX, parts["recurrent_kernel"].index, loop, "carry"),
    ]
    if "bias" in parts:
        rows = np.atleast_2d(parts["bias"].index)  # one row, or those of input and carry
        ofs = ("input", "carry") if len(rows) == 2 else ("carry",)
        uses += [
            _use(parts["bias"], BIAS, row, loop, of) for row, of in zip(rows, ofs, strict=False)
        ]
    hidden, columns = parts["recurrent_kernel"].index.shape
    return _made(name, uses, _KERAS_ORDERS.get(columns // hidden))


def _of_flax(name: str, parts: dict[str, _Entry], loop: int) -> NamedCell | None:
    gates = "".join(part[1] for part in parts if part.startswith("i") and part.endswith("kernel"))
    if sorted(gates) not in (sorted("ifgo"), sorted("rzn")):
        return None
    uses = []
    for gate in gates:
        for which, of in (("i", "input"), ("h", "carry")):
            for word, role in (("kernel", MATRIX), ("bias", BIAS)):
                if entry := parts.get(f"{which}{gate}_{word}"):
                    uses.append(_use(entry, role, entry.index, loop, of))
    return _made(name, uses, gates)


def _of_haiku(name: str, parts: dict[str, _Entry], loop: int) -> NamedCell | None:
    if set(parts) != {"w", "b"} or parts["b"].index.size % 4:
        return None
    weight, hidden = parts["w"].index, parts["b"].index.size // 4
    uses = [
        _use(parts["w"], MATRIX, weight[:-hidden], loop, "input"),
        _use(parts["w"], MATRIX, weight[-hidden:], loop, "carry"),
        _use(parts["b"], BIAS, parts["b"].index, loop, "carry"),
    ]
    made = _made(name, uses, "igfo")
    return made and dataclasses.replace(made, forget=1.0)
