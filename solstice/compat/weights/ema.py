"""Averages of weights that a checkpoint holds beside the weights themselves, as `ema.fc.weight`."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from solstice.compat.weights.layers import normal

_AVERAGES = re.compile(r"(?!mean_|var_)(\w+_)?(ema|swa)(_\w+)?")


def averages(names: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return the arrays that are averages of others: of an equal name but for a part, and shape.

    Args:
        names: From the arrays to consider, to the names to match them by.
        arrays: The source's.

    >>> x = np.ones(2)
    >>> found = {"model.bias": x, "model_ema.bias": x, "ema_head.bias": x[:1]}
    >>> averages({name: name for name in found}, found)
    ['model_ema.bias']
    """
    plain = {
        (normal(new), arrays[name].shape) for name, new in names.items() if not _is_average(new)
    }
    ends = {(parts[i:], shape) for parts, shape in plain for i in range(len(parts))}
    found = []
    for name, new in names.items():
        rest = ".".join(part for part in re.split("[./]", new) if not _AVERAGES.fullmatch(part))
        if _is_average(new) and (normal(rest), arrays[name].shape) in ends:
            found.append(name)
    return found


def holds_averages(leaves: Iterable[str]) -> bool:
    """Say whether a model keeps averages of weights itself, by the names of its leaves."""
    return any(map(_is_average, leaves))


def _is_average(name: str) -> bool:
    return any(map(_AVERAGES.fullmatch, re.split("[./]", name.lower())))
