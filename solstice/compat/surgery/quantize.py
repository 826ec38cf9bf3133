"""Weights as integers of 8 or 4 bits with scales, and floats again before each call."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from solstice import arguments
from solstice.compat.model import Model
from solstice.compat.surgery.composed import Composed, described, form, is_matrix, is_weight
from solstice.compat.surgery.lora import LowRank
from solstice.compat.surgery.where import Where, chosen
from solstice.compat.surgery.wrapped import Weight, WrappedModel, weights_of
from solstice.errors import InvalidValueError
from solstice.tree.fields import replace

# At least this many numbers share a scale, if a weight has an axis as long.
_LINE = 64


def quantize(model: Model, *, bits: int = 8, where: Where = "*") -> WrappedModel:
    """Return a model that stores weights in 8 or 4 bits; they are floats only during a call.

    A weight is stored as integers and scales, "Dense_0/kernel/values" and "Dense_0/kernel/scale",
    in `frozen`, and `unfreeze` leaves them there. Other weights are trained or frozen as before.
    The network is called with `scale * values`, which differs from the weight by at most half a
    scale (plus the rounding of the weight's dtype). One scale serves a line of numbers along the
    shortest axis of at least 64, or else along the longest axis: the largest magnitude of that line
    is 127 scales, or 7 in 4 bits, but a scale is no smaller than the smallest normal number. Two
    4-bit integers share a byte.

    Args:
        model: An adapted network of any library. If `compat.lora` adapted it, its weights are
            quantized and the factors are not. Other arrays are shared, not copied.
        bits: 8 or 4.
        where: Which weights to quantize, of the float ones with two axes longer than 1: a glob over
            paths as in `compat.by_path`, or a function of a path. Other weights do not change;
            `made_of` of the result shows which.

    Raises:
        TypeError: An argument is of another type.
        ValueError: `where` selects nothing that can be quantized, or a weight that is not finite.

    >>> import flax.linen as nn, jax.numpy as jnp, solstice
    >>> from solstice import compat
    >>> model = compat.as_model(nn.Dense(64), jnp.ones((1, 256)), key=0)
    >>> small = compat.quantize(model, bits=4)
    >>> small.made_of
    {'bias': 'float32', 'kernel': 'int4'}
    >>> [solstice.tree.nbytes(one) for one in (model, compat.quantize(model), small)]
    [65792, 17664, 9472]
    """
    arguments.choice(bits, "bits", (8, 4))
    weights, structure = weights_of(model)
    among = chosen([weight.path for weight in weights], where)
    suited = {i for i in among if _suits(weights[i].node)}
    if not suited:
        found = ", ".join(described(weights[i].path, weights[i].node) for i in among)
        raise InvalidValueError(
            f"where is expected to select float weights with two axes longer than 1; it "
            f"selects {found}."
        )
    made = [_quantized(one, bits) if i in suited else one for i, one in enumerate(weights)]
    return WrappedModel(model, made, structure)


class Quantized(Composed):
    """A weight as integers and scales.

    Attributes:
        values: int8 of the weight's shape; or two numbers of 4 bits, each with 8 added, in a byte:
            uint8 of half the size, the first number in the lower bits.
        scale: Floats of the weight's shape, but for one axis, of length 1; float32 or wider.
        shape: The weight's shape.
        dtype: Its dtype.
    """

    values: Any
    scale: Any
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    @classmethod
    def of(cls, weight: Array, bits: int) -> "Quantized":
        """Return a weight quantized to `bits` bits."""
        most = 2 ** (bits - 1) - 1
        # A scale of float16 might be too small for its type.
        wide = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))
        largest = jnp.abs(wide).max(axis=_line(weight.shape), keepdims=True)
        # Processors take numbers below the smallest normal one for 0.
        least = jnp.finfo(wide.dtype).tiny
        scale = jnp.where(largest == 0, 1, jnp.maximum(largest / most, least))
        values = jnp.clip(jnp.round(wide / scale), -most, most).astype(jnp.int8)
        held = values if bits == 8 else _packed(values)
        return cls(held, scale, weight.shape, weight.dtype)

    def joined(self) -> Array:
        values = self.values if self._bits == 8 else _unpacked(self.values, self.shape)
        weight = values.astype(self.scale.dtype) * self.scale
        # An experiment that computes in a narrower type has made the scale one.
        narrow = self.dtype.itemsize < weight.dtype.itemsize
        return weight.astype(self.dtype) if narrow else weight

    def words(self) -> str:
        return f"int{self._bits}"

    @property
    def _bits(self) -> int:
        return 8 if self.values.dtype == jnp.int8 else 4


def _line(shape: tuple[int, ...]) -> int:
    """Return the axis along which numbers share a scale.

    >>> _line((784, 10)), _line((3, 3, 64, 128)), _line((50_000, 512)), _line((3, 3, 1, 8))
    (0, 2, 1, 3)
    """
    axes = range(len(shape))
    long = [axis for axis in axes if shape[axis] >= _LINE]
    return min(long, key=lambda axis: shape[axis]) if long else max(axes, key=lambda a: shape[a])


def _packed(values: Array) -> Array:
    """Return numbers from -7 to 7 as bytes of two."""
    flat = (values.reshape(-1) + 8).astype(jnp.uint8)
    pairs = jnp.pad(flat, (0, flat.size % 2)).reshape(-1, 2)
    return pairs[:, 0] | (pairs[:, 1] << 4)


def _unpacked(values: Array, shape: tuple[int, ...]) -> Array:
    flat = jnp.stack([values & 15, values >> 4], axis=-1).reshape(-1)[: math.prod(shape)]
    return flat.astype(jnp.int8).reshape(shape) - 8


def _suits(node: Any) -> bool:
    if isinstance(node, LowRank):
        return _suits(node.base)
    if is_weight(node):
        return False
    return is_matrix(form(node)) and _is_float(node.dtype)


def _is_float(dtype: np.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating)) and dtype.itemsize > 1


def _quantized(weight: Weight, bits: int) -> Weight:
    path, node, trained, trainable = weight
    if isinstance(node, LowRank):
        base = _quantized(Weight(path, node.base, trained.base, trainable.base), bits)
        return Weight(
            path,
            replace(node, base=base.node),
            replace(trained, base=base.trained),
            replace(trainable, base=base.trainable),
        )
    # The largest of a line need not show a NaN: on processors, XLA may leave it out.
    if not isinstance(node, Tracer) and not bool(jnp.isfinite(node).all()):
        raise InvalidValueError(
            f"quantize() is expected to get finite weights; {path!r} has a NaN or an infinity, "
            f"which no whole number stands for. Train again from before it came (StopOnNaN finds "
            f"the step), or leave this weight out of where=."
        )
    made = Quantized.of(node, bits)
    never = Quantized(False, False, made.shape, made.dtype)
    return Weight(path, made, never, never)
