"""Classification: a confusion matrix and a mean loss, and scikit-learn's numbers from them.

It counts predicted classes, and the ranks of targets among scores if given. For calibration and ROC
curves, see `BinaryMetrics` and `OneVsRestMetrics`.
"""

import functools
import operator
from collections.abc import Iterable
from types import ModuleType
from typing import Literal, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError, UsageError
from solstice.metrics import sums
from solstice.metrics.base import Metrics
from solstice.metrics.checks import (
    as_array,
    as_classes,
    check_kind,
    check_labels,
    check_loss,
    check_mask,
    check_real,
    check_whole,
    count,
    is_traced,
    odd_mask,
)
from solstice.metrics.decisions import computed, ratio_of, scores_of
from solstice.metrics.named import Values
from solstice.tree.fields import replace
from solstice.tree.pytree import AnyArray


class ClassificationMetrics(Metrics):
    """The confusion matrix and the average loss of some classified examples.

    `compute()` gives `average_loss`, `accuracy` (correct / total, for any number of classes),
    `balanced_accuracy` (the mean recall of the classes that occur in targets), `f1`, `tpr` (recall)
    and `ppv` (precision) as `_macro` and `_weighted` averages, and `f1`, `tpr`, `ppv` and
    `prevalence` as `_class_{i}`. All equal scikit-learn's
    `classification_report(..., zero_division=0)`: macro averages run over the classes that occur in
    targets or predictions, weighted ones weigh by the number of targets, an absent class has 0.
    Without examples, `average_loss` and the accuracies are NaN.

    With `overlap` also `iou` (intersection over union, scikit-learn's `jaccard_score`) and `dice`
    (2 |A and B| / (|A| + |B|) of targets and predictions of a class, which is `f1`), averaged and
    of each class.

    With scores, `top_{k}_accuracy` is how often a target is among the k highest scores; among equal
    scores the later class goes first, as in scikit-learn's `top_k_accuracy_score`.

    Counts are int32 (2^31 examples; int64 with `jax_enable_x64`).

    Attributes:
        confusion_matrix: Counts; row: the target's class, column: the predicted one. None if only
            the totals are tracked.
        totals: How often each class was predicted correctly, was a target, and was predicted; None
            if the confusion matrix is tracked.
        top_hits: How many targets were among the k highest scores, for each of `top_k`; or None.
        loss_sum: The sum of the real examples' losses.
        count: The number of real (not masked) examples.
        invalid: How many of them had a label or prediction that is not a class; they are not
            counted elsewhere, except that an example with only a wrong prediction counts in the
            average loss.
        num_classes: The number of classes.

    >>> import solstice
    >>> metrics = solstice.ClassificationMetrics([0, 2, 1, 1], [0, 2, 2, 1], 0.7, num_classes=3)
    >>> metrics.confusion_matrix.tolist()
    [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    >>> {name: round(float(value), 3) for name, value in metrics.compute().items()}["f1_macro"]
    0.778
    """

    # Each array that a step returns slows a small step down, so all counts are in one: the cells of
    # the matrix (or the totals), row by row, the top hits, the invalid predictions, and the invalid
    # labels.
    _counts: Int[Array, " numbers"]
    _loss: Float[Array, "2"]
    num_classes: int = eqx.field(static=True)
    track: Literal["confusion", "totals"] = eqx.field(static=True)
    top_k: tuple[int, ...] = eqx.field(static=True)
    per_class: bool = eqx.field(static=True)
    perplexity: bool = eqx.field(static=True)
    overlap: bool = eqx.field(static=True)

    def __init__(
        self,
        preds: ArrayLike,
        targets: ArrayLike,
        loss: ArrayLike,
        num_classes: int,
        *,
        mask: ArrayLike | None = None,
        scores: ArrayLike | None = None,
        top_k: int | Iterable[int] = (),
        track: Literal["confusion", "totals"] = "confusion",
        per_class: bool = True,
        perplexity: bool = False,
        overlap: bool = False,
    ) -> None:
        """Count one batch.

        Args:
            preds: Predicted classes, `(...)`; floats with whole values are accepted.
            targets: True classes of the same shape; floats with whole values are accepted.
            loss: The mean loss over the batch's real examples whose targets are classes, a scalar;
                NaN is accepted.
            num_classes: How many classes there are.
            mask: True (or 1) where an example is real, of the same shape or its leading axes.
                Masked positions may hold anything, a label of -100 too.
            scores: Logits or probabilities, `(..., classes)`; `top_k` needs them.
            top_k: One or several k, for `top_{k}_accuracy`.
            track: What to keep: the "confusion" matrix, or only the "totals" of each class, which
                are enough for `compute`. At 10^4 classes the matrix takes 400 MB per step, the
                totals 120 kB.
            per_class: Whether `compute` lists each class.
            perplexity: Whether `compute` gives `perplexity`, the exponential of the average loss.
            overlap: Whether `compute` gives `iou` and `dice`, as used for segmentation.

        Raises:
            ValueError: The shapes do not match, `num_classes` is not positive, a k is not between 1
                and the number of classes, scores are missing, or the matrix would have more than
                2^31 cells. If values are known: the mask is not one of 0 and 1, or float targets
                are not whole numbers.
            TypeError: Targets or predictions have a type that cannot number a class.
        """
        num_classes = arguments.count(num_classes, "num_classes", most=2**30)
        preds, targets, loss = (
            as_array(preds, "preds", "classes"),
            check_labels(targets, "targets"),
            check_loss(loss),
        )
        if preds.shape != targets.shape:
            raise InvalidValueError(
                "preds and targets are expected to have one shape, one class per example; they "
                f"are {describe(preds)} and {describe(targets)}. For logits, pass "
                "logits.argmax(-1). Targets with an axis of classes are not class numbers: with "
                "exactly one 1 (one-hot), pass its index; with several (multi-hot), each class is "
                "a separate question, for MultiLabelMetrics."
            )
        if not (jnp.isdtype(preds.dtype, ("bool", "integral")) or _is_real(preds)):
            raise InvalidTypeError(f"preds are expected to be classes; they are {describe(preds)}.")
        track = arguments.choice(track, "track", ("confusion", "totals"))
        if track == "confusion" and num_classes**2 >= 2**31:
            raise InvalidValueError(
                f"A confusion matrix of {num_classes} classes has more than 2^31 cells. Pass "
                f"track='totals', which keeps what compute() needs."
            )
        self.num_classes, self.track = num_classes, track
        self.top_k = arguments.counts(top_k, "top_k", most=num_classes)
        self.per_class = arguments.flag(per_class, "per_class")
        self.perplexity = arguments.flag(perplexity, "perplexity")
        self.overlap = arguments.flag(overlap, "overlap")
        real = check_mask(mask, targets)
        if _is_real(targets) and not is_traced((targets, real)):
            check_whole(targets, real, "targets")

        target, known = as_classes(targets, num_classes)
        pred, named = as_classes(preds, num_classes)
        if (odd := odd_mask(mask, targets)) is not None:
            real, known = real | odd, known & ~odd
        known &= real
        valid = known & named
        ranked = None
        if self.top_k:
            ranked = _rank(_check_scores(scores, targets, num_classes), target)
        # A masked example gets an index past the end, so no cell counts it.
        if track == "confusion":
            last = num_classes**2 + len(self.top_k)
            cell = jnp.where(known, jnp.where(named, target * num_classes + pred, last), last + 1)
            counts = _tally(cell if mask is None else jnp.where(real, cell, last + 2), last + 2)
        else:
            hit = jnp.where(valid & (target == pred), target, num_classes)
            rows = [hit, *(jnp.where(valid, one, num_classes) for one in (target, pred))]
            others = [count(known & ~named), count(real & ~known)]
            zeros = jnp.zeros(len(self.top_k), others[0].dtype)
            tallies = [_tally(row, num_classes) for row in rows]
            counts = jnp.concatenate([*tallies, zeros, jnp.stack(others)])
        if ranked is not None:
            hits = jnp.stack([count(valid & (ranked < k)) for k in self.top_k])
            counts = counts.at[-2 - len(self.top_k) : -2].set(hits.astype(counts.dtype))
        self._counts = counts

        number = known.sum()
        # A batch without such examples has a mean loss of 0/0, which must not reach the sum.
        loss_sum = jnp.where(number > 0, loss * number.astype(loss.dtype), 0)
        self._loss = jnp.stack([loss_sum, jnp.zeros_like(loss_sum)])

    @property
    def confusion_matrix(self) -> Int[Array, "*runs classes classes"] | None:
        if self.track != "confusion":
            return None
        shape = (*self._counts.shape[:-1], self.num_classes, self.num_classes)
        return self._counts[..., : self.num_classes**2].reshape(shape)

    @property
    def totals(self) -> Int[Array, "*runs 3 classes"] | None:
        if self.track != "totals":
            return None
        shape = (*self._counts.shape[:-1], 3, self.num_classes)
        return self._counts[..., : 3 * self.num_classes].reshape(shape)

    @property
    def top_hits(self) -> Int[Array, "*runs ks"] | None:
        return self._counts[..., -2 - len(self.top_k) : -2] if self.top_k else None

    @property
    def count(self) -> Int[Array, "*runs"]:
        number = self.num_classes
        cells = slice(number**2) if self.track == "confusion" else slice(number, 2 * number)
        return self._counts[..., cells].sum(-1) + self.invalid

    @property
    def invalid(self) -> Int[Array, "*runs"]:
        return self._counts[..., -2:].sum(-1)

    @property
    def loss_sum(self) -> Float[Array, "*runs"]:
        return sums.value(self._loss)

    def merge(self, other: Self) -> Self:
        """Return the metrics of both sets of examples.

        Raises:
            UsageError: `other` is another kind of metric, or has another number of classes.
        """
        if type(other) is not type(self) or other.num_classes != self.num_classes:
            raise UsageError(
                f"ClassificationMetrics over {self.num_classes} classes merges only with the same "
                f"kind; it got {_kind(other)}. Give every step the same metric."
            )
        check_kind(self, other)
        added = jax.tree.map(operator.add, self, other)
        return replace(added, _loss=sums.add(self._loss, other._loss))

    def check(self) -> None:
        """Raise if a label or prediction was not a class; the trainer calls it after a first step.

        Raises:
            ValueError: `invalid` is not 0.
        """
        # On the host, so nothing is compiled.
        invalid = np.asarray(self._counts)[..., -2:].sum(-1)
        if invalid.size and (worst := int(invalid.max())):
            raise InvalidValueError(
                f"Classes are expected to be whole numbers from 0 to {self.num_classes - 1}; "
                f"{worst} of {int(np.max(self.count))} examples had a label or a prediction that "
                f"is not. Check num_classes and the labels, or mask what should not count."
            )

    def compute(self) -> Values:
        """Return the metrics by name, each a float scalar."""
        return computed(self, self._counts, self._loss, _report)

    def left_out(self) -> tuple[Array, ...]:
        return (self._counts,)

    def left_out_for(self) -> tuple[tuple[str, ...], ...]:
        classes = f"not a class from 0 to {self.num_classes - 1}"
        return (
            (
                f"had a prediction that is {classes}, which counts only in the average loss",
                f"had a label that is {classes}, or a mask that is neither 0 nor 1, which does not "
                f"count, not even in the loss",
            ),
        )


def _report(
    metrics: ClassificationMetrics, counts: AnyArray, loss: AnyArray | np.number, xp: ModuleType
) -> tuple[Values, Values]:
    """Return the averages and each class's numbers, of arrays of `xp`: numpy or jax.numpy."""
    number = metrics.num_classes
    ratio = functools.partial(ratio_of, xp=xp, dtype=loss.dtype)
    if metrics.track == "totals":
        correct, support, predicted = counts[: 3 * number].reshape(3, number)
    else:
        matrix = counts[: number**2].reshape(number, number)
        correct, support, predicted = xp.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    total = support.sum()
    per_class = scores_of(correct, support, predicted, ratio)
    if metrics.overlap:
        per_class["iou"] = ratio(correct, support + predicted - correct)
        per_class["dice"] = per_class["f1"]
    prevalence = ratio(support, total)
    # Without examples these are 0 / 0.
    averages = {
        "average_loss": ratio(loss, total + counts[-2], empty=xp.nan),
        "accuracy": ratio(correct.sum(), total, empty=xp.nan),
        "balanced_accuracy": ratio(per_class["tpr"].sum(), (support > 0).sum(), empty=xp.nan),
    }
    if metrics.perplexity:
        averages["perplexity"] = xp.exp(averages["average_loss"])
    for i, k in enumerate(metrics.top_k):
        hits = counts[i - len(metrics.top_k) - 2]
        averages[f"top_{k}_accuracy"] = ratio(hits, total, empty=xp.nan)
    present = (support + predicted) > 0
    for name, values in per_class.items():
        averages[f"{name}_macro"] = ratio(values.sum(), present.sum())
        averages[f"{name}_weighted"] = (values * prevalence).sum()
    return averages, per_class | {"prevalence": prevalence} if metrics.per_class else {}


def _tally(cells: Array, size: int) -> Array:
    """Count how often each cell occurs, without a one-hot matrix; drops indices past the end."""
    dtype = jax.dtypes.canonicalize_dtype(np.int64)
    return jnp.zeros(size, dtype).at[cells.ravel()].add(1, mode="drop")


def _rank(scores: Array, target: Array) -> Array:
    """Return how many classes rank above the target: higher scores, or equal ones of later classes.

    Nothing is sorted. A NaN ranks above every number, and a target with a NaN below all classes.
    """
    classes, place = (
        jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1),
        target[..., None],
    )
    own = jnp.take_along_axis(scores, place, axis=-1, mode="clip")
    before = ~(scores <= own) | ((scores == own) & (classes > place))
    return before.sum(-1)


def _check_scores(scores: ArrayLike | None, targets: Array, num_classes: int) -> Array:
    if scores is None:
        raise InvalidValueError(
            "top_k needs the scores of all classes, and scores is None: pass scores=logits."
        )
    array = check_real(scores, "scores")
    if array.shape != (*targets.shape, num_classes):
        raise InvalidValueError(
            f"scores are expected to be of shape {(*targets.shape, num_classes)}, one for each "
            f"class of each target, as num_classes says; they are {describe(array)}."
        )
    return array


def _is_real(array: Array) -> bool:
    return jnp.isdtype(array.dtype, "real floating")


def _kind(other: object) -> str:
    if isinstance(other, ClassificationMetrics):
        return f"ClassificationMetrics over {other.num_classes} classes"
    return describe(other)
