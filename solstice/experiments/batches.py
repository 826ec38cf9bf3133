"""The parts of a supervised batch, and the errors for other batches.

It handles inputs, targets, masks and weights; the `Task` defines what targets mean.
"""

from collections.abc import Mapping
from numbers import Number
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice.arguments import describe
from solstice.compat.model import is_shaped
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.metrics.checks import (
    as_array,
    check_mask,
    check_mask_shape,
    check_mask_values,
    promoted,
)
from solstice.tree.names import names_difference

# The names of inputs, targets, mask and weights in mappings; several inputs are a tuple of names.
BatchKeys = tuple[str | tuple[str, ...], ...]


_HOW_TO_BATCH = (
    "Batch the examples: whole arrays by solstice.data.Arrays(x, y, batch_size=32); a dataset of "
    "tf.data, grain or Hugging Face by its own .batch(32); one of torch by DataLoader(dataset, "
    "batch_size=32)."
)


_NAME_THEM = " To give them by name, name them: batch_keys=(('image', 'text'), 'label')."


class Batch(NamedTuple):
    """A batch, taken apart."""

    inputs: tuple[Any, ...]
    targets: Any
    mask: Any
    weight: Any


def check_keys(batch_keys: Any) -> BatchKeys:
    """Return the names of a batch's parts; two names are completed by "mask" for the mask.

    Raises:
        ValueError: They are not two to four names, or the mask shares its name with another part.

    >>> check_keys([("tokens", "segments"), "label", "mask"])
    (('tokens', 'segments'), 'label', 'mask')
    """
    listed = batch_keys if isinstance(batch_keys, tuple | list) else ()
    keys = tuple(tuple(key) if isinstance(key, list) else key for key in listed)
    inputs = keys[0] if keys and isinstance(keys[0], tuple) else keys[:1]
    names = (*inputs, *keys[1:])
    if len(keys) == 2 and "mask" not in names:
        keys, names = (*keys, "mask"), (*names, "mask")
    if len(keys) not in (3, 4) or not inputs or not all(isinstance(one, str) for one in names):
        raise InvalidValueError(
            f"batch_keys are expected to name inputs, targets and mask, and example weights if "
            f"there are any, such as ('x', 'y', 'mask', 'weight'), where a tuple of names in the "
            f"first place is several inputs; they are {batch_keys!r}."
        )
    return keys


def unpack(batch: Any, keys: BatchKeys) -> Batch:
    """Take a batch apart: `(x, y)`, `(x, y, mask)` or a mapping.

    Raises:
        TypeError: It is none of these, or one of its parts is not an array.
        ValueError: It is a mapping without inputs or targets, or has weights of another shape.
    """
    mask = weight = None
    if isinstance(batch, Mapping):
        x, targets = (_entry(batch, name) for name in keys[:2])
        mask, *rest = (batch.get(name) for name in keys[2:])
        weight = rest[0] if rest else None
    elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
        x, targets = batch[:2]
        mask = batch[2] if len(batch) == 3 else None
    else:
        raise InvalidTypeError(
            f"A batch is expected to be (x, y), (x, y, mask) or a mapping with "
            f"{', '.join(map(repr, keys))}; it is {describe(batch)}."
        )
    inputs = x if type(x) is tuple else (x,)
    targets = _as_array(targets, "targets", "an array")
    mask = None if mask is None else _as_array(mask, "mask", "True or False for each example")
    weight = None if weight is None else _as_array(weight, "weights", "one number per example")
    if weight is not None:
        _check_weight(weight, targets)
    return Batch(inputs, targets, mask, weight)


def ignoring(batch: Batch, ignore_index: int | None) -> Batch:
    """Return the batch with targets of one value masked too.

    >>> ignoring(Batch((), np.array([1, 255, 0]), None, None), 255).mask.tolist()
    [True, False, True]
    """
    if ignore_index is None:
        return batch
    targets = batch.targets
    real = jnp.isdtype(targets.dtype, "real floating")
    # A type that is too narrow for the value (uint8 for -100) must hold it to compare.
    counts = targets.astype(promoted(targets.dtype, jnp.float32 if real else jnp.int32))
    counts = counts != ignore_index
    if batch.mask is not None:
        mask = batch.mask
        check_mask_shape(mask, targets, "the targets")
        mask = mask.reshape(mask.shape + (1,) * (targets.ndim - mask.ndim))
        # A product, not `and`, so that a value in the mask other than 0 and 1 shows.
        counts = mask * counts.astype(mask.dtype)
    return batch._replace(mask=counts)


def inputs_by_name(x: Any, keys: BatchKeys, example: tuple[Any, ...] | None = None) -> Any:
    """Return a mapping of inputs as a tuple in the order of their names in `batch_keys`.

    A single input is taken out of a mapping only if the network's example is one array.

    Raises:
        TypeError: The network's example is one array, and the mapping or the list has none of its
            name.

    >>> inputs_by_name({"age": 1, "text": 2}, (("text", "age"), "label", "mask"))
    (2, 1)
    """
    names = keys[0]
    if isinstance(names, tuple):
        named = isinstance(x, Mapping) and {*names} <= {*x}
        return tuple(x[name] for name in names) if named else x
    if not isinstance(x, Mapping | list):
        return x
    if example is None or len(example) != 1 or not is_shaped(example[0]):
        return x
    if isinstance(x, Mapping) and names in x:
        return x[names]
    raise InvalidTypeError(
        f"x is expected to be an array like the network's example, {describe(example[0])}, or a "
        f"mapping with {names!r}; it is {describe(x)}. Give the array itself, or name it in "
        f"batch_keys."
    )


def unlike_example(x: Any, keys: BatchKeys, example: tuple[Any, ...]) -> str:
    """Say how the inputs that failed differ from the network's example; "" if they do not.

    >>> unlike_example({"a": 1}, (("a", "b"), "label"), (1, 2)).partition("; ")[2]
    "it is {'a': the int 1}: they lack 'b'."
    """
    given = inputs_by_name(x, keys, example)
    inputs = given if type(given) is tuple else (given,)
    if jax.tree.structure(inputs) == jax.tree.structure(example):
        return ""
    names = keys[0] if isinstance(keys[0], tuple) else ()
    if len(example) == 1:
        wanted, names = (
            describe(example[0]),
            tuple(example[0]) if isinstance(example[0], Mapping) else (),
        )
    else:
        wanted = f"{len(example)} inputs as a tuple, {describe(example)}"
        wanted += f", or a mapping with {', '.join(map(repr, names))}" * bool(names)
    how = names_difference(map(str, names), map(str, x)) if names and isinstance(x, Mapping) else ""
    remedy = "" if names or len(example) == 1 or not isinstance(x, Mapping) else _NAME_THEM
    return (
        f"x is expected to be like the network's example: {wanted}; it is {describe(x)}"
        f"{': ' * bool(how)}{how}.{remedy}"
    )


def batch_inputs(batch: Any, keys: BatchKeys, example: tuple[Any, ...] | None = None) -> Any:
    """Return the inputs of a batch with or without targets.

    A mapping without any of the keys, and a named tuple, are inputs themselves; so is any batch of
    the structure of the network's example.
    """

    def are_inputs(inputs: Any) -> bool:
        inputs = inputs if type(inputs) is tuple else (inputs,)
        return example is not None and jax.tree.structure(inputs) == jax.tree.structure(example)

    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(batch, Mapping):
        names = [one for key in keys for one in (key if isinstance(key, tuple) else (key,))]
        named = _entry(batch, keys[0]) if any(one in batch for one in names) else batch
    elif isinstance(batch, list) or (type(batch) is tuple and len(batch) <= 3):
        named = first
    else:  # a named tuple is (x, y) only where x is known to be an input
        named = first if are_inputs(first) else batch
    return batch if are_inputs(batch) and not are_inputs(named) else named


def with_mask(batch: Any, real: Any, keys: BatchKeys) -> Any:
    """Return the batch with all but the `real` examples masked."""
    _, targets, mask, _ = unpack(batch, keys)
    # On the host if possible, since this runs for each batch.
    of = jnp if isinstance(real, jax.Array) else np
    real = of.asarray(real).reshape(-1, *[1] * (targets.ndim - 1))
    if mask is None:
        mask = of.broadcast_to(real, targets.shape)
    else:
        mask = of.asarray(check_mask(mask, targets)) & real
    if isinstance(batch, Mapping):
        return {**batch, keys[2]: mask}
    return (batch[0], batch[1], mask)


def check_arrays(inputs: tuple[Any, ...], name: str | tuple[str, ...]) -> None:
    """Raise for inputs that are lists of numbers: each number would become an array.

    Raises:
        TypeError: They are.

    >>> check_arrays(([[0.5, 1.5], [2.5, 3.5]],), "image")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: A batch's inputs are expected to be arrays; 'image' holds \
Python's lists of numbers. A Hugging Face dataset gives arrays as ds.with_format('numpy'), and \
batches of them by .batch(32); make arrays of other lists with np.asarray.
    """
    for node in jax.tree.leaves(inputs, is_leaf=lambda node: type(node) is list):
        if type(node) is list and all(isinstance(leaf, Number) for leaf in jax.tree.leaves(node)):
            raise InvalidTypeError(
                f"A batch's inputs are expected to be arrays; {name!r} holds Python's lists of "
                f"numbers. A Hugging Face dataset gives arrays as ds.with_format('numpy'), and "
                f"batches of them by .batch(32); make arrays of other lists with np.asarray."
            )


def check_batched(batch: Batch, example: tuple[Any, ...] | None) -> None:
    """Raise for a single example, no example, or a rank other than the network's example has.

    Raises:
        ValueError: It is.
    """
    if not np.ndim(batch.targets):
        raise InvalidValueError(
            f"A batch is expected to hold several examples, along the first axis of its arrays; "
            f"its inputs are {describe(batch.inputs)} and its targets {describe(batch.targets)}, a "
            f"single one. {_HOW_TO_BATCH}"
        )
    if not len(batch.targets):
        raise InvalidValueError(
            f"A batch is expected to hold at least one example; its inputs are "
            f"{describe(batch.inputs)} and its targets {describe(batch.targets)}. Leave empty "
            f"batches out of the dataset."
        )
    if example is not None and len(example) != len(batch.inputs):
        raise InvalidValueError(
            f"A batch is expected to have as many inputs as the network's example, "
            f"{describe(example)}; it has {describe(batch.inputs)}. Give several inputs as a "
            "tuple, or "
            f"a tuple of names in batch_keys; wrap an input that is itself a tuple: (x,)."
        )
    check_axes(batch.inputs, example)


def check_axes(inputs: tuple[Any, ...], example: tuple[Any, ...] | None) -> None:
    """Raise for inputs of another rank than the network's example, as a single example is.

    Raises:
        ValueError: They are.
    """
    if example is None or jax.tree.structure(example) != jax.tree.structure(inputs):
        return  # the network's own error says more
    for wanted, found in zip(*map(jax.tree.leaves, (example, inputs)), strict=True):
        if is_shaped(wanted) and np.ndim(found) != wanted.ndim:
            single = np.ndim(found) == wanted.ndim - 1
            raise InvalidValueError(
                f"A batch's inputs are expected to have as many axes as the network's example, "
                f"{describe(wanted)}, the first one for the examples; they are {describe(found)}"
                + (f", which looks like a single example. {_HOW_TO_BATCH}" if single else ".")
                + " If these are batches, give one as the example: example_input=x."
            )


def check_mask_of(batch: Batch, keys: BatchKeys) -> np.ndarray:
    """Return a first batch's mask as booleans of the targets' shape; all True without a mask.

    Raises:
        ValueError: It is not a mask; perhaps it holds weights.
    """
    if batch.mask is None:
        return np.ones(np.shape(batch.targets), bool)
    # On the host, so nothing is compiled.
    mask = np.asarray(batch.mask)
    check_mask_shape(mask, batch.targets, "the targets")
    try:
        check_mask_values(mask)
    except InvalidValueError as error:
        x, y, _, weight = keys if len(keys) == 4 else (*keys, "weight")
        named = "" if len(keys) == 4 else f", with batch_keys={(*keys, weight)!r}"
        raise InvalidValueError(
            f"{error} If these are weights of the examples, give them in a mapping: "
            f"{{{x!r}: x, {y!r}: y, {weight!r}: weights}}{named} (batch_keys= names the parts; "
            f"its fourth is the weight)."
        ) from error
    shape = mask.shape + (1,) * (batch.targets.ndim - mask.ndim)
    return np.broadcast_to(mask.astype(bool).reshape(shape), batch.targets.shape)


def check_weight_values(batch: Batch, real: np.ndarray) -> None:
    """Raise if a first batch's weights are negative or not finite, masked positions aside.

    Raises:
        ValueError: They are.
    """
    if batch.weight is None:
        return
    weight = np.asarray(batch.weight).astype(np.float64)
    weight = weight.reshape(weight.shape + (1,) * (real.ndim - weight.ndim))
    shown = np.broadcast_to(weight, real.shape)[real]
    odd = shown[~(np.isfinite(shown) & (shown >= 0))]
    if odd.size:
        raise InvalidValueError(
            f"weights are expected to be finite numbers of at least 0; {odd.size} of {shown.size} "
            f"are not, such as {odd[0]}. Mask the examples to leave out."
        )


def _entry(batch: Mapping[str, Any], name: str | tuple[str, ...]) -> Any:
    if isinstance(name, tuple):
        return tuple(_entry(batch, one) for one in name)
    if name not in batch:
        raise InvalidValueError(
            f"A batch that is a mapping is expected to have {name!r}; it has "
            f"{', '.join(map(repr, batch)) or 'nothing'}. Name its parts, as in "
            f"batch_keys=('x', 'y', 'mask', 'weight'): inputs and targets, and the mask and the "
            f"weights of examples, which batches may lack."
        )
    return batch[name]


def _as_array(values: Any, name: str, what: str) -> Any:
    """Return values as an array; numpy's stay on the host until a compiled step takes them."""
    return values if isinstance(values, np.ndarray) else as_array(values, name, what)


def _check_weight(weight: Any, targets: Any) -> None:
    real = jnp.isdtype(weight.dtype, ("bool", "integral", "real floating"))
    if not real or not weight.ndim or weight.shape != targets.shape[: weight.ndim]:
        raise InvalidValueError(
            f"weights are expected to be real numbers of the shape of the targets, "
            f"{describe(targets)}, or of its leading axes, such as one for each example; they are "
            f"{describe(weight)}."
        )


def counted(real: Array | None, valid: Array | None) -> Array | None:
    """Return which positions count, that is, are real and have a loss; None if all do."""
    if real is None or valid is None:
        return valid if real is None else real
    return real & valid
