"""Regression: errors, and how much of the targets' variance is explained."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.metrics import sums
from solstice.metrics.base import Metrics
from solstice.metrics.checks import (
    check_kind,
    check_loss,
    check_mask,
    check_real,
    is_traced,
    promoted,
)
from solstice.metrics.moments import Comoments
from solstice.metrics.named import Values
from solstice.tree.fields import replace

_NAMES = ("average_loss", "mse", "mae", "r2", "pearson")


class RegressionMetrics(Metrics):
    """Errors and correlation of some predicted numbers and their targets.

    `compute()` gives `mse` and `mae` (mean squared and absolute error), `r2` (the coefficient of
    determination, as scikit-learn's `r2_score`), `pearson` (the correlation; NaN where predictions
    or targets are all equal) and, with a loss, `average_loss`. With fewer than two examples `r2` is
    NaN; without examples, everything is.

    All positions have the same weight. With `num_outputs` the last axis holds separate outputs:
    each name is then the mean over them (scikit-learn's `uniform_average`), and `_output_{i}` gives
    each one.

    Means, squares and products merge pairwise (Chan, Golub and LeVeque, 1979), in float32 or wider,
    and lose no digits over many steps or far from zero.

    Attributes:
        moments: The moments of predictions and targets, one column per output.

    >>> import solstice
    >>> metrics = solstice.RegressionMetrics([2.5, 0.0, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0])
    >>> {name: round(float(value), 3) for name, value in metrics.compute().items()}
    {'mse': 0.375, 'mae': 0.5, 'r2': 0.949, 'pearson': 0.985}
    """

    moments: Comoments
    # The sums of the squared and of the absolute errors.
    _errors: Float[Array, "2 outputs 2"]
    _loss: Float[Array, "2"] | None
    num_outputs: int | None = eqx.field(static=True)

    def __init__(
        self,
        preds: ArrayLike,
        targets: ArrayLike,
        loss: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        num_outputs: int | None = None,
    ) -> None:
        """Measure one batch.

        Args:
            preds: Predicted numbers, `(...)`.
            targets: True numbers of the same shape.
            loss: The mean loss over the batch's real positions, a scalar.
            mask: True (or 1) where a position is real, of the same shape or its leading axes.
                Masked positions may hold anything, NaN too.
            num_outputs: The size of the last axis, if it holds separate outputs.

        Raises:
            ValueError: The shapes do not match.
            TypeError: Predictions or targets are not real numbers.
        """
        preds, targets = check_real(preds, "preds"), check_real(targets, "targets")
        if preds.shape != targets.shape:
            raise InvalidValueError(
                f"preds and targets are expected to have one shape; they are {describe(preds)} and "
                f"{describe(targets)}. If one has an extra axis of size 1, squeeze it: preds[..., "
                "0]."
            )
        if num_outputs is not None:
            num_outputs = arguments.count(num_outputs, "num_outputs")
        if num_outputs is not None and targets.shape[-1:] != (num_outputs,):
            raise InvalidValueError(
                f"targets are expected to end in an axis of num_outputs={num_outputs}; they are "
                f"{describe(targets)}."
            )
        self.num_outputs = num_outputs
        columns = (-1, num_outputs or 1)
        real = check_mask(mask, targets).reshape(columns)
        dtype = promoted(preds.dtype, targets.dtype)
        both = jnp.stack([preds.astype(dtype), targets.astype(dtype)]).reshape(2, *columns)
        self.moments = Comoments(both, real)
        error = jnp.where(real, both[0] - both[1], 0)
        self._errors = sums.exact(jnp.stack([(error**2).sum(0), jnp.abs(error).sum(0)]))
        self._loss = None
        if loss is not None:
            loss, number = check_loss(loss), self.moments.count.sum()
            self._loss = sums.exact(jnp.where(number > 0, loss * number.astype(loss.dtype), 0))

    def merge(self, other: Self) -> Self:
        """Return the metrics of both sets of examples.

        Raises:
            UsageError: `other` is another kind of metric, or has other outputs.
        """
        check_kind(self, other)
        return replace(
            self,
            moments=self.moments.merge(other.moments),
            _errors=sums.add(self._errors, other._errors),
            _loss=None if self._loss is None else sums.add(self._loss, other._loss),
        )

    def compute(self) -> Values:
        """Return the metrics by name, each a float scalar."""
        averages, per_output = _report(self)
        if not is_traced(self):
            averages, per_output = jax.device_get((averages, per_output))
            averages = {name: averages[name][()] for name in _NAMES if name in averages}
        return averages | {
            f"{name}_output_{i}": per_output[name][i]
            for name in _NAMES
            if name in per_output
            for i in range(self.num_outputs or 0)
        }


@jax.jit
def _report(metrics: RegressionMetrics) -> tuple[dict[str, Array], dict[str, Array]]:
    moments = metrics.moments
    squared, absolute = sums.value(metrics._errors)
    number = moments.count.astype(squared.dtype)
    of_preds, of_targets = moments.spread()
    both = jnp.sqrt(of_preds) * jnp.sqrt(of_targets)
    pearson = jnp.clip(sums.value(moments.products[0, 1]) / both, -1, 1)
    # Equal targets have no variance: 1 if they are predicted exactly, else 0, as in scikit-learn.
    met = (squared == 0).astype(squared.dtype)
    r2 = jnp.where(of_targets == 0, met, 1 - squared / of_targets)
    per_output = {
        "mse": squared / number,
        "mae": absolute / number,
        "r2": jnp.where(number > 1, r2, jnp.nan),
        "pearson": jnp.where(both > 0, pearson, jnp.nan),
    }
    averages = {name: values.mean() for name, values in per_output.items()}
    if metrics._loss is not None:
        loss = sums.value(metrics._loss)
        averages["average_loss"] = loss / moments.count.sum().astype(loss.dtype)
    return averages, per_output
