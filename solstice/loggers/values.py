"""Values of a record besides numbers and arrays, and how values get to the host."""

import importlib
import io
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError, MissingPackageError


class Image(eqx.Module):
    """An image as a value of `compute()`; TensorBoard, W&B and MLflow show it.

    Args:
        array: Of shape (height, width) or (height, width, channels) with 1, 3 or 4 channels: uint8
            from 0 to 255, or floats, clipped to 0 to 1. Or a figure of matplotlib, such as those of
            `solstice.plots`, which is drawn immediately.

    Raises:
        ValueError: It has another shape or dtype.

    >>> import numpy as np, solstice
    >>> solstice.loggers.Image(np.zeros((28, 28))).pixels().shape
    (28, 28, 1)
    """

    array: Any

    def __init__(self, array: Any) -> None:
        if callable(getattr(array, "savefig", None)):
            array = _drawn(array)
        shape, dtype = getattr(array, "shape", ()), getattr(array, "dtype", np.dtype(object))
        right_shape = 0 not in shape and (len(shape) == 2 or shape[2:] in ((1,), (3,), (4,)))
        if not right_shape or not (dtype == np.uint8 or jax.numpy.issubdtype(dtype, np.floating)):
            raise InvalidValueError(
                f"array of an Image is expected to be of shape (height, width) or (height, width, "
                f"1, 3 or 4), of uint8 or floats; it is {describe(array)}. Put a batch of images "
                f"into a grid first; a matplotlib figure works too."
            )
        self.array = array

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def pixels(self) -> np.ndarray:
        """Return it as uint8 of shape (height, width, channels), a NaN as 0."""
        array = np.asarray(self.array)
        if array.dtype != np.uint8:
            scaled = np.nan_to_num(array.astype(np.float64), nan=0.0)
            array = np.round(scaled.clip(0, 1) * 255).astype(np.uint8)
        return array if array.ndim == 3 else array[:, :, None]

    def png(self) -> bytes:
        """Return it as a PNG file.

        Raises:
            ImportError: Pillow is not installed.
        """
        pixels = self.pixels()
        file = io.BytesIO()
        _pillow().fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
        return file.getvalue()


def _drawn(figure: Any) -> np.ndarray:
    """Return the pixels of matplotlib's figure, without an alpha channel if it is opaque."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    pixels = np.asarray(_pillow().open(file).convert("RGBA"))
    return pixels if (pixels[..., 3] < 255).any() else pixels[..., :3]


def _pillow() -> ModuleType:
    try:
        return importlib.import_module("PIL.Image")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "Pictures need the package pillow, which is not installed: pip install pillow"
        ) from error


class Text(str):
    """A text as a value of `compute()`; TensorBoard, W&B, MLflow and files show it.

    A plain `str` works too.

    >>> import solstice
    >>> solstice.loggers.Text("the cat sat")
    'the cat sat'
    """

    __slots__ = ()


def to_host(values: dict[str, Any]) -> dict[str, Any]:
    """Return values on the host: Python numbers, numpy arrays, anything else unchanged.

    An array of texts becomes a list, which checkpoints and all sinks can hold.

    >>> import jax.numpy as jnp
    >>> to_host({"loss": jnp.ones(()), "name": "a", "said": np.array(["b", "c"])})
    {'loss': 1.0, 'name': 'a', 'said': ['b', 'c']}
    """
    # device_get sorts the names; this keeps the order of compute().
    host = jax.device_get(values)
    return {name: _to_python(host[name]) for name in values}


def encoded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return computed values as a tree of arrays, numbers and strings, for a checkpoint.

    >>> decoded(encoded({"image": Image(np.zeros((2, 2))), "loss": 0.5}))["loss"]
    0.5
    """
    values = to_host(dict(values))
    images = [name for name, value in values.items() if isinstance(value, Image)]
    return {"names": list(values), "values": [*map(_data, values.values())], "images": images}


def decoded(state: dict[str, Any]) -> dict[str, Any]:
    """Return the values that `encoded` was called on.

    Raises:
        TypeError: It is something else.
    """
    if not all(isinstance(name, str) for name in (*state["names"], *state["images"])):
        raise InvalidTypeError(f"names are expected to be texts; they are {state['names']!r}.")
    pairs = zip(state["names"], state["values"], strict=True)
    return {name: Image(value) if name in state["images"] else value for name, value in pairs}


def is_number(value: object) -> bool:
    """Return whether a value on the host is one number (or bool)."""
    return isinstance(value, (int, float))


def whole(text: str) -> str:
    r"""Return a text that UTF-8 can hold: a lone surrogate, as in some file names, is escaped.

    >>> print(whole("caf\udce9"))
    caf\udce9
    """
    return text.encode(errors="backslashreplace").decode()


def as_text(value: object) -> str | None:
    """Return a text, or several joined by empty lines; None for anything else.

    >>> as_text(["the cat"]), as_text("a dog"), as_text(0.5), as_text([])
    ('the cat', 'a dog', None, None)
    """
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return whole("\n\n".join(value))
    return None


def finite(array: object) -> np.ndarray:
    """Return the finite values of an array, for a histogram: float64, flat; empty for other dtypes.

    >>> finite(np.array([[1, np.nan], [np.inf, 2]])), finite(np.array(["a"])).size
    (array([1., 2.]), 0)
    """
    array = np.asarray(array)
    if not (array.dtype == bool or jax.numpy.issubdtype(array.dtype, np.number)):
        return np.zeros(0)
    flat = np.abs(array) if np.iscomplexobj(array) else array
    flat = flat.astype(np.float64).ravel()
    return flat[np.isfinite(flat)]


def _data(value: object) -> object:
    if isinstance(value, Image):
        return value.array
    if isinstance(value, str):
        return str(value)  # also for a Text, a class that no checkpoint holds
    return [*map(_data, value)] if isinstance(value, list) else value


def _to_python(value: object) -> object:
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "UTO":
        return value.tolist()
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        return value.item()
    return value
