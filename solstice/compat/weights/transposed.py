"""The kernel of a transposed convolution, which each library keeps in another layout."""

import re

import numpy as np

from solstice.compat.weights.words import OUT_IN, Entry

_KERAS = re.compile(r"conv\dd_transpose|^(params/)?\d+_")


def transposed_layouts(entry: Entry, bias: Entry | None) -> list[np.ndarray]:
    """Return what a kernel may be as (spatial..., in, out), slid as it is; the likeliest first.

    torch has (in, out, spatial...) and Keras (spatial..., out, in), both flipped; Equinox has
    (out, in, spatial...), Flax (spatial..., in, out) and Haiku (spatial..., out, in).

    Args:
        entry: The kernel, of three axes or more.
        bias: Of the same layer: only Equinox gives it the kernel's axes.
    """
    index, name = entry.index, entry.name
    if entry.last in OUT_IN:
        spatial = tuple(range(2, index.ndim))
        equinox = index.transpose(*spatial, 1, 0)
        # torch's depthwise ones are (channels, 1, spatial...).
        torch = [np.flip(index, spatial).transpose(*spatial, 0, 1)]
        torch += [torch[0].swapaxes(-1, -2)] if index.shape[0] > index.shape[1] == 1 else []
        if bias is not None:
            return torch if bias.index.ndim == 1 else [equinox]
        if "/" in name:
            return [equinox, *torch]
        return torch if "." in name else [*torch, equinox]
    swapped = index.swapaxes(-1, -2)
    if entry.last == "w":
        return [swapped]
    keras = np.flip(swapped, tuple(range(index.ndim - 2)))
    return [keras, index] if _KERAS.search(name) else [index, keras]
