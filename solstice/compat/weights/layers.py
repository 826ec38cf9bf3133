"""Layers of a network: the uses of its leaves that belong together, as a weight and its bias."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from solstice.compat.weights.uses import (
    BIAS,
    LAYERS,
    MEAN,
    SCALE,
    VARIANCE,
    Use,
)

_NORM = MEAN, VARIANCE, SCALE
Signature = tuple[tuple[Any, int], ...]
# Prefixes of all names in a network, which carry no information.
_OUTSIDE = {"params", "state", "module", "model", "_orig_mod", "vars", "batch_stats", "variables"}


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """The uses of a layer.

    Attributes:
        name: The common prefix of the names of its leaves.
        readings: Its uses, in each possible reading, the likeliest first. A model's layer has one
            reading, from its trace.
    """

    name: str
    readings: tuple[tuple[Use, ...], ...]

    @property
    def uses(self) -> tuple[Use, ...]:
        """The likeliest reading."""
        return self.readings[0]

    @property
    def main(self) -> Use:
        """The use that the layer is named for."""
        return self.uses[0]

    def reading(self, signature: Signature) -> tuple[Use, ...] | None:
        """Return the first reading with some roles and shapes."""
        return next((one for one in self.readings if signature_of(one) == signature), None)

    def main_reading(self, main: Use) -> tuple[Use, ...] | None:
        """Return the first reading whose first use has a role and shape."""
        return next(iter(self.all_like(main)), None)

    def all_like(self, main: Use) -> list[tuple[Use, ...]]:
        """Return the readings whose first use has the role and shape of another."""
        key = (main.role, main.shape)
        return [one for one in self.readings if (one[0].role, one[0].shape) == key]


def signature_of(uses: Sequence[Use]) -> Signature:
    """Return how often each role occurs with each shape."""
    return tuple(sorted(Counter((use.role, use.shape) for use in uses).items()))


def traced_layers(uses: Sequence[Use]) -> list[Layer]:
    """Return the layers of a model, from the uses outside of loops in its trace.

    A layer is a matrix, a convolution or a table with the bias that follows, or the statistics,
    scale and bias of a norm. It is named for its parameters, as a library may number its state.
    What repeats an earlier use (a tied weight) is left out.

    >>> import numpy as np
    >>> uses = [Use("a/w", "matrix", np.arange(6).reshape(2, 3)), Use("a/b", "bias", np.arange(3))]
    >>> [(layer.name, len(layer.uses)) for layer in traced_layers([*uses, *uses])]
    [('a', 2)]
    """
    seen: dict[str, set[int]] = {}
    layers: list[list[Use]] = []
    for use in uses:
        elements = set(use.index.reshape(-1)[[0, -1]].tolist()) if use.index.size else set()
        key = f"{use.leaf}:{use.index.size}"
        if elements & seen.get(key, set()):
            continue
        seen.setdefault(key, set()).update(elements)
        if not layers or not _belongs(use, layers[-1]):
            layers.append([])
        layers[-1].append(use)
    return [Layer(_name(layer), (tuple(layer),)) for layer in layers]


def _name(layer: list[Use]) -> str:
    leaves = [use.leaf for use in layer]
    return prefix(next((leaf for leaf in leaves if not leaf.startswith("state/")), leaves[0]))


def _belongs(use: Use, layer: list[Use]) -> bool:
    """Return whether a use belongs to a layer, or begins another."""
    roles = {one.role for one in layer}
    if use.role in LAYERS or use.role in roles:
        return False
    main = layer[0]
    if main.role in LAYERS:
        return use.role == BIAS and use.index.size == main.shape[-1]
    if use.role in (MEAN, VARIANCE) and BIAS in roles:
        return False  # a norm's bias comes last: these are the statistics of the next
    known = use.role in _NORM or use.role == BIAS
    return known and bool(roles & set(_NORM)) and use.index.size == main.index.size


def prefix(name: str) -> str:
    """Return a name without its last part; Haiku's statistics belong to the norm around them.

    >>> prefix("params/dense/kernel"), prefix("state/batch_norm/~/mean_ema/average")
    ('params/dense', 'state/batch_norm')
    """
    name = re.sub(r"/~/(mean|var)_ema/", "/", name)
    found = re.match(r"(.*)[./]", name)
    return found[1] if found else ""


def without_collection(name: str) -> str:
    """Return a name without the collection it begins with: a norm has arrays in two of them.

    >>> without_collection("params/norm"), without_collection("batch_stats/norm")
    ('norm', 'norm')
    """
    return re.sub(r"^((model|module|variables)[./])?(params|state|batch_stats)[./]", "", name)


def normal(name: str) -> tuple[str, ...]:
    """Return the informative parts of a layer's name, the same in every library.

    >>> normal("module.encoder.layers.0"), normal("params/encoder/layers/0"), normal("params/03_fc")
    (('encoder', 'layers', '0'), ('encoder', 'layers', '0'), ('fc',))
    """
    parts = [part for part in re.split(r"[./]", name.lower()) if part not in ("~", "")]
    while parts and parts[0] in _OUTSIDE:
        parts.pop(0)
    return tuple(re.sub(r"^\d+_(?=\D)", "", part) for part in parts)


def without_numbers(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parts of a name without the numbers in them.

    >>> without_numbers(("encoder", "dense_1", "0"))
    ('encoder', 'dense', '')
    """
    return tuple(re.sub(r"_?\d+", "", part) for part in parts)
