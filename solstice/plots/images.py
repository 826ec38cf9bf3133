"""The images with the largest losses, in a grid."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.plots.style import ORANGE, class_names, grid_shape, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


def worst_examples(
    images: object,
    losses: object,
    targets: object = None,
    predictions: object = None,
    *,
    labels: Sequence[str] | None = None,
    count: int = 16,
) -> "Figure":
    """Return a grid of the images with the largest losses, the worst first; NaN is the worst.

    Each title has the image's index, its loss and, if given, its classes. Floats outside 0 to 1 are
    scaled to the range of the images shown; a pixel that is NaN is orange.

    Args:
        images: `(examples, height, width)`, or with a last axis of 1, 3 or 4 channels.
        losses: `(examples,)`.
        targets: True classes `(examples,)`.
        predictions: Predicted classes `(examples,)`.
        labels: The classes' names; None numbers them.
        count: The largest number of images.

    Raises:
        ValueError: The shapes do not match, or there is no image.
        ImportError: matplotlib is missing.

    >>> images, losses = np.zeros((3, 8, 8)), [0.1, 2.5, 0.7]
    >>> figure = worst_examples(images, losses, targets=[3, 1, 4], predictions=[3, 7, 4], count=1)
    >>> figure.axes[0].get_title().splitlines()
    ['#1   loss 2.5', '1, predicted 7']
    """
    images = arguments.array(images, "images")
    losses = arguments.array(losses, "losses").astype(np.float64)
    count = arguments.count(count, "count")
    channels = images.shape[3:]
    if images.ndim not in (3, 4) or channels not in ((), (1,), (3,), (4,)) or not images.size:
        raise InvalidValueError(
            f"images are expected to be (examples, height, width), or with a last axis of 1, 3 or "
            f"4 channels; they are {describe(images)}."
        )
    about = {"losses": losses, "targets": targets, "predictions": predictions}
    about = {name: arguments.array(v, name) for name, v in about.items() if v is not None}
    for name, values in about.items():
        whole = name == "losses" or (np.floor(values) == values).all()
        if values.shape != images.shape[:1] or not whole:
            raise InvalidValueError(
                f"{name} are expected to be one for each of the {len(images)} images"
                f"{', whole numbers' * (not whole)}; they are {describe(values)}."
            )
    classes = [int(values.max()) for name, values in about.items() if name != "losses"]
    names = None if labels is None else class_names(labels, max(classes, default=-1) + 1)
    # NaN is the largest; among equal losses, the first comes first.
    order = np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")
    order = np.concatenate([order[np.isnan(losses[order])], order[~np.isnan(losses[order])]])
    worst = order[:count]
    true, predicted = about.get("targets"), about.get("predictions")
    short = _short_names(worst, true, predicted, names)
    shown, gray = _as_pixels(images[worst])
    rows, columns = grid_shape(len(worst))
    lines = 1 + bool(classes)
    figure = new_figure(max(1.8 * columns, 3), (1.6 + 0.2 * lines) * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, index, image in zip(panels, worst, shown, strict=False):
        panel.imshow(image, cmap=gray, vmin=0, vmax=1, interpolation="nearest")
        title = f"#{index}   loss {losses[index]:.3g}"
        said = _classes(index, true, predicted, short)
        panel.set_title(f"{title}\n{said}" if said else title, fontsize=8)
    for panel in panels:
        panel.set_axis_off()
    figure.suptitle(f"largest losses of {len(images):,} examples", fontsize=10)
    return figure


def _as_pixels(images: np.ndarray) -> tuple[np.ndarray, "Colormap"]:
    """Return images with numbers from 0 to 1, and the colour map of those without channels."""
    from matplotlib import colormaps

    if images.shape[3:] == (1,):
        images = images[..., 0]
    if images.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        images = images.astype(np.float64)
        finite = images[np.isfinite(images)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
    scaled = (images - low) / max(high - low, 1e-12)
    if images.ndim == 4:
        from matplotlib.colors import to_rgb

        missing = ~np.isfinite(scaled).all(-1)
        scaled[missing, :3] = to_rgb(ORANGE)
        scaled[missing, 3:] = 1
    return np.clip(scaled, 0, 1), colormaps["gray"].with_extremes(bad=ORANGE)


def _short_names(
    worst: np.ndarray,
    targets: np.ndarray | None,
    predictions: np.ndarray | None,
    names: Sequence[str] | None,
) -> dict[int, str]:
    """Return the names of the classes shown."""
    given = [of for of in (targets, predictions) if of is not None]
    classes = sorted({int(of[index]) for of in given for index in worst})
    whole = [str(one) if names is None else names[one] for one in classes]
    return dict(zip(classes, shortened(whole, 17), strict=True))


def _classes(
    index: int,
    targets: np.ndarray | None,
    predictions: np.ndarray | None,
    names: dict[int, str],
) -> str:
    def name(of: np.ndarray) -> str:
        return names[int(of[index])]

    if targets is None:
        return "" if predictions is None else f"predicted {name(predictions)}"
    if predictions is None or int(targets[index]) == int(predictions[index]):
        return name(targets)
    both = f"{name(targets)}, predicted {name(predictions)}"
    return both if len(both) <= 25 else both.replace(", taken", "\ntaken")
