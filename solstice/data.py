"""What counts as a dataset: any re-iterable of batches, from any library.

It recognises datasets by what they can do, never by the library they come from, and holds no
data of its own.
"""

import contextlib
import inspect
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import GeneratorType
from typing import Any

import equinox as eqx
import jax

from solstice.bookmark import Bookmark
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.memory import as_arrays, own_arrays
from solstice.tree import describe

_logger = logging.getLogger("solstice")

# How many seconds a thread gets to end.
_PATIENCE = 5

# list_iterator, zip, map, enumerate, islice, ...: once through, they stay empty.
_ONE_SHOT_HOMES = ("builtins", "itertools")


def check_dataset(dataset: Any, name: str, passes: int | None = 1) -> None:
    """Raise for what can be seen to be no dataset, or one that will run dry, without reading it.

    Args:
        dataset: What the user passed.
        name: The argument's name, for the message.
        passes: How many times it will be read; None when that is not known.

    Raises:
        TypeError: It is not an iterable of batches (or a callable that makes one).
        ValueError: It is empty, or can be read once only and more passes are wanted.

    >>> check_dataset([], "train_ds")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: train_ds is empty: it has no batch at all.
    """
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
            f"over them; it is {describe(dataset)}. Arrays must be cut into batches first."
        )
    if _length(dataset) == 0:
        raise InvalidValueError(f"{name} is empty: it has no batch at all.")
    if hasattr(dataset, "_fields"):
        raise InvalidTypeError(
            f"{name} is expected to hold batches; it is the named tuple "
            f"{type(dataset).__name__}, which is one batch. Put it into a list."
        )
    if isinstance(dataset, list | tuple) and _is_whole(dataset):
        arrays = ", ".join(map(describe, dataset))
        raise InvalidTypeError(
            f"{name} is expected to hold batches; it holds whole arrays, ({arrays}). Cut "
            f"them: [(x[i : i + 32], y[i : i + 32]) for i in range(0, len(x), 32)]."
        )
    one_shot = isinstance(dataset, GeneratorType) or (
        isinstance(dataset, Iterator) and type(dataset).__module__ in _ONE_SHOT_HOMES
    )
    if one_shot and passes is not None and passes > 1:
        raise InvalidValueError(
            f"{name} is a {type(dataset).__name__}, which can be read only once, but {passes} "
            f"epochs are wanted. Pass a list, or a function that returns a new iterator each epoch."
        )


def _is_whole(dataset: Any) -> bool:
    """Say whether it is (x, y) or (x, y, mask) of all examples, and not a list of batches."""
    shapes: list[tuple[int, ...]] = [getattr(part, "shape", ()) for part in dataset[:4]]
    # As many examples in each, and not of one form, as batches would be.
    return (
        len(shapes) in (2, 3)
        and all(shapes)
        and len({shape[0] for shape in shapes}) == 1
        and len(set(map(len, shapes))) > 1
    )


def batches(dataset: Any, epoch: int, name: str, bookmark: Bookmark | None = None) -> Iterator[Any]:
    """Yield one pass over the dataset, each array-like leaf as something jax takes.

    The arrays of a batch are its own: the dataset may fill those that it gave once more, as soon as
    it is asked for the next batch. Those of a list are passed on as they are.

    `dataset.set_epoch(epoch)` is called first where there is one. A callable is called, with the
    epoch if it needs an argument or takes one of that name.

    Args:
        dataset: What `check_dataset` accepts.
        epoch: The epoch's index.
        name: The argument's name, for messages.
        bookmark: Where the pass begins, if not with the first batch, and what keeps where it is.

    Raises:
        ValueError: The pass has no batch.

    >>> list(batches(lambda epoch: iter([epoch, epoch + 1]), 5, "train_ds"))
    [5, 6]
    """
    set_epoch = getattr(dataset, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch)
    made = makes_iterators(dataset)
    takes = made and takes_argument(dataset)

    def make() -> Iterator[Any]:
        source = dataset
        if made:
            source = dataset(epoch) if takes else dataset()
        return iter(source)

    # No code runs between the batches of a list.
    take = as_arrays if type(dataset) in (list, tuple) else own_arrays
    empty = True
    for batch in make() if bookmark is None else bookmark.reading(make, epoch, remade=made):
        empty = False
        yield take(batch)
    empty = empty and (bookmark is None or not bookmark.count)
    if empty:
        if made:
            cause = "It is a function: have it return a new iterator, with batches, at each call."
        elif isinstance(dataset, Iterator):
            cause = (
                "An iterator that can be read only once is used up after the first epoch: pass a "
                "list, or a function that returns a new iterator each epoch."
            )
        else:
            cause = "The dataset is empty."
        raise InvalidValueError(f"{name} gave no batch in epoch {epoch}. {cause}")


@contextlib.contextmanager
def prefetched(
    ready: Iterator[Any], size: int | None, place: Callable[[Any], Any] | None = None
) -> Iterator[Iterator[Any]]:
    """Give an iterator over the batches of `ready`, read ahead and placed on the device.

    `place` puts each where it belongs; None means the default device. A thread reads up to `size`
    batches ahead and ends with the context. What it raises is raised here in the batch's turn, with
    its own traceback. 0 reads nothing ahead; None means 2 on accelerators and 0 on a CPU.

    >>> import numpy as np
    >>> with prefetched(iter([np.ones(2), np.zeros(2)]), size=2) as ready:
    ...     [float(batch.sum()) for batch in ready]
    [2.0, 0.0]
    """
    if size is None:
        size = 0 if jax.default_backend() == "cpu" else 2
    if size == 0:
        try:
            yield ready if place is None else map(place, ready)
        finally:
            _close(ready)
        return
    place = place or _on_device
    line: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    free = threading.Semaphore(size)
    ended = threading.Event()

    def read() -> None:
        try:
            while free.acquire() and not ended.is_set():
                line.put(("batch", place(next(ready))))
        except StopIteration:
            line.put(("end", None))
        except BaseException as error:  # noqa: BLE001 - raised where the batch is asked for
            line.put(("error", error))
        finally:
            _close(ready)

    def take() -> Iterator[Any]:
        while (item := line.get())[0] == "batch":
            free.release()
            yield item[1]
        if item[0] == "error":
            raise item[1]

    thread = threading.Thread(target=read, name="solstice-prefetch", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        ended.set()
        free.release()
        thread.join(_PATIENCE)
        if thread.is_alive():
            _logger.warning(
                "The thread that reads batches ahead is still waiting for one after %d s; it goes "
                "on in the background. Give datasets that may block a timeout of their own.",
                _PATIENCE,
            )


def _close(iterator: Iterator[Any]) -> None:
    """End a generator where it stands; it runs what it has to do then."""
    if isinstance(iterator, GeneratorType):
        iterator.close()


def _on_device(batch: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf) if eqx.is_array(leaf) else leaf, batch)


def length(dataset: Any) -> int | None:
    """Return how many batches a pass has, None when the dataset does not say.

    >>> length([1, 2]), length(iter([1, 2]))
    (2, None)
    """
    return None if makes_iterators(dataset) else _length(dataset)


def _length(dataset: Any) -> int | None:
    if not hasattr(dataset, "__len__"):
        return None
    try:
        return len(dataset)
    except TypeError:  # how tf.data and DataLoader say that they do not know
        return None


def makes_iterators(dataset: Any) -> bool:
    """Say whether a dataset is a function that returns an iterator."""
    return callable(dataset) and not isinstance(dataset, Iterable)


def takes_argument(function: Callable[..., Any]) -> bool:
    """Say whether a function that makes iterators is to be called with the epoch."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a callable written in C that does not tell
        return False
    # An argument with a default is the function's own (`lambda ds=ds: iter(ds)`), but for `epoch`.
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in kinds and (p.default is p.empty or p.name == "epoch") for p in parameters)
