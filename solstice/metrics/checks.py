"""Checks of the metrics' inputs: labels, real numbers, masks, metrics of the same kind.

Shapes and types are checked under jit too; values are not known there.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array
from numpy.typing import ArrayLike, DTypeLike

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError, UsageError
from solstice.tree.pytree import PyTree


def as_array(values: object, name: str, what: str = "real numbers") -> Array:
    """Return numbers, or an array of them, as a jax array.

    Raises:
        TypeError: They cannot be converted to an array.
    """
    try:
        return jnp.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTypeError(
            f"{name} are expected to be {what}; they are {describe(values)}."
        ) from error


def check_labels(labels: ArrayLike, name: str) -> Array:
    """Return class labels as an array: integers, or floats with whole values.

    Raises:
        TypeError: They are neither.
    """
    array = as_array(labels, name, "classes")
    check_label_type(array, name)
    return array


def check_label_type(labels: Array | np.ndarray, name: str) -> None:
    """Raise unless labels are integers or floats; unlike `check_labels`, it does not convert them.

    Raises:
        TypeError: They are neither.
    """
    if not jnp.isdtype(labels.dtype, ("bool", "integral", "real floating")):
        raise InvalidTypeError(
            f"{name} are expected to be classes, whole numbers, one per position; they are "
            f"{describe(labels)}. Number the classes from 0."
        )


def check_whole(labels: Array | np.ndarray, real: Array | np.ndarray, name: str) -> None:
    """Raise if float labels are not whole numbers; on the host.

    Raises:
        ValueError: They are not whole, such as probabilities or targets of a regression.
    """
    if not jnp.isdtype(labels.dtype, "real floating"):
        return
    shown = np.asarray(labels).astype(np.float64)[np.asarray(real)]
    odd = shown[shown != np.floor(shown)]
    if odd.size:
        raise InvalidValueError(
            f"{name} are expected to be classes; of a float type, as these {describe(labels)}, "
            f"they must be whole numbers. {odd.size} of {shown.size} are not, such as "
            f"{odd[0]}. For targets that are not classes, use regression."
        )


def as_classes(labels: Array, num_classes: int) -> tuple[Array, Array]:
    """Return labels as int32, and which are classes: whole numbers below `num_classes`.

    >>> as_classes(jnp.array([1.0, 0.5, 7.0]), 3)[1].tolist()
    [True, False, False]
    """
    real = jnp.isdtype(labels.dtype, "real floating")
    # A narrow type (uint8 labels, bfloat16 predictions) must hold num_classes to compare with it.
    wide = labels.astype(promoted(labels.dtype, jnp.float32 if real else jnp.int32))
    valid = (wide >= 0) & (wide < num_classes)
    if real:
        valid &= wide == jnp.floor(wide)
    return labels.astype(jnp.int32), valid


def as_binary(labels: Array) -> tuple[Array, Array]:
    """Return which labels are 1, and which are 0 or 1 (booleans always).

    >>> [found.tolist() for found in as_binary(jnp.array([1, 0, 2]))]
    [[True, False, False], [True, True, False]]
    """
    if labels.dtype == bool:
        return labels, jnp.ones(labels.shape, bool)
    return labels == 1, (labels == 0) | (labels == 1)


def check_real(values: ArrayLike, name: str) -> Array:
    """Return real numbers as floats of at least single precision.

    Raises:
        TypeError: They are not real numbers.
    """
    array = as_array(values, name)
    if not jnp.isdtype(array.dtype, ("bool", "integral", "real floating")):
        raise InvalidTypeError(
            f"{name} are expected to be real numbers; they are {describe(array)}."
        )
    return array.astype(promoted(array.dtype, jnp.float32))


def promoted(*dtypes: DTypeLike) -> np.dtype:
    """Return the common type of some types, even if implicit promotion is forbidden.

    >>> with jax.numpy_dtype_promotion("strict"):
    ...     promoted(jnp.int8, jnp.float32)
    dtype('float32')
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(functools.reduce(jnp.promote_types, dtypes))


def check_loss(loss: ArrayLike) -> Array:
    """Return a batch's mean loss as one float of at least single precision.

    Raises:
        ValueError: It is not one real number.
    """
    array = as_array(loss, "loss", "one real number")
    if array.shape != () or not jnp.isdtype(array.dtype, ("integral", "real floating")):
        raise InvalidValueError(
            f"loss is expected to be one real number, the mean over the batch's real examples; "
            f"it is {describe(array)}."
        )
    return check_real(array, "loss")


def check_mask(
    mask: ArrayLike | None, values: Array | np.ndarray, name: str = "the targets"
) -> Array:
    """Return the mask as booleans of the values' shape; all True for None.

    A mask of only the leading axes, such as `(batch,)` for `(batch, time)`, is broadcast.

    Raises:
        TypeError: The mask is not an array of numbers.
        ValueError: The mask does not have the shape of the values or of their leading axes, or has
            values other than 0 and 1. Under jit, where values are not known, only 1 is True.
    """
    if mask is None:
        return jnp.ones(values.shape, bool)
    array = as_array(mask, "mask", "True or False for each example")
    check_mask_shape(array, values, name)
    check_mask_values(array)
    return _spread(array if array.dtype == bool else array == 1, values)


def odd_mask(mask: ArrayLike | None, values: Array | np.ndarray) -> Array | None:
    """Return where a mask is neither 0 nor 1, which is not known in time under jit.

    None if that is impossible: without a mask, or with booleans.
    """
    if mask is None or (array := jnp.asarray(mask)).dtype == bool:
        return None
    return _spread((array != 0) & (array != 1), values)


def _spread(array: Array, values: Array | np.ndarray) -> Array:
    array = array.reshape(array.shape + (1,) * (values.ndim - array.ndim))
    return jnp.broadcast_to(array, values.shape)


def check_mask_shape(mask: Array | np.ndarray, values: Array | np.ndarray, name: str) -> None:
    """Raise unless the mask has the shape of the values or of their leading axes.

    Raises:
        ValueError: It has another shape.
    """
    if mask.shape != values.shape[: mask.ndim] or mask.ndim < min(1, values.ndim):
        raise InvalidValueError(
            f"mask is expected to have the shape of {name}, {describe(values)}, True where an "
            f"example is real; it is {describe(mask)}. One value per example, that is, a mask of "
            f"the leading axes, works too."
        )


def check_mask_values(mask: Array | np.ndarray) -> None:
    """Raise if a mask holds anything but 0 and 1, if its values are known.

    Raises:
        ValueError: It holds other values, such as weights.
    """
    if mask.dtype == bool or isinstance(mask, Tracer):
        return
    if isinstance(mask, jax.Array) and not mask.is_fully_addressable:
        return  # other processes have parts of it
    values = np.asarray(mask)
    odd = values[(values != 0) & (values != 1)]
    if odd.size:
        raise InvalidValueError(
            f"mask is expected to be True where an example is real and False elsewhere, or 1 and "
            f"0; it is {describe(mask)}, and {odd.size} of its values are others, such as "
            f"{odd[0]}. A mask says what counts, not how much: put weights into a "
            f"mapping, {{'image': x, 'label': y, 'weight': w}}."
        )


def check_examples(values: PyTree, given: PyTree) -> int:
    """Return the number of examples along the first axis of every array.

    Raises:
        ValueError: There is no array, one has no axis, or their first axes differ.
    """
    sizes = {array.shape[:1] for array in jax.tree.leaves(values)}
    if len(sizes) != 1 or () in sizes:
        raise InvalidValueError(
            f"values are expected to be arrays with the same examples along their first axis; they "
            f"are {describe(given)}."
        )
    return sizes.pop()[0]


def check_kind(metrics: PyTree, other: PyTree) -> None:
    """Raise unless two metrics are of one class, with the same settings and shapes.

    Raises:
        UsageError: They do not merge.
    """
    if (
        type(other) is type(metrics)
        and jax.tree.structure(other) == jax.tree.structure(metrics)
        and all(map(_same_shape, jax.tree.leaves(other), jax.tree.leaves(metrics)))
    ):
        return
    found = _outline(other) if type(other) is type(metrics) else describe(other)
    raise UsageError(
        f"{_outline(metrics)} merges only with metrics of the same kind; it got {found}. Give "
        f"every step the same metric, with the same settings."
    )


def count(real: Array, axis: int | None = None) -> Array:
    """Return how many are True: int32, or int64 if jax has 64-bit types."""
    return real.sum(axis, dtype=jax.dtypes.canonicalize_dtype(np.int64))


def is_traced(tree: PyTree) -> bool:
    """Return whether values are unknown, as under `jax.jit`."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _same_shape(one: ArrayLike, other: ArrayLike) -> bool:
    return np.shape(one) == np.shape(other)


def _outline(metrics: PyTree) -> str:
    return eqx.tree_pformat(metrics, width=10**6)
