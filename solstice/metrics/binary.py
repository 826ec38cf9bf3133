"""Binary classification by probabilities: how well they rank, and how well calibrated they are.

Ranks are kept as a histogram of a fixed size. For accuracy, recall and precision, see
`ClassificationMetrics` with two classes.
"""

from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
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
    count,
    is_traced,
    odd_mask,
)
from solstice.metrics.left_out import tell
from solstice.metrics.named import Values
from solstice.tree.fields import replace

_NAMES = ("average_loss", "roc_auc", "pr_auc", "brier_score", "ece")


class BinaryMetrics(Metrics):
    """How well the probabilities of some examples rank them, and how well calibrated they are.

    `compute()` gives `roc_auc`, `pr_auc`, `brier_score`, `ece` and, with a loss, `average_loss`.

    `brier_score`, the mean of (probability - target)^2, is exact. So is `ece`, the expected
    calibration error: in each of `calibration_bins` bins of equal width, the distance between the
    mean probability and the share of positives, weighted by the bin's share of examples (Naeini,
    Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", 2015).

    `roc_auc` (the area under the ROC curve) and `pr_auc` (average precision) are scikit-learn's
    `roc_auc_score` and `average_precision_score` of the probabilities rounded to one of `bins` bins
    of equal width. Only the order inside a bin is unknown, so the error is at most

    - for `roc_auc`, half the share of positive-negative pairs that fall into one bin: sum of p_b *
      n_b / (2 * P * N), with p_b and n_b positives and negatives in bin b of all P and N. If
      neither density exceeds k times a uniform one, that is at most k / (2 * bins).
    - for `pr_auc`, the sum over bins of p_b / P * (highest - lowest precision that a positive of
      the bin can have): (T + p_b) / (T + p_b + F) - (T + 1) / (T + 1 + F + n_b), with T and F
      positives and negatives in the bins above.

    `error_bounds()` gives both bounds for the examples.

    Probabilities outside [0, 1], and targets other than 0 and 1, raise a ValueError if values are
    known. Under jit they are only counted in `invalid`; an example with a wrong probability still
    counts in the average loss.

    Attributes:
        histogram: Counts of the negatives (row 0) and the positives (row 1) in each bin.
        count: The number of real (not masked) examples.
        invalid: How many of them had a wrong probability or target.

    >>> import solstice
    >>> metrics = solstice.metrics.BinaryMetrics([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    >>> {name: round(float(value), 3) for name, value in metrics.compute().items()}
    {'roc_auc': 0.75, 'pr_auc': 0.833, 'brier_score': 0.158, 'ece': 0.337}
    """

    histogram: Int[Array, "2 bins"]
    # The numbers of real examples, of wrong probabilities and of wrong targets.
    _numbers: Int[Array, "3"]
    # How many of the wrong probabilities are NaN.
    _lost: Int[Array, ""]
    # The sums of (probability - target) in each calibration bin, and of its squares.
    _gaps: Float[Array, "calibration_bins 2"]
    _squares: Float[Array, "2"]
    _loss: Float[Array, "2"] | None

    def __init__(
        self,
        probabilities: ArrayLike,
        targets: ArrayLike,
        loss: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        bins: int = 4096,
        calibration_bins: int = 15,
    ) -> None:
        """Count one batch.

        Args:
            probabilities: The probabilities of the positive class, `(...)`.
            targets: 0 or 1, of the same shape and any type.
            loss: The mean loss over the batch's real examples whose targets are 0 or 1, a scalar.
            mask: True (or 1) where an example is real, of the same shape or its leading axes.
            bins: The number of bins of the histogram, of 8 bytes each.
            calibration_bins: The number of bins that define `ece`.

        Raises:
            ValueError: The shapes do not match, a number of bins is not positive, or values are out
                of range.
            TypeError: Probabilities or targets are not real numbers.
        """
        scores = check_real(probabilities, "probabilities")
        labels = check_real(targets, "targets").astype(scores.dtype)
        if scores.shape != labels.shape:
            raise InvalidValueError(
                f"probabilities and targets are expected to have one shape, one probability per "
                f"example; they are {describe(scores)} and {describe(labels)}. With two columns of "
                f"probabilities, pass the second: probabilities[..., 1]."
            )
        bins = arguments.count(bins, "bins", most=2**24)
        calibration_bins = arguments.count(calibration_bins, "calibration_bins", most=2**16)
        real, odd = check_mask(mask, labels).ravel(), odd_mask(mask, labels)
        scores, labels = scores.ravel(), labels.ravel()

        known = real & ((labels == 0) | (labels == 1))
        if odd is not None:
            real |= odd.ravel()
        valid = known & (scores >= 0) & (scores <= 1)
        cell = _bin(scores, bins) + jnp.where(labels == 1, bins, 0)
        # An index past the end is dropped.
        cell = jnp.where(valid, cell, 2 * bins)
        self._numbers = jnp.stack([count(real), count(known & ~valid), count(real & ~known)])
        self._lost = count(known & jnp.isnan(scores))
        counts = jnp.zeros(2 * bins, self._numbers.dtype).at[cell].add(1, mode="drop")
        self.histogram = counts.reshape(2, bins)
        gap = jnp.where(valid, scores - labels, 0)
        near = _bin(scores, calibration_bins)[None] == jnp.arange(calibration_bins)[:, None]
        self._gaps = sums.exact(jnp.where(near, gap[None], 0).sum(-1))
        self._squares = sums.exact((gap**2).sum())
        self._loss = None
        if loss is not None:
            loss, number = check_loss(loss), count(known)
            total = jnp.where(number > 0, loss * number.astype(loss.dtype), 0)
            self._loss = sums.exact(total)
        if not is_traced(self._numbers):
            self.check()

    @property
    def count(self) -> Int[Array, "*runs"]:
        return self._numbers[..., 0]

    @property
    def invalid(self) -> Int[Array, "*runs"]:
        return self._numbers[..., 1:].sum(-1)

    def merge(self, other: Self) -> Self:
        """Return the metrics of both sets of examples.

        Raises:
            UsageError: `other` is another kind of metric, or has other bins.
        """
        check_kind(self, other)
        return replace(
            self,
            histogram=self.histogram + other.histogram,
            _numbers=self._numbers + other._numbers,
            _lost=self._lost + other._lost,
            _gaps=sums.add(self._gaps, other._gaps),
            _squares=sums.add(self._squares, other._squares),
            _loss=None if self._loss is None else sums.add(self._loss, other._loss),
        )

    def check(self) -> None:
        """Raise if a probability or target was wrong; the trainer calls it after a first step.

        Raises:
            ValueError: `invalid` is not 0.
        """
        # On the host, so nothing is compiled.
        numbers = np.asarray(self._numbers)
        if numbers.size and (worst := int(numbers[..., 1:].sum(-1).max())):
            lost = int(np.max(self._lost))
            remedy = (
                f"{lost} are NaN: the network diverged, or its inputs are NaN. "
                f"Look at the inputs, lower the learning rate, or add callbacks.StopOnNaN()."
                if lost
                else "Pass logits through jax.nn.sigmoid first, or mask what should not count."
            )
            raise InvalidValueError(
                f"probabilities are expected to be in [0, 1] and targets to be 0 or 1; {worst} of "
                f"{int(numbers[..., 0].max())} examples are not. {remedy}"
            )

    def compute(self) -> Values:
        """Return the metrics by name, each a float scalar; NaN if undefined.

        As in scikit-learn, `roc_auc` of a single class is NaN, `pr_auc` without positives is 0.
        """
        computed = _report(self)
        if is_traced(self):
            return computed
        tell(self)
        computed = jax.device_get(computed)
        return {name: computed[name][()] for name in _NAMES if name in computed}

    def left_out(self) -> tuple[Array, ...]:
        return (self._numbers,)

    def left_out_for(self) -> tuple[tuple[str, ...], ...]:
        return (
            (
                "had no probability from 0 to 1, which counts only in the average loss",
                "had a target, or a mask, that is neither 0 nor 1, which does not count, not even "
                "in the loss",
            ),
        )

    def error_bounds(self) -> dict[str, Array]:
        """Return the largest errors of `roc_auc` and `pr_auc` that rounding to bins may cause."""
        negatives, positives, above_negatives, above_positives = _from_above(self.histogram)
        share = positives / positives.sum()
        highest = (above_positives + positives) / (above_positives + positives + above_negatives)
        lowest = (above_positives + 1) / (above_positives + 1 + above_negatives + negatives)
        return {
            "roc_auc": (share * (negatives / negatives.sum())).sum() / 2,
            "pr_auc": jnp.where(positives > 0, share * (highest - lowest), 0).sum(),
        }


@jax.jit
def _report(metrics: BinaryMetrics) -> dict[str, Array]:
    negatives, positives, above_negatives, above_positives = _from_above(metrics.histogram)
    dtype, valid = metrics._squares.dtype, metrics.count - metrics.invalid
    counted = valid.astype(dtype)
    # Each negative ranks below the positives above it, and below half of those in its bin.
    halves = above_positives.astype(dtype) + positives / 2
    beaten_by = halves / positives.sum().astype(dtype)
    found = above_positives + positives
    precision = found / jnp.maximum(found + above_negatives + negatives, 1)
    average_precision = (positives / jnp.maximum(positives.sum(), 1) * precision).sum()
    computed = {
        "roc_auc": (negatives / negatives.sum() * beaten_by).sum(),
        "pr_auc": jnp.where(valid > 0, average_precision, jnp.nan),
        "brier_score": sums.value(metrics._squares) / counted,
        "ece": jnp.abs(sums.value(metrics._gaps)).sum() / counted,
    }
    if metrics._loss is not None:
        number = valid + metrics._numbers[..., 1]
        computed["average_loss"] = sums.value(metrics._loss) / number.astype(metrics._loss.dtype)
    return computed


def _from_above(histogram: Int[Array, "2 bins"]) -> tuple[Array, Array, Array, Array]:
    """Return negatives and positives in each bin, highest first, and in the bins above it."""
    counts = histogram[:, ::-1]
    above = jnp.cumsum(counts, axis=1) - counts
    return counts[0], counts[1], above[0], above[1]


def _bin(scores: Float[Array, " examples"], bins: int) -> Int[Array, " examples"]:
    return jnp.clip(jnp.floor(scores * bins), 0, bins - 1).astype(jnp.int32)
