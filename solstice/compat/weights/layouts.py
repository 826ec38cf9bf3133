"""Which layouts of a source's arrays fit a layer of the model, and whether there is a doubt.

A name's last word says the layout, and so does a shape whose axes differ. Where neither does, the
likeliest layout is taken, the doubt is told, and outputs, if they are given, decide. Layouts about
which there is no doubt are tried after those: a torch network may flatten channels last.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from solstice.compat.weights.assign import Match
from solstice.compat.weights.flattened import doubt_of, ways
from solstice.compat.weights.layers import prefix
from solstice.compat.weights.uses import CONV, LAYERS, MATRIX, TRANSPOSED, Trace, Use
from solstice.compat.weights.words import is_out_in, says_layout, says_transposed


class Layouts:
    """Finds the layouts of matches.

    Args:
        trace: Of the model.
        matches: All of them, which tell how the source keeps its matrices.
        shapes: Of the source's arrays.
    """

    def __init__(
        self, trace: Trace, matches: Sequence[Match], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._shapes = shapes
        self._channels_first = any(
            is_out_in(match.leaf) for match in matches if match.uses[0].role in LAYERS
        )
        self._hinted = trace.padded_in_full
        # Matrices called "weight" that are no squares say whether they are (out, in), as torch's,
        # or (in, out), as some of GPT-2's.
        told = [match.uses[0] for match in matches if self._is_weight(match.uses[0])]
        straight = [use for use in told if use.shape == shapes[use.leaf]]
        self._in_out = len(straight), len(told) - len(straight)

    def of(self, match: Match) -> Match:
        """Return a match with its layouts, and the doubt about the likeliest one, if any."""
        found, doubt = self._kernels(match)
        orders = ways(match.target.uses)
        layouts = tuple((use, way) for use in found for way in range(orders))
        return dataclasses.replace(
            match,
            layouts=layouts,
            doubt=doubt or doubt_of(match.target.uses),
            channels_first=self._channels_first,
        ).read(0)

    def _is_weight(self, use: Use) -> bool:
        shape = self._shapes.get(use.leaf, ())
        plain = use.role == MATRIX and len(shape) == 2 and use.index.size == shape[0] * shape[1]
        return plain and shape[0] != shape[1] and is_out_in(use.leaf)

    def _kernels(self, match: Match) -> tuple[list[Use], str]:
        """Return the readings of a kernel that fit, the likeliest first, and the doubt."""
        target, main = match.target.main, match.uses[0]
        found = [main]
        for one, *_ in match.source.all_like(target):
            if not any(np.array_equal(one.index, known.index) for known in found):
                found.append(one)
        leaf = main.leaf
        straight, turned = self._in_out
        if straight and main.role == MATRIX and is_out_in(leaf) and main.shape[0] == main.shape[1]:
            doubt = (
                f"{leaf!r} is square, and {straight} matrices of the source that are not are (in, "
                f"out), {turned} (out, in): its layout was guessed."
            )
            flipped = dataclasses.replace(main, index=main.index.T)
            return ([flipped, main] if straight > turned else [main, flipped]), doubt
        if len(found) == 1:
            return found, ""
        if not says_layout(leaf):
            return found, f"The name {leaf!r} says no layout: it was guessed."
        if main.role == TRANSPOSED:
            return found, (
                f"{leaf!r} has as many channels before as after, and is of a transposed "
                f"convolution: its layout was guessed from its name."
            )
        plain = main.role == CONV and not says_transposed(match.source.name)
        if plain and (self._hinted or any(map(says_transposed, match.target.name.split("/")))):
            return found, (
                f"{leaf!r} has as many channels before as after, so its shape does not say whether "
                f"it is of a transposed convolution: it was read as of a plain one."
            )
        return found, ""


def as_written(use: Use) -> Use:
    """Return a plain convolution's use as a transposed one's, if its code or its layer says so.

    Of stride 1, both are the same operation.
    """
    if use.spread and use.role in (CONV, MATRIX):
        index = use.index.reshape((1,) * (use.spread + 2 - use.index.ndim) + use.shape)
        return dataclasses.replace(use, role=TRANSPOSED, index=index)
    named = use.role == CONV and says_transposed(prefix(use.leaf))
    return dataclasses.replace(use, role=TRANSPOSED) if named else use
