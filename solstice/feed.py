"""Feed: one pass over a dataset, as the batches of one call after the other.

It skips what a resumed run had consumed and notes what a checkpoint needs to know of the rest. It
takes no step.
"""

import collections
import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from solstice.bookmark import Bookmark
from solstice.data import batches, prefetched, uses_experiment
from solstice.errors import InvalidValueError
from solstice.live import Live
from solstice.position import Position, batch_digest
from solstice.sharding import Sharding
from solstice.sharding.batches import WithMask, place_batch
from solstice.sharding.processes import in_step
from solstice.signals import Signals

_logger = logging.getLogger("solstice")


class Feed:
    """The batches of one pass, from where the position stands.

    Args:
        dataset: What is read.
        mode: "train", "val" or "test".
        epoch: The epoch's index.
        where: Where the run stands; what is consumed in training is noted there.
        steps_per_call: How many batches a call takes.
        prefetch: How many are read ahead.
        sharding: Where they go.
        with_mask: How a mask gets into a batch.
        check: Called with the first batch and the mode.
        bookmark: What keeps where the dataset's iterator stands.
        tracked: Whether checkpoints will ask where the pass stands.
        signals: What processes in step agree on before each batch.
        experiment: Returns the experiment as it is, for a dataset that makes batches from it; of a
            live one nothing is read ahead, and a call takes one batch.

    Attributes:
        last_batch: The batch consumed last, as the dataset gave it, where that is tracked.
        skipped: How many batches a resumed run had consumed of the pass.
        in_step: Whether processes wait for each other before each batch.

    Raises:
        ValueError: The dataset does not give again what was consumed before a resume.

    >>> feed = Feed([1.0, 2.0, 3.0], "train", 0, Position(), steps_per_call=2)
    >>> with feed.groups() as groups:
    ...     list(groups)
    [[1.0, 2.0], [3.0]]
    """

    def __init__(
        self,
        dataset: Any,
        mode: str,
        epoch: int,
        where: Position,
        *,
        steps_per_call: int = 1,
        prefetch: int | None = 0,
        sharding: Sharding | None = None,
        with_mask: WithMask | None = None,
        check: Callable[[Any, str], None] | None = None,
        bookmark: Bookmark | None = None,
        tracked: bool = False,
        signals: Signals | None = None,
        experiment: Callable[[], Any] = lambda: None,
    ) -> None:
        self._mode, self._where = mode, where
        live = isinstance(dataset, Live)
        self._steps_per_call, self._prefetch = (1, 0) if live else (steps_per_call, prefetch)
        self._check = check
        training = mode == "train"
        self.skipped = (where.trained if training else where.validated) or 0
        self.last_batch: Any = None
        alone = jax.process_count() == 1
        # A checkpoint holds what one process knows, and each has other data.
        self._tracked = training and tracked and alone
        # The batches that are placed and not yet consumed, as the dataset gave them.
        self._raw: collections.deque[Any] = collections.deque()
        marked = alone and bookmark is not None and bookmark.needed and not live
        self._bookmark = bookmark if marked else None
        begin = 0 if self._bookmark is None else self._bookmark.begin(self.skipped)
        self._source = batches(
            dataset,
            epoch,
            f"{mode}_ds",
            self._bookmark,
            experiment=experiment,
            step=where.steps[mode],
            made=self.skipped,
        )
        self._place: Callable[[Any], Any] | None = None
        self.in_step = sharding is not None and not alone
        if sharding is not None:
            self._place = functools.partial(self._placed, sharding, with_mask, alone)
        if self.in_step:
            self._source = in_step(self._source, signals=signals)
        if self.skipped > begin and not live:
            self._skip(begin, self.skipped, anew=uses_experiment(dataset))

    @contextlib.contextmanager
    def groups(self, last_step: int | None = None) -> Iterator[Iterator[list[Any]]]:
        """Give an iterator over the batches of one call after the other.

        Those of a call are of one form, and none goes past `last_step`.
        """
        with prefetched(self._source, self._prefetch, self._place) as ready:
            yield self._grouped(ready, last_step)

    def consumed(self, group: list[Any]) -> None:
        """Note that the steps of these batches are taken."""
        where, count = self._where, len(group)
        if self._mode != "train":
            if where.validated is not None:
                where.validated += count
            return
        where.trained += count
        if not self._tracked:
            return
        # What tells these batches from others, for the next checkpoint.
        if self._raw:
            group = [self._raw.popleft() for _ in group]
        if where.trained == count:
            where.first = batch_digest(group[0])
        if self._bookmark is not None:
            self._bookmark.consumed(where.trained)
        self.last_batch = group[-1]

    def _grouped(self, ready: Iterator[Any], last_step: int | None) -> Iterator[list[Any]]:
        if self._check is not None and self._place is None:
            for first in itertools.islice(ready, 1):
                self._check(first, self._mode)
                ready = itertools.chain([first], ready)
        if self._steps_per_call == 1:
            for batch in ready:
                yield [batch]
            return
        steps, group = self._where.steps, []
        for batch in ready:
            if group and _form(batch) != _form(group[0]):
                yield group
                group = []
            group.append(batch)
            full = len(group) == self._steps_per_call
            if full or steps[self._mode] + len(group) == last_step:
                yield group
                group = []
        if group:
            yield group

    def _placed(
        self, sharding: Sharding, with_mask: WithMask | None, alone: bool, batch: Any
    ) -> Any:
        """Check a batch as the dataset gave it, and put it on the mesh."""
        sizes: list[int | None] = []
        if not alone:
            batch, sizes = batch
        if self._check is not None:
            self._check(batch, self._mode)
        if self._tracked:
            self._raw.append(batch)
        return place_batch(sharding, batch, with_mask, sizes)

    def _skip(self, begin: int, count: int, *, anew: bool) -> None:
        """Read what was consumed before a resume, and make sure that it is the same."""
        where, training = self._where, self._mode == "train"
        if anew:
            _logger.warning(
                "%s_ds makes a pass's batches from the experiment at its start. The run goes on "
                "after batch %d of a pass, whose other batches are now made from the experiment "
                "of the checkpoint: the run is not the same as without the interruption. Save "
                "with every=Every(epochs=1), or make each batch with solstice.data.live.",
                self._mode,
                count,
            )
        for i in range(begin, count):
            batch = next(self._source, None)
            if anew:
                continue
            wanted = {0: where.first, count - 1: where.last}.get(i) if training else None
            if batch is None or (wanted is not None and batch_digest(batch) != wanted):
                what = "ends before it" if batch is None else "has another one in its place"
                raise InvalidValueError(
                    f"The run was saved after {count} batches of epoch {where.epoch}; "
                    f"{self._mode}_ds now {what} (batch {i}). A run goes on exactly where the "
                    f"order of the data is a function of the epoch (set_epoch, a function of the "
                    f"epoch, a fixed seed) or its iterator can save itself, as tf.data's and "
                    f"grain's can. Otherwise save at the end of epochs only, with "
                    f"every=Every(epochs=1)."
                )


def _form(batch: Any) -> Any:
    """Return what a compiled call of several steps needs its batches to share."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves]
