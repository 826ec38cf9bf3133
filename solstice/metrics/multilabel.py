"""Multi-label classification: how many decisions are right, for each label.

It counts decisions. For ranks and calibration, see `OneVsRestMetrics`.
"""

import functools
import operator
from types import ModuleType
from typing import Self

import equinox as eqx
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
    as_binary,
    check_kind,
    check_labels,
    check_loss,
    check_mask,
    count,
    odd_mask,
)
from solstice.metrics.decisions import computed, ratio_of, scores_of
from solstice.metrics.named import Values
from solstice.tree.fields import replace
from solstice.tree.pytree import AnyArray


class MultiLabelMetrics(Metrics):
    """The decisions on the labels of some examples, and their average loss.

    `compute()` gives `average_loss` and `accuracy` over all decisions (1 - scikit-learn's
    `hamming_loss`), `exact_match`, the share of examples whose labels are all right (its
    `accuracy_score`), and `f1`, `tpr` (recall) and `ppv` (precision) as `_macro`, `_micro` and
    `_weighted` averages and as `_class_{i}`, with `prevalence_class_{i}`. Averages are those of
    scikit-learn's `classification_report(..., zero_division=0)`: macro ones run over all labels,
    and a label that never occurs has 0. Without examples, values that are not averages over labels
    are NaN.

    Attributes:
        totals: For each label, how often it was predicted correctly, was a target, was predicted,
            and was decided on.
        loss_sum: The sum of the losses of all decisions that count.
        count: The number of decisions on real (not masked) labels.
        invalid: How many of them had a target or prediction other than 0 and 1; they are not
            counted elsewhere, except that a decision with only a wrong prediction counts in the
            average loss.
        num_labels: The number of labels.

    >>> import solstice
    >>> metrics = solstice.metrics.MultiLabelMetrics(
    ...     [[1, 0, 1], [0, 0, 1]], [[1, 1, 1], [0, 0, 1]], 0.3
    ... )
    >>> computed = metrics.compute()
    >>> {name: round(float(computed[name]), 3) for name in ("accuracy", "exact_match", "f1_macro")}
    {'accuracy': 0.833, 'exact_match': 0.5, 'f1_macro': 0.667}
    """

    # All counts in one array, since each array that a step returns costs time: four rows of labels,
    # the examples whose labels are all right, all examples, and the invalid predictions and
    # targets.
    _counts: Int[Array, " numbers"]
    _loss: Float[Array, "2"]
    num_labels: int = eqx.field(static=True)
    per_class: bool = eqx.field(static=True)

    def __init__(
        self,
        preds: ArrayLike,
        targets: ArrayLike,
        loss: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        per_class: bool = True,
    ) -> None:
        """Count one batch.

        Args:
            preds: Predicted labels, 0 or 1, `(..., labels)`.
            targets: True labels of the same shape.
            loss: The mean loss over the batch's real labels whose targets are 0 or 1, a scalar; NaN
                is accepted.
            mask: True (or 1) where a label is real, of the same shape or its leading axes. An
                example with masked labels is an exact match if its others are right.
            per_class: Whether `compute` lists each label.

        Raises:
            ValueError: The shapes do not match. If values are known: the mask is not one of 0 and
                1.
            TypeError: Targets or predictions are not real numbers.
        """
        preds, targets = check_labels(preds, "preds"), check_labels(targets, "targets")
        loss = check_loss(loss)
        if preds.shape != targets.shape or not preds.ndim or not preds.shape[-1]:
            raise InvalidValueError(
                f"preds and targets are expected to have one shape, (..., labels), and 0 or 1 for "
                f"each label of each example; they are {describe(preds)} and {describe(targets)}. "
                f"If exactly one class is right, use ClassificationMetrics."
            )
        self.num_labels = targets.shape[-1]
        self.per_class = arguments.flag(per_class, "per_class")
        real, odd = check_mask(mask, targets), odd_mask(mask, targets)
        (label, binary), (pred, named) = as_binary(targets), as_binary(preds)
        known = real & binary
        valid = known & named
        each = [valid & label & pred, valid & label, valid & pred, valid]
        totals = [count(one.reshape(-1, self.num_labels), axis=0) for one in each]
        exact = (~valid | (label == pred)).all(-1) & valid.any(-1)
        unknown = real & ~binary if odd is None else (real & ~binary) | odd
        numbers = jnp.stack([count(one) for one in (exact, valid.any(-1), known & ~named, unknown)])
        self._counts = jnp.concatenate([*totals, numbers])
        number = known.sum()
        self._loss = sums.exact(jnp.where(number > 0, loss * number.astype(loss.dtype), 0))

    @property
    def totals(self) -> Int[Array, "*runs 4 labels"]:
        shape = (*self._counts.shape[:-1], 4, self.num_labels)
        return self._counts[..., : 4 * self.num_labels].reshape(shape)

    @property
    def count(self) -> Int[Array, "*runs"]:
        return self.totals[..., 3, :].sum(-1) + self.invalid

    @property
    def invalid(self) -> Int[Array, "*runs"]:
        return self._counts[..., -2:].sum(-1)

    @property
    def loss_sum(self) -> Float[Array, "*runs"]:
        return sums.value(self._loss)

    def merge(self, other: Self) -> Self:
        """Return the metrics of both sets of examples.

        Raises:
            UsageError: `other` is another kind of metric, or has another number of labels.
        """
        check_kind(self, other)
        added = jax.tree.map(operator.add, self, other)
        return replace(added, _loss=sums.add(self._loss, other._loss))

    def check(self) -> None:
        """Raise if a label was neither 0 nor 1; the trainer calls it after a first step.

        Raises:
            ValueError: `invalid` is not 0.
        """
        # On the host, so nothing is compiled.
        invalid = np.asarray(self._counts)[..., -2:].sum(-1)
        if invalid.size and (worst := int(invalid.max())):
            raise InvalidValueError(
                f"Labels and predictions are expected to be 0 or 1; {worst} of "
                f"{int(np.max(self.count))} decisions had another. Mask what should not count."
            )

    def compute(self) -> Values:
        """Return the metrics by name, each a float scalar."""
        return computed(self, self._counts, self._loss, _report)

    def left_out(self) -> tuple[Array, ...]:
        return (self._counts,)

    def left_out_for(self) -> tuple[tuple[str, ...], ...]:
        return (
            (
                "had a prediction of a label that is neither 0 nor 1, which counts only in the "
                "average loss (each label is an example here)",
                "had a label, or a mask of one, that is neither 0 nor 1, which does not count, "
                "not even in the loss (each label is an example here)",
            ),
        )


def _report(
    metrics: MultiLabelMetrics, counts: AnyArray, loss: AnyArray | np.number, xp: ModuleType
) -> tuple[Values, Values]:
    """Return the averages and each label's numbers, of arrays of `xp`: numpy or jax.numpy."""
    ratio = functools.partial(ratio_of, xp=xp, dtype=loss.dtype)
    correct, support, predicted, decided = counts[:-4].reshape(4, metrics.num_labels)
    number = decided.sum()

    right = number - support.sum() - predicted.sum() + 2 * correct.sum()
    averages = {
        "average_loss": ratio(loss, number + counts[-2], empty=xp.nan),
        "accuracy": ratio(right, number, empty=xp.nan),
        "exact_match": ratio(counts[-4], counts[-3], empty=xp.nan),
    }
    per_class = scores_of(correct, support, predicted, ratio)
    micro = scores_of(correct.sum(), support.sum(), predicted.sum(), ratio)
    share = ratio(support, support.sum())
    for name, values in per_class.items():
        averages |= {
            f"{name}_macro": values.mean(),
            f"{name}_micro": micro[name],
            f"{name}_weighted": (values * share).sum(),
        }
    prevalence = {"prevalence": ratio(support, decided)}
    return averages, per_class | prevalence if metrics.per_class else {}
