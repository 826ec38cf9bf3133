"""Profiling: records what the devices did during some training steps, for TensorBoard or xprof."""

import logging
import operator
import os
from collections.abc import Iterable
from typing import Any

import jax

from solstice.callbacks.base import Callback
from solstice.callbacks.stopwatch import Stopwatch, TimeReport
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.experiment import Experiment
from solstice.tree import describe

_logger = logging.getLogger("solstice")


class ProfilingCallback(Callback):
    """Writes a trace of jax's own profiler for some training steps, and tells where the time went.

    Each run of consecutive steps is one trace, which covers these steps to their last device
    computation, and is closed however the run ends. The first step of a run compiles: step 10 to
    12, say, show training. Where one call takes several steps, calls with any of them are traced.

    Args:
        log_dir: Where the traces go; read them with TensorBoard's profile plugin or with xprof.
        steps_to_profile: Indices of training steps; None records the whole run.

    Attributes:
        report: A `TimeReport` of the traced steps of the last run: how much of their time the host
            spent on input, steps and callbacks. The logger "solstice" gets it at the run's end.

    Raises:
        ValueError: There is no step to profile, or a negative one.
        TypeError: `steps_to_profile` is not an iterable of ints.

    >>> import solstice
    >>> callback = solstice.ProfilingCallback("outputs/profile", steps_to_profile=range(10, 13))
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], steps_to_profile: Iterable[int] | None = None
    ) -> None:
        self._log_dir = os.path.abspath(log_dir)
        self._steps: frozenset[int] | None = None
        if steps_to_profile is not None:
            try:
                self._steps = frozenset(map(operator.index, steps_to_profile))
            except TypeError as error:
                raise InvalidTypeError(
                    f"steps_to_profile is expected to hold the indices of training steps, such as "
                    f"range(10, 13); it is {describe(steps_to_profile)}."
                ) from error
            if not self._steps or min(self._steps) < 0:
                raise InvalidValueError(
                    f"steps_to_profile is expected to name at least one step, from 0 on; it is "
                    f"{sorted(self._steps)}."
                )
        self._recording = False
        self._recorded = False
        self._completed = 0
        self.stopwatch = Stopwatch()

    @property
    def report(self) -> TimeReport:
        return self.stopwatch.report()

    def on_run_start(self, exp: Experiment) -> None:
        self._recorded = False
        self._completed = 0
        self.stopwatch.reset()
        if self._steps is None:
            self._start()

    def on_step_start(self, exp: Experiment, global_step: int, mode: str, batch: Any) -> None:
        if mode != "train" or self._recording or self._steps is None:
            return
        if not self._steps.isdisjoint(range(self._completed, global_step + 1)):
            # What was dispatched before must not fall into the trace.
            jax.block_until_ready(jax.tree.leaves(exp))
            self._start()

    def on_step_end(
        self, outs: Any, exp: Experiment, global_step: int, mode: str, batch: Any
    ) -> None:
        if mode != "train":
            return
        before, self._completed = self._completed, global_step + 1
        if self._recording:
            self.stopwatch.steps += self._completed - before
        if self._steps is not None and self._completed not in self._steps:
            self._stop(exp)

    def on_run_end(self, exp: Experiment, error: BaseException | None) -> None:
        self._stop(exp if error is None else None)
        if self._recorded:
            _logger.info("ProfilingCallback: %s.", self.report)
        elif error is None:
            _logger.warning(
                "ProfilingCallback recorded nothing: the run ended before training step %d.",
                min(self._steps or {0}),
            )

    def get_state(self) -> dict[str, int]:
        return {"completed": self._completed}

    def set_state(self, state: dict[str, int]) -> None:
        self._completed = int(state["completed"])

    def _start(self) -> None:
        jax.profiler.start_trace(self._log_dir)
        self._recording = self._recorded = True
        self.stopwatch.start()

    def _stop(self, exp: Experiment | None) -> None:
        if not self._recording:
            return
        self._recording = False
        try:
            self.stopwatch.stop(lambda: jax.block_until_ready(jax.tree.leaves(exp)))
        finally:
            jax.profiler.stop_trace()
