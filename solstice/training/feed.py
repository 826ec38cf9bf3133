"""Feed: one pass over a dataset, as groups of batches, one group per call.

It skips the batches that a resumed run had consumed, and records what a checkpoint needs.
"""

import collections
import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solstice.data.arrays import Arrays
from solstice.data.bookmark import Bookmark
from solstice.data.datasets import batches, uses_epoch, uses_experiment
from solstice.data.gathered import opened
from solstice.data.live import Live
from solstice.data.prefetch import ahead, close, on_device, prefetched
from solstice.errors import InvalidValueError
from solstice.sharding.batches import WithMask, place_batch
from solstice.sharding.in_step import in_step
from solstice.sharding.placements import Sharding
from solstice.training.position import batch_digest
from solstice.training.signals import Signals

_logger = logging.getLogger("solstice")

_NO_BATCH = object()


class Feed:
    """The batches of one pass, from the current position on.

    Args:
        dataset: What is read.
        mode: "train", "val" or "test".
        epoch: The epoch's index.
        skipped: How many batches a resumed run had consumed of the pass.
        step: The index of the next step, counted in its mode.
        known: The digests of the first and the last batch consumed before the resume; None if not
            known.
        steps_per_call: Returns how many batches the next call takes.
        prefetch: How many batches are read ahead.
        sharding: Where the batches are placed.
        with_mask: Adds a mask to a batch; returns None if the experiment takes no mask.
        check: Called with the first batch and the mode.
        bookmark: Keeps the state of the dataset's iterator.
        tracked: Whether checkpoints will ask for the position in the pass.
        signals: The signals that processes in step agree on before each batch.
        experiment: Returns the current experiment, for a dataset that makes batches from it. A live
            dataset is not read ahead, and a call takes one batch of it.
        in_turn: Whether this dataset is not prefetched either, regardless of `prefetch`.
        one_by_one: Whether a call takes one batch, which is then placed on the device while reading
            ahead. The batches of a longer call are stacked on the host and placed together.
        padding: Adds the mask of padding to a batch of `Arrays`; see there.

    Attributes:
        last_batch: The batch consumed last, as the dataset gave it, if tracked.
        first_digest: The digest of the pass's first batch, once it is consumed, if tracked.
        skipped: As above.
        over: Whether the pass has no batch left after the groups already read.
        partial: Whether `last_step` cut the group read last short.
        gathers: Whether its batches are gathered in the step; hooks then get what `opened` returns.
        in_step: Whether processes wait for each other before each batch.

    Raises:
        ValueError: The dataset does not repeat what was consumed before a resume.

    >>> feed = Feed([1.0, 2.0, 3.0], "train", 0, steps_per_call=lambda: 2)
    >>> with feed.groups() as groups:
    ...     list(groups)
    [[1.0, 2.0], [3.0]]
    """

    def __init__(
        self,
        dataset: Any,
        mode: str,
        epoch: int,
        *,
        skipped: int = 0,
        step: int = 0,
        known: tuple[str | None, str | None] = (None, None),
        steps_per_call: Callable[[], int] = lambda: 1,
        prefetch: int | None = 0,
        sharding: Sharding | None = None,
        with_mask: WithMask = lambda batch, real: None,
        check: Callable[[Any, str], None] | None = None,
        bookmark: Bookmark | None = None,
        tracked: bool = False,
        signals: Signals | None = None,
        experiment: Callable[[], Any] = lambda: None,
        in_turn: bool = False,
        one_by_one: bool = True,
        padding: WithMask | None = None,
    ) -> None:
        self._mode, self._epoch, self._step = mode, epoch, step
        self.skipped = self._consumed = skipped
        live = isinstance(dataset, Live)
        self._steps_per_call = (lambda: 1) if live else steps_per_call
        whole = dataset if isinstance(dataset, Arrays) else None
        gathered = whole is not None and whole.is_on_device
        self._prefetch = 0 if live or in_turn or gathered else ahead(prefetch, dataset)
        self._with_mask = with_mask
        self.gathers = gathered
        self._check = check
        self.over = self.partial = False
        self._dataset = dataset
        self._left_alone = not (live or uses_epoch(dataset))
        self.last_batch: Any = None
        self.first_digest: str | None = None
        alone = jax.process_count() == 1
        # A checkpoint holds the state of one process, and each process has other data.
        self._tracked = tracked and alone
        # The batches that are placed but not yet consumed, as the dataset gave them.
        self._raw: collections.deque[Any] = collections.deque()
        marked = alone and bookmark is not None and bookmark.needed and not live and whole is None
        self._bookmark = bookmark if marked else None
        begin = 0 if self._bookmark is None else self._bookmark.begin(self.skipped)
        self._source = batches(
            dataset,
            epoch,
            f"{mode}_ds",
            self._bookmark,
            experiment=experiment,
            step=step,
            made=self.skipped,
            with_mask=padding,
        )
        if whole is not None and gathered:
            check_on_one_device(whole, sharding, f"{mode}_ds")
            self._source = whole.gathered(epoch, self.skipped, padding)
        self.in_step = sharding is not None and not alone
        self._place: Callable[..., Any] | None = None
        if self._prefetch and one_by_one:
            self._place = on_device
        if sharding is not None and not gathered:
            self._place = functools.partial(_on_mesh, sharding, with_mask)
        if self.in_step:
            self._source = in_step(self._source, signals=signals)
        if self.skipped > begin and not live:
            read = None if whole is None else whole.gathered if gathered else whole.batches
            at = None if read is None else lambda i: next(read(epoch, i, padding), None)
            self._skip(begin, known, anew=uses_experiment(dataset), at=at)

    @contextlib.contextmanager
    def groups(self, last_step: int | None = None) -> Iterator[Iterator[list[Any]]]:
        """Return an iterator over groups of batches, one group per call.

        The batches of a call have the same form, and none goes past `last_step`.
        """
        place = None if self._place is None else self._placed
        with prefetched(self._source, self._prefetch, place) as ready:
            yield self._grouped(ready, last_step)

    def first(self) -> Any:
        """Return the pass's first batch, checked and placed; the pass still starts with it.

        It is None if another process has none.
        """
        first = next(self._source, None)
        if first is None:
            return None
        self._source = _again(first, self._source)
        return self._placed(first)

    def opened(self, batch: Any) -> Any:
        """Return the batch that hooks see, if the step gathers it itself."""
        return opened(batch, self._with_mask)

    def close(self) -> None:
        """Close a pass that never started."""
        close(self._source)

    def digest(self, batch: Any) -> str | None:
        """Return what identifies a batch; it is the same for `Arrays` on the device."""
        if isinstance(self._dataset, Arrays):
            batch = jax.tree.map(_as_jax_has_it, self.opened(batch))
        return batch_digest(batch)

    @property
    def keeps_order(self) -> bool:
        """Whether a resumed run can restore the pass's order, by epoch or iterator state."""
        keeps_place = self._bookmark is not None and self._bookmark.keeps_place
        return not self._left_alone or keeps_place

    def consumed(self, group: list[Any]) -> None:
        """Record that the steps of these batches are taken."""
        self._consumed += len(group)
        if not self._tracked:
            return
        # What identifies these batches, for the next checkpoint.
        if self._raw:
            group = [self._raw.popleft() for _ in group]
        if self._consumed == len(group):
            self.first_digest = self.digest(group[0])
        if self._bookmark is not None:
            self._bookmark.consumed(self._consumed)
        self.last_batch = group[-1]

    def _grouped(self, ready: Iterator[Any], last_step: int | None) -> Iterator[list[Any]]:
        if self._check is not None and self._place is None:
            for first in itertools.islice(ready, 1):
                self._check(self.opened(first), self._mode)
                ready = itertools.chain([first], ready)
        group: list[Any] = []
        limit = None if last_step is None else max(last_step - self._step, 0)
        for batch in itertools.islice(ready, limit):
            if not group and self._steps_per_call() == 1:
                yield [batch]
                continue
            if group and _form(batch) != _form(group[0]):
                yield group
                group = []
            group.append(batch)
            if len(group) == self._steps_per_call():
                yield group
                group = []
        taken = self._consumed - self.skipped + len(group)
        cut = limit is not None and taken >= limit
        self.over = not cut or self._ends(ready)
        if group:
            self.partial = not self.over
            yield group

    def _ends(self, ready: Iterator[Any]) -> bool:
        """Return whether a pass has no more batches; this may read one, which is not used."""
        if isinstance(self._dataset, Live):
            return self._consumed == self._dataset.length
        if isinstance(self._dataset, Iterator):  # which would miss the batch
            return False
        try:
            return next(ready, _NO_BATCH) is _NO_BATCH
        except Exception:  # noqa: BLE001 - the run does not need this batch
            return False

    def _placed(self, batch: Any) -> Any:
        """Check a batch as the dataset gave it, and place it."""
        batch, *sizes = batch if self.in_step else (batch,)
        if self._check is not None:
            self._check(self.opened(batch), self._mode)
        if self._tracked:
            self._raw.append(batch)
        return batch if self._place is None else self._place(batch, *sizes)

    def _skip(
        self,
        begin: int,
        known: tuple[str | None, str | None],
        *,
        anew: bool,
        at: Callable[[int], Any] | None,
    ) -> None:
        """Read what was consumed before a resume, and check that it is the same.

        If `at` finds a batch by its index, only the batches with known digests are read.
        """
        count = self.skipped
        wanted = {0: known[0]} | ({count - 1: known[1]} if known[1] is not None else {})
        if anew:
            _logger.warning(
                "%s_ds makes a pass's batches from the experiment at its start. The run continues "
                "after batch %d of a pass, whose other batches are now made from the experiment "
                "of the checkpoint: the run differs from an uninterrupted one. Save "
                "with every=Every(epochs=1), or make each batch with solstice.data.live.",
                self._mode,
                count,
            )
        for i in range(begin, count) if at is None else wanted:
            batch = next(self._source, None) if at is None else at(i)
            if anew:
                continue
            digest = wanted.get(i)
            if batch is None or (digest is not None and self.digest(batch) != digest):
                what = "ends before it" if batch is None else "has a different one"
                raise InvalidValueError(
                    f"The run was saved after {count} batches of epoch {self._epoch}; "
                    f"{self._mode}_ds now {what} (batch {i}). A run resumes exactly if the "
                    f"order of the data is a function of the epoch (set_epoch, a function of the "
                    f"epoch, a fixed seed) or its iterator can save itself, as tf.data's and "
                    f"grain's can. Otherwise save at the end of epochs only, with "
                    f"every=Every(epochs=1)."
                )


def _on_mesh(
    sharding: Sharding, with_mask: WithMask, batch: Any, sizes: Sequence[int | None] = ()
) -> Any:
    return place_batch(sharding, batch, with_mask, sizes)


def check_on_one_device(data: Arrays, sharding: Sharding | None, name: str) -> None:
    """Raise if a run is on other devices than its data."""
    if sharding is not None and {*sharding.mesh.devices.flat} != data.devices:
        raise InvalidValueError(
            f"{name} is on the device {', '.join(map(str, data.devices))}, and sharding= puts the "
            f"run on {', '.join(map(str, sharding.mesh.devices.flat))}. Leave out on_device(): "
            f"each batch is then split over the devices."
        )


def _as_jax_has_it(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # a map may add them
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))


def _again(first: Any, source: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from source


def _form(batch: Any) -> Any:
    """Return what the batches of one compiled call must have in common."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves]
