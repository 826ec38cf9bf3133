"""Padding: fills short batches to one shape, with a mask of the real examples.

It repeats the last example; it does not cut or join batches.
"""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.data.datasets import Dataset, check_dataset, iterator_of, makes_iterators
from solstice.data.live import Live
from solstice.data.memory import as_arrays
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import AnyArray, PyTree


def pad_last(ds: Dataset, batch_size: int, *, mask_key: str = "mask") -> Dataset:
    """Return the dataset with all batches of one size, and a mask of the real examples.

    A batch with fewer examples, usually the last, repeats its last example; zeros could make a
    gradient NaN. `(x, y)` becomes `(x, y, mask)`, and a mapping gets the entry `mask_key`; a mask
    that is already there is extended. The mask is True where an example is real. So an evaluation
    compiles once, and padding does not change its metrics.

    For training a network with batch norm, drop the remainder instead: padded examples would count
    in its statistics.

    Args:
        ds: Any dataset that `solstice.train` takes; `len`, `set_epoch` and the arguments of a
            function stay. A dataset that can be read only once stays so.
        batch_size: How many examples each batch gets.
        mask_key: The mask's name in batches that are mappings.

    Raises:
        TypeError: `ds` is not a dataset; or, when it is read, a batch has another form or holds
            something that is not an array.
        ValueError: `batch_size` is not positive; or, when it is read, a batch is larger, is empty,
            or its arrays differ in their first axis.

    >>> import numpy as np, solstice
    >>> x, y = np.arange(5.0), np.arange(5)
    >>> for batch in solstice.pad_last([(x[:3], y[:3]), (x[3:], y[3:])], 3):
    ...     print(*batch)
    [0. 1. 2.] [0 1 2] [ True  True  True]
    [3. 4. 4.] [3 4 4] [ True  True False]
    """
    check_dataset(ds, "ds", endless=True)
    batch_size = arguments.count(batch_size, "batch_size", most=2**31 - 1)
    mask_key = arguments.text(mask_key, "mask_key")
    if isinstance(ds, Live):

        def make(exp: PyTree, step: int) -> PyTree:
            return _pad(as_arrays(ds.make(exp, step)), batch_size, mask_key)

        return Live(make, ds.length)
    if isinstance(ds, Iterator):
        return _padded(ds, batch_size, mask_key)
    return (_PaddedMaker if makes_iterators(ds) else _PaddedIterable)(ds, batch_size, mask_key)


class _PaddedDataset:
    """A padded re-iterable dataset."""

    def __init__(self, ds: Dataset, batch_size: int, mask_key: str) -> None:
        self._ds = ds
        self._arguments = batch_size, mask_key

    def __len__(self) -> int:
        if not hasattr(self._ds, "__len__"):
            raise InvalidTypeError(f"The padded dataset has no known length: {describe(self._ds)}.")
        return len(self._ds)

    # Otherwise Python asks for the length, which may not exist.
    def __bool__(self) -> bool:
        return True

    def set_epoch(self, epoch: int) -> None:
        if callable(set_epoch := getattr(self._ds, "set_epoch", None)):
            set_epoch(epoch)


class _PaddedIterable(_PaddedDataset):
    def __iter__(self) -> Iterator[PyTree]:
        return _padded(self._ds, *self._arguments)


class _PaddedMaker(_PaddedDataset):
    def __init__(self, ds: Dataset, batch_size: int, mask_key: str) -> None:
        super().__init__(ds, batch_size, mask_key)
        with contextlib.suppress(TypeError, ValueError):  # as of a function written in C
            self.__signature__ = inspect.signature(ds)  # so that it is called like `ds`

    def __call__(self, *arguments: object) -> Iterator[PyTree]:
        return _padded(iterator_of(self._ds(*arguments), "ds"), *self._arguments)


def _padded(batches: Iterable[PyTree], batch_size: int, mask_key: str) -> Iterator[PyTree]:
    for batch in iter(batches):
        yield _pad(as_arrays(batch), batch_size, mask_key)


def _pad(batch: PyTree, batch_size: int, mask_key: str) -> PyTree:
    if isinstance(batch, Mapping):
        size = _size(dict(batch), batch_size)
        padded = {name: _repeat_last(part, batch_size) for name, part in batch.items()}
        return padded | {mask_key: _extended(batch.get(mask_key), size, batch_size)}
    if isinstance(batch, tuple | list) and len(batch) in (2, 3):
        size = _size(batch, batch_size)
        x, y = (_repeat_last(part, batch_size) for part in batch[:2])
        return x, y, _extended(batch[2] if len(batch) == 3 else None, size, batch_size)
    raise InvalidTypeError(
        f"A batch of ds is expected to be (x, y), (x, y, mask) or a mapping; it is "
        f"{describe(batch)}. pad_last adds a mask, which needs a place in the batch."
    )


def _size(batch: PyTree, batch_size: int) -> int:
    """Return how many examples a batch has."""
    sizes: dict[str, int] = {}
    for name, leaf in leaves_by_path(batch).items():
        if not getattr(leaf, "shape", ()):
            raise InvalidTypeError(
                f"A batch of ds is expected to hold arrays with examples along their first axis; "
                f"it is {describe(batch)}, where {name!r} is {describe(leaf)}. Leave it out of the "
                f"batch."
            )
        sizes[name] = leaf.shape[0]
    if len(set(sizes.values())) != 1:
        raise InvalidValueError(
            f"The arrays of a batch of ds are expected to have the same examples along their first "
            f"axis; it has {sizes or 'no array'}."
        )
    size = next(iter(sizes.values()))
    if not 1 <= size <= batch_size:
        raise InvalidValueError(
            f"pad_last fills batches to batch_size={batch_size}; one has {size} examples. "
            + ("Leave empty batches out." if size == 0 else "Pass the size of the largest batch.")
        )
    return size


def _repeat_last(part: PyTree, batch_size: int) -> PyTree:
    def repeat(leaf: AnyArray) -> PyTree:
        size = len(leaf)
        return leaf if size == batch_size else leaf[np.minimum(np.arange(batch_size), size - 1)]

    return jax.tree.map(repeat, part)


def _extended(mask: AnyArray | None, size: int, batch_size: int) -> PyTree:
    if mask is None:
        return np.arange(batch_size) < size
    absent = [(0, batch_size - size)] + [(0, 0)] * (mask.ndim - 1)
    return (jnp if isinstance(mask, jax.Array) else np).pad(mask, absent)
