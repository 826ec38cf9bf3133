"""The loop: a run's epochs, passes and steps, with hooks, validation and saving, top to bottom.

The owners of a run's state:

- `position` counts epochs, steps and the batches consumed in a pass. Only this file moves it.
- The `Stepper` has the experiment and takes steps.
- A `Feed` has the batches of one pass, the `Bookmark` the state of the dataset's iterator.
- The `Hooks` have the callbacks, each with its state.
- `Signals` hold the received signal.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import FunctionType
from typing import Any, Literal

from solstice.callbacks.base import Callback
from solstice.callbacks.checkpointing import CheckpointingCallback
from solstice.callbacks.profiling import ProfilingCallback
from solstice.callbacks.stopwatch import Part
from solstice.data.bookmark import Bookmark
from solstice.data.datasets import length, uses_epoch, uses_experiment
from solstice.data.memory import as_arrays
from solstice.data.prefetch import ahead
from solstice.data.reach import leads_to
from solstice.errors import EarlyStoppingException
from solstice.experiment import Experiment
from solstice.metrics.base import Metrics
from solstice.metrics.left_out import LeftOut, told_elsewhere
from solstice.metrics.named import reported
from solstice.saving.checkpoints import Checkpoints
from solstice.sharding.placements import Sharding
from solstice.sharding.processes import check_same, is_first_process
from solstice.training.calls import Calls, StepsPerCall
from solstice.training.feed import Feed
from solstice.training.hooks import Hooks
from solstice.training.position import Position
from solstice.training.progress.bars import Progress, ProgressChoice
from solstice.training.signals import Interrupted, Signals, noted
from solstice.training.stepper import Stepper, trials_of
from solstice.tree.tensors import untrusted
from solstice.triggers import Trigger, Watch

_logger = logging.getLogger("solstice")


class Loop:
    """One call of train or test.

    Args:
        exp: The experiment that it starts with.
        callbacks: The callbacks of the run.
        progress: What the bar shows.
        steps_per_call: How many steps a call of a compiled training step takes.
        prefetch: How many batches are read ahead.
        recompile: What to do if a step is traced again.
        donate: Whether the experiment's own buffers may be donated.
        saved: Whether `CheckpointingCallback`s save the run.
        sharding: Where the experiment and its batches are placed.

    Attributes:
        position: The position in the run.
    """

    def __init__(
        self,
        exp: Experiment,
        callbacks: Iterable[Callback],
        *,
        progress: ProgressChoice = True,
        steps_per_call: StepsPerCall = 1,
        prefetch: int | None = None,
        recompile: Literal["warn", "error"] = "warn",
        donate: bool = False,
        saved: bool = False,
        sharding: Sharding | None = None,
    ) -> None:
        self.position = Position()
        self._calls = Calls(steps_per_call, trials_of(exp) if steps_per_call == "auto" else None)
        self._prefetch, self._sharding = prefetch, sharding
        self._with_mask = exp.with_mask
        # Whether padding would change training; None until a batch shows it.
        self._never_padded: bool | None = None
        self._stepper = Stepper(
            exp,
            fuses=self._calls.fuses,
            recompile=recompile,
            donate=donate,
            sharding=sharding,
        )
        self._hooks = Hooks(callbacks)
        self._progress = Progress(progress if is_first_process() else False)
        self._signals = Signals()
        self._saving = [
            callback
            for callback in self._hooks.callbacks
            if saved and isinstance(callback, CheckpointingCallback)
        ]
        self._watches = [
            callback.stopwatch
            for callback in self._hooks.callbacks
            if isinstance(callback, ProfilingCallback)
        ]
        self._fire = self._timed("callbacks", self._hooks.fire)
        self._bookmark = Bookmark("train_ds", keeps=bool(self._saving))
        # The training pass, which checkpoints ask for its last batch.
        self._training: Feed | None = None
        # The validation pass that was opened to check its first batch, and its epoch.
        self._opened: tuple[int, Feed] | None = None
        # Whether it was checked, and whether the training's batches are used instead.
        self._looked = self._same_data = False
        # The modes in which a step was taken, and those whose first batch is checked.
        self._taken: set[str] = set()
        self._checked: set[str] = set()
        # The number of steps of the last whole pass, for the bar of a dataset without a length.
        self._lengths: dict[str, int] = {}
        # When to validate; None means at each epoch's end.
        self._validation_watch: Watch | None = None
        # The checkpoint's state of the resumed run, and the checkpoints that exist.
        self._resumed: dict[str, Any] | None = None
        self._resumed_from: Checkpoints | None = None
        # Whether other processes made passes before; False after the warning about it.
        self._passes_missing = False
        # The record of a run that never saved, which this one replaces.
        self._never_saved: dict[str, Any] | None = None

    @property
    def exp(self) -> Any:
        """The current experiment."""
        return self._stepper.exp

    # A run, from its start to its end.

    def train(
        self,
        train_ds: Any,
        val_ds: Any,
        num_epochs: int | None,
        num_steps: int | None,
        validate_every: Trigger | None,
    ) -> None:
        """Train for a number of epochs or steps, whichever ends first."""
        where = self.position
        where.ended, where.cut = None, False
        where.num_epochs, where.num_steps = num_epochs, num_steps
        self._train_ds, self._val_ds = train_ds, val_ds
        if num_epochs != 0:
            self._check_sequence(train_ds, "train")
            self._check_sequence(val_ds, "val")
        if validate_every is not None:
            self._validation_watch = validate_every.start()
        self._run(self._epochs, self._finish)

    def test(self, test_ds: Any, outs: list[Any] | None) -> None:
        """Make one pass in mode "test"; append its steps' outs to `outs`."""
        self._check_sequence(test_ds, "test")
        self._run(lambda: self._pass("test", 0, test_ds, "test", outs=outs), _nothing)

    def _run(self, passes: Callable[[], None], finish: Callable[[str], None]) -> None:
        """Make the passes between the hooks of the run's start and end; an early stop ends them.

        Unless it fails, the run ends as "finished" or "stopped".

        After a SIGTERM or Ctrl-C, the current step is finished and the run saved first.
        """
        error: BaseException | None = None
        signalled = False
        with noted() as self._signals, told_elsewhere():
            try:
                self._begin()
                try:
                    passes()
                finally:
                    self._progress.end_epoch()
                finish("finished")
            except EarlyStoppingException as stop:
                _logger.info("The run stopped early: %s.", str(stop).removesuffix("."))
                error = _caught(lambda: finish("stopped"))
            except Interrupted as signal:
                failure = _caught(self._save)
                error, signalled = failure or signal.ending, failure is None
            except BaseException as raised:  # noqa: BLE001 - raised below, after the last hooks
                error = raised
            for callback in self._saving:
                lost = _caught(callback.wait)
                error = error or lost
                if signalled and lost is None and error is not None:
                    self._tell_saved(callback, error)
            if error is None and self._saving:
                # The next reader finds the checkpoints complete.
                error = _caught(lambda: check_same("The number of steps", str(self.position.steps)))
            if error is None and self._signals.received is not None:
                error = Interrupted(self._signals.received).ending
            self._training = None  # keep nothing of the run alive
            self._close_opened()
            failure = self._hooks.end(self.exp, error)
        error = error or failure
        # Checked after signals are restored: one that came while the run ended counts too.
        if self._signals.received is not None and isinstance(error, Exception | None):
            if error is not None:  # an exit would not show it
                _logger.error("The run had failed when a signal came.", exc_info=error)
            raise Interrupted(self._signals.received).ending from error
        if error is not None:
            raise error

    def _begin(self) -> None:
        if self._resumed_from is not None:
            self._progress.say(
                f"Resuming from {self._resumed_from.place} after {self._steps_taken}, in epoch "
                f"{self.position.epoch}."
            )
        for callback in self._saving:
            callback.begin(self._resumed_from, self._hooks.callbacks)
        self._fire("attach", lambda: self.exp, self._calls.most)
        self._fire("on_run_start", self.exp)
        self.give_states()
        if self._resumed is None and self._saving:
            sinks = self._hooks.sinks()
            if self._never_saved is not None and self._never_saved["sinks"] == sinks:
                self._hooks.set_states(self._never_saved["callbacks"])
            about = {"sinks": sinks, "callbacks": self._hooks.get_states()}
            for callback in self._saving:
                callback.note_start(about)

    # Epochs.

    def _epochs(self) -> None:
        where = self.position
        while where.num_epochs is None or where.epoch < where.num_epochs:
            if not where.pass_done:
                self._timed("input", self._look_at_validation)()
                self._pass("train", where.epoch, self._train_ds, self._title)
            if self._val_ds is not None and self._validation_watch is None and not where.val_done:
                self._validate()
            ends = where.num_steps is not None and where.steps["train"] >= where.num_steps
            if where.pass_done:
                self._end_epoch(last=ends or where.epoch + 1 == where.num_epochs)
            if ends:
                return

    @property
    def _title(self) -> str:
        # Its index and that of the last epoch, as in every record.
        last = 0 if self.position.num_epochs is None else self.position.num_epochs - 1
        return f"epoch {self.position.epoch}" + (f"/{last}" if last else "")

    def _validate(self) -> None:
        where = self.position
        where.validated = where.validated or 0
        # An epoch may have several.
        step = f", step {where.steps['train']}" if self._validation_watch is not None else ""
        self._pass("val", where.epoch, self._val_ds, f"{self._title}{step} val")

    def _end_epoch(self, *, last: bool) -> None:
        """Go to the next epoch, once this one's passes are over."""
        where, watch = self.position, self._validation_watch
        epochs = where.epoch + 1
        if watch is None or where.val_done:
            pass  # already validated, if at all
        elif where.validated is not None or watch.after_epoch(epochs):
            self._validate()
        self._progress.end_epoch()
        where.next_epoch()
        stop: EarlyStoppingException | None = None
        if self._hooks.any("after_epoch"):
            try:
                self._fire("after_epoch", self.exp, epochs)
            except EarlyStoppingException as raised:
                stop = raised
        if self._hooks.any("revise"):
            new, asked = self._hooks.revised(self.exp)
            self._go_on_with(new)
            stop = stop or asked
        if stop is not None:
            raise stop
        for callback in self._saving:
            # The end of the run is saved in any case.
            if callback.due_after_epoch(epochs) and not last:
                callback.save(self._stepper.flat, self._state)

    def _finish(self, how: str) -> None:
        """Let callbacks change the final experiment, and save it.

        A run with more epochs or steps continues from the state before that.
        """
        if self._hooks.any("revise"):
            new, _ = self._hooks.revised(self.exp)
            if new is not self.exp:
                self._save_before_the_end(how)
                self._go_on_with(new)
        self._save_end(how)

    def _go_on_with(self, new: Any) -> None:
        if new is not self.exp:
            self._stepper.revise(new)

    # A pass over a dataset, and its steps.

    def _pass(
        self, mode: str, epoch: int, dataset: Any, title: str, *, outs: list[Any] | None = None
    ) -> None:
        """Make one pass over a dataset.

        An early stop is raised again after every callback's `on_epoch_end`. At the end, examples
        that the metrics left out are logged.
        """
        stop: EarlyStoppingException | None = None
        over, left_out = False, LeftOut()
        try:
            self._fire("on_epoch_start", self.exp, epoch, mode)
            over = self._steps(mode, epoch, dataset, title, outs, left_out)
        except EarlyStoppingException as raised:
            stop = raised
        if not over:
            self._save_before_the_end(None if stop is None else "stopped")
        try:
            self._fire("on_epoch_end", self.exp, epoch, mode)
        except EarlyStoppingException as raised:
            stop = stop or raised
        if over:
            self.position.end_pass(mode)
        if is_first_process():
            left_out.tell(f"{title}: ")
        if stop is not None:
            raise stop

    def _steps(
        self,
        mode: str,
        epoch: int,
        dataset: Any,
        title: str,
        outs: list[Any] | None,
        left_out: LeftOut,
    ) -> bool:
        """Take the steps of a pass; return whether it is over."""
        where, hooks, training = self.position, self._hooks, mode == "train"
        feed = self._feed(mode, epoch, dataset)
        start = where.steps[mode] - feed.skipped
        last_step = where.num_steps if training else None
        total = length(dataset) or self._lengths.get(mode)
        if last_step is not None and total is not None:
            total = min(total, last_step - start)
        between = False
        if training:
            self._training = feed
            self._calls.begin(total, gathers=feed.gathers)
            between = bool(self._validation_watch or self._saving)
            if where.validated is not None and self._validation_watch is not None:
                self._validate()  # it was saved in the middle of one
            if between and feed.skipped:
                self._between_steps()  # what a stop had skipped; nothing is due twice
        starts, ends = hooks.any("on_step_start"), hooks.any("on_step_end")
        fire, take = self._fire, self._timed("step", self._stepper.take)
        one_by_one = self._calls.asked == 1
        with (
            self._progress.one_pass(title, mode=mode, total=total, done=feed.skipped) as bar,
            feed.groups(last_step) as ready,
        ):
            for group in self._timed_items("input", ready):
                if feed.partial:
                    self._save_before_the_end()
                shown = self._batches_shown(feed, group) if starts or ends else group
                batch = shown[0] if one_by_one else shown
                first = where.steps[mode]
                last = first + len(group) - 1
                if starts:
                    fire("on_step_start", self._shown("on_step_start"), last, mode, batch)
                if mode in self._taken:
                    out = take(mode, group)
                else:
                    self._taken.add(mode)
                    with bar.compiling() if self._stepper.compiles(mode) else nullcontext():
                        out = take(mode, group)
                if first == 0 and isinstance(out, Metrics):
                    out.check()
                left_out.add(out)
                if outs is not None:
                    outs.append(out)
                where.steps[mode] = last + 1
                bar.update(len(group), out)
                feed.consumed(group)
                if training:
                    where.trained += len(group)
                    if where.trained == len(group) and feed.first_digest is not None:
                        self._note_first(feed)
                    self._calls.taken(len(group), out)
                    where.steps_per_call = self._calls.found
                elif where.validated is not None:
                    where.validated += len(group)
                if ends:
                    fire("on_step_end", out, self._shown("on_step_end"), last, mode, batch)
                if between:
                    self._between_steps()
                if not feed.in_step:  # processes in step agree on a signal over the next batch
                    self._signals.check()
        if feed.over:
            self._lengths[mode] = where.steps[mode] - start
        return feed.over

    def _shown(self, hook: str) -> Any:
        return self.exp if self._hooks.looks(hook) else None

    def _batches_shown(self, feed: Feed, group: list[Any]) -> list[Any]:
        """Return what hooks get for batches; None if the step gathers them and no hook looks."""
        if not feed.gathers:
            return group
        looks = self._hooks.looks_at_batches
        return [feed.opened(batch) if looks else None for batch in group]

    def _between_steps(self) -> None:
        """Validate and save if it is time to."""
        steps = self.position.steps["train"]
        if self._validation_watch is not None and self._validation_watch.after_step(steps):
            self._validate()
        for callback in self._saving:
            if callback.due_after_step(steps) and not self.position.cut:
                callback.save(self._stepper.flat, self._state)

    def _note_first(self, feed: Feed) -> None:
        """Record a training pass's first batch; warn once if the passes' order cannot be restored.

        That matters if another process made the run's first passes.
        """
        where = self.position
        where.first = feed.first_digest
        if feed.keeps_order:
            return
        where.opening = where.opening or where.first
        where.reshuffled = where.reshuffled or where.first != where.opening
        if where.reshuffled and self._passes_missing:
            self._passes_missing = False
            _logger.warning(
                "This run was resumed in epoch %d, and train_ds gives other batches in each pass, "
                "but it does not get the epoch and its iterator has no state. So the passes "
                "differ from those of an uninterrupted run. Make its order a function of the "
                "epoch, with a method set_epoch(epoch) or as a function of the epoch.",
                self._resumed["epoch"] if self._resumed else 0,
            )

    # The first batches, which are checked before a step is taken.

    def _feed(self, mode: str, epoch: int, dataset: Any) -> Feed:
        """Return a pass's batches, with those that were opened for a check."""
        if mode == "val" and self._opened is not None:
            opened_for, feed = self._opened
            if opened_for == epoch or not uses_epoch(dataset):
                self._opened = None
                return feed
            self._close_opened()
        where, training = self.position, mode == "train"
        stepper, calls = self._stepper, self._calls
        return Feed(
            dataset,
            mode,
            epoch,
            skipped=(where.trained if training else where.validated) or 0,
            step=where.steps[mode],
            known=(where.first, where.last) if training else (None, None),
            steps_per_call=lambda: calls.size if training else calls.in_evaluation,
            prefetch=self._prefetch,
            sharding=self._sharding,
            with_mask=self._with_mask,
            check=None if mode in self._checked else self._check_batch,
            bookmark=self._bookmark if training else None,
            tracked=training and bool(self._saving or self._resumed),
            signals=self._signals,
            experiment=lambda: stepper.exp,
            in_turn=ahead(self._prefetch, dataset) > 0 and self._is_told(dataset),
            one_by_one=calls.asked == 1,
            padding=self._pad_training if training else self._with_mask,
        )

    def _pad_training(self, batch: Any, real: Any) -> Any:
        """Return a padded batch with its mask; None if padding would change training."""
        masked = self._with_mask(batch, real)
        if masked is not None and self._never_padded is None:
            self._never_padded = self.exp.learns_from_whole_batches(masked)
        return None if self._never_padded else masked

    def _is_told(self, dataset: Any) -> bool:
        """Return whether a dataset reads one of the callbacks, and so needs the steps so far."""
        return type(dataset) not in (list, tuple) and leads_to(dataset, self._hooks.callbacks)

    def _close_opened(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def _check_sequence(self, dataset: Any, mode: str) -> None:
        """Check a list's first batch now; other datasets are read only when their turn comes."""
        if isinstance(dataset, list | tuple):
            self._check_batch(as_arrays(dataset[0]), mode)

    def _check_batch(self, batch: Any, mode: str) -> None:
        if mode in self._checked:
            return
        self._checked.add(mode)
        self._stepper.check_columns(mode, batch)
        if mode == "train" and self._same_data:
            self._trace_evaluation(batch)
        try:
            self.exp.check_batch(batch)
        except Exception as error:
            error.add_note(f"This is the first batch of {mode}_ds.")
            raise

    def _look_at_validation(self) -> None:
        """Check the first batch of the next validation, once, before a training step.

        The validation then starts with that batch; it is not read again.
        """
        dataset = self._val_ds
        if dataset is None or self._looked or self.position.validated is not None:
            return
        if uses_experiment(dataset) or self._is_told(dataset):
            return  # its batches depend on training
        self._looked = True
        # One object may have only one read position; its batches in training show the same.
        if dataset is self._train_ds and not isinstance(dataset, list | tuple | FunctionType):
            self._same_data = True
            return
        feed = self._feed("val", self.position.epoch, dataset)
        self._opened = self.position.epoch, feed
        batch = feed.first()
        if batch is not None:
            self._trace_evaluation(batch)

    def _trace_evaluation(self, batch: Any) -> None:
        try:
            outs = self._stepper.trace_evaluation(batch)
            if self._hooks.any("check_names") and (names := reported(outs)):
                self._fire("check_names", names)
        except Exception as error:
            error.add_note(
                "This is from the first batch of val_ds, before the first training step."
            )
            raise

    # Saving and resuming.

    def _state(self) -> Callable[[], dict[str, Any]]:
        """Return a function that gives the current state later, since that digests a batch."""
        position = self.position.to_state()
        position["iterator"], position["read"] = self._bookmark.state(self.position.trained)
        feed = self._training
        batch = None if feed is None else feed.last_batch
        watch = self._validation_watch
        state = {
            "epoch": self.position.epoch,
            "steps": self.position.steps["train"],
            "position": position,
            "callbacks": self._hooks.get_states(),
            "validation": None if watch is None else watch.get_state(),
        }

        def complete() -> dict[str, Any]:
            if feed is not None and batch is not None:
                position["last"] = feed.digest(batch)
            return state

        return complete

    def _save(self) -> None:
        for callback in self._saving:
            callback.save(self._stepper.flat, self._state)

    @property
    def _steps_taken(self) -> str:
        steps = self.position.steps["train"]
        return f"{steps} training step{'' if steps == 1 else 's'}"

    def _tell_saved(self, callback: CheckpointingCallback, ending: BaseException) -> None:
        """Report where a run is saved after a signal has ended it, unless that save failed."""
        if not callback.lost:
            steps = self._steps_taken
            self._progress.say(
                f"Interrupted: the run is saved in {callback.directory} after {steps}; "
                f"resume_from= continues from there."
            )
            # Python shows it below the traceback of a KeyboardInterrupt.
            ending.add_note(f"Saved after {steps} in {callback.directory}.")

    def _save_end(self, how: str) -> None:
        self.position.ended = how
        self._save()

    def _save_before_the_end(self, how: str | None = None) -> None:
        """Save the state from which a longer run continues, as if this one had not ended here.

        It is saved before the hooks of the pass's end, since the pass is cut short.
        """
        if not self.position.cut:
            self.position.ended = how
            self._save()
            self.position.cut = True

    def resume(self, state: dict[str, Any], there: Checkpoints) -> None:
        """Continue from the state of a checkpoint."""
        self.position = Position.from_state(state["position"])
        where, keeps = self.position, bool(self._saving)
        self._calls.go_on(where.steps_per_call)
        self._bookmark = Bookmark("train_ds", where.iterator, where.read, keeps=keeps, resumed=True)
        self._resumed, self._resumed_from = state, there
        self._passes_missing = where.epoch > 0

    def replace_run(self, noted: dict[str, Any] | None) -> None:
        """Replace a run that never saved, and its log.

        Args:
            noted: What that run recorded when it started, or None.
        """
        self._never_saved = noted

    def end_again(self) -> None:
        """Return to the end of a finished run, even one killed before its last save."""
        self.give_states()
        assert self._resumed_from is not None
        self._progress.say(
            f"The run in {self._resumed_from.place} is over, after {self._steps_taken}."
        )
        if not self.position.cut and self._hooks.any("revise"):
            self._go_on_with(self._hooks.revised(self.exp)[0])

    def give_states(self) -> None:
        """Give the callbacks of a resumed run the states that were saved."""
        if self._resumed is None:
            return
        self._hooks.set_states(self._resumed["callbacks"])
        if self._validation_watch is not None and self._resumed["validation"] is not None:
            with untrusted("What the checkpoint says about the validation", is_file=False):
                self._validation_watch.set_state(self._resumed["validation"])

    # What a profile times; without a profile it costs nothing.

    def _timed(self, part: Part, function: Callable[..., Any]) -> Any:
        for watch in self._watches:
            function = watch.timed(part, function)
        return function

    def _timed_items(self, part: Part, items: Iterable[Any]) -> Iterable[Any]:
        for watch in self._watches:
            items = watch.timed_items(part, items)
        return items


def _nothing(how: str) -> None:
    return


def _caught(action: Callable[[], None]) -> BaseException | None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - raised by the caller, after the last hooks
        return error
    return None
