"""Trial: the fastest number of steps per compiled call, found by timing calls.

All timed calls are real training steps. If a run ends before the trial does, the next run of the
same kind continues it.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import jax

_logger = logging.getLogger("solstice")

# What is tried, in this order, until one takes more than _LOSS of the best time before it. A larger
# number is chosen if it takes at most _GAIN of the time of a smaller one.
CANDIDATES = (1, 4, 16, 64)
_LOSS, _GAIN = 1.1, 0.95
# A candidate gets this many windows; the fastest counts. A window has at least this many steps and
# seconds, since shorter ones say little on a busy machine; at most a quarter of a pass.
_WINDOWS, _STEPS, _SECONDS = 3, 32, 0.01
# Limits in seconds: candidates that would probably take longer to compile are not tried, nor are
# any if a step is so slow that the cost of a call does not matter.
_LONGEST_COMPILATION, _LONG_STEP = 20.0, 0.02


class Trial:
    """The measurements of the candidates for one kind of pass.

    Args:
        total: The steps of a pass, if known.
        clock: Returns the time in seconds.

    Attributes:
        size: The candidate: how many steps the next call takes, if the pass has as many.
        found: The fastest; None before it is known.

    >>> trial = Trial(1000)
    >>> trial.size, trial.found
    (1, None)
    """

    def __init__(self, total: int | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.size = 1
        self.found: int | None = None
        self._total, self._clock = total, clock
        # Whether the candidate, if it is not 1, was not compiled when this pass began.
        self._untried = False
        # The steps of this pass so far, and of the longest pass before it.
        self._in_pass, self._longest = 0, 0
        # When the calls so far were done, where that is known, and the steps taken since.
        self._since: float | None = None
        self._steps = 0
        # Of the candidate: whether it is compiled, in which time, how many steps take long enough
        # to be timed, and its seconds per step.
        self._compiled, self._compilation, self._long = False, 0.0, 0
        self._windows: list[float] = []
        # The seconds per step of each tried candidate.
        self._seconds: dict[int, float] = {}

    def begin(self) -> None:
        """Record that a pass begins."""
        self._longest, self._in_pass = max(self._longest, self._in_pass), 0
        if self._untried and not self._compiled:
            self._settle()  # the pass before had fewer steps than a call
        self._untried = not self._compiled and self.size > 1
        self._since, self._steps = self._clock(), 0

    def taken(self, steps: int, outs: Any) -> None:
        """Record that a call of this many steps was made."""
        if self.found is not None:
            return
        self._in_pass += steps
        if steps != self.size:
            self._since = None
            return
        self._steps += steps
        if self._since is not None and self._compiled and self._steps < self._window:
            return
        jax.block_until_ready(outs)
        now = self._clock()
        if self._since is not None:
            self._timed(now - self._since)
        self._since, self._steps = now, 0
        if len(self._windows) == _WINDOWS:
            self._judge(min(self._windows))

    def _timed(self, seconds: float) -> None:
        if not self._compiled:
            self._compiled, self._compilation = True, seconds
        elif not self._long and seconds < _SECONDS:
            self._long = math.ceil(_SECONDS * self._steps / seconds) if seconds else _STEPS
        else:
            self._windows.append(seconds / self._steps)

    @property
    def _window(self) -> int:
        steps, total = max(_STEPS, self._long), self._total or self._longest
        return max(1, min(steps, total // 4)) if total else steps

    def _judge(self, seconds: float) -> None:
        """Continue with the next candidate, unless this one is slower than an earlier one."""
        best = self._best()
        self._seconds[self.size] = seconds
        following = next((one for one in CANDIDATES if one > self.size), None)
        if (
            following is None
            or (best is not None and self._of_pass(self.size) > _LOSS * self._of_pass(best))
            or seconds > _LONG_STEP
            or self._compilation * following / self.size > _LONGEST_COMPILATION
            or (self._total is not None and following > self._total)
        ):
            self._settle()
            return
        self.size, self._compiled, self._untried = following, False, False
        self._long, self._windows = 0, []

    def _of_pass(self, size: int) -> float:
        """Return the seconds per step of a whole pass, whose remainder is taken step by step."""
        if self._total is None:
            return self._seconds[size]
        rest = self._total % size
        whole = self._total - rest
        return (whole * self._seconds[size] + rest * self._seconds[1]) / self._total

    def _best(self) -> int | None:
        """Return the smallest candidate that no other clearly beats."""
        best: int | None = None
        for size in self._seconds:
            if best is None or self._of_pass(size) <= _GAIN * self._of_pass(best):
                best = size
        return best

    def _settle(self) -> None:
        self.size = self.found = self._best() or 1
        tried = ", ".join(f"{k}: {1e6 * time:.0f}" for k, time in self._seconds.items())
        _logger.info(
            'With steps_per_call="auto", a call takes %d steps from now on (microseconds per step '
            "by the steps per call: %s).",
            self.size,
            tried or "none was timed",
        )
