"""Several classes by their probabilities: how well they rank examples, each class against the rest.

Every class is a separate binary question, measured by `BinaryMetrics`.
"""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.metrics.base import Metrics
from solstice.metrics.binary import BinaryMetrics
from solstice.metrics.checks import (
    as_classes,
    check_kind,
    check_labels,
    check_mask,
    check_real,
    is_traced,
    odd_mask,
)
from solstice.metrics.left_out import tell, told_elsewhere
from solstice.metrics.named import Values
from solstice.tree.fields import replace
from solstice.tree.pytree import AnyArray

_NAMES = {"auroc": "roc_auc", "average_precision": "pr_auc", "ece": "ece"}


class OneVsRestMetrics(Metrics):
    """How well the probabilities of classes or labels rank examples, and how well calibrated.

    Targets are classes, of which one is right, or multi-hot labels, of which several may be.
    `compute()` gives `auroc`, `average_precision` and `ece` (the expected calibration error) of
    each class as `_class_{i}`, and their mean as `_macro`; of classes also `ece`, that of the most
    probable class: how far its probability is from how often it is right.

    Each class against the rest is measured by `BinaryMetrics`: `auroc_macro` is scikit-learn's
    `roc_auc_score(..., multi_class="ovr")`, `average_precision_macro` its
    `average_precision_score`, of the probabilities rounded to one of `bins` bins of equal width;
    `error_bounds()` returns the largest possible difference from the exact values.

    The AUROC of a class that all examples have, or none, is NaN; scikit-learn's mean is then NaN
    too, and `auroc_macro` here is the mean over the other classes. The average precision of a class
    without examples is 0, and counts in the mean, as in scikit-learn.

    Targets that are not a class (or not 0 or 1) and probabilities outside [0, 1] are not counted.
    If values are known, they raise a ValueError.

    Attributes:
        classes: The `BinaryMetrics` of each class, with the class as the first axis of each array.

    >>> import solstice
    >>> metrics = solstice.metrics.OneVsRestMetrics(
    ...     [[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.4, 0.3, 0.3], [0.5, 0.1, 0.4]], [0, 1, 2, 0]
    ... )
    >>> computed = metrics.compute()
    >>> round(float(computed["auroc_macro"]), 3), round(float(computed["auroc_class_2"]), 3)
    (0.889, 0.667)
    >>> round(float(computed["ece"]), 3)
    0.425
    """

    classes: BinaryMetrics
    # Whether the most probable class was right; None for multi-hot labels.
    _top: BinaryMetrics | None
    per_class: bool = eqx.field(static=True)

    def __init__(
        self,
        probabilities: ArrayLike,
        targets: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        bins: int = 4096,
        calibration_bins: int = 15,
        per_class: bool = True,
    ) -> None:
        """Count one batch.

        Args:
            probabilities: `(..., classes)`: from softmax or sigmoid.
            targets: Classes `(...)`, or 0 and 1 for each class, `(..., classes)`.
            mask: True (or 1) where a target is real, of the targets' shape or its leading axes.
            bins: The number of bins of each class's histogram, of 8 bytes each.
            calibration_bins: The number of bins that define the calibration errors.
            per_class: Whether `compute` lists each class.

        Raises:
            ValueError: The shapes do not match, a number of bins is not positive, or values are out
                of range.
            TypeError: Probabilities or targets are not real numbers.
        """
        scores = check_real(probabilities, "probabilities")
        labels = check_labels(targets, "targets")
        if scores.ndim < 1 or labels.shape not in (scores.shape, scores.shape[:-1]):
            raise InvalidValueError(
                f"targets are expected to be a class for each row of probabilities, or 0 or 1 for "
                f"each of these; they are {describe(labels)}, and probabilities are "
                f"{describe(scores)}, with the classes as their last axis."
            )
        self.per_class = arguments.flag(per_class, "per_class")
        options = {
            "bins": arguments.count(bins, "bins", most=2**24),
            "calibration_bins": arguments.count(calibration_bins, "calibration_bins", most=2**16),
        }
        real, odd = check_mask(mask, labels), odd_mask(mask, labels)
        if odd is not None:  # reported with wrong targets
            real |= odd
        number = scores.shape[-1]
        self._top = None
        if labels.shape != scores.shape:
            chosen, valid = as_classes(labels, number)
            valid = valid if odd is None else valid & ~odd
            top = scores.argmax(-1)
            # A target that is not a class counts for no class, and is reported.
            right = jnp.where(valid, (top == chosen).astype(scores.dtype), -1)
            row = [one.reshape(1, -1) for one in (scores.max(-1), right, real)]
            only = _counted(*row, bins=1, calibration_bins=options["calibration_bins"])
            self._top = jax.tree.map(lambda array: array[0], only)
            places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
            hot = (chosen[..., None] == places).astype(scores.dtype)
            labels, real = hot, jnp.broadcast_to((real & valid)[..., None], scores.shape)
        elif odd is not None:
            labels = jnp.where(odd, -1, labels.astype(scores.dtype))
        rows = [jnp.moveaxis(one, -1, 0).reshape(number, -1) for one in (scores, labels, real)]
        self.classes = _counted(*rows, **options)
        if not is_traced(self.classes):
            self.check()

    def merge(self, other: Self) -> Self:
        """Return the metrics of both sets of examples.

        Raises:
            UsageError: `other` is another kind of metric, or has other classes or bins.
        """
        check_kind(self, other)
        top = self._top and other._top and self._top.merge(other._top)
        return replace(self, classes=self.classes.merge(other.classes), _top=top)

    def check(self) -> None:
        """Raise if a probability or target was wrong; the trainer calls it after a first step.

        Raises:
            ValueError: One was wrong.
        """
        # On the host, so nothing is compiled.
        every = [self.classes] if self._top is None else [self._top, self.classes]
        numbers = [np.asarray(array) for one in every for array in one.left_out()]
        if worst := max(int(one[..., 1:].sum(-1).max(initial=0)) for one in numbers):
            targets, function = (
                ("0 or 1 for each label", "sigmoid")
                if self._top is None
                else (f"classes from 0 to {self._num_classes() - 1}", "softmax")
            )
            raise InvalidValueError(
                f"probabilities are expected to be in [0, 1] and targets to be {targets}; {worst} "
                f"of {int(numbers[0][..., 0].max())} examples are not. Pass logits through "
                f"jax.nn.{function} first, or mask what should not count."
            )

    def compute(self) -> Values:
        """Return the metrics by name, each a float scalar."""
        with told_elsewhere():
            top = {} if self._top is None else self._top.compute()
            each = _computed(self.classes)
        if not is_traced(self):
            tell(self)
            each = jax.device_get(each)
        computed = {"ece": top["ece"]} if top else {}
        for name, of_class in _NAMES.items():
            computed[f"{name}_macro"] = _mean_of_known(each[of_class])
        for name, of_class in _NAMES.items() if self.per_class else ():
            computed |= {f"{name}_class_{i}": value for i, value in enumerate(each[of_class])}
        return computed

    def left_out(self) -> tuple[Array, ...]:
        # A wrong probability is counted once per example, by the most probable class; for multi-hot
        # labels, for each label.
        return self.classes.left_out() if self._top is None else self._top.left_out()

    def left_out_for(self) -> tuple[tuple[str, ...], ...]:
        label = "neither 0 nor 1"
        if self._top is not None:
            label = f"not a class from 0 to {self._num_classes() - 1}"
        return (
            (
                "had no probability from 0 to 1, which does not count",
                f"had a label that is {label}, or a mask that is neither 0 nor 1, which does not "
                f"count",
            ),
        )

    def _num_classes(self) -> int:
        return self.classes.histogram.shape[-3]

    def error_bounds(self) -> dict[str, Array]:
        """Return the largest errors of each class's numbers that rounding to bins may cause."""
        bounds = jax.vmap(BinaryMetrics.error_bounds)(self.classes)
        return {
            f"{name}_class_{i}": bound
            for name, of_class in _NAMES.items()
            if of_class in bounds
            for i, bound in enumerate(bounds[of_class])
        }


def _mean_of_known(values: AnyArray) -> AnyArray | np.number:
    """Return the mean of the values that are not NaN; NaN if all are."""
    xp = jnp if is_traced(values) else np
    known = ~xp.isnan(values)
    with np.errstate(invalid="ignore"):
        return xp.where(known, values, 0).sum() / known.sum().astype(values.dtype)


def _counted(scores: Array, labels: Array, real: Array, **options: int) -> BinaryMetrics:
    """Return the metrics of each row; wrong values are left to `check`."""
    return jax.vmap(lambda p, y, mask: BinaryMetrics(p, y, mask=mask, **options))(
        scores, labels, real
    )


_computed = jax.jit(jax.vmap(BinaryMetrics.compute))
