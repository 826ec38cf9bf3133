"""Means, variances and covariances that merge stably, even far from zero."""

from typing import Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from solstice.metrics import sums
from solstice.metrics.checks import count
from solstice.tree.fields import replace


class Comoments(eqx.Module):
    """The number of examples, their mean, and their summed products about the mean.

    Two of them merge by the pairwise update of Chan, Golub and LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", 1979. Means are pairs of floats (see
    `sums`): at 10^6, float32 has steps of 1/16, and the means of two batches differ by less.

    Attributes:
        count: The number of real examples.
        mean: Each variable's mean.
        products: The sums of (x - mean of x) * (y - mean of y) for any two variables x and y.
    """

    count: Int[Array, " outputs"]
    mean: Float[Array, "variables outputs 2"]
    products: Float[Array, "variables variables outputs 2"]

    def __init__(
        self,
        values: Float[Array, "variables examples outputs"],
        real: Bool[Array, "examples outputs"],
    ) -> None:
        self.count = count(real, axis=0)
        size = jnp.maximum(self.count, 1).astype(values.dtype)
        # About a rough mean the values are small and exact; their mean is the correction.
        real, size = real[None], size[None]
        rough = jnp.where(real, values, 0).sum(1) / size
        centred = jnp.where(real, values - rough[:, None], 0)
        rest = centred.sum(1) / size
        centred = jnp.where(real, centred - rest[:, None], 0)
        self.mean = sums.exact(rough, rest)
        # Not a matrix product, which accelerators round to fewer digits.
        self.products = sums.exact((centred[:, None] * centred[None]).sum(2))

    def merge(self, other: Self) -> Self:
        """Return the moments of both sets of examples; leading axes are separate sets."""
        total, dtype = self.count + other.count, self.mean.dtype
        share = (other.count / jnp.maximum(total, 1)).astype(dtype)[..., None, :]
        step = sums.add(other.mean, -self.mean)
        weight = (self.count[..., None, :].astype(dtype) * share)[..., None, :]
        shift = sums.value(step)
        between = weight * shift[..., :, None, :] * shift[..., None, :, :]
        return replace(
            self,
            count=total,
            mean=sums.add(self.mean, step * share[..., None]),
            products=sums.add(sums.add(self.products, other.products), sums.exact(between)),
        )

    def spread(self) -> Float[Array, "variables outputs"]:
        """Return each variable's sum of squares about its mean, 0 where all its values are equal.

        A rounding error there is smaller than one unit in a value's last place.
        """
        squares = jnp.stack(
            [sums.value(self.products[i, i]) for i in range(self.products.shape[0])]
        )
        last_digit = jnp.finfo(squares.dtype).eps * sums.value(self.mean)
        return jnp.where(squares <= last_digit**2 / 16, 0, squares)
