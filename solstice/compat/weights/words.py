"""The meaning of words in an array's name: its role, its layout, or that it is not a weight."""

import dataclasses
import re

import numpy as np

from solstice.compat.weights.layers import prefix, without_collection
from solstice.compat.weights.uses import BIAS, MEAN, SCALE, VARIANCE, Use

# Keras's files say the class of a layer, so `files/hdf5.py` can name its kernel by what it is.
TRANSPOSED_KERNEL, DEPTHWISE_KERNEL = "transposed_kernel", "depthwise_kernel"
POINTWISE_KERNEL = "pointwise_kernel"
OUT_IN = {"weight"}
IN_OUT = {"kernel", "w", TRANSPOSED_KERNEL, DEPTHWISE_KERNEL, POINTWISE_KERNEL}
TABLES = {"embedding", "embeddings"}
VECTORS = {
    **dict.fromkeys(("bias", "b", "beta", "offset"), BIAS),
    **dict.fromkeys(("scale", "gamma"), SCALE),
    **dict.fromkeys(("running_mean", "moving_mean", "mean"), MEAN),
    **dict.fromkeys(("running_var", "moving_variance", "var"), VARIANCE),
}
RECURRENT = re.compile(r"(weight|bias)_(ih|hh)((?:_l\d+)?(?:_reverse)?)$")
FUSED = re.compile(r"(?:in_proj_(weight|bias)|([qkv])_proj_weight)$")
# Not weights: counters, seeds, and the other half of Haiku's averages.
_IGNORED = re.compile(
    r"(^|[./])(num_batches_tracked|seed_generator_state|rngs[./](.*[./])?(count|key)|(mean|var)_ema[./](hidden|counter))$"
)


def is_ignored(name: str) -> bool:
    """Return whether an array is not a weight: a counter or a seed.

    >>> is_ignored("bn1.num_batches_tracked"), is_ignored("bn1.running_mean")
    (True, False)
    """
    return _IGNORED.search(name) is not None


def is_out_in(name: str) -> bool:
    """Return whether a name comes from a library that uses (out, in) and channels first.

    >>> is_out_in("fc.weight"), is_out_in("fc/kernel")
    (True, False)
    """
    return re.split(r"[./]", name)[-1] in OUT_IN


def says_transposed(layer: str) -> bool:
    """Return whether the last part of a layer's name means a transposed convolution.

    >>> says_transposed("params/ConvTranspose_0"), says_transposed("deconv.conv1")
    (True, False)
    """
    own = re.split(r"[./]", layer)[-1].lower()
    return "transpose" in own or "deconv" in own


def may_be_alike(name: str, other: str, axes: int) -> bool:
    """Return whether the last parts of two arrays' names allow one role.

    >>> may_be_alike("bn/bias", "norm/offset", 1), may_be_alike("bn/bias", "norm/weight", 1)
    (True, False)
    """
    vectors = VECTORS if axes > 1 else dict.fromkeys(OUT_IN, SCALE) | VECTORS
    roles = {vectors.get(re.split(r"[./]", one)[-1]) for one in (name, other)}
    return len(roles) == 1 or None in roles


def says_layout(name: str) -> bool:
    """Return whether the last part of a name determines the layout.

    >>> says_layout("head.weight"), says_layout("head.mixing")
    (True, False)
    """
    last = re.split(r"[./]", name)[-1]
    known = last in OUT_IN | IN_OUT | TABLES or last in VECTORS or last == "recurrent_kernel"
    return bool(known or RECURRENT.search(name) or FUSED.search(name))


def natural(name: str) -> tuple[object, ...]:
    """Return a key that sorts names by their numbers: "dense", "dense_2", "dense_10".

    >>> sorted(["dense_10/b", "dense_2/b", "dense/b"], key=natural)
    ['dense/b', 'dense_2/b', 'dense_10/b']
    """
    parts = re.split(r"(\d+)", re.sub(r"(?<=[a-z])(?=/|$)", "_0", name))
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """An array, or a part of one.

    Attributes:
        name: In the source.
        new: The name to match by.
        index: Positions in the array.
        word: The last part of its name, if it is a part of an array.
        within: The end of its layer's name, likewise.
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
        known = self.last in VECTORS or self.last in {*OUT_IN, *IN_OUT, *TABLES}
        name = without_collection(prefix(self.new) if known else self.new)
        return f"{name}/{self.within}" if self.within else name

    def use(self, role: str, index: np.ndarray) -> Use:
        return Use(self.name, role, index)
