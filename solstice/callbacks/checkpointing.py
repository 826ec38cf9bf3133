"""Checkpointing: when a run is saved, and what happens if a save fails.

The run is saved after all hooks of a step or epoch; a thread writes the files. `solstice.saving`
defines the format of a checkpoint.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import jax

from solstice import arguments
from solstice.callbacks.base import Callback
from solstice.callbacks.best import Best, By
from solstice.errors import DirectoryInUseError, ExistingFileError, InvalidTypeError, SlowWriteError
from solstice.loggers.worker import Worker
from solstice.metrics.directions import Direction
from solstice.saving.arrays import Piece, copies, pieces
from solstice.saving.checkpoints import Checkpoints, describe_leaves
from solstice.saving.claims import Claim
from solstice.sharding.processes import is_first_process, ticket, together
from solstice.tree.flat import Flat
from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import PyTree
from solstice.tree.tensors import packages
from solstice.triggers import Every, Trigger, check_trigger

_logger = logging.getLogger("solstice")


class CheckpointingCallback(Callback):
    """Saves the run, so that `train(..., resume_from=)` continues after any crash, bit for bit.

    It saves the experiment, the position in the run, the state of every callback and, if it has
    one, the state of the dataset's iterator. A copy is made immediately; a thread writes it, with
    digests. A save waits until the previous one is written, so none is skipped. The end of a run is
    always saved, also after an early stop or a signal.

    Each checkpoint is a directory of safetensors files, which any tool opens, and a
    `checkpoint.json`. Complete checkpoints survive SIGKILL and power cuts.

    With several processes, each writes its part of the arrays into a directory that all of them can
    access; the callbacks' state is that of the first process.

    Args:
        directory: Where the checkpoints go: a path, or the URL of a store that fsspec supports,
            such as "s3://bucket/run" (`pip install 'jax-solstice[remote]'`). If it holds
            checkpoints, a run that does not resume from them raises an error. Only one run at a
            time may write there.
        every: The trigger; by default after each epoch and its validation.
        keep: How many of the newest checkpoints to keep; None keeps all.
        best: A metric of the validation: the experiment with the best value is saved immediately
            and kept, and `best.json` names its checkpoint. A NaN is never the best. `"loss"` finds
            `average_loss`. The direction of standard metrics is known
            (`solstice.metrics.direction`); give it for others, as in `best=("score", "max")`. A
            third element names a dataset of the run's `EvaluationCallback`:
            `best=("accuracy", "max", "hard")`. True calls the method `is_better_than(other)` of the
            validation's metrics.
        on_error: What to do if a save fails, for example because the disk is full: "warn" logs it,
            once per save, and training goes on; "raise" ends the run at the next save or at its
            end. The last good checkpoint remains in both cases.

    Attributes:
        directory: The directory's absolute path or URL.
        lost: Whether the last save failed.

    Raises:
        FileExistsError: At the run's start: the directory holds checkpoints, and the run does not
            resume from them.
        DirectoryInUseError: At the run's start: another run writes there.
        ImportError: The packages for the files are not installed.
        ValueError: At the run's start: the directory cannot be written.
        TypeError: At the run's start: the experiment or a callback's state holds something that
            cannot be saved.
        UsageError: `best` names a metric that the validation does not give, that is not a number,
            or whose direction is not known; or it names a dataset that no `EvaluationCallback` of
            the run has; or it is True, and the metrics have no `is_better_than`.

    >>> import solstice
    >>> from solstice.triggers import Every
    >>> callback = solstice.CheckpointingCallback(
    ...     "outputs/run", every=Every(steps=1000) | Every(epochs=1), best="accuracy"
    ... )
    """

    needs_experiment = False
    needs_batch = False

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
        packages()
        self._there = Checkpoints(directory)
        url = "://" in self._there.place
        self.directory: str | Path = self._there.place if url else Path(self._there.place)
        self._claim = Claim(self._there.store)
        self._every = every
        self._keep = keep
        self._best = Best(best)
        self.needs_validation: bool = self._best.needs_validation
        self._on_error = on_error
        self._writer: Worker | None = None
        self._failure: Exception | None = None
        # Whether the last save failed.
        self.lost = False
        # The leaves' paths and descriptions in a checkpoint, and the structure of the experiment.
        self._leaves: tuple[list[str], str] = ([], "")
        self._form: object = None
        self._watch = every.start()

    def check_names(self, names: Mapping[str, Direction | None]) -> None:
        self._best.check_names(names)

    def begin(self, resumed_from: Checkpoints | None, callbacks: Iterable[Callback] = ()) -> None:
        """Start from the beginning or from a directory; the run calls it before any hook.

        Args:
            resumed_from: The checkpoints that the run resumes from.
            callbacks: All callbacks of the run.
        """
        self._watch = self._every.start()
        self._best.begin(callbacks)
        if is_first_process():
            self._claim.take()
        names = self._there.names()
        if names and (resumed_from is None or resumed_from.place != self._there.place):
            raise ExistingFileError(
                f"{self._there.place} holds checkpoints of another run ({names[-1]} is the "
                f"newest), which this one would mix with its own. Pass resume_from= to continue "
                f"that run, or use another directory."
            )
        if resumed_from is not None and set(names) > set(resumed_from.seen):
            raise DirectoryInUseError(
                f"Another run has written {names[-1]} into {self._there.place} since this one "
                f"read the checkpoints there. Start again to resume from it."
            )
        self._best.check()

    def on_run_start(self, exp: PyTree) -> None:
        self._described(Flat.of(exp))  # raises now if something cannot be saved

    def on_run_end(self, exp: PyTree, error: BaseException | None) -> None:
        self._claim.release()

    def on_step_end(
        self, outs: PyTree, exp: PyTree, global_step: int, mode: str, batch: PyTree
    ) -> None:
        if mode == "val":
            self._best.add(outs)

    def on_epoch_end(self, exp: PyTree, epoch: int, mode: str) -> None:
        if mode == "val":
            self._best.end_validation()

    def note_start(self, about: PyTree) -> None:
        """Record what a new run needs if this one ends before its first save.

        Args:
            about: A tree of plain containers.
        """
        if is_first_process() and not self._there.names():
            try:
                self._there.note_start(about)
            except OSError as error:
                self._lost(error)

    def due_after_step(self, steps: int) -> bool:
        """Return whether to save, now that `steps` training steps are completed."""
        self._best.look()
        return self._watch.after_step(steps) or self._best.found

    def due_after_epoch(self, epochs: int) -> bool:
        """Return whether to save, now that `epochs` epochs are completed, validation included."""
        self._best.look()
        return self._watch.after_epoch(epochs) or self._best.found

    def save(self, exp: PyTree, state: Callable[[], Callable[[], PyTree]]) -> None:
        """Save an experiment and the state of its run; all processes call it.

        Args:
            exp: The experiment, whole or flattened; its arrays are copied immediately.
            state: Called immediately; it returns a function that the writing thread calls for the
                state, a tree of plain containers.
        """
        self._claim.check()
        self._finish_save()
        self.lost = False
        self._best.look()
        flat = exp if isinstance(exp, Flat) else Flat.of(exp)
        paths, leaves = self._described(flat)
        mine = copies(pieces(dict(zip(paths, flat.leaves(), strict=True))))
        best = None
        try:
            run = state()
            best = self._best.take()
        except (SlowWriteError, InvalidTypeError) as error:
            run = _raising(error)  # where all processes get the error
        job = _Job(leaves, mine, run, best, ticket())
        if self._writer is None:
            self._writer = Worker("solstice-checkpoint")
        self._writer.put(lambda: self._write(job))

    def wait(self) -> None:
        """Wait until everything is on disk, at a run's end.

        Raises:
            Exception: A save failed, and `on_error` is "raise".
        """
        try:
            self._finish_save()
        finally:
            if self._writer is not None:
                self._writer.stop()
                self._writer = None

    def _finish_save(self) -> None:
        """Wait for the save in progress; raise if it failed and `on_error` is "raise"."""
        if self._writer is not None:
            self._writer.call(lambda: None)
        failure, self._failure = self._failure, None
        if failure is not None and self._on_error == "raise":
            raise failure

    def _described(self, flat: Flat) -> tuple[list[str], str]:
        """Return the leaves' paths and their descriptions in a checkpoint, the same each time."""
        form = flat.structure, [(array.shape, array.dtype) for array in flat.arrays]
        if form != self._form:
            leaves = leaves_by_path(flat.whole())
            self._form = form
            self._leaves = list(leaves), json.dumps(describe_leaves(leaves))
        return self._leaves

    def get_state(self) -> dict[str, PyTree]:
        return {"watch": self._watch.get_state(), "best": self._best.get_state()}

    def set_state(self, state: dict[str, PyTree]) -> None:
        self._watch.set_state(state["watch"])
        self._best.set_state(state["best"])

    def _write(self, job: "_Job") -> None:
        """Write this process's file; the first process completes the checkpoint after all have."""
        try:
            first, label = is_first_process(), f"checkpoint-{job.number}"
            state: PyTree = None

            def begin() -> str:
                nonlocal state
                state = job.state()
                return self._there.begin() if first else ""

            name = together(f"{label}/name", begin)[0]
            files = together(
                f"{label}/files",
                lambda: self._there.write_arrays(
                    name, jax.process_index(), job.pieces, state if first else None
                ),
            )
            if not first:
                return
            self._there.finish(name, job.leaves, files, state)
            if job.best is not None:
                try:
                    self._there.set_best(checkpoint=name, **job.best, **_where(state))
                except OSError as error:  # the others are still deleted
                    self._lost(error)
            # If a run ended within a pass, also keep the checkpoint that a longer run continues
            # from.
            keep = (
                None
                if self._keep is None
                else self._keep + bool(state.get("position", {}).get("cut"))
            )
            self._there.prune(keep)
        except Exception as error:  # noqa: BLE001 - a lost save need not end the run
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        self._failure, self.lost = error, True
        _logger.warning(
            "A checkpoint in %s could not be saved: %s: %s. %s",
            self._there.place,
            type(error).__name__,
            error,
            "Training continues." if self._on_error == "warn" else "The run will end.",
        )


class _Job(NamedTuple):
    """A save to be written."""

    leaves: str
    pieces: list[Piece]
    state: Callable[[], PyTree]
    best: dict[str, object] | None
    number: int


def _raising(error: Exception) -> Callable[[], PyTree]:
    def state() -> NoReturn:
        raise error

    return state


def _where(state: PyTree) -> dict[str, object]:
    return {name: state[name] for name in ("epoch", "steps") if name in state}
