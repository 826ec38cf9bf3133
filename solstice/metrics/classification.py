"""Classification: a confusion matrix and a mean loss, and all that scikit-learn reads off them.

It counts whole predictions. What needs probabilities (calibration, ROC curves) is not here.
"""

import logging
import math
import operator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from solstice.errors import UsageError
from solstice.metrics.base import Metrics
from solstice.tree import describe

_logger = logging.getLogger("solstice")


class ClassificationMetrics(Metrics):
    """The confusion matrix and the average loss of some classified examples.

    `compute()` gives `average_loss`, `accuracy` (correct / total, whatever the number of classes),
    `f1`, `tpr` (recall) and `ppv` (precision) as `_macro` and `_weighted` averages, and
    `f1`, `tpr`, `ppv` and `prevalence` as `_class_{i}`. All equal scikit-learn's
    `classification_report(..., zero_division=0)`: macro averages run over the classes that occur
    in targets or predictions, weighted ones weigh by the number of targets, an absent class
    has 0. Over no examples at all, `average_loss` and `accuracy` are NaN.

    Attributes:
        confusion_matrix: Counts; row: the target's class, column: the predicted one.
        loss_sum: The sum of the real examples' losses.
        count: The number of real (not masked) examples.
        invalid: How many of them had a label or prediction that is no class; they are counted
            nowhere else but in the average loss.
        num_classes: The number of classes.

    >>> import solstice
    >>> metrics = solstice.ClassificationMetrics([0, 2, 1, 1], [0, 2, 2, 1], 0.7, num_classes=3)
    >>> metrics.confusion_matrix.tolist()
    [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    >>> {name: round(float(value), 3) for name, value in metrics.compute().items()}["f1_macro"]
    0.778
    """

    # Each array that a step returns costs a small one dearly, so what is counted is in one: the
    # cells of the confusion matrix, row by row, and in the end the invalid examples.
    _counts: Int[Array, " cells"]
    loss_sum: Float[Array, ""]

    def __init__(
        self,
        preds: ArrayLike,
        targets: ArrayLike,
        loss: ArrayLike,
        num_classes: int,
        *,
        mask: ArrayLike | None = None,
    ) -> None:
        """Count one batch.

        Args:
            preds: Predicted classes, `(...)`; floats with whole values are accepted.
            targets: True classes, integers of the same shape.
            loss: The mean loss over the batch's real examples, a scalar; NaN is accepted.
            num_classes: How many classes there are.
            mask: True (or 1) where an example is real, of the same shape. Masked positions may
                hold anything, a label of -100 too.

        Raises:
            ValueError: The shapes do not fit, or `num_classes` is not positive.
            TypeError: Targets or predictions are not of a type that can name a class.
        """
        num_classes = _positive(num_classes)
        preds, targets, loss = (
            jnp.asarray(preds),
            check_labels(targets, "targets"),
            jnp.asarray(loss),
        )
        if preds.shape != targets.shape:
            raise ValueError(
                f"preds and targets are expected to have one shape, one class an example; they are "
                f"{describe(preds)} and {describe(targets)}. Take the argmax over the classes of "
                f"logits or one-hot labels first."
            )
        if not (jnp.isdtype(preds.dtype, ("bool", "integral")) or _is_real(preds)):
            raise TypeError(f"preds are expected to be classes; they are {describe(preds)}.")
        if loss.shape != () or not (jnp.isdtype(loss.dtype, "integral") or _is_real(loss)):
            raise ValueError(
                f"loss is expected to be one real number, the mean over the batch's real examples; "
                f"it is {describe(loss)}."
            )
        real = check_mask(mask, targets)

        whole = preds == jnp.floor(preds) if _is_real(preds) else True
        valid = real & whole & _in_range(preds, num_classes) & _in_range(targets, num_classes)
        cells = num_classes**2 + 1
        cell = targets.astype(jnp.int32) * num_classes + preds.astype(jnp.int32)
        cell = jnp.where(valid, cell, cells - 1)
        if mask is not None:  # an index past the end is dropped
            cell = jnp.where(real, cell, cells)
        self._counts = jnp.zeros(cells, jnp.int32).at[cell.ravel()].add(1, mode="drop")

        count = targets.size if mask is None else real.sum(dtype=jnp.int32)
        loss = loss.astype(jnp.promote_types(loss.dtype, jnp.float32))
        # A batch without real examples has a mean loss of 0/0, which must not reach the sum.
        self.loss_sum = jnp.where(jnp.asarray(count) > 0, loss * count, 0)

    @property
    def confusion_matrix(self) -> Int[Array, "*runs classes classes"]:
        shape = (*self._counts.shape[:-1], self.num_classes, self.num_classes)
        return self._counts[..., :-1].reshape(shape)

    @property
    def count(self) -> Int[Array, "*runs"]:
        return self._counts.sum(-1)

    @property
    def invalid(self) -> Int[Array, "*runs"]:
        return self._counts[..., -1]

    @property
    def num_classes(self) -> int:
        return math.isqrt(self._counts.shape[-1] - 1)

    def merge(self, other: Any) -> Self:
        """Return the metrics of both sets of examples.

        Raises:
            UsageError: `other` is another kind of metric, or has another number of classes.
        """
        if type(other) is not type(self) or other.num_classes != self.num_classes:
            raise UsageError(
                f"ClassificationMetrics over {self.num_classes} classes merges with its own kind; "
                f"it got {_kind(other)}. Give every step the same metric."
            )
        return jax.tree.map(operator.add, self, other)

    def check(self) -> None:
        """Raise if a label or prediction was no class; the trainer asks after a first step.

        Raises:
            ValueError: `invalid` is not 0.
        """
        if self.invalid.size and (worst := int(np.max(self.invalid))):
            raise ValueError(
                f"Classes are expected to be whole numbers from 0 to {self.num_classes - 1}; "
                f"{worst} of {int(np.max(self.count))} examples had a label or a prediction that "
                f"is not. Check num_classes and the labels, or mask what should not count."
            )

    def compute(self) -> dict[str, Any]:
        """Return the metrics by name, each a float scalar."""
        concrete = not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(self))
        averages, per_class = _report(self.confusion_matrix, self.loss_sum, self.count)
        if concrete:
            if int(self.invalid):
                _logger.warning(
                    "%d of %d examples had a label or prediction outside 0..%d; they count in "
                    "no metric but the average loss.",
                    int(self.invalid),
                    int(self.count),
                    self.num_classes - 1,
                )
            # One transfer, and no dispatch for each of the classes.
            averages, per_class = jax.device_get((averages, per_class))
            averages = {name: value[()] for name, value in averages.items()}
        return averages | {
            f"{name}_class_{i}": values[i]
            for name, values in per_class.items()
            for i in range(self.num_classes)
        }


@jax.jit
def _report(
    confusion: Int[Array, "classes classes"], loss_sum: Float[Array, ""], count: Int[Array, ""]
) -> tuple[dict[str, Array], dict[str, Array]]:
    dtype = loss_sum.dtype
    correct = jnp.diagonal(confusion)
    support = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    total = support.sum()
    per_class = {
        "f1": _ratio(2 * correct, support + predicted, dtype),
        "tpr": _ratio(correct, support, dtype),
        "ppv": _ratio(correct, predicted, dtype),
    }
    prevalence = _ratio(support, total, dtype)
    present = (support + predicted) > 0
    averages = {
        "average_loss": loss_sum / count,
        "accuracy": correct.sum().astype(dtype) / total,
    }
    for name, values in per_class.items():
        averages[f"{name}_macro"] = _ratio(values.sum(), present.sum(), dtype)
        averages[f"{name}_weighted"] = (values * prevalence).sum()
    return averages, per_class | {"prevalence": prevalence}


def _ratio(numerator: Array, denominator: Array, dtype: Any) -> Array:
    """`numerator / denominator`, and 0 where there is nothing to divide by."""
    return jnp.where(denominator > 0, numerator.astype(dtype) / jnp.maximum(denominator, 1), 0)


def check_labels(labels: ArrayLike, name: str) -> Array:
    """Return integer class labels as an array.

    Raises:
        TypeError: They are not integers.
    """
    array = jnp.asarray(labels)
    if not jnp.isdtype(array.dtype, ("bool", "integral")):
        raise TypeError(
            f"{name} are expected to be integer classes, one a position; they are "
            f"{describe(array)}. Convert them with .astype('int32'), or with argmax(-1) when "
            f"they are one-hot."
        )
    return array


def check_mask(mask: ArrayLike | None, targets: Array) -> Array:
    """Return the mask as booleans of the targets' shape; all True for None.

    Raises:
        ValueError: The mask has another shape than the targets.
    """
    if mask is None:
        return jnp.ones(targets.shape, bool)
    array = jnp.asarray(mask)
    if array.shape != targets.shape:
        raise ValueError(
            f"mask is expected to have the shape of the targets, {describe(targets)}, True where "
            f"an example is real; it is {describe(array)}."
        )
    return array != 0


def _in_range(classes: Array, num_classes: int) -> Array:
    # A narrow type (uint8 labels, bfloat16 predictions) must hold num_classes to compare with it.
    least = jnp.float32 if _is_real(classes) else jnp.int32
    wide = classes.astype(jnp.promote_types(classes.dtype, least))
    return (wide >= 0) & (wide < num_classes)


def _is_real(array: Array) -> bool:
    return jnp.isdtype(array.dtype, "real floating")


def _positive(num_classes: Any) -> int:
    try:
        number = operator.index(num_classes)
    except TypeError as error:
        raise TypeError(
            f"num_classes is expected to be an int; it is {describe(num_classes)}."
        ) from error
    if number < 1:
        raise ValueError(f"num_classes is expected to be at least 1; it is {number}.")
    return number


def _kind(other: Any) -> str:
    if isinstance(other, ClassificationMetrics):
        return f"ClassificationMetrics over {other.num_classes} classes"
    return describe(other)
