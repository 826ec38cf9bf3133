"""Transposed convolutions: which ones are, and how each library keeps their kernels.

Of stride 1, a transposed convolution is the same operation as a plain one, so its operation does
not tell. The function that asked for it does.
"""

import re
from collections.abc import Iterator, Set
from pathlib import Path

import jax
import numpy as np
from jax.extend.core import JaxprEqn

from solstice.compat.weights.words import OUT_IN, TRANSPOSED_KERNEL, Entry

_KERAS = re.compile(r"conv\dd_transpose|^(params/)?\d+_")
_JAX = str(Path(jax.__file__).parent)


def is_called_transposed(eqn: JaxprEqn) -> bool | None:
    """Say whether the code that asked for a convolution calls it a transposed one.

    That is `jax.lax.conv_transpose`, or the first function outside of jax by its name. None if jax
    keeps no tracebacks.

    >>> import jax
    >>> x, kernel = jax.numpy.ones((1, 5, 2)), jax.numpy.ones((3, 2, 2))
    >>> call = lambda x: jax.lax.conv_transpose(x, kernel, (1,), "SAME")
    >>> [is_called_transposed(eqn) for eqn in jax.make_jaxpr(call)(x).eqns]
    [True]
    """
    traceback = eqn.source_info.traceback
    if traceback is None:
        return None
    for frame in traceback.frames:
        if not frame.file_name.startswith(_JAX):
            return "transpose" in frame.function_name.lower()
        if frame.function_name == jax.lax.conv_transpose.__name__:
            return True
    return False


def transposed_layouts(
    entry: Entry, bias: Entry | None, wanted: Set[tuple[int, ...]]
) -> list[np.ndarray]:
    """Return what a kernel may be as (spatial..., in, out), slid as it is; the likeliest first.

    torch has (in, out, spatial...) and Keras (spatial..., out, in), both flipped; Equinox has
    (out, in, spatial...), Flax (spatial..., in, out) and Haiku (spatial..., out, in).

    Args:
        entry: The kernel, of three axes or more.
        bias: Of the same layer: only Equinox gives it the kernel's axes.
        wanted: The shapes of the network's kernels, which tell how many groups it has.
    """
    index, name = entry.index, entry.name
    if entry.last in OUT_IN:
        spatial = tuple(range(2, index.ndim))
        equinox = index.transpose(*spatial, 1, 0)
        torch = _grouped(np.flip(index, spatial).transpose(*spatial, 0, 1), wanted)
        if bias is not None:
            return torch if bias.index.ndim == 1 else [equinox]
        if "/" in name:
            return [equinox, *torch]
        return torch if "." in name else [*torch, equinox]
    swapped = index.swapaxes(-1, -2)
    if entry.last == "w":
        return [swapped]
    keras = np.flip(swapped, tuple(range(index.ndim - 2)))
    if entry.last == TRANSPOSED_KERNEL:
        return [keras]
    return [keras, index] if _KERAS.search(name) else [index, keras]


def _grouped(index: np.ndarray, wanted: Set[tuple[int, ...]]) -> list[np.ndarray]:
    """Return torch's (spatial..., in, out of a group) as it is, and for groups that are wanted.

    Those are (spatial..., in / groups, out).

    The k-th inputs of all groups lie side by side: each group's outputs follow the last group's.
    """
    *spatial, inputs, outputs = index.shape
    found = []
    for shape in sorted(wanted):
        groups = inputs // max(shape[-2], 1) if len(shape) == index.ndim else 0
        if groups > 1 and shape == (*spatial, inputs // groups, outputs * groups):
            cut = index.reshape(*spatial, groups, -1, outputs).swapaxes(-3, -2)
            found.append(cut.reshape(shape))
    return [index, *found]


def says_groups(name: str, shape: tuple[int, ...], wanted: Set[tuple[int, ...]]) -> Iterator[str]:
    """Yield why torch's kernel does not fit, if it has groups and the network's has none.

    Args:
        name: Of the kernel.
        shape: Its own, (in, out of a group, spatial...).
        wanted: The shapes of the network's transposed kernels, (spatial..., in, out).

    >>> list(says_groups("up.weight", (4, 3, 5), {(5, 4, 6)}))[0][:56]
    "'up.weight' fits a transposed convolution in 2 groups, a"
    """
    for *spatial, inputs, outputs in wanted:
        if len(shape) > 2 and shape[0] == inputs and [*shape[2:]] == spatial:
            groups, rest = divmod(outputs, shape[1])
            if groups > 1 and not rest:
                yield (
                    f"{name!r} fits a transposed convolution in {groups} groups, and the model's "
                    f"has one. Give the model one with groups: of Equinox, groups={groups}."
                )
