"""A run: what one call of train or test holds, and how it takes steps and calls hooks.

It takes the passes that the trainer asks for; it does not decide which.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any, Literal

from solstice.bookmark import Bookmark
from solstice.callbacks import (
    Callback,
    CheckpointingCallback,
    ProfilingCallback,
)
from solstice.data import length, uses_epoch, uses_experiment
from solstice.errors import EarlyStoppingException
from solstice.experiment import Experiment
from solstice.feed import Feed
from solstice.hooks import Hooks
from solstice.memory import as_arrays
from solstice.metrics import Metrics
from solstice.metrics.left_out import LeftOut, told_elsewhere
from solstice.position import Position, batch_digest
from solstice.progress import Progress, Shown
from solstice.saving.checkpoints import Checkpoints
from solstice.sharding import Sharding, is_first_process
from solstice.sharding.processes import check_same
from solstice.signals import Interrupted, Signals, noted
from solstice.stepper import Stepper
from solstice.tree.tensors import untrusted
from solstice.triggers import Trigger, Watch

_logger = logging.getLogger("solstice")


class Run:
    """One call of train or test: the current experiment, the counters and the callbacks.

    Attributes:
        position: Where it stands.
    """

    def __init__(
        self,
        exp: Experiment,
        callbacks: Iterable[Callback] | None,
        *,
        progress: Shown = True,
        steps_per_call: int = 1,
        prefetch: int | None = None,
        recompile: Literal["warn", "error"] = "warn",
        donate: bool = False,
        saved: bool = False,
        sharding: Sharding | None = None,
    ) -> None:
        self._stepper = Stepper(
            exp,
            steps_per_call=steps_per_call,
            recompile=recompile,
            donate=donate,
            sharding=sharding,
        )
        self.position = Position()
        self._steps_per_call = steps_per_call
        self._feeding: dict[str, Any] = {
            "steps_per_call": steps_per_call,
            "prefetch": prefetch,
            "sharding": sharding,
            "with_mask": getattr(exp, "with_mask", None),
        }
        # That of the training pass, which checkpoints ask for its last batch.
        self._training: Feed | None = None
        self._progress = Progress(progress if is_first_process() else False)
        self._hooks = Hooks(callbacks or ())
        self._checked: set[str] = set()
        # The passes that are open for a look at their first batch, with their epochs.
        self._opened: dict[str, tuple[int, Feed]] = {}
        self._looked = self._same_data = False
        # How many steps the last whole pass had, for the bar of a dataset that does not say.
        self._lengths: dict[str, int] = {}
        self._checkpointing = [
            callback
            for callback in self._hooks.callbacks
            if saved and isinstance(callback, CheckpointingCallback)
        ]
        for callback in self._hooks.callbacks:
            if isinstance(callback, ProfilingCallback):  # a run without one pays nothing
                timed = callback.stopwatch.timed
                self._groups = callback.stopwatch.iterated("input", self._groups)
                self.look_at_validation = timed("input", self.look_at_validation)
                self._stepper.take = timed("step", self._stepper.take)
                self._hooks.fire = timed("callbacks", self._hooks.fire)
        self._bookmark = Bookmark("train_ds", keeps=bool(self._checkpointing))
        self._resumed: dict[str, Any] | None = None
        self._never_saved: dict[str, Any] | None = None
        # Whether other processes made passes before, until it was said that this matters.
        self._passes_missing = False
        self._resumed_from: Checkpoints | None = None
        self._signals = Signals()
        self._validation: tuple[Watch, Callable[[], None]] | None = None

    @property
    def exp(self) -> Any:
        """The experiment as it is now."""
        return self._stepper.exp

    def resume(self, state: dict[str, Any], there: Checkpoints) -> None:
        """Go on from the state of a checkpoint, one of those that are there."""
        self.position = Position.from_state(state["position"])
        where, keeps = self.position, bool(self._checkpointing)
        self._bookmark = Bookmark("train_ds", where.iterator, where.read, keeps=keeps, resumed=True)
        self._resumed, self._resumed_from = state, there
        self._passes_missing = where.epoch > 0

    def replace_run(self, noted: dict[str, Any] | None) -> None:
        """Begin anew in the place of a run that never saved, whose log is replaced.

        Args:
            noted: What that run noted when it began; None for none.
        """
        self._never_saved = noted

    def validate_when(self, trigger: Trigger, validate: Callable[[], None]) -> None:
        """Call `validate` after a training step or an epoch at which the trigger fires."""
        self._validation = trigger.start(), validate

    def execute(self, passes: Callable[[], None]) -> None:
        """Call `passes` between the hooks of the run's start and end; an early stop ends it.

        After a SIGTERM or Ctrl-C, the step in hand is finished and the run saved first.
        """
        error: BaseException | None = None
        with noted() as self._signals, told_elsewhere():
            try:
                self._begin()
                passes()
                self._save_end("finished")
            except EarlyStoppingException as stop:
                _logger.info("The run stopped early: %s.", str(stop).removesuffix("."))
                error = self._caught(lambda: self._save_end("stopped"))
            except Interrupted as signal:
                error = self._caught(self._save_now) or signal.ending
            except BaseException as raised:  # noqa: BLE001 - raised below, after the last hooks
                error = raised
            for callback in self._checkpointing:
                lost = self._caught(callback.wait)
                error = error or lost
            if error is None and self._checkpointing:
                # Whoever reads the checkpoints next finds them whole.
                error = self._caught(
                    lambda: check_same("The number of steps", str(self.position.steps))
                )
            if error is None and self._signals.received is not None:
                error = Interrupted(self._signals.received).ending
            self._progress.end_epoch()
            self._training = None  # nothing of the run lives on
            while self._opened:
                self._opened.popitem()[1][1].close()
            failure = self._hooks.end(self.exp, error)
        error = error or failure
        # Asked once none is noted any more: one that came while the run ended counts too.
        if self._signals.received is not None and isinstance(error, Exception | None):
            if error is not None:  # which an exit would not show
                _logger.error("The run had failed when a signal came.", exc_info=error)
            raise Interrupted(self._signals.received).ending from error
        if error is not None:
            raise error

    def _begin(self) -> None:
        for callback in self._checkpointing:
            callback.begin(self._resumed_from, self._hooks.callbacks)
        self._hooks.fire("attach", lambda: self.exp, self._steps_per_call)
        self._hooks.fire("on_run_start", self.exp)
        self.give_states()
        if self._resumed is None and self._checkpointing:
            sinks = self._hooks.sinks()
            if self._never_saved is not None and self._never_saved["sinks"] == sinks:
                self._hooks.set_states(self._never_saved["callbacks"])
            about = {"sinks": sinks, "callbacks": self._hooks.get_states()}
            for callback in self._checkpointing:
                callback.note_start(about)

    def give_states(self) -> None:
        """Give the callbacks of a resumed run the states that were saved."""
        if self._resumed is None:
            return
        self._hooks.set_states(self._resumed["callbacks"])
        if self._validation is not None and self._resumed["validation"] is not None:
            with untrusted("What the checkpoint says of the validation"):
                self._validation[0].set_state(self._resumed["validation"])

    def _state(self) -> Callable[[], dict[str, Any]]:
        """Return what gives the state of now, at leisure."""
        position = self.position.to_state()
        position["iterator"], position["read"] = self._bookmark.state(self.position.trained)
        batch = None if self._training is None else self._training.last_batch
        state = {
            "epoch": self.position.epoch,
            "steps": self.position.steps["train"],
            "position": position,
            "callbacks": self._hooks.get_states(),
            "validation": self._validation[0].get_state() if self._validation else None,
        }

        def complete() -> dict[str, Any]:
            if batch is not None:
                position["last"] = batch_digest(batch)
            return state

        return complete

    def _save_end(self, how: str) -> None:
        self.position.ended = how
        self._save_now()

    def _save_before_the_end(self, how: str | None = None) -> None:
        """Save where a run that is asked for more goes on, as if this one had not ended here.

        That is before the hooks are told of the end of a pass which is not at its end.
        """
        if not self.position.cut:
            self.position.ended = how
            self._save_now()
            self.position.cut = True

    def _save_now(self) -> None:
        for callback in self._checkpointing:
            callback.save(self._stepper.flat, self._state)

    def end_epoch(self, *, last: bool) -> None:
        """Go to the next epoch, once this one's passes are over."""
        where = self.position
        epochs = where.epoch + 1
        if self._validation is not None and not where.val_done:
            watch, validate = self._validation
            if where.validated is not None or watch.after_epoch(epochs):
                validate()
        self._progress.end_epoch()
        where.next_epoch()
        if self._hooks.any("after_epoch"):
            self._hooks.fire("after_epoch", self.exp, epochs)
        for callback in self._checkpointing:
            # The end of the run is saved anyway.
            if callback.due_after_epoch(epochs) and not last:
                callback.save(self._stepper.flat, self._state)

    @staticmethod
    def _caught(action: Callable[[], None]) -> BaseException | None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - raised by the caller, after the last hooks
            return error
        return None

    def one_pass(
        self,
        mode: str,
        epoch: int,
        dataset: Any,
        *,
        title: str,
        last_step: int | None = None,
        outs: list[Any] | None = None,
    ) -> None:
        """Run one pass of steps over the dataset.

        An early stop is raised on, once every callback has had its `on_epoch_end`. Of examples that
        the metrics left out, the log is told at the end.
        """
        stop: EarlyStoppingException | None = None
        over, left_out = False, LeftOut()
        try:
            self._hooks.fire("on_epoch_start", self.exp, epoch, mode)
            over = self._steps(mode, epoch, dataset, title, last_step, outs, left_out)
        except EarlyStoppingException as raised:
            stop = raised
        if not over:
            self._save_before_the_end(None if stop is None else "stopped")
        try:
            self._hooks.fire("on_epoch_end", self.exp, epoch, mode)
        except EarlyStoppingException as raised:
            stop = stop or raised
        if over:
            self.position.end_pass(mode)
        if is_first_process():
            left_out.tell(f"{title}: ")
        if stop is not None:
            raise stop

    def check_sequence(self, dataset: Any, mode: str) -> None:
        """Check a list's first batch now; other datasets can only be read when their turn comes."""
        if isinstance(dataset, list | tuple):
            self._check_batch(as_arrays(dataset[0]), mode)

    def look_at_validation(self, dataset: Any, train_ds: Any) -> None:
        """Look at the first batch of the next validation, once, before a step of training.

        The validation then begins with that batch: it is not read again.
        """
        if self._looked or uses_experiment(dataset):  # its batches come of what training makes
            return
        self._looked = True
        # One object may have one place to read at; its batches in training show as much.
        if dataset is train_ds and not isinstance(dataset, list | tuple | FunctionType):
            self._same_data = True
            return
        feed = self._feed("val", self.position.epoch, dataset)
        self._opened["val"] = self.position.epoch, feed
        batch = feed.first()
        if batch is not None:
            self._trace_evaluation(batch)

    def _trace_evaluation(self, batch: Any) -> None:
        try:
            self._stepper.trace_evaluation(batch)
        except Exception as error:
            error.add_note(
                "This came of the first batch of val_ds, before the first step of training."
            )
            raise

    def _steps(
        self,
        mode: str,
        epoch: int,
        dataset: Any,
        title: str,
        last_step: int | None,
        outs: list[Any] | None,
        left_out: LeftOut,
    ) -> bool:
        """Take the steps of a pass, and return whether it has no more."""
        where = self.position
        feed = self._feed(mode, epoch, dataset)
        start = where.steps[mode] - feed.skipped
        total = length(dataset) or self._lengths.get(mode)
        if last_step is not None and total is not None:
            total = min(total, last_step - start)
        between = False
        if mode == "train":
            self._training = feed
            between = bool(self._validation or self._checkpointing)
            if where.validated is not None and self._validation is not None:
                self._validation[1]()  # it was saved in the middle of one
            if between and feed.skipped:
                self._between_steps()  # what a stop had left out; nothing is due twice
        starts, ends = self._hooks.any("on_step_start"), self._hooks.any("on_step_end")
        fire, shown = self._hooks.fire, self._shown
        with (
            self._progress.one_pass(title, mode=mode, total=total, done=feed.skipped) as bar,
            feed.groups(last_step) as ready,
        ):
            for group in self._groups(ready):
                if feed.partial:
                    self._save_before_the_end()
                batch = group[0] if self._steps_per_call == 1 else group
                first = where.steps[mode]
                last = first + len(group) - 1
                if starts:
                    fire("on_step_start", shown("on_step_start"), last, mode, batch)
                out = self._stepper.take(mode, group)
                if first == 0 and isinstance(out, Metrics) and hasattr(out, "check"):
                    out.check()  # pyright: ignore[reportAttributeAccessIssue]
                left_out.add(out)
                if outs is not None:
                    outs.append(out)
                where.steps[mode] = last + 1
                bar.update(len(group), out)
                feed.consumed(group)
                if ends:
                    fire("on_step_end", out, shown("on_step_end"), last, mode, batch)
                if between:
                    self._between_steps()
                if not feed.in_step:  # processes in step agree on a signal over the next batch
                    self._signals.check()
        if feed.over:
            self._lengths[mode] = where.steps[mode] - start
        return feed.over

    def _say_reshuffled(self) -> None:
        if self._passes_missing:
            self._passes_missing = False
            _logger.warning(
                "This run was resumed in epoch %d, and train_ds gives other batches in each pass, "
                "though nobody tells it the epoch and its iterator has no state. So the passes "
                "are not those of an uninterrupted run. Make its order a function of the epoch, "
                "with a method set_epoch(epoch) or as a function of the epoch.",
                self._resumed["epoch"] if self._resumed else 0,
            )

    def _feed(self, mode: str, epoch: int, dataset: Any) -> Feed:
        """Return a pass's batches, where some were looked at before those."""
        opened_for, feed = self._opened.pop(mode, (epoch, None))
        if feed is not None:
            if opened_for == epoch or not uses_epoch(dataset):
                return feed
            feed.close()
        stepper = self._stepper
        return Feed(
            dataset,
            mode,
            epoch,
            self.position,
            check=None if mode in self._checked else self._check_batch,
            bookmark=self._bookmark if mode == "train" else None,
            tracked=bool(self._checkpointing or self._resumed),
            reshuffles=self._say_reshuffled,
            signals=self._signals,
            experiment=lambda: stepper.exp,
            **self._feeding,
        )

    def _groups(self, ready: Iterator[list[Any]]) -> Iterator[list[Any]]:
        return ready  # which a profile times

    def _between_steps(self) -> None:
        """Validate and save where it is time to."""
        if self._validation is not None:
            watch, validate = self._validation
            if watch.after_step(self.position.steps["train"]):
                validate()
        self._save_if_due()

    def _save_if_due(self) -> None:
        steps = self.position.steps["train"]
        for callback in self._checkpointing:
            if callback.due_after_step(steps) and not self.position.cut:
                callback.save(self._stepper.flat, self._state)

    def _shown(self, hook: str) -> Any:
        return self.exp if self._hooks.looks(hook) else None

    def _check_batch(self, batch: Any, mode: str) -> None:
        if mode in self._checked:
            return
        self._checked.add(mode)
        self._stepper.check_columns(mode, batch)
        if mode == "train" and self._same_data:
            self._trace_evaluation(batch)
        if check := getattr(self.exp, "check_batch", None):
            try:
                check(batch)
            except Exception as error:
                error.add_note(f"This is the first batch of {mode}_ds.")
                raise
