"""A pair: which elements of a target's leaf get which values of a source, and how to say so."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from solstice.compat.weights.uses import VARIANCE, Use

BY_NAME, BY_USE, BY_PROBING = "name", "order of use", "probing"


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """What one use of a target's leaf gets.

    Attributes:
        target: Where values go.
        sources: Where they come from, added up (the two biases of a cell); none gives zeros.
        how: "name", "order of use" or "probing".
        others: Source leaves of the same role and shape, each of which could be meant as well;
            empty where there is none, and where a name decided.
        factor: What is given is `factor * source + offset`.
        offset: As above: 1 where one cell adds 1 to its forget gate and the other does not.
    """

    target: Use
    sources: tuple[Use, ...]
    how: str
    others: tuple[str, ...] = ()
    factor: float = 1.0
    offset: float = 0.0

    def value(self, source: Mapping[str, Any]) -> np.ndarray:
        """Return the values for the target's elements, in the order of its `index`."""
        target = self.target
        total = np.zeros(target.shape)
        shift = 0.0
        for use in self.sources:
            leaf = np.asarray(source[use.leaf]).reshape(-1)[use.index.reshape(-1)]
            used = leaf.reshape(target.shape)
            if len(self.sources) == 1 and _plain(self, use):
                return used
            total = total + use.factor * used
            shift += use.shift
        # An epsilon is the network's, and not part of a variance.
        gap = 0.0 if target.role == VARIANCE else self.factor * shift - target.shift
        return (self.factor * total + self.offset + gap) / target.factor


def _plain(pair: Pair, use: Use) -> bool:
    """Say whether values go over as they are, bit for bit."""
    target = pair.target
    shifts = target.role == VARIANCE or use.shift == target.shift
    same = use.factor == target.factor and shifts
    return same and (pair.factor, pair.offset) == (1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Match:
    """One line of what went where.

    Attributes:
        target: The leaf that got values.
        source: The leaf they came from.
        how: "name", "order of use" or "probing".
        turned: How the layout changed, as "as it is", "transposed (1, 0)" or "rows 0:6 of 14".
        others: Source leaves that could be meant as well, see `Pair.others`.
    """

    target: str
    source: str
    how: str
    turned: str
    others: tuple[str, ...] = ()


def describe(
    pair: Pair, source: Mapping[str, tuple[int, ...]], target: Mapping[str, tuple[int, ...]]
) -> list[Match]:
    """Return a line for each source of a pair; the mappings give the leaves' shapes.

    >>> kernel = Use("kernel", "matrix", np.arange(6).reshape(3, 2))
    >>> weight = Use("weight", "matrix", np.arange(6).reshape(2, 3).T)
    >>> describe(Pair(kernel, (weight,), BY_USE), {"weight": (2, 3)}, {"kernel": (3, 2)})[0].turned
    'transposed (1, 0)'
    """
    found = pair.target.leaf
    lines = []
    for use in pair.sources:
        turned = _turned(pair.target, use, source[use.leaf], target[found])
        if pair.factor != 1:
            turned += f", times {pair.factor:g}"
        if pair.offset:
            turned += f", plus {pair.offset:g}"
        lines.append(Match(found, use.leaf, pair.how, turned, pair.others))
    return lines or [Match(found, "", pair.how, "zeros")]


def _turned(target: Use, use: Use, have: tuple[int, ...], want: tuple[int, ...]) -> str:
    size, wanted = int(np.prod(have)), int(np.prod(want))
    if use.index.size < max(size, wanted):
        part = f"{use.index.size} of {size} elements"
        return part if use.index.size == wanted else f"{part} into {target.index.size} of {wanted}"
    places = np.empty(size, np.int64)
    places[target.index.reshape(-1)] = use.index.reshape(-1)
    if (places == np.arange(size)).all():
        return "as it is" if have == want else f"reshaped {have} to {want}"
    order = layout(places, have)
    if order is None:
        return "elements in another order"
    axes, flipped = order
    said = f"transposed {axes}" if axes != tuple(range(len(have))) else ""
    said += f"{', ' * bool(said)}flipped {flipped}" if flipped else ""
    moved = tuple(have[axis] for axis in axes)
    return said if moved == want else f"{said}, reshaped to {want}"


def layout(
    places: np.ndarray, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the order of axes and the flipped ones that turn an array's positions into `places`.

    >>> layout(np.arange(6).reshape(2, 3).T.reshape(-1), (2, 3))
    ((1, 0), ())
    """
    # From the last: each axis is a step by its stride, repeated.
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    real = [axis for axis in range(len(shape)) if shape[axis] > 1]
    order: list[int] = []
    flipped = []
    step = 1
    while len(order) < len(real):
        jump = int(places[step] - places[0])
        axis = next((a for a in real if a not in order and strides[a] == abs(jump)), None)
        if axis is None:
            return None
        order.insert(0, axis)
        flipped += [axis] if jump < 0 else []
        step *= shape[axis]
    single = [axis for axis in range(len(shape)) if shape[axis] == 1]
    axes = tuple(single + order)
    if not np.array_equal(
        np.flip(np.arange(places.size).reshape(shape), tuple(flipped)).transpose(axes).reshape(-1),
        places,
    ):
        return None
    return axes if order != sorted(order) else tuple(range(len(shape))), tuple(flipped)
