"""Profiling: traces of the devices during some steps, for TensorBoard or xprof."""

import logging
import os
from collections.abc import Iterable

import jax

from solstice import arguments
from solstice.arguments import describe
from solstice.callbacks.base import Callback
from solstice.callbacks.stopwatch import Stopwatch, TimeReport
from solstice.errors import InvalidValueError
from solstice.experiment import Experiment
from solstice.tree.pytree import PyTree

_logger = logging.getLogger("solstice")


class ProfilingCallback(Callback):
    """Writes traces of jax's profiler for some steps, and reports how the time was spent.

    Steps are counted in each mode: training, validation and `test`. Consecutive steps are one
    trace, which covers all their device computations and is closed however the run ends. The first
    step of a run compiles, so choose later ones, such as 10 to 12. If one call takes several steps,
    calls with any of them are traced.

    Args:
        log_dir: Where the traces go; read them with TensorBoard's profile plugin or with xprof. The
            trace of some steps is in a directory named after the first, such as `log_dir/train_10`.
        steps_to_profile: Indices of steps, counted over the run in each mode; None records the
            whole run.

    Attributes:
        report: A `TimeReport` of the traced steps of the last run: how much time the host spent on
            input, steps and callbacks. It is logged to "solstice" at the run's end.

    Raises:
        ValueError: There is no step to profile, or an index is negative.
        TypeError: `steps_to_profile` is not an iterable of ints.

    >>> import solstice
    >>> callback = solstice.ProfilingCallback("outputs/profile", steps_to_profile=range(10, 13))
    """

    needs_batch = False

    def __init__(
        self, log_dir: str | os.PathLike[str], steps_to_profile: Iterable[int] | None = None
    ) -> None:
        self._log_dir = str(arguments.path(log_dir, "log_dir"))
        self._steps: frozenset[int] | None = None
        if steps_to_profile is not None:
            what = "the indices of steps, such as range(10, 13)"
            several = arguments.several(steps_to_profile, "steps_to_profile", what)
            self._steps = frozenset(arguments.counts(several, "steps_to_profile", least=0))
            if not self._steps:
                raise InvalidValueError(
                    f"steps_to_profile is expected to name at least one step, from 0 on; it is "
                    f"{describe(steps_to_profile)}."
                )
        # The mode whose steps are being recorded; None for a whole run.
        self._recording = False
        self._mode: str | None = None
        self._recorded = False
        self._completed: dict[str, int] = {}
        self.stopwatch: Stopwatch = Stopwatch()

    @property
    def report(self) -> TimeReport:
        return self.stopwatch.report()

    def on_run_start(self, exp: PyTree) -> None:
        self._recorded = False
        self._completed = {}
        self.stopwatch.reset()
        if self._steps is None:
            self._start(None, self._log_dir)

    def on_epoch_start(self, exp: PyTree, epoch: int, mode: str) -> None:
        if self._mode not in (None, mode):
            self._stop(exp)

    def on_step_start(self, exp: PyTree, global_step: int, mode: str, batch: PyTree) -> None:
        if self._recording or self._steps is None:
            return
        first = self._completed.get(mode, 0)
        if not self._steps.isdisjoint(range(first, global_step + 1)):
            # Steps dispatched before must not be in the trace.
            jax.block_until_ready(jax.tree.leaves(exp))
            # jax names a trace after the current second, so two in the same second would collide.
            self._start(mode, os.path.join(self._log_dir, f"{mode}_{first}"))

    def on_step_end(
        self, outs: PyTree, exp: PyTree, global_step: int, mode: str, batch: PyTree
    ) -> None:
        before, completed = self._completed.get(mode, 0), global_step + 1
        self._completed[mode] = completed
        if self._recording and mode != "val":
            self.stopwatch.steps += completed - before
        if self._steps is not None and completed not in self._steps:
            self._stop(exp)

    def on_epoch_end(self, exp: PyTree, epoch: int, mode: str) -> None:
        if mode == self._mode != "train":  # training steps may go on in the next epoch
            self._stop(exp)

    def on_run_end(self, exp: PyTree, error: BaseException | None) -> None:
        self._stop(exp if error is None else None)
        if self._recorded:
            _logger.info("ProfilingCallback: %s.", self.report)
        elif error is None:
            _logger.warning(
                "ProfilingCallback recorded nothing: the run ended before %s %d.",
                "training step" if "train" in self._completed else "step",
                min(self._steps or {0}),
            )

    def get_state(self) -> dict[str, int]:
        return dict(self._completed)

    def set_state(self, state: dict[str, int]) -> None:
        self._completed = {mode: int(steps) for mode, steps in state.items()}

    def _start(self, mode: str | None, directory: str) -> None:
        jax.profiler.start_trace(directory)
        self._mode, self._recording, self._recorded = mode, True, True
        self.stopwatch.start()

    def _stop(self, exp: Experiment | None) -> None:
        if not self._recording:
            return
        self._recording, self._mode = False, None
        try:
            self.stopwatch.stop(lambda: jax.block_until_ready(jax.tree.leaves(exp)))
        finally:
            jax.profiler.stop_trace()
