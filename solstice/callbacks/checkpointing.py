"""Checkpointing: when a run is saved, and what becomes of a save that fails.

The run hands over what is to be saved, once all hooks of a step or an epoch were called; a thread
writes it. What a checkpoint looks like is `solstice.checkpoints`' business.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from solstice import arguments
from solstice.background import stand_back
from solstice.callbacks.base import Callback
from solstice.callbacks.best import Best, By
from solstice.checkpoints import Checkpoints
from solstice.errors import ExistingFileError
from solstice.experiment import Experiment
from solstice.flat import Flat
from solstice.parts import Piece, check_orbax, copied, pieces, table
from solstice.sharding import is_first_process
from solstice.sharding.processes import ticket, together
from solstice.tree import leaves_by_path
from solstice.triggers import Every, Trigger, check_trigger

_logger = logging.getLogger("solstice")

# After how many seconds a checkpoint is made to outlive a power cut, not only the process.
_SYNC_EVERY = 1.0


class CheckpointingCallback(Callback):
    """Saves the run, so that `train(..., resume_from=)` goes on after any crash, to the same bits.

    Saved are the experiment, the loop's position, the state of every callback and, where it can
    tell, that of the dataset's iterator. A copy is taken at once; a thread writes it, checks it in
    by digests, and gives it its name only when it is whole. A save that comes while the last one is
    still being written waits for it, so that no trigger goes unheard. The end of a run, an early or
    a signalled one too, is saved as well.

    A kill at any moment leaves the checkpoints that had their names. So does a power cut, but for
    those of the last second: a run that saves more often than that has one a second forced onto the
    disk, and its last one.

    With several processes, each writes its part of the arrays, and the directory is one that all of
    them see; the state of the callbacks is the first one's.

    Args:
        directory: Where the checkpoints go. A run that does not resume refuses one that holds
            any.
        every: The trigger that says when; by default after each epoch, validation included.
        keep: How many of the newest to keep; None keeps all.
        best: A metric of the validation: the experiment with the best value is saved at once and
            kept too, and `best.json` beside it says which it is. A NaN is never the best. `"loss"`
            finds `average_loss`. The metric knows which of its values are better, if it is a
            standard one (`solstice.metrics.direction`); otherwise say it, `best=("score", "max")`.
            With a third element, the name of a dataset, the metric is that of the run's
            `EvaluationCallback` which has it: `best=("accuracy", "max", "hard")`. True asks the
            validation's metrics themselves, by their method `is_better_than(other)`.
        on_error: What a save that fails (no space left, say) does: "warn" logs it, once a save,
            and training goes on; "raise" ends the run at the next save or at its end. The last good
            checkpoint stays in both cases.

    Attributes:
        directory: The directory.

    Raises:
        FileExistsError: At the run's start: the directory holds checkpoints, and the run does not
            resume from them.
        ImportError: At the run's start: Orbax is not installed.
        UsageError: `best` names a metric that the validation does not give, that is no number, or
            of which nobody knows which values are better; or a dataset that no
            `EvaluationCallback` of the run has; or it is True, and the metrics have no
            `is_better_than`.

    >>> import solstice
    >>> from solstice.triggers import Every
    >>> callback = solstice.CheckpointingCallback(
    ...     "outputs/run", every=Every(steps=1000) | Every(epochs=1), best="accuracy"
    ... )
    """

    needs_experiment = False

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: Trigger = Every(epochs=1),  # noqa: B008 - it is immutable
        keep: int | None = 3,
        best: By = None,
        on_error: Literal["raise", "warn"] = "warn",
    ) -> None:
        check_trigger(every, "every")
        if keep is not None:
            keep = arguments.count(keep, "keep")
        arguments.choice(on_error, "on_error", ("raise", "warn"))
        self._store = Checkpoints(directory)
        self.directory = self._store.directory
        self._every = every
        self._keep = self._kept = keep
        self._best = Best(best)
        self.needs_validation = self._best.needs_validation
        self._on_error = on_error
        self._writer: ThreadPoolExecutor | None = None
        self._saving: Future[None] | None = None
        self._failure: Exception | None = None
        # What a checkpoint says of the leaves, and of what form of experiment.
        self._leaves = ""
        self._form: Any = None
        # When a checkpoint was last known to be on the disk, and whether the newest is not yet.
        self._synced = -math.inf
        self._unsynced = False
        self.begin(resumed_from=None)

    def begin(self, resumed_from: Path | None, callbacks: Iterable[Callback] = ()) -> None:
        """Start anew, or from a directory; the run calls it before `on_run_start`.

        Args:
            resumed_from: The directory.
            callbacks: All callbacks of the run.
        """
        self._resumed_from = resumed_from
        self._watch = self._every.start()
        self._best.begin(callbacks)

    def on_run_start(self, exp: Experiment) -> None:
        check_orbax()
        names = self._store.names()
        resumed_from = self._resumed_from and self._resumed_from.resolve()
        if names and resumed_from != self._store.directory.resolve():
            raise ExistingFileError(
                f"{self._store.directory} holds checkpoints of another run ({names[-1]} is the "
                f"newest), which this one would mix with its own. Pass resume_from= to go on with "
                f"that run, or another directory."
            )
        self._best.check()

    def on_step_end(
        self, outs: Any, exp: Experiment | None, global_step: int, mode: str, batch: Any
    ) -> None:
        if mode == "val":
            self._best.add(outs)

    def on_epoch_end(self, exp: Experiment, epoch: int, mode: str) -> None:
        if mode == "val":
            self._best.end_validation()

    def note_start(self, about: Any) -> None:
        """Note what a run has to know that begins anew where this one ended before its first save.

        Args:
            about: A tree of plain containers.
        """
        if not is_first_process() or self._store.names():
            return
        try:
            self._store.note_start(about)
        except OSError as error:
            self._lost(error)

    def due_after_step(self, steps: int) -> bool:
        """Say whether to save, now that `steps` training steps are completed."""
        self._best.look()
        return self._watch.after_step(steps) or self._best.found

    def due_after_epoch(self, epochs: int) -> bool:
        """Say whether to save, now that `epochs` epochs are completed, validation included."""
        self._best.look()
        return self._watch.after_epoch(epochs) or self._best.found

    def save(self, exp: Any, state: Callable[[], Callable[[], Any]]) -> None:
        """Save an experiment and the state of its run; all processes call it.

        Args:
            exp: The experiment, whole or taken apart; its arrays are copied at once.
            state: Called at once; what it returns is called by the thread that writes, for the
                state: a tree of plain containers.
        """
        self._finish_save()
        self._best.look()
        flat = exp if isinstance(exp, Flat) else Flat.of(exp)
        mine = copied(pieces(flat.leaves()))
        job = _Job(self._table(flat), mine, state(), self._best.take(), ticket())
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "solstice-checkpoint", stand_back)
        self._saving = self._writer.submit(self._write, job)

    def wait(self) -> None:
        """Wait until all that was saved is on the disk, at a run's end.

        Raises:
            Exception: A save failed, and failures are to be raised.
        """
        if self._writer is not None:
            self._writer.submit(self._tidy)
            self._writer.shutdown()
            self._writer = None
        self._finish_save()

    def _finish_save(self) -> None:
        """Wait for the save that is being written, and raise if it failed and is to."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None
        failure, self._failure = self._failure, None
        if failure is not None and self._on_error == "raise":
            raise failure

    def _table(self, flat: Flat) -> str:
        """Return what a checkpoint says of the experiment's leaves: the same, save after save."""
        form = flat.structure, [(array.shape, array.dtype) for array in flat.arrays]
        if form != self._form:
            self._form, self._leaves = form, json.dumps(table(leaves_by_path(flat.whole())))
        return self._leaves

    def get_state(self) -> dict[str, Any]:
        return {"watch": self._watch.get_state(), "best": self._best.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self._watch.set_state(state["watch"])
        self._best.set_state(state["best"])

    def _write(self, job: "_Job") -> None:
        try:
            state = job.state()
            alone = jax.process_count() == 1
            name = (self._write_alone if alone else self._write_together)(job, state)
            if not is_first_process():
                return
            if job.best is not None:
                self._store.set_best(checkpoint=name, **job.best, **_where(state))
            # Beside a run that ended within a pass stays what a longer one goes on from.
            if self._keep is not None:
                self._kept = self._keep + bool(state["position"]["cut"])
            self._store.prune(self._kept)
        except Exception as error:  # noqa: BLE001 - a lost save need not end the run
            self._lost(error)

    def _write_alone(self, job: "_Job", state: Any) -> str:
        # A disk takes much longer to have written than the system to have taken what is to be
        # written. Nothing else is lost by a kill, so runs that save often wait for it now and then.
        sync = time.monotonic() - self._synced >= _SYNC_EVERY
        name = self._store.begin()
        index = self._store.write_part(name, 0, job.pieces())
        self._store.finish(name, job.leaves, [index], state, sync=sync)
        if sync:
            self._synced = time.monotonic()
        self._unsynced = not sync
        return name

    def _write_together(self, job: "_Job", state: Any) -> str:
        """Write this process's part; the first one makes the checkpoint whole once all have."""
        first = is_first_process()
        label = f"checkpoint-{job.number}"
        name = together(f"{label}/name", lambda: self._store.begin() if first else "")[0]
        indices = together(
            f"{label}/parts",
            lambda: self._store.write_part(name, jax.process_index(), job.pieces(), sync=True),
        )
        if first:
            self._store.finish(name, job.leaves, indices, state)
        return name

    def _tidy(self) -> None:
        """Have the last checkpoint on the disk, and delete what was kept until then."""
        try:
            if self._unsynced:
                self._unsynced = False
                self._store.sync()
                self._store.prune(self._kept)
        except Exception as error:  # noqa: BLE001 - as above
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        self._failure = error
        _logger.warning(
            "A checkpoint in %s could not be saved: %s: %s. %s",
            self._store.directory,
            type(error).__name__,
            error,
            "Training goes on." if self._on_error == "warn" else "The run will end.",
        )


class _Job(NamedTuple):
    """A save that is to be written."""

    leaves: str
    pieces: Callable[[], list[Piece]]
    state: Callable[[], Any]
    best: dict[str, Any] | None
    number: int


def _where(state: Any) -> dict[str, Any]:
    return {name: state[name] for name in ("epoch", "steps") if name in state}
