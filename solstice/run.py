"""A run: what one call of train or test holds, and how it takes steps and calls hooks.

It takes the passes that the trainer asks for; it does not decide which.
"""

import collections
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from solstice.callbacks import (
    Callback,
    CheckpointingCallback,
    ProfilingCallback,
    TriggeredCallback,
)
from solstice.data import as_arrays, batches, length, prefetched
from solstice.errors import EarlyStoppingException
from solstice.experiment import Experiment, check_result
from solstice.flat import Flat
from solstice.metrics import Metrics
from solstice.position import Position, batch_digest
from solstice.progress import Progress, Shown
from solstice.recompile import RecompileGuard
from solstice.sharding import Sharding, is_first_process
from solstice.sharding.arrays import local_tree
from solstice.sharding.batches import place_batch
from solstice.sharding.processes import check_same, in_step
from solstice.signals import Interrupted, Signals, noted
from solstice.step import Step, join_outs, joined
from solstice.tree import describe, digest
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
        # The experiment, whole or taken apart; both while they are the same.
        self._exp: Any = exp
        self._flat: Flat | None = None
        self._type = type(exp)
        # Whether nobody else has its buffers.
        self._owned = donate
        self._sharding = sharding
        # The batches that are placed and not yet noted, as the dataset gave them.
        self._raw: collections.deque[Any] = collections.deque()
        if sharding is not None:
            if jax.process_count() > 1:
                check_same("The experiment", digest(local_tree(exp)))
            self._flat, self._owned = sharding.placed(Flat.of(exp), donate=donate), True
            self._exp = None
        self._with_mask = getattr(exp, "with_mask", None)
        self.position = Position()
        self._steps_per_call = steps_per_call
        self._prefetch = prefetch
        self._recompile: Literal["warn", "error"] = recompile
        self._guards: dict[tuple[str, bool], RecompileGuard] = {}
        self._progress = Progress(progress if is_first_process() else False)
        self._callbacks = list(callbacks or ())
        for callback in self._callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(
                    f"callbacks are expected to be instances of solstice.Callback; one is "
                    f"{describe(callback)}."
                )
        self._checked: set[str] = set()
        # How many steps the last whole pass had, for the bar of a dataset that does not say.
        self._lengths: dict[str, int] = {}
        # A hook that a callback leaves out costs a step nothing, nor does an experiment that no
        # hook looks at.
        self._hooks = {
            name: [c for c in self._callbacks if _defines(c, name)]
            for name in vars(Callback)
            if name.startswith("on_")
        }
        triggered = [c for c in self._callbacks if isinstance(c, TriggeredCallback)]
        self._hooks |= {"attach": triggered, "after_epoch": triggered}
        self._checkpointing = [
            callback
            for callback in self._callbacks
            if saved and isinstance(callback, CheckpointingCallback)
        ]
        for callback in self._callbacks:
            if isinstance(callback, ProfilingCallback):  # a run without one pays nothing
                timed = callback.stopwatch.timed
                self._groups = callback.stopwatch.iterated("input", self._groups)
                self._take_steps = timed("step", self._take_steps)
                self._fire = timed("callbacks", self._fire)
        self._last_batch: Any = None
        self._resumed: dict[str, Any] | None = None
        self._resumed_from: Path | None = None
        self._signals = Signals()
        self._validation: tuple[Watch, Callable[[], None]] | None = None
        self._looked_at = {
            name: any(c.needs_experiment for c in self._hooks[name])
            for name in ("on_step_start", "on_step_end")
        }

    @property
    def exp(self) -> Any:
        """The experiment as it is now, put together only when somebody looks."""
        if self._exp is None:
            assert self._flat is not None
            self._exp = self._flat.whole()
        return self._exp

    def resume(self, state: dict[str, Any], directory: Path) -> None:
        """Go on from the state of a checkpoint."""
        self.position = Position.from_state(state["position"])
        self._resumed, self._resumed_from = state, directory

    def validate_when(self, trigger: Trigger, validate: Callable[[], None]) -> None:
        """Call `validate` after a training step or an epoch at which the trigger fires."""
        self._validation = trigger.start(), validate

    def execute(self, passes: Callable[[], None]) -> None:
        """Call `passes` between the hooks of the run's start and end; an early stop ends it.

        After a SIGTERM or Ctrl-C, the step in hand is finished and the run saved first.
        """
        error: BaseException | None = None
        with noted() as self._signals:
            try:
                self._begin()
                passes()
                self._save_end("finished")
            except EarlyStoppingException as stop:
                _logger.info("The run stopped early: %s.", stop)
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
            self._end(error)
        if error is not None:
            raise error

    def _begin(self) -> None:
        for callback in self._checkpointing:
            callback.begin(self._resumed_from, self._callbacks)
        self._fire("attach", lambda: self.exp, self._steps_per_call)
        self._fire("on_run_start", self.exp)
        self.give_states()

    def give_states(self) -> None:
        """Give the callbacks of a resumed run the states that were saved."""
        if self._resumed is None:
            return
        waiting = list(self._resumed["callbacks"])
        for callback in self._callbacks:
            name = type(callback).__name__
            saved = next((state for state in waiting if state[0] == name), None)
            if saved is not None:
                waiting.remove(saved)
                callback.set_state(saved[1])
        if waiting:
            _logger.warning(
                "The checkpoint has the state of callbacks that this run is without: %s.",
                ", ".join(name for name, _ in waiting),
            )
        if self._validation is not None and self._resumed["validation"] is not None:
            self._validation[0].set_state(self._resumed["validation"])

    def _state(self) -> dict[str, Any]:
        states = [(type(one).__name__, one.get_state()) for one in self._callbacks]
        if self._last_batch is not None:
            self.position.last = batch_digest(self._last_batch)
        return {
            "epoch": self.position.epoch,
            "steps": self.position.steps["train"],
            "position": self.position.to_state(),
            "callbacks": [[name, state] for name, state in states if state is not None],
            "validation": self._validation[0].get_state() if self._validation else None,
        }

    def _save_end(self, how: str) -> None:
        if how == "stopped":
            self.position.next_epoch()
        self.position.ended = how
        self._save_now()

    def _save_now(self) -> None:
        for callback in self._checkpointing:
            callback.save(self.exp, self._state)

    def end_epoch(self, *, last: bool) -> None:
        """Go to the next epoch, once this one's passes are over."""
        self.position.next_epoch()
        epochs = self.position.epoch
        self.position.epoch -= 1  # an early stop ends the epoch that it finds
        if self._validation is not None and self._validation[0].after_epoch(epochs):
            self._validation[1]()
        self._progress.end_epoch()
        if self._hooks["after_epoch"]:
            self._fire("after_epoch", self.exp, epochs)
        self.position.epoch += 1
        for callback in self._checkpointing:
            # The end of the run is saved anyway.
            if callback.due_after_epoch(self.position.epoch) and not last:
                callback.save(self.exp, self._state)

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

        An early stop is raised on, once every callback has had its `on_epoch_end`.
        """
        stop: EarlyStoppingException | None = None
        try:
            self._fire("on_epoch_start", self.exp, epoch, mode)
            self._steps(mode, epoch, dataset, title, last_step, outs)
        except EarlyStoppingException as raised:
            stop = raised
        try:
            self._fire("on_epoch_end", self.exp, epoch, mode)
        except EarlyStoppingException as raised:
            stop = stop or raised
        if stop is not None:
            raise stop

    def check_sequence(self, dataset: Any, mode: str) -> None:
        """Check a list's first batch now; other datasets can only be read when their turn comes."""
        if isinstance(dataset, list | tuple) and mode not in self._checked:
            self._check_batch(as_arrays(dataset[0]), mode)

    def _steps(
        self,
        mode: str,
        epoch: int,
        dataset: Any,
        title: str,
        last_step: int | None,
        outs: list[Any] | None,
    ) -> None:
        where = self.position
        skip = where.trained if mode == "train" else where.validated or 0
        start = where.steps[mode] - skip
        total = length(dataset) or self._lengths.get(mode)
        if last_step is not None and total is not None:
            total = min(total, last_step - start)
        # A checkpoint holds what one process knows, and each has other data.
        alone = jax.process_count() == 1
        tracked = mode == "train" and bool(self._checkpointing) and alone
        states: list[Any] | None = [] if tracked else None
        iterator = where.iterator if skip and mode == "train" else None
        source = batches(dataset, epoch, f"{mode}_ds", start=iterator, states=states)
        self._raw.clear()
        place = None
        if self._sharding is not None:
            place = functools.partial(self._place, mode, tracked)
            if not alone:
                source = in_step(source)
        if skip and iterator is None:
            self._skip(source, skip, mode)
        if mode == "train" and where.validated is not None and self._validation is not None:
            self._validation[1]()  # it was saved in the middle of one
        with (
            self._progress.one_pass(title, mode=mode, total=total, done=skip) as bar,
            prefetched(source, self._prefetch, place) as ready,
        ):
            starts, ends = self._hooks["on_step_start"], self._hooks["on_step_end"]
            between = mode == "train" and (self._validation or self._checkpointing)
            for group in self._groups(ready, mode, last_step):
                batch = group[0] if self._steps_per_call == 1 else group
                if mode not in self._checked and self._sharding is None:
                    self._check_batch(group[0], mode)
                first = where.steps[mode]
                last = first + len(group) - 1
                if starts:
                    self._fire("on_step_start", self._shown("on_step_start"), last, mode, batch)
                out = self._take_steps(mode, group)
                if not alone:
                    out = local_tree(out)
                if first == 0 and isinstance(out, Metrics) and hasattr(out, "check"):
                    out.check()  # pyright: ignore[reportAttributeAccessIssue]
                if outs is not None:
                    outs.append(out)
                where.steps[mode] = last + 1
                bar.update(len(group), out)
                if mode == "train":
                    where.trained += len(group)
                    if states is not None:
                        self._track(group, states)
                elif where.validated is not None:
                    where.validated += len(group)
                if ends:
                    self._fire("on_step_end", out, self._shown("on_step_end"), last, mode, batch)
                if between:
                    self._between_steps()
                self._signals.check()
                if last_step is not None and last + 1 >= last_step:
                    return
        self._lengths[mode] = where.steps[mode] - start

    def _between_steps(self) -> None:
        """Validate and save where it is time to."""
        if self._validation is not None:
            watch, validate = self._validation
            if watch.after_step(self.position.steps["train"]):
                validate()
        steps = self.position.steps["train"]
        for callback in self._checkpointing:
            if callback.due_after_step(steps):
                callback.save(self.exp, self._state)

    def _track(self, group: list[Any], states: list[Any]) -> None:
        """Note what tells these batches from others, for the next checkpoint."""
        where = self.position
        if self._sharding is not None:
            group = [self._raw.popleft() for _ in group]
        if where.trained == len(group):
            where.first = batch_digest(group[0])
        # What a thread has read ahead is not consumed yet.
        where.iterator = states[len(group) - 1]
        del states[: len(group)]
        self._last_batch = group[-1]

    def _place(self, mode: str, tracked: bool, batch: Any) -> Any:
        """Check a batch as the dataset gave it, and put it on the mesh."""
        assert self._sharding is not None
        sizes: list[int | None] = []
        if jax.process_count() > 1:
            batch, sizes = batch
        self._check_batch(batch, mode)
        if tracked:
            self._raw.append(batch)
        return place_batch(self._sharding, batch, self._with_mask, sizes)

    def _skip(self, source: Iterator[Any], count: int, mode: str) -> None:
        """Read what was consumed before a resume, and make sure that it is the same."""
        where = self.position
        for i in range(count):
            batch = next(source, None)
            wanted = {0: where.first, count - 1: where.last}.get(i) if mode == "train" else None
            if batch is None or (wanted is not None and batch_digest(batch) != wanted):
                what = "ends before it" if batch is None else "has another one in its place"
                raise ValueError(
                    f"The run was saved after {count} batches of epoch {where.epoch}; {mode}_ds "
                    f"now {what} (batch {i}). A run goes on exactly where the order of the data is "
                    f"a function of the epoch (set_epoch, a function of the epoch, a fixed seed) "
                    f"or its iterator has get_state and set_state, as grain's has. Otherwise save "
                    f"at the end of epochs only, with every=Every(epochs=1)."
                )

    def _groups(
        self, ready: Iterator[Any], mode: str, last_step: int | None
    ) -> Iterator[list[Any]]:
        """Yield the batches of one call after the other: of one form, and never past the end."""
        if self._steps_per_call == 1:
            for batch in ready:
                yield [batch]
            return
        group: list[Any] = []
        for batch in ready:
            if group and _form(batch) != _form(group[0]):
                yield group
                group = []
            group.append(batch)
            full = len(group) == self._steps_per_call
            if full or self.position.steps[mode] + len(group) == last_step:
                yield group
                group = []
        if group:
            yield group

    def _shown(self, hook: str) -> Any:
        return self.exp if self._looked_at[hook] else None

    def _take_steps(self, mode: str, group: list[Any]) -> Any:
        """Take a step a batch, in one call where that is possible, and return their joined outs."""
        name = "train_step" if mode == "train" else "eval_step"
        step = getattr(self._type, name)
        if isinstance(step, Step) and len(group) in (1, self._steps_per_call):
            return self._take_fused(step, name, mode, group)
        # A call of another number of steps would have to be compiled for this one time.
        every = []
        for batch in group:
            if isinstance(step, Step):
                every.append(self._take_fused(step, name, mode, [batch]))
            else:
                exp, outs = check_result(self.exp, name, getattr(self.exp, name)(batch))
                if exp is not self._exp:
                    self._exp, self._type, self._flat, self._owned = exp, type(exp), None, False
                    if self._sharding is not None:
                        self._flat = self._sharding.placed(Flat.of(exp), donate=True)
                        self._exp = None
                every.append(outs)
        return every[0] if len(every) == 1 else joined(join_outs(every))

    def _take_fused(self, step: Step, name: str, mode: str, group: list[Any]) -> Any:
        if self._flat is None:
            self._flat = Flat.of(self._exp)
        before = self._flat
        guard = self._guards.get((mode, len(group) == 1))
        if guard is None:
            guard = self._guards[mode, len(group) == 1] = RecompileGuard(name, self._recompile)
            guard.first(before, group)
            traces = None
        else:
            traces = step.traces
        if mode == "train":
            if not self._owned:
                before, self._owned = before.copy(), True
            flat, outs = step.fused(before, group)
        else:
            flat, outs = step.pure(before, group)
        if flat is not self._flat:
            self._flat, self._exp = flat, None
            if flat.structure is not before.structure:
                self._type = type(self.exp)
                if self._sharding is not None:
                    self._flat = self._sharding.placed(flat, donate=True)
                    self._exp = None
        if traces is not None and traces != step.traces:
            guard.traced(before, group)
        return outs

    def _check_batch(self, batch: Any, mode: str) -> None:
        self._checked.add(mode)
        if check := getattr(self.exp, "check_batch", None):
            try:
                check(batch)
            except Exception as error:
                error.add_note(f"This is the first batch of {mode}_ds.")
                raise

    def _fire(self, hook: str, *arguments: Any) -> None:
        """Call the hook of every callback, also after one has asked to stop."""
        stop: EarlyStoppingException | None = None
        for callback in self._hooks[hook]:
            try:
                getattr(callback, hook)(*arguments)
            except EarlyStoppingException as raised:
                stop = stop or raised
            except Exception as error:
                error.add_note(f"Raised by {type(callback).__name__}.{hook}.")
                raise
        if stop is not None:
            raise stop

    def _end(self, error: BaseException | None) -> None:
        failures: list[Exception] = []
        for callback in self._hooks["on_run_end"]:
            try:
                callback.on_run_end(self.exp, error)
            except EarlyStoppingException:
                continue  # the run has ended already
            except Exception as failure:  # noqa: BLE001 - raised once all were called
                failure.add_note(f"Raised by {type(callback).__name__}.on_run_end.")
                failures.append(failure)
        if not failures:
            return
        if error is None:
            raise failures[0]
        # The run's own error goes on; what went wrong after it is told beside it.
        error.add_note(f"After that, {type(failures[0]).__name__}: {failures[0]}")
        for failure in failures:
            _logger.error("A callback failed at the end of a failed run.", exc_info=failure)


def _defines(callback: Callback, hook: str) -> bool:
    return hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)


def _form(batch: Any) -> Any:
    """Return what a compiled call of several steps needs its batches to share."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves]
