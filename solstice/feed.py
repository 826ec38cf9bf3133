"""Feed: one pass over a dataset, as the batches of one call after the other.

It skips what a resumed run had consumed and notes what a checkpoint needs to know of the rest. It
takes no step.
"""

import collections
import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from solstice.bookmark import Bookmark
from solstice.data import (
    ahead,
    batches,
    close,
    on_device,
    prefetched,
    uses_epoch,
    uses_experiment,
)
from solstice.errors import InvalidValueError
from solstice.live import Live
from solstice.position import Position, batch_digest
from solstice.sharding import Sharding
from solstice.sharding.batches import WithMask, place_batch
from solstice.sharding.processes import in_step
from solstice.signals import Signals

_logger = logging.getLogger("solstice")

_NO_BATCH = object()


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
        reshuffles: Called at the start of a pass that does not begin as the first did, where the
            dataset is told no epoch and its iterator has no state.
        signals: What processes in step agree on before each batch.
        experiment: Returns the experiment as it is, for a dataset that makes batches from it; of a
            live one nothing is read ahead, and a call takes one batch.
        in_turn: Whether nothing is read ahead of this dataset either, whatever `prefetch` says.

    Attributes:
        last_batch: The batch consumed last, as the dataset gave it, where that is tracked.
        skipped: How many batches a resumed run had consumed of the pass.
        over: Whether the pass has no batch left, once its groups are read.
        partial: Whether `last_step` made the group read last smaller than others.
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
        reshuffles: Callable[[], None] = lambda: None,
        signals: Signals | None = None,
        experiment: Callable[[], Any] = lambda: None,
        in_turn: bool = False,
    ) -> None:
        self._mode, self._where = mode, where
        live = isinstance(dataset, Live)
        self._steps_per_call = 1 if live else steps_per_call
        self._prefetch = 0 if live or in_turn else ahead(prefetch)
        self._check = check
        self.over = self.partial = False
        self._dataset = dataset
        self._left_alone = not (live or uses_epoch(dataset))
        self._reshuffles = reshuffles
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
        self.in_step = sharding is not None and not alone
        self._place: Callable[..., Any] | None = on_device if self._prefetch else None
        if sharding is not None:
            self._place = functools.partial(_on_mesh, sharding, with_mask)
        if self.in_step:
            self._source = in_step(self._source, signals=signals)
        if self.skipped > begin and not live:
            self._skip(begin, self.skipped, anew=uses_experiment(dataset))

    @contextlib.contextmanager
    def groups(self, last_step: int | None = None) -> Iterator[Iterator[list[Any]]]:
        """Give an iterator over the batches of one call after the other.

        Those of a call are of one form, and none goes past `last_step`.
        """
        place = None if self._place is None else self._placed
        with prefetched(self._source, self._prefetch, place) as ready:
            yield self._grouped(ready, last_step)

    def first(self) -> Any:
        """Return the pass's first batch, checked and placed; the pass still begins with it.

        It is None where another process has none.
        """
        first = next(self._source, None)
        if first is None:
            return None
        self._source = _again(first, self._source)
        return self._placed(first)

    def close(self) -> None:
        """End a pass that was not begun."""
        close(self._source)

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
            self._compare_with_the_first_pass()
        if self._bookmark is not None:
            self._bookmark.consumed(where.trained)
        self.last_batch = group[-1]

    def _compare_with_the_first_pass(self) -> None:
        where = self._where
        if not self._left_alone or (self._bookmark is not None and self._bookmark.keeps_place):
            return
        where.opening = where.opening or where.first
        where.reshuffled = where.reshuffled or where.first != where.opening
        if where.reshuffled:
            self._reshuffles()

    def _grouped(self, ready: Iterator[Any], last_step: int | None) -> Iterator[list[Any]]:
        if self._check is not None and self._place is None:
            for first in itertools.islice(ready, 1):
                self._check(first, self._mode)
                ready = itertools.chain([first], ready)
        steps, mode, group = self._where.steps, self._mode, []
        limit = None if last_step is None else max(last_step - steps[mode], 0)
        for batch in itertools.islice(ready, limit):
            if self._steps_per_call == 1:
                yield [batch]
                continue
            if group and _form(batch) != _form(group[0]):
                yield group
                group = []
            group.append(batch)
            if len(group) == self._steps_per_call:
                yield group
                group = []
        cut = last_step is not None and steps[mode] + len(group) >= last_step
        self.over = not cut or self._ends(ready)
        if group:
            self.partial = not self.over
            yield group

    def _ends(self, ready: Iterator[Any]) -> bool:
        """Say whether a pass has no more batches: one that is read for it is not used."""
        if isinstance(self._dataset, Live):
            return self._where.trained == self._dataset.length
        if isinstance(self._dataset, Iterator):  # which would miss the batch
            return False
        try:
            return next(ready, _NO_BATCH) is _NO_BATCH
        except Exception:  # noqa: BLE001 - the run does not need this batch
            return False

    def _placed(self, batch: Any) -> Any:
        """Check a batch as the dataset gave it, and put it where it goes."""
        batch, *sizes = batch if self.in_step else (batch,)
        if self._check is not None:
            self._check(batch, self._mode)
        if self._tracked:
            self._raw.append(batch)
        return batch if self._place is None else self._place(batch, *sizes)

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


def _on_mesh(
    sharding: Sharding, with_mask: WithMask | None, batch: Any, sizes: Sequence[int | None] = ()
) -> Any:
    return place_batch(sharding, batch, with_mask, sizes)


def _again(first: Any, source: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from source


def _form(batch: Any) -> Any:
    """Return what a compiled call of several steps needs its batches to share."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves]
