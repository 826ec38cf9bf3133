"""What all pictures share: a figure without pyplot's global state, and colours.

The colours are those of Okabe and Ito, "Color Universal Design" (2008), which are safe for
colour-blind readers.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from solstice import arguments
from solstice.errors import InvalidValueError, MissingPackageError
from solstice.tree.names import without_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
GREY = "0.45"


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches.

    Raises:
        ImportError: matplotlib is missing.

    >>> new_figure(4, 3).get_size_inches().tolist()
    [4.0, 3.0]
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "solstice.plots needs the package 'matplotlib', which is not installed: "
            "pip install 'jax-solstice[plot]'"
        ) from error
    from solstice.plots.figure import ShownFigure

    figure = ShownFigure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    return figure


def plain_axes(axes: "Axes") -> None:
    """Draw axes with a light grid and no box."""
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def class_names(labels: object, number: int) -> list[str]:
    """Return the names of classes, at least `number` of them; for None, their numbers.

    >>> class_names(["cat", "dog"], 2), class_names(None, 2)
    (['cat', 'dog'], ['0', '1'])
    """
    if labels is None:
        return [str(i) for i in range(number)]
    names = arguments.several(labels, "labels", "a list of names of classes")
    if len(names) < number:
        raise InvalidValueError(
            f"labels is expected to name {number} classes; it is {arguments.describe(labels)}, "
            f"which names {len(names)}."
        )
    return [str(name) for name in names]


def grid_shape(count: int) -> tuple[int, int]:
    """Return the numbers of rows and columns for `count` panels.

    >>> grid_shape(3), grid_shape(8), grid_shape(16)
    ((1, 3), (3, 3), (4, 4))
    """
    columns = count if count <= 3 else int(np.ceil(np.sqrt(count)))
    return -(-count // columns), columns


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Return names shortened to at most `width` characters that stay distinct.

    >>> shortened(["Siberian husky", "cat"], 10)
    ['Siberia...', 'cat']
    >>> shortened(["average_loss", "average_accuracy"], 10)
    ['aver...oss', 'aver...acy']
    """
    # The number of characters that all start with.
    same = next((i for i, chars in enumerate(zip(*names, strict=False)) if len(set(chars)) > 1), 0)
    cuts: list[Callable[[str], str]] = [
        lambda name: f"{name[: width - 3]}...",
        lambda name: without_middle(name, width),
        lambda name: f"...{name[3 - width :]}",
        lambda name: f"...{name[max(same - 3, 0) :][: width - 6]}...",
        lambda name: _numbered(name, list(names).index(name), width),
    ]
    found: list[str] = []
    for cut in cuts:
        found = [name if len(name) <= width else cut(name) for name in names]
        if len(set(found)) == len(set(names)):
            break
    return found


def _numbered(name: str, number: int, width: int) -> str:
    end = f"... {number}"
    return f"{name[: width - len(end)]}{end}"
