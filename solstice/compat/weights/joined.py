"""Weights that torch keeps in parts, computed as torch does in evaluation.

    weight norm      weight_g, weight_v               original0, original1      g * v / ||v||
    spectral norm    weight_orig, weight_u, weight_v  original, 0._u, 0._v      w / (u . W v)
    pruning          weight_orig, weight_mask                                   w * mask

The second names are those of `torch.nn.utils.parametrizations`. A part without the others, or of a
weight that cannot be computed for sure, is no weight: it stays, and is never matched by its role.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Set

import numpy as np

from solstice.compat.weights.files.sources import Source
from solstice.tree.names import few

_OLD = re.compile(
    r"((?:.*[./])?(?:\w*weight\w*|\w*bias\w*(?=_orig$|_mask$)))(_g|_v|_u|_orig|_mask)$"
)
_NEW = re.compile(r"(.*[./])?parametrizations[./](\w+)[./](original[01]?|\d+\.\w+)$")
# How far a vector may be along the right axis, and is more than three times that along another.
_CLOSE, _APART = 0.1, 0.01


def joined(source: Source, own: Set[str]) -> tuple[Source, list[str]]:
    """Return a source with the parts of weights joined, and why others are not.

    Args:
        source: With torch's names.
        own: Names that stay, as they are those of the model.

    >>> parts = {"fc.weight_g": np.full((2, 1), 5.0), "fc.weight_v": np.array([[3, 4], [0, 2.0]])}
    >>> found, _ = joined(Source("the mapping", parts, True), set())
    >>> found.arrays, found.notes
    ({'fc.weight': array([[3., 4.],
           [0., 5.]])}, ("Weight norm joined: 'fc.weight'.",))
    """
    groups: dict[str, dict[str, str]] = {}
    for name in source.arrays:
        if name not in own and (found := _OLD.match(name) or _NEW.match(name)):
            *weight, part = (one or "" for one in found.groups())
            groups.setdefault("".join(weight), {})[part] = name
    made: dict[str, tuple[str, np.ndarray]] = {}
    said: dict[str, list[str]] = {}
    reasons, gone, left = [], set[str](), set[str]()
    for weight, names in groups.items():
        first = next(iter(names.values()))
        kind = next((kind for words, kind, _ in _KINDS if set(names) == set(words)), None)
        if kind is None or weight in source.arrays:
            here = weight in source.arrays
            reasons.append(f"{first!r}: {_unknown(names, here=here)}")
            left |= set(names.values())
            continue
        computed = _computed(names, source.arrays)
        if isinstance(computed, str):
            reasons.append(f"{first!r} is a part of a {kind}: {computed} {_advice(kind)}")
            left |= set(names.values())
            continue
        said.setdefault(kind, []).append(repr(weight))
        made[first] = weight, computed
        gone |= set(names.values())
    kept = {name: (name, array) for name, array in source.arrays.items() if name not in gone}
    arrays = dict((kept | made)[name] for name in source.arrays if name in kept or name in made)
    notes = [f"{kind.capitalize()} joined: {few(some, 4)}." for kind, some in said.items()]
    notes = (*source.notes, *notes)
    return dataclasses.replace(source, arrays=arrays, notes=notes, parts=frozenset(left)), reasons


def _computed(names: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> np.ndarray | str:
    """Return the weight of some parts, or why it is not known."""
    words, compute = next((words, how) for words, _, how in _KINDS if set(names) == set(words))
    parts = [arrays[names[word]] for word in words]
    weight = compute(*(part.astype(np.promote_types(part.dtype, np.float64)) for part in parts))
    return weight if isinstance(weight, str) else weight.astype(parts[0].dtype)


def _weight_norm(v: np.ndarray, g: np.ndarray) -> np.ndarray | str:
    """Return g * v / ||v||, over the axes along which g has one element."""
    kept = [axis for axis, size in enumerate(g.shape) if size != 1]
    plain = g.ndim in (0, v.ndim) and all(g.shape[axis] == v.shape[axis] for axis in kept)
    if not plain or len(kept) > 1:
        return f"the shapes {g.shape} and {v.shape} do not say along which axis."
    axes = tuple(axis for axis in range(v.ndim) if axis not in kept)
    return v * (g / np.sqrt((v**2).sum(axes, keepdims=True)))


def _spectral_norm(weight: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray | str:
    """Return w / (u . W v), with W's rows along axis 0, or 1 as of a transposed convolution.

    Where shapes allow both, u is near to W v, or v to W' u, up to its length, along the right one
    alone.
    """
    found: list[tuple[float, np.ndarray]] = []
    for axis in range(min(weight.ndim, 2)):
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        if rows.shape == (u.size, v.size):
            far = min(_distance(u, rows @ v), _distance(v, u @ rows))
            found.append((far, weight / (u @ rows @ v)))
    found.sort(key=lambda one: one[0])
    if len(found) == 1 or (len(found) > 1 and np.allclose(found[0][1], found[1][1], rtol=1e-6)):
        return found[0][1]
    if not found or found[0][0] > _CLOSE or found[1][0] < 3 * found[0][0] + _APART:
        return "its shapes and numbers do not say along which axis."
    return found[0][1]


def _distance(vector: np.ndarray, product: np.ndarray) -> float:
    """Return how far a vector is from a product of length 1."""
    return float(np.linalg.norm(vector - product / np.linalg.norm(product)))


def _pruned(weight: np.ndarray, mask: np.ndarray) -> np.ndarray | str:
    same = weight.shape == mask.shape
    return weight * mask if same else f"its mask has the shape {mask.shape}, not {weight.shape}."


# The names of the parts, the one with the weight's dtype first.
_KINDS: tuple[tuple[tuple[str, ...], str, Callable[..., np.ndarray | str]], ...] = (
    (("_v", "_g"), "weight norm", _weight_norm),
    (("original1", "original0"), "weight norm", _weight_norm),
    (("_orig", "_u", "_v"), "spectral norm", _spectral_norm),
    (("original", "0._u", "0._v"), "spectral norm", _spectral_norm),
    (("_orig", "_mask"), "pruning", _pruned),
)
# The part that tells the kind, where others are missing.
_SIGNS = {
    **dict.fromkeys(("_g", "original0", "original1"), "weight norm"),
    "_mask": "pruning",
    **dict.fromkeys(("_orig", "_u"), "spectral norm"),
    "_v": "weight norm",
}
_REMOVERS = {
    "weight norm": "remove_weight_norm",
    "spectral norm": "remove_spectral_norm",
    "pruning": "prune.remove",
}


def _advice(kind: str) -> str:
    return (
        f"In torch, before you save: torch.nn.utils.{_REMOVERS[kind]}, or "
        f"torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')."
    )


def _unknown(names: Mapping[str, str], *, here: bool) -> str:
    """Say what to do about parts that are not those of one kind."""
    kind = next((kind for sign, kind in _SIGNS.items() if sign in names), None)
    if kind is None:
        return (
            "it belongs to a parametrization of torch, whose weight is not computed here. In "
            "torch, before you save: "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')."
        )
    why = "whose weight is here too" if here else "of which other parts are not here"
    return f"it looks like a part of a {kind}, {why}. {_advice(kind)}"
