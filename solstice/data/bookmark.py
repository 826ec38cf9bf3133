"""The position of a run in its dataset's iterator, in a form that a checkpoint holds.

grain's iterators, and any others with `get_state` and `set_state`, give their state after each
batch. tf.data's are saved when a checkpoint is written, since that takes milliseconds, and after a
pass's first batch: a dataset that reshuffles draws from a generator of seeds, which is in its
iterator's state only until the shuffled data was read to the end. Other iterators have no state.
"""

import collections
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from solstice.arguments import describe
from solstice.data.tf_state import (
    CannotSaveError,
    is_tf,
    is_tf_state,
    repeats,
    seeds,
    set_tf_state,
    size,
    tf_state,
)
from solstice.errors import InvalidValueError
from solstice.tree.encoding import kept
from solstice.tree.pytree import PyTree

_logger = logging.getLogger("solstice")

_LARGE = 2**26


class Bookmark:
    """Keeps the position of a run in the passes over one dataset.

    Args:
        name: The dataset's argument, for messages.
        state: The first value of `state` in a checkpoint.
        read: The second value of `state` in a checkpoint.
        keeps: Whether states will be needed.
        resumed: Whether other processes made the run's passes before.

    Attributes:
        count: How many batches of the pass were read, also before a resume.

    >>> bookmark = Bookmark("train_ds")
    >>> list(bookmark.reading(lambda: iter([1, 2]))), bookmark.state(2)
    ([1, 2], (None, 0))
    """

    def __init__(
        self,
        name: str,
        state: PyTree = None,
        read: int | None = 0,
        *,
        keeps: bool = True,
        resumed: bool = False,
    ) -> None:
        self._name = name
        self._resumed, self._read = state, read
        self._keeps = keeps
        self._lock = threading.Lock()
        self._iterator: Any = None  # grain's and tf.data's have different methods
        self._goes_on = self._remade = self._wanted = False
        # Whether a resumed run has not started a pass yet.
        self._anew = resumed
        self.count = self._seeds = 0
        # States and the number of batches before them, in ascending order.
        self._states: collections.deque[tuple[int, PyTree]] = collections.deque()
        self._told = False

    @property
    def needed(self) -> bool:
        """Whether there is a state to restore or to keep."""
        return self._keeps or self._anew

    @property
    def keeps_place(self) -> bool:
        """Whether the iterator of the pass can save its state."""
        tells = callable(getattr(self._iterator, "get_state", None))
        return tells or is_tf(self._iterator)

    def begin(self, consumed: int) -> int:
        """Return how many batches `reading` will skip: more than 0 only after a resume.

        Args:
            consumed: How many batches of the pass a resumed run has consumed.
        """
        self._goes_on = bool(consumed) and self._resumed is not None and self._read is not None
        return (self._read or 0) if self._goes_on else 0

    def reading(
        self, make: Callable[[], Iterator[PyTree]], epoch: int = 0, *, remade: bool = False
    ) -> Iterator[PyTree]:
        """Yield a pass's batches, from the position of a resumed one on.

        Args:
            make: Returns an iterator over a whole pass.
            epoch: The epoch's index.
            remade: Whether each pass has a new dataset, so that one pass does not affect the next.

        Raises:
            ValueError: The iterator does not take the state of the checkpoint.
        """
        state, self._resumed = self._resumed, None
        anew, self._anew = self._anew, False
        self._iterator, self._remade = make(), remade
        self._wanted, self.count, self._seeds = False, 0, 0
        self._states.clear()
        if self._goes_on:
            self._restore(state)
            self.count, self._goes_on = self._read or 0, False
            self._seeds = seeds(state)
            self._states.append((self.count, state))
        elif anew and epoch and not remade and is_tf(self._iterator):
            self._draw_on(state, make, epoch)
        tells = self._keeps and callable(getattr(self._iterator, "get_state", None))
        first = self._keeps and not remade and is_tf(self._iterator)
        while True:
            with self._lock:
                try:
                    batch = next(self._iterator)
                except StopIteration:
                    return
                self.count += 1
                if tells:
                    state = kept(
                        self._iterator.get_state(), "get_state() of the dataset's iterator"
                    )
                    self._states.append((self.count, state))
                elif self._wanted or (first and self.count == 1):
                    self._note()
            yield batch

    def _draw_on(self, state: PyTree, make: Callable[[], Iterator[PyTree]], epoch: int) -> None:
        """Start a pass whose order depends on earlier passes, which this process did not make."""
        if state is None:
            for _ in range(epoch):
                next(self._iterator, None)
                self._iterator = make()
            return
        self._restore(state)
        if repeats(state):  # it also draws within a pass
            collections.deque(self._iterator, maxlen=0)
        self._iterator = make()

    def consumed(self, count: int) -> None:
        """Drop the states before this many batches."""
        while len(self._states) > 1 and self._states[1][0] <= count:
            self._states.popleft()

    def state(self, consumed: int) -> tuple[PyTree, int | None]:
        """Return a state to continue from, and how many of the pass's batches come before it.

        They are at most `consumed`; the batches between must be read again. If none is consumed,
        the state is that of the pass before, with the number None. Without a state, it is None.
        """
        if self._iterator is None:
            return self._resumed, self._read
        if not consumed:
            of_before = is_tf(self._iterator) and not self._remade and self._states
            return (self._states[-1][1] if of_before else None), None
        if is_tf(self._iterator):
            with self._lock:
                if self.count == consumed:
                    self._note()
                else:  # batches were read ahead: the reader saves a state for the next checkpoint
                    self._wanted = True
        self.consumed(consumed)
        if self._states and self._states[0][0] <= consumed:
            count, state = self._states[0]
            return state, count
        return None, 0

    def _note(self) -> None:
        self._wanted = False
        state = self._tf_state()
        if state is None:
            return
        if not self._remade and seeds(state) < self._seeds:
            return  # it lacks a generator of seeds: use the one before, and read some batches again
        self._seeds = max(self._seeds, seeds(state))
        self._states.append((self.count, state))

    def _restore(self, state: PyTree) -> None:
        if is_tf_state(state) and is_tf(self._iterator):
            try:
                set_tf_state(self._iterator, state)
            except Exception as error:
                raise InvalidValueError(
                    f"The run was saved with the state of {self._name}'s iterator, and the "
                    "iterator of "
                    f"the dataset now does not accept it. Resume with the dataset that the run had."
                ) from error
            return
        set_state = getattr(self._iterator, "set_state", None)
        if is_tf_state(state) or not callable(set_state):
            raise InvalidValueError(
                f"The run was saved with the state of {self._name}'s iterator; "
                f"{describe(self._iterator)} cannot continue from it. Resume with the dataset that "
                f"the run had."
            )
        set_state(state)

    def _tf_state(self) -> dict[str, PyTree] | None:
        try:
            state = tf_state(self._iterator)
        except CannotSaveError as error:
            if not self._told:
                self._told = True
                _logger.warning(
                    "The iterator of %s cannot save itself (%s), so a resumed run reads the "
                    "epoch's batches again and checks that they are the same.",
                    self._name,
                    error,
                )
            return None
        if size(state) > _LARGE and not self._told:
            self._told = True
            _logger.warning(
                "The iterator of %s takes %d MiB in a checkpoint, most of it what it has read "
                "ahead and shuffles. A smaller buffer makes saves faster.",
                self._name,
                size(state) // 2**20,
            )
        return state
