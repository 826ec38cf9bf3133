"""Single numbers over all steps: mean, sum, minimum, maximum, standard deviation, last.

Each is named after its class, in lowercase; `MetricsDict` gives other names.
"""

from typing import Self

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num
from numpy.typing import ArrayLike

from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.metrics import sums
from solstice.metrics.base import Metrics
from solstice.metrics.checks import as_array, check_kind, check_mask, check_real, count
from solstice.metrics.moments import Comoments
from solstice.metrics.named import Values
from solstice.tree.fields import replace


class Mean(Metrics):
    """The mean of all values, as `mean`; NaN without values.

    All values have the same weight, so pass the losses of the examples, not their mean.

    Args:
        values: Real numbers of any shape.
        mask: True (or 1) where a value is real, of the same shape or its leading axes.

    >>> import solstice
    >>> steps = [solstice.metrics.Mean([1.0, 2.0]), solstice.metrics.Mean([6.0])]
    >>> float(solstice.reduce(steps).compute()["mean"])
    3.0
    """

    total: Float[Array, "2"]
    count: Int[Array, ""]

    def __init__(self, values: ArrayLike, *, mask: ArrayLike | None = None) -> None:
        numbers, real = _numbers(values, mask)
        self.total = sums.exact(jnp.where(real, numbers, 0).sum())
        self.count = count(real)

    def merge(self, other: Self) -> Self:
        check_kind(self, other)
        total = sums.add(self.total, other.total)
        return replace(self, total=total, count=self.count + other.count)

    def compute(self) -> Values:
        return {"mean": sums.value(self.total) / self.count.astype(self.total.dtype)}


class Sum(Metrics):
    """The sum of all values, as `sum`; an integer for integers (int32 or wider).

    Args:
        values: Real numbers of any shape.
        mask: True (or 1) where a value is real, of the same shape or its leading axes.

    >>> import solstice
    >>> tokens = [solstice.metrics.Sum([3, 4, 2], mask=[1, 1, 0]), solstice.metrics.Sum([5, 1, 1])]
    >>> int(solstice.reduce(tokens).compute()["sum"])
    14
    """

    total: Num[Array, "..."]

    def __init__(self, values: ArrayLike, *, mask: ArrayLike | None = None) -> None:
        numbers, real = _numbers(values, mask)
        given = jnp.asarray(values)
        if jnp.isdtype(given.dtype, ("bool", "integral")):
            zero = jnp.zeros((), given.dtype)
            self.total = jnp.where(real, given, zero).sum(dtype=count(real).dtype)
        else:
            self.total = sums.exact(jnp.where(real, numbers, 0).sum())

    def merge(self, other: Self) -> Self:
        check_kind(self, other)
        whole = jnp.isdtype(self.total.dtype, "integral")
        add = jnp.add if whole else sums.add
        return replace(self, total=add(self.total, other.total))

    def compute(self) -> Values:
        whole = jnp.isdtype(self.total.dtype, "integral")
        return {"sum": self.total if whole else sums.value(self.total)}


class Min(Metrics):
    """The smallest value, as `min`; NaN without values or if one is NaN.

    Args:
        values: Real numbers of any shape.
        mask: True (or 1) where a value is real, of the same shape or its leading axes.

    >>> import solstice
    >>> float(solstice.metrics.Min([3.0, -1.0, 2.0]).compute()["min"])
    -1.0
    """

    least: Float[Array, ""]
    count: Int[Array, ""]

    def __init__(self, values: ArrayLike, *, mask: ArrayLike | None = None) -> None:
        numbers, real = _numbers(values, mask)
        self.least = jnp.min(jnp.where(real, numbers, jnp.inf), initial=jnp.inf)
        self.count = count(real)

    def merge(self, other: Self) -> Self:
        check_kind(self, other)
        least = jnp.minimum(self.least, other.least)
        return replace(self, least=least, count=self.count + other.count)

    def compute(self) -> Values:
        return {"min": jnp.where(self.count > 0, self.least, jnp.nan)}


class Max(Metrics):
    """The largest value, as `max`; NaN without values or if one is NaN.

    Args:
        values: Real numbers of any shape.
        mask: True (or 1) where a value is real, of the same shape or its leading axes.

    >>> import solstice
    >>> float(solstice.metrics.Max([3.0, -1.0, 2.0]).compute()["max"])
    3.0
    """

    greatest: Float[Array, ""]
    count: Int[Array, ""]

    def __init__(self, values: ArrayLike, *, mask: ArrayLike | None = None) -> None:
        numbers, real = _numbers(values, mask)
        self.greatest = jnp.max(jnp.where(real, numbers, -jnp.inf), initial=-jnp.inf)
        self.count = count(real)

    def merge(self, other: Self) -> Self:
        check_kind(self, other)
        greatest = jnp.maximum(self.greatest, other.greatest)
        return replace(self, greatest=greatest, count=self.count + other.count)

    def compute(self) -> Values:
        return {"max": jnp.where(self.count > 0, self.greatest, jnp.nan)}


class Std(Metrics):
    """The standard deviation of all values, as `std`, like `numpy.std`; NaN without values.

    Args:
        values: Real numbers of any shape.
        mask: True (or 1) where a value is real, of the same shape or its leading axes.

    >>> import solstice
    >>> float(solstice.metrics.Std([1.0, 3.0]).compute()["std"])
    1.0
    """

    moments: Comoments

    def __init__(self, values: ArrayLike, *, mask: ArrayLike | None = None) -> None:
        numbers, real = _numbers(values, mask)
        self.moments = Comoments(numbers.reshape(1, -1, 1), real.reshape(-1, 1))

    def merge(self, other: Self) -> Self:
        check_kind(self, other)
        return replace(self, moments=self.moments.merge(other.moments))

    def compute(self) -> Values:
        spread = self.moments.spread()[0, 0]
        return {"std": jnp.sqrt(spread / self.moments.count[0].astype(spread.dtype))}


class Last(Metrics):
    """The last value, such as a learning rate, as `last`; NaN without values.

    It is the value merged last, so it depends on the order; with `at`, it is the value with the
    greatest `at`, in any order.

    Args:
        values: Real numbers of any shape; the last one, in C order, is a batch's last.
        at: When each value was (a step, a time), whole numbers of the values' shape or one for all.
        mask: True (or 1) where a value is real, of the same shape or its leading axes.

    >>> import solstice
    >>> steps = [solstice.metrics.Last(0.1, at=2), solstice.metrics.Last(0.3, at=1)]
    >>> round(float(solstice.reduce(steps).compute()["last"]), 3)
    0.1
    """

    value: Float[Array, ""]
    at: Int[Array, ""]
    known: Bool[Array, ""]

    def __init__(
        self, values: ArrayLike, *, at: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> None:
        numbers, real = _numbers(values, mask)
        times = jnp.zeros((), jnp.int32) if at is None else as_array(at, "at", "whole numbers")
        if not jnp.isdtype(times.dtype, "integral") or times.shape not in ((), numbers.shape):
            raise InvalidValueError(
                f"at is expected to be whole numbers, one for all values or one each, of shape "
                f"{numbers.shape}; it is {describe(times)}."
            )
        times = jnp.broadcast_to(times.astype(count(real).dtype), numbers.shape).ravel()
        numbers, real = numbers.ravel(), real.ravel()
        self.known = real.any()
        self.at = jnp.max(jnp.where(real, times, _EARLIEST), initial=_EARLIEST)
        latest = real & (times == self.at)
        position = jnp.max(jnp.where(latest, jnp.arange(real.size), -1), initial=-1)
        # Where none is known, the position is -1: NaN.
        self.value = jnp.append(numbers, jnp.nan)[position]

    def merge(self, other: Self) -> Self:
        check_kind(self, other)
        newer = other.known & (~self.known | (other.at >= self.at))
        return replace(
            self,
            value=jnp.where(newer, other.value, self.value),
            at=jnp.where(newer, other.at, self.at),
            known=self.known | other.known,
        )

    def compute(self) -> Values:
        return {"last": self.value}


_EARLIEST = jnp.iinfo(jnp.int32).min


def _numbers(values: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array]:
    numbers = check_real(values, "values")
    return numbers, check_mask(mask, numbers, "the values")
