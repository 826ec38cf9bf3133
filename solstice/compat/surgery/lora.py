"""Low-rank adaptation (LoRA, Hu et al. 2021): factors are trained, weights are frozen."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from solstice import arguments
from solstice.compat.model import Model
from solstice.compat.surgery.composed import (
    Composed,
    described,
    form,
    is_composed,
    is_matrix,
    joined,
    words,
)
from solstice.compat.surgery.where import Where, chosen
from solstice.compat.surgery.wrapped import Weight, WrappedModel, weights_of
from solstice.errors import InvalidValueError
from solstice.tree.keys import as_key
from solstice.tree.overwritten import is_box


def lora(
    model: Model,
    *,
    rank: int,
    where: Where = "*",
    key: Array | int,
    alpha: float | None = None,
    full: Where | None = None,
) -> WrappedModel:
    """Return a model that trains two low-rank factors for each weight, and freezes the weight.

    The network is called with `weight + alpha / rank * a @ b` instead of each adapted weight.
    `params` has the factors, "Dense_0/kernel/a" and "Dense_0/kernel/b"; all weights of the network
    are in `frozen`, and `unfreeze` leaves them there. `a` starts at random and `b` at zero, so a
    fresh model gives the same bits as the original.

    A weight of any layout is treated as an `m` by `n` matrix: its axes are split so that `m + n` is
    smallest. Layers stacked for a scan are one weight and share factors. Factors of weights
    narrower than float32 are in float32.

    Args:
        model: An adapted network of any library, which may be quantized (QLoRA). Frozen weights are
            adapted too. Its arrays are shared, not copied.
        rank: The inner size of the factors.
        where: Which weights to adapt, of those with two axes longer than 1: a glob over paths as in
            `compat.by_path`, or a function of a path. Other weights get no factors; `made_of` of
            the result shows which.
        key: A seed or PRNG key for the factors.
        alpha: The scale of the factors times `rank`; None means `rank`. The scale is an array in
            `frozen`, "Dense_0/kernel/scale", so a checkpoint or a file brings its own.
        full: Which weights to train in full, such as a new head; these get no factors.

    Raises:
        TypeError: An argument is of another type.
        ValueError: `where` or `full` selects no suitable weight, a weight is too small for the
            rank, or the factors' dtype cannot hold the scale.

    >>> import flax.linen as nn, jax.numpy as jnp, optax, solstice
    >>> from solstice import compat
    >>> x, y = jnp.eye(16), jnp.arange(16) % 4
    >>> model = compat.as_model(nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(4)]), x, key=0)
    >>> tuned = compat.lora(model, rank=2, where="*/kernel", key=1)
    >>> solstice.tree.size(model.params), solstice.tree.size(tuned.params)
    (676, 168)
    >>> bool((tuned(x)[0] == model(x)[0]).all())
    True
    >>> exp = solstice.ClassificationExperiment(tuned, optax.adam(0.1))
    >>> exp = exp.train(30, [(x, y)], progress=False)
    >>> exp.test([(x, y)], progress=False)["accuracy"]
    1.0
    """
    rank = arguments.count(rank, "rank")
    scale = 1.0 if alpha is None else arguments.number(alpha, "alpha", above=0) / rank
    key = as_key(key)
    weights, structure = weights_of(model)
    paths = [weight.path for weight in weights]
    whole = set() if full is None else set(chosen(paths, full, "full"))
    among = [i for i in chosen(paths, where) if i not in whole]
    suited = {i for i in among if suits(weights[i])}
    if not suited:
        found = ", ".join(described(weights[i].path, weights[i].node) for i in among)
        raise InvalidValueError(
            f"where is expected to select float weights with two axes longer than 1; it "
            f"selects {found or 'none'}{' besides those of full' * bool(whole)}."
        )
    # The key depends on the weight's place among all weights, not on what else `where` selects.
    made = [
        _adapted(weight, rank, scale, jax.random.fold_in(key, i))
        if i in suited
        else _kept(weight, in_full=i in whole)
        for i, weight in enumerate(weights)
    ]
    return WrappedModel(model, made, structure)


class LowRank(Composed):
    """A weight and the product of two factors.

    Attributes:
        base: The weight, or the node that computes it.
        a: The first factor, float (m, rank).
        b: The second factor, float (rank, n).
        scale: The factor of their product, float (). The factors were trained with it.
    """

    base: Any
    a: Any
    b: Any
    scale: Any

    def joined(self) -> Array:
        base = joined(self.base)
        narrow = base.dtype.itemsize < self.a.dtype.itemsize
        dtype = self.a.dtype if narrow else base.dtype
        change = (self.scale.astype(self.a.dtype) * self.a) @ self.b
        change = change.reshape(base.shape).astype(dtype)
        return _plus(base.astype(dtype), change).astype(base.dtype)

    def words(self) -> str:
        return f"{words(self.base)} + rank {self.b.shape[-2]}"


@jax.custom_jvp
def _plus(weight: Array, change: Array) -> Array:
    """Return the sum; where the change is 0, the weight bit for bit: -0.0 + 0.0 would be 0.0."""
    return jnp.where(change == 0, weight, weight + change)


@_plus.defjvp
def _plus_jvp(values: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _plus(*values), tangents[0] + tangents[1]


def suits(weight: Weight) -> bool:
    """Return whether a weight can have factors: of floats, with two axes longer than 1."""
    if is_box(weight.node):
        return False
    leaf = form(weight.node)
    return is_matrix(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _adapted(weight: Weight, rank: int, scale: float, key: Array) -> Weight:
    leaf = form(weight.node)
    m, n = _matrix(leaf.shape)
    if rank > min(m, n):
        raise InvalidValueError(
            f"rank is expected to be at most {min(m, n)} for {weight.path!r} of shape "
            f"{leaf.shape}, a matrix of {m} by {n}; it is {rank}. Use a smaller rank, or leave "
            f"this weight out of where=."
        )
    dtype = leaf.dtype if leaf.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    a = jax.random.normal(key, (m, rank), dtype) / math.sqrt(m)
    numbers = jnp.finfo(dtype)
    if not float(numbers.tiny) <= scale <= float(numbers.max):
        raise InvalidValueError(
            f"alpha is expected to give a scale, alpha / rank, that {numbers.dtype} holds, from "
            f"{float(numbers.tiny):.2g} to {float(numbers.max):.2g}; with "
            f"alpha={scale * rank:g} and rank={rank}, it is {scale:g}."
        )
    held = jnp.asarray(scale, numbers.dtype)
    node = LowRank(weight.node, a, jnp.zeros((rank, n), dtype), held)
    trained = LowRank(jax.tree.map(lambda _: False, weight.node), True, True, False)
    return Weight(weight.path, node, trained, trained)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the sizes of the matrix that a weight is treated as, its axes split in two.

    >>> _matrix((3, 3, 8, 16)), _matrix((16, 8, 3, 3))
    ((72, 16), (16, 72))
    """
    cuts = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return min(cuts, key=sum)


def _kept(weight: Weight, *, in_full: bool) -> Weight:
    """Return a weight that gets no factors, trained or not."""
    if is_box(weight.node):  # which no optimizer trains
        return weight
    if in_full and is_composed(weight.node):
        raise InvalidValueError(
            f"full is expected to select weights that are arrays; {weight.path!r} is "
            f"{words(weight.node)}. Leave it out, or merge the model first."
        )
    trained = jax.tree.map(lambda leaf: in_full and eqx.is_inexact_array(leaf), weight.node)
    return Weight(weight.path, weight.node, trained, trained)
