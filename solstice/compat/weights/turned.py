"""How a leaf's layout changes on the way into another: transposed, flipped, reshaped, a part."""

from collections.abc import Mapping

import numpy as np

from solstice.compat.weights.pairs import Pair
from solstice.compat.weights.uses import Use


def turnings(
    pair: Pair, source: Mapping[str, tuple[int, ...]], target: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Describe how each source's layout changes: "as it is", "transposed (1, 0)", ...

    Args:
        pair: The pair.
        source: The shapes of the source's leaves.
        target: The shapes of the target's leaves.

    >>> kernel = Use("kernel", "matrix", np.arange(6).reshape(3, 2))
    >>> weight = Use("weight", "matrix", np.arange(6).reshape(2, 3).T)
    >>> pair = Pair(kernel, (weight,), "order of use")
    >>> turnings(pair, {"weight": (2, 3)}, {"kernel": (3, 2)})
    ['transposed (1, 0)']
    """
    wanted = target[pair.target.leaf]
    scaled = f", times {pair.factor:g}" if pair.factor != 1 else ""
    scaled += f", plus {pair.offset:g}" if pair.offset else ""
    said = [_turned(pair.target, use, source[use.leaf], wanted) + scaled for use in pair.sources]
    return said or ["zeros"]


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
