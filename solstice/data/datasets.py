"""Datasets: any re-iterable of batches, from any library, and one pass over it.

A dataset is recognised by its methods, not by its library.
"""

import itertools
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import GeneratorType
from typing import Any, TypeAlias

from solstice.arguments import describe
from solstice.data.arrays import Arrays, Mask
from solstice.data.bookmark import Bookmark
from solstice.data.live import Live
from solstice.data.memory import as_arrays, own_arrays
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.signatures import required
from solstice.tree.flat import snapshot
from solstice.tree.pytree import PyTree

# Anything from which batches can be read, by its methods and not by its class.
Dataset: TypeAlias = Any

# list_iterator, zip, map, enumerate, islice, ...: they can be read once.
_ONE_SHOT_HOMES = ("builtins", "itertools")


def check_dataset(
    dataset: Dataset, name: str, passes: int | None = 1, *, endless: bool = False
) -> None:
    """Raise if this is clearly not a dataset, or cannot be read often enough; reads nothing.

    Args:
        dataset: What the user passed.
        name: The argument's name, for the message.
        passes: How many times it will be read; None when that is not known.
        endless: Whether an endless pass is allowed, since something else ends it.

    Raises:
        TypeError: It is not an iterable of batches (or a callable that makes one).
        ValueError: It is empty, or endless, or can be read only once and more passes are needed.

    >>> check_dataset([], "train_ds")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: train_ds is empty: it has no batches; it is [].
    """
    if isinstance(dataset, Arrays):
        return  # it was checked when it was made
    if isinstance(dataset, Live):
        if dataset.length is None and not endless:
            raise InvalidValueError(
                f"{name} makes batches without end, and nothing else ends a pass over it. Pass "
                f"their number, live(make, length=100); num_steps= can also end training."
            )
        return
    if isinstance(dataset, Mapping) and dataset and not _holds_columns(dataset):
        raise InvalidTypeError(
            f"{name} is expected to be one dataset; it is a mapping of several, "
            f"{', '.join(map(repr, dataset))}. Choose one: "
            f"{name}=datasets[{next(iter(dataset))!r}]."
        )
    array = hasattr(dataset, "shape") and hasattr(dataset, "dtype")
    iterable = isinstance(dataset, Iterable) or hasattr(dataset, "__getitem__")
    if (
        isinstance(dataset, str | bytes | Mapping | type)
        or array
        or not (iterable or callable(dataset))
    ):
        raise InvalidTypeError(
            f"{name} is expected to be a re-iterable of batches (a list of (x, y) tuples, a "
            f"tf.data or grain dataset, a DataLoader, ...) or a function that returns an iterator "
            f"over them; it is {describe(dataset)}. Whole arrays are one as "
            f"solstice.data.Arrays(x, y, batch_size=32, shuffle=0)."
        )
    if makes_iterators(dataset) and (number := _takes(dataset, name)) > 2:
        raise InvalidTypeError(
            f"{name} is expected to be a function of nothing, of the epoch, or of the epoch and "
            f"the experiment; it requires {number} arguments. Bind others with functools.partial."
        )
    if _length(dataset) == 0:
        raise InvalidValueError(f"{name} is empty: it has no batches; it is {describe(dataset)}.")
    if not endless and _is_endless(dataset):
        raise InvalidValueError(
            f"{name} is expected to end; a pass over this {type(dataset).__name__} never does. "
            f"Leave out its repeat(), since each epoch reads it again. Or end it, as by take(100); "
            f"num_steps= can also end training."
        )
    if hasattr(dataset, "_fields"):
        raise InvalidTypeError(
            f"{name} is expected to hold batches; it is the named tuple "
            f"{type(dataset).__name__}, which is one batch. Put it into a list."
        )
    if isinstance(dataset, list | tuple) and _is_whole(dataset):
        arrays = ", ".join(map(describe, dataset))
        raise InvalidTypeError(
            f"{name} is expected to hold batches; it holds whole arrays, ({arrays}). "
            f"solstice.data.Arrays({', '.join('xyz'[: len(dataset)])}, batch_size=32, shuffle=0) "
            f"splits and shuffles them."
        )
    if is_one_shot(dataset) and passes is not None and passes > 1:
        raise InvalidValueError(
            f"{name} is a {type(dataset).__name__}, which can be read only once, but {passes} "
            "epochs are asked for. Pass a list, or a function that returns a new iterator each "
            "epoch."
        )


def is_one_shot(dataset: Dataset) -> bool:
    """Return whether a dataset is known to be readable only once."""
    return isinstance(dataset, GeneratorType) or (
        isinstance(dataset, Iterator) and type(dataset).__module__ in _ONE_SHOT_HOMES
    )


def _holds_columns(mapping: Mapping[object, object]) -> bool:
    """Return whether a mapping holds the parts of a batch, not datasets like a DatasetDict."""
    for one in mapping.values():
        if hasattr(one, "dtype") or not isinstance(one, Iterable):
            return True
        if isinstance(one, list | tuple) and not isinstance(next(iter(one), ()), tuple | Mapping):
            return True
    return False


def _is_endless(dataset: Dataset) -> bool:
    """Return whether a dataset reports that it is endless, as after `repeat()`."""
    if isinstance(dataset, itertools.repeat):
        return operator.length_hint(dataset, -1) == -1
    if isinstance(dataset, itertools.cycle | itertools.count):
        return True
    if hasattr(dataset, "cardinality"):  # as in tf.data, where -1 means endless
        return int(dataset.cardinality()) == -1
    return _length(dataset) == sys.maxsize  # as in grain


def _is_whole(dataset: Dataset) -> bool:
    """Return whether it is (x, y) or (x, y, mask) of all examples, not a list of batches."""
    shapes: list[tuple[int, ...]] = [getattr(part, "shape", ()) for part in dataset[:4]]
    # Each has as many examples; a list of arrays of one form may be a list of batches.
    return (
        len(shapes) in (2, 3)
        and all(shapes)
        and len({shape[0] for shape in shapes}) == 1
        and (type(dataset) is tuple or len(set(map(len, shapes))) > 1)
    )


def batches(
    dataset: Dataset,
    epoch: int,
    name: str,
    bookmark: Bookmark | None = None,
    *,
    experiment: Callable[[], PyTree] = lambda: None,
    step: int = 0,
    made: int = 0,
    with_mask: Mask | None = None,
) -> Iterator[PyTree]:
    """Yield one pass over the dataset, with each array-like leaf as an array that jax takes.

    Batches do not share memory with the dataset, which may reuse its buffers for the next batch.
    The arrays of a list are not copied.

    `dataset.set_epoch(epoch)` is called first, if there is one. A function is called with the epoch
    and the experiment if it requires two arguments; with the epoch if it requires one or takes one
    of that name.

    Args:
        dataset: What `check_dataset` accepts.
        epoch: The epoch's index.
        name: The argument's name, for messages.
        bookmark: Where the pass starts, if not with the first batch; also keeps its position.
        experiment: Returns the current experiment, for a dataset that makes batches from it.
        step: For a live dataset: the index of the next step.
        made: For a live dataset and `Arrays`: how many batches of the pass a resumed run has
            consumed.
        with_mask: For `Arrays`: see there.

    Raises:
        ValueError: The pass has no batch.

    >>> list(batches(lambda epoch: iter([epoch, epoch + 1]), 5, "train_ds"))
    [5, 6]
    """
    if isinstance(dataset, Live):
        yield from dataset.batches(experiment, step, made)
        return
    if isinstance(dataset, Arrays):
        yield from dataset.batches(epoch, made, with_mask)
        return
    set_epoch = getattr(dataset, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch)
    made_anew = makes_iterators(dataset)
    given: tuple[PyTree, ...] = ()
    if made_anew and (number := _takes(dataset, name)):
        # The next steps donate the experiment's buffers.
        given = (epoch,) if number == 1 else (epoch, snapshot(experiment()))

    def make() -> Iterator[PyTree]:
        return iterator_of(dataset(*given), name) if made_anew else iter(dataset)

    # No code runs between the batches of a list.
    take = as_arrays if type(dataset) in (list, tuple) else own_arrays
    empty = True
    for batch in make() if bookmark is None else bookmark.reading(make, epoch, remade=made_anew):
        empty = False
        yield take(batch)
    empty = empty and (bookmark is None or not bookmark.count)
    if empty:
        if made_anew:
            cause = "It is a function: it must return a new iterator, with batches, at each call."
        elif isinstance(dataset, Iterator):
            cause = (
                "An iterator that can be read only once is exhausted after the first epoch: pass a "
                "list, or a function that returns a new iterator each epoch."
            )
        else:
            cause = "The dataset is empty."
        raise InvalidValueError(f"{name} gave no batch in epoch {epoch}. {cause}")


def iterator_of(made: Dataset, name: str) -> Iterator[PyTree]:
    """Return the iterator over what a dataset's function returned.

    Raises:
        TypeError: It returned something else.
    """
    if not isinstance(made, Iterable) and not hasattr(made, "__getitem__"):
        raise InvalidTypeError(
            f"{name} is a function, which is expected to return an iterator over batches; it "
            f"returned {describe(made)}."
        )
    return iter(made)


def length(dataset: Dataset) -> int | None:
    """Return how many batches a pass has; None if unknown.

    >>> length([1, 2]), length(iter([1, 2]))
    (2, None)
    """
    if isinstance(dataset, Live):
        return dataset.length
    if isinstance(dataset, Arrays):
        return len(dataset)
    return None if makes_iterators(dataset) else _length(dataset)


def _length(dataset: Dataset) -> int | None:
    if not hasattr(dataset, "__len__"):
        return None
    try:
        return len(dataset)
    except TypeError:  # tf.data and DataLoader raise it if they do not know
        return None


def makes_iterators(dataset: Dataset) -> bool:
    """Return whether a dataset is a function that returns an iterator."""
    return callable(dataset) and not isinstance(dataset, Iterable)


def uses_experiment(dataset: Dataset) -> bool:
    """Return whether a dataset generates its batches from the experiment.

    >>> uses_experiment(lambda epoch, exp: iter([])), uses_experiment(lambda epoch: iter([]))
    (True, False)
    """
    return isinstance(dataset, Live) or (makes_iterators(dataset) and _takes(dataset, "") == 2)


def uses_epoch(dataset: Dataset) -> bool:
    """Return whether a dataset gets the epoch, so that its order can depend on it.

    >>> uses_epoch([1, 2]), uses_epoch(lambda epoch: iter([]))
    (False, True)
    """
    return callable(getattr(dataset, "set_epoch", None)) or (
        makes_iterators(dataset) and _takes(dataset, "") > 0
    )


def _takes(function: Dataset, name: str) -> int:
    """Return how many arguments to call a function that makes iterators with.

    An argument with a default is not passed (`lambda ds=ds: iter(ds)`), except `epoch`.
    """
    return required(function, name, optional="epoch")
