"""Calibration: whether events predicted with 80% happen in 80% of the cases."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.plots.style import BLUE, GREY, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINARY = ("predicted probability of class 1", "share of class 1")
_CLASSES = ("confidence: probability of the predicted class", "accuracy")


class _Cases(NamedTuple):
    """Events by probability: how many there were, and how many of them happened."""

    probabilities: np.ndarray
    happened: np.ndarray
    counts: np.ndarray


def calibration(probabilities: object, targets: object = None, *, bins: int = 15) -> "Figure":
    """Return a reliability diagram: how often predictions were right, by their probability.

    Each point is a bin of equal width; its bar is the 95% interval of Wilson, "Probable inference,
    the law of succession, and statistical inference" (1927). The lower panel counts the examples of
    each bin. The title gives the expected calibration error, the mean distance from the diagonal
    (Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
    binning", 2015).

    Args:
        probabilities: The probabilities of the classes, `(..., classes)`, for the calibration of
            the most probable class; or of class 1 of two, `(...)`. Without targets: counts of
            examples by their probability of class 1, `(2, bins)` over bins of equal width (row 0:
            class 0), or metrics with such a `.histogram`, such as `BinaryMetrics`.
        targets: The true classes `(...)`.
        bins: How many bins.

    Raises:
        ValueError: Probabilities are not between 0 and 1 or do not add up to 1, or shapes do not
            match.
        ImportError: matplotlib is missing.

    >>> figure = calibration([0.1, 0.4, 0.4, 0.9], [0, 0, 1, 1], bins=2)
    >>> figure.axes[0].get_title()
    'expected calibration error 5.0%, 4 examples'
    """
    bins = arguments.count(bins, "bins", most=10**4)
    if targets is None:
        cases, (x_name, y_name) = _from_histogram(probabilities), _BINARY
    else:
        cases, (x_name, y_name) = _from_examples(
            arguments.array(probabilities, "probabilities"), arguments.array(targets, "targets")
        )
    # A probability of 1 belongs into the last bin.
    cell = np.minimum((cases.probabilities * bins).astype(int), bins - 1)
    count = np.bincount(cell, cases.counts, minlength=bins)
    seen = count > 0
    predicted = np.bincount(cell, cases.counts * cases.probabilities, minlength=bins)[seen]
    happened = np.bincount(cell, cases.happened, minlength=bins)[seen]
    predicted, rate = predicted / count[seen], happened / count[seen]
    error = (np.abs(predicted - rate) * count[seen]).sum() / max(count.sum(), 1)

    figure = new_figure(4.8, 5.6)
    from matplotlib.ticker import MaxNLocator

    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot(
        [0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated"
    )
    low, high = _wilson(rate, count[seen])
    spread = np.maximum([rate - low, high - rate], 0)
    above.errorbar(
        predicted,
        rate,
        spread,
        color=BLUE,
        marker="o",
        markersize=4,
        elinewidth=1,
        label="observed, with 95% interval",
    )
    above.set(ylabel=y_name, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    above.set_title(
        f"expected calibration error {error:.1%}, {_examples(count.sum())}", fontsize=10
    )
    above.legend(loc="best", frameon=False, fontsize=9)
    edges = np.arange(bins) / bins
    below.bar(
        edges, count, width=1 / bins, align="edge", color=BLUE, edgecolor="white", linewidth=0.5
    )
    below.set(xlabel=x_name, ylabel="examples")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    for axes in (above, below):
        plain_axes(axes)
    return figure


def _from_examples(
    probabilities: np.ndarray, targets: np.ndarray
) -> tuple[_Cases, tuple[str, str]]:
    binary = probabilities.shape == targets.shape
    if not binary and probabilities.shape[:-1] != targets.shape:
        raise InvalidValueError(
            f"probabilities are expected to be {(*targets.shape, 'classes')}, or {targets.shape} "
            f"for class 1 of two, as the targets are {describe(targets)}; they are "
            f"{describe(probabilities)}."
        )
    wrong = int((~((probabilities >= 0) & (probabilities <= 1))).sum())
    if wrong:
        raise InvalidValueError(
            f"probabilities are expected to be from 0 to 1; {wrong} of {probabilities.size} are "
            f"not. Apply softmax (or sigmoid) to logits, and leave out what is NaN."
        )
    classes = 2 if binary else probabilities.shape[-1]
    outside = int((~np.isin(targets, np.arange(classes))).sum())
    if outside:
        raise InvalidValueError(
            f"targets are expected to be classes from 0 to {classes - 1}; {outside} of "
            f"{targets.size} are not."
        )
    if binary:
        shown, happened, names = probabilities.ravel(), targets.ravel() == 1, _BINARY
    else:
        off = np.abs(probabilities.astype(float).sum(-1) - 1) > 0.02
        if off.any():
            raise InvalidValueError(
                f"For targets of {describe(targets)}, the classes' probabilities are expected to "
                f"add up to 1; those of {off.sum()} of {off.size} examples do not. Apply softmax "
                f"to logits."
            )
        shown, names = probabilities.max(-1).ravel(), _CLASSES
        happened = (probabilities.argmax(-1) == targets).ravel()
    return _Cases(shown.astype(float), happened.astype(float), np.ones(shown.size)), names


def _from_histogram(metrics: object) -> _Cases:
    counts = arguments.array(getattr(metrics, "histogram", metrics), "probabilities")
    if counts.ndim != 2 or counts.shape[0] != 2 or not counts.size or not (counts >= 0).all():
        raise InvalidValueError(
            f"If targets is None, probabilities are expected to be counts of shape (2, bins), of "
            f"class 0 and class 1 by their probability of class 1; they are {describe(counts)}. "
            f"Pass targets too: calibration(probabilities, targets)."
        )
    middles = (np.arange(counts.shape[1]) + 0.5) / counts.shape[1]
    return _Cases(middles, counts[1].astype(float), counts.sum(0).astype(float))


def _wilson(rate: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = 1.96
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2)
    return middle - half, middle + half


def _examples(count: float) -> str:
    return "1 example" if count == 1 else f"{count:,.0f} examples"
