"""Calls: how many training steps the next compiled call takes.

A number is taken as given; "epoch" is the rest of the pass; "auto" times the first calls, which are
all real training steps.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Literal

import jax

from solstice import arguments
from solstice.errors import InvalidValueError

_logger = logging.getLogger("solstice")

StepsPerCall = int | Literal["auto", "epoch"]

# What "auto" tries, in this order, as long as each takes at most this share of the best time
# before.
_CANDIDATES = (1, 4, 16, 64)
_GAIN = 0.95
# A candidate gets this many windows of this many steps, fewer in short passes; the fastest counts.
_WINDOWS, _STEPS = 3, 32
# Limits in seconds: candidates that would probably take longer to compile are not tried, nor are
# any if a step is so slow that the cost of a call does not matter.
_LONGEST_COMPILATION, _LONG_STEP = 20.0, 0.02

_ALL = 2**62


def as_steps_per_call(value: Any) -> StepsPerCall:
    """Return `steps_per_call` as an int, "auto" or "epoch".

    >>> as_steps_per_call("automatic")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: steps_per_call is expected to be an int, 'auto' or 'epoch'; \
it is 'automatic'.
    """
    if isinstance(value, str) and value in ("auto", "epoch"):
        return value
    if isinstance(value, str):
        raise InvalidValueError(
            f"steps_per_call is expected to be an int, 'auto' or 'epoch'; it is {value!r}."
        )
    return arguments.count(value, "steps_per_call")


class Calls:
    """How many steps a call takes.

    Args:
        asked: The run's `steps_per_call`.
        known: What "auto" found in this process, by the number of steps in a pass; new results are
            added.
        clock: Returns the time in seconds.

    Attributes:
        asked: As above.
        size: How many steps the next call takes, if the pass has that many left.
        found: What "auto" has found, here or before a resume; None before that.

    >>> calls = Calls("epoch")
    >>> calls.fuses(17), Calls(4).fuses(17)
    (True, False)
    """

    def __init__(
        self,
        asked: StepsPerCall,
        known: dict[int | None, int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.asked: StepsPerCall = asked
        self.size: int = asked if isinstance(asked, int) else _ALL if asked == "epoch" else 1
        self.found: int | None = None
        self._known: dict[int | None, int] = {} if known is None else known
        self._clock = clock
        self._total: int | None = None
        # Whether a whole pass went by without a call of the candidate.
        self._passed = False
        # When the calls so far were done, if known, and the steps taken since.
        self._since: float | None = None
        self._steps = 0
        # The candidate: whether it is compiled, how long that took, and its seconds per step.
        self._compiled, self._compilation = False, 0.0
        self._windows: list[float] = []
        # The seconds per step of each candidate tried.
        self._seconds: dict[int, float] = {}

    @property
    def most(self) -> int:
        """The largest number of steps in a call."""
        return self.size if self.asked != "auto" else self.found or max(_CANDIDATES)

    @property
    def in_evaluation(self) -> int:
        """How many steps a call takes outside training."""
        return self.size if isinstance(self.asked, int) else 1

    def fuses(self, steps: int) -> bool:
        """Say whether this many steps are one compiled call, which is worth compiling."""
        return steps in (1, self.size) or self.asked == "epoch"

    def go_on(self, found: int | None) -> None:
        """Take over what a resumed run had found."""
        if self.asked == "auto" and found:
            self.size = self.found = found

    def begin(self, total: int | None) -> None:
        """Note that a pass begins, and its number of steps if known."""
        if self._tries and not self._seconds and not self._windows:
            self.go_on(self._known.get(total))
            if self.found:
                _logger.info(
                    'With steps_per_call="auto", a call takes %d steps, as an earlier run found.',
                    self.found,
                )
        if self._tries and self.size > 1 and not self._compiled and self._passed:
            self._settle()  # the pass before had fewer steps
        self._passed = not self._compiled and self.size > 1
        self._total = total
        self._since, self._steps = self._clock(), 0

    def taken(self, steps: int, outs: Any) -> None:
        """Note that a call of this many steps was made; "auto" times it."""
        if not self._tries:
            return
        if steps != self.size:
            self._since = None
            return
        self._steps += steps
        if self._since is not None and self._compiled and self._steps < self._window:
            return
        jax.block_until_ready(outs)
        now = self._clock()
        if self._since is not None:
            seconds = now - self._since
            if self._compiled:
                self._windows.append(seconds / self._steps)
            else:
                self._compiled, self._compilation = True, seconds
        self._since, self._steps = now, 0
        if len(self._windows) == _WINDOWS:
            self._judge(min(self._windows))

    @property
    def _tries(self) -> bool:
        return self.asked == "auto" and self.found is None

    @property
    def _window(self) -> int:
        return _STEPS if self._total is None else max(1, min(_STEPS, self._total // 4))

    def _judge(self, seconds: float) -> None:
        """Go on to the next candidate if this one is faster than all before."""
        best = self._best()
        self._seconds[self.size] = seconds
        following = next((one for one in _CANDIDATES if one > self.size), None)
        if (
            following is None
            or (best is not None and self._of_pass(self.size) > _GAIN * self._of_pass(best))
            or seconds > _LONG_STEP
            or self._compilation * following / self.size > _LONGEST_COMPILATION
            or (self._total is not None and following > self._total)
        ):
            self._settle()
            return
        self.size, self._compiled, self._windows = following, False, []

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
        self.size = self.found = self._known[self._total] = self._best() or 1
        tried = ", ".join(f"{k}: {1e6 * time:.0f}" for k, time in self._seconds.items())
        _logger.info(
            'With steps_per_call="auto", a call takes %d steps from now on (microseconds per step '
            "by the steps of a call: %s).",
            self.size,
            tried or "none was timed",
        )
