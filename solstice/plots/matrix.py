"""The confusion matrix: which classes are predicted for which."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.plots.style import class_names, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_WRITTEN = 15
_TICKS = 60
# The axis to divide by, and what the shares are of.
_NORMS = {"true": (1, "true class"), "pred": (0, "predicted class"), "all": (None, "examples")}


def confusion_matrix(
    metrics: object,
    labels: Sequence[str] | None = None,
    normalize: Literal["true", "pred", "all"] | None = None,
) -> "Figure":
    """Return a figure of a confusion matrix; rows are true classes, columns predicted ones.

    With up to 15 classes, each cell shows its number; zeros are left out for more than 4. The
    colour scale is a square root, so that rare mistakes show too.

    Args:
        metrics: `ClassificationMetrics`, anything else with a `.confusion_matrix`, or an array
            `(classes, classes)`.
        labels: The classes' names; None numbers them.
        normalize: "true" divides each row by its sum, "pred" each column, "all" the matrix; None
            shows counts. Rows or columns with a sum of 0 are grey.

    Raises:
        ValueError: The matrix is not square, or the labels or `normalize` are wrong.
        ImportError: matplotlib is missing.

    >>> figure = confusion_matrix(np.array([[9, 1], [2, 8]]), labels=["cat", "dog"])
    >>> figure.axes[0].get_title()
    'accuracy 85.0% of 20 examples'
    """
    counts = _counts(metrics)
    number = len(counts)
    arguments.choice(normalize, "normalize", (None, *_NORMS))
    names = class_names(labels, number)
    if len(names) != number:
        raise InvalidValueError(
            f"labels is expected to name {number} classes; it is {describe(labels)}, which names "
            f"{len(names)}."
        )
    names = shortened(names, 24)
    longest = 0.07 * max(map(len, names))
    side = float(np.clip(0.5 * number, 2.4, 10))
    figure = new_figure(side + longest + 1.6, side + longest + 0.8)
    axes = figure.add_subplot()
    values = counts if normalize is None else 100 * _shares(counts, _NORMS[normalize][0])
    image = _draw(axes, values, percent=normalize is not None)
    unit = "examples" if normalize is None else f"% of the {_NORMS[normalize][1]}"
    figure.colorbar(image, ax=axes, label=unit, fraction=0.046, pad=0.03)
    if number <= _WRITTEN:
        _write(axes, image, values, zeros=number <= 4, percent=normalize is not None)
    step = -(-number // _TICKS)
    turned = max(map(len, names)) > 3 or number > _WRITTEN
    size = 9 if number <= 20 else 7
    axes.set_xticks(range(0, number, step), names[::step], rotation=90 * turned, fontsize=size)
    axes.set_yticks(range(0, number, step), names[::step], fontsize=size)
    total = counts.sum()
    accuracy = f"accuracy {np.trace(counts) / total:.1%} of " if total else ""
    axes.set_title(f"{accuracy}{total:,.0f} examples", fontsize=10)
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


def _counts(metrics: object) -> np.ndarray:
    found = getattr(metrics, "confusion_matrix", metrics)
    counts = arguments.array(found if found is not None else metrics, "metrics")
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise InvalidValueError(
            f"metrics is expected to be counts of shape (classes, classes), or metrics with such "
            f"a `.confusion_matrix`; it is {describe(found)}."
        )
    return counts


def _shares(counts: np.ndarray, axis: int | None) -> np.ma.MaskedArray:
    sums = np.broadcast_to(counts.sum(axis=axis, keepdims=True), counts.shape)
    return np.ma.masked_array(counts / np.maximum(sums, 1e-300), mask=sums == 0)


def _draw(axes: "Axes", values: np.ndarray, *, percent: bool) -> "AxesImage":
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    colours = colormaps["Blues"].with_extremes(bad="0.85")
    top = 100 if percent else max(float(np.ma.filled(values, 0).max()), 1)
    return axes.imshow(values, cmap=colours, norm=PowerNorm(0.5, vmin=0, vmax=top))


def _write(
    axes: "Axes", image: "AxesImage", values: np.ndarray, *, zeros: bool, percent: bool
) -> None:
    for (row, column), value in np.ndenumerate(np.ma.filled(values, 0)):
        if value or zeros:
            text = f"{value:.0f}%" if percent else _short(value)
            text = "<1%" if percent and 0 < value < 0.5 else text
            colour = "white" if np.asarray(image.norm(value)) > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)


def _short(count: float) -> str:
    if count < 10_000:
        return f"{count:g}"
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"
