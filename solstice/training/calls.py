"""Calls: how many training steps the next compiled call takes.

A number is that many; "epoch" is all that a pass has left; "auto" is found by timing the first
calls, all of which are steps of the training.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import jax

from solstice import arguments
from solstice.errors import InvalidValueError

_logger = logging.getLogger("solstice")

StepsPerCall = int | Literal["auto", "epoch"]

# What "auto" found, by the steps of a pass and whether the step gathers its batches.
Known = dict[tuple[int | None, bool], int]

# What "auto" tries, in this order, while each takes this share of the time of the best before it.
_CANDIDATES = (1, 4, 16, 64)
_GAIN = 0.95
# A candidate has so many windows, and the quickest counts. A window has so many steps or more and
# takes so many seconds or more, as shorter ones tell little on a busy machine; in a short pass it
# has a quarter of the steps.
_WINDOWS, _STEPS, _SECONDS = 3, 32, 0.01
# Nothing is tried that would take longer to compile than this, as far as can be told, nor where a
# step takes so long that the cost of a call does not matter; in seconds.
_LONGEST_COMPILATION, _LONG_STEP = 20.0, 0.02

_ALL = 2**62


def as_steps_per_call(value: Any) -> StepsPerCall:
    """Return what a run is asked for, as an int, "auto" or "epoch".

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
        asked: What the run was asked for.
        known: What "auto" found in this process, by the steps of a pass and whether its data are on
            the device; it adds what it finds.
        clock: Returns the time in seconds.

    Attributes:
        asked: As above.
        size: How many steps the next call takes, if the pass has as many.
        found: What "auto" has found, or a resumed run had; None before that.

    >>> calls = Calls("epoch")
    >>> calls.fuses(17), Calls(4).fuses(17)
    (True, False)
    """

    def __init__(
        self,
        asked: StepsPerCall,
        known: Known | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.asked: StepsPerCall = asked
        self.size: int = asked if isinstance(asked, int) else _ALL if asked == "epoch" else 1
        self.found: int | None = None
        self._known: Known = {} if known is None else known
        self._clock = clock
        self._total: int | None = None
        self._gathers = False
        # Whether a whole pass had no call of the candidate.
        self._passed = False
        # When the calls so far were done, where that is known, and the steps taken since.
        self._since: float | None = None
        self._steps = 0
        # Of the candidate: whether it is compiled, in which time, how many steps take long enough
        # to be timed, and its seconds a step.
        self._compiled, self._compilation, self._long = False, 0.0, 0
        self._windows: list[float] = []
        # The seconds a step of each that was tried.
        self._seconds: dict[int, float] = {}

    @property
    def most(self) -> int:
        """The most steps that a call may take."""
        return self.size if self.asked != "auto" else self.found or max(_CANDIDATES)

    @property
    def in_evaluation(self) -> int:
        """How many steps a call takes that does not train."""
        return self.size if isinstance(self.asked, int) else 1

    def fuses(self, steps: int) -> bool:
        """Say whether so many steps are one compiled call; others would be compiled for once."""
        return steps in (1, self.size) or self.asked == "epoch"

    def go_on(self, found: int | None) -> None:
        """Take what a resumed run had found."""
        if self.asked == "auto" and found:
            self.size = self.found = found

    def begin(self, total: int | None, *, gathers: bool = False) -> None:
        """Note that a pass begins, of so many steps where that is known.

        Args:
            total: How many steps it has.
            gathers: Whether its data are on the device, and the step gathers its batches.
        """
        self._gathers = gathers
        if self._tries and not self._seconds and not self._windows:
            self.go_on(self._known.get((total, gathers)))
            if self.found:
                _logger.info(
                    'With steps_per_call="auto", a call takes %d steps, as an earlier run found.',
                    self.found,
                )
        if self._tries and self.size > 1 and not self._compiled and self._passed:
            self._settle()  # the pass before had not as many steps
        self._passed = not self._compiled and self.size > 1
        self._total = total
        self._since, self._steps = self._clock(), 0

    def taken(self, steps: int, outs: Any) -> None:
        """Note that a call of so many steps was made: "auto" times it."""
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
            if self._compiled and not self._long and seconds < _SECONDS:
                self._long = math.ceil(_SECONDS * self._steps / seconds) if seconds else _STEPS
            elif self._compiled:
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
        steps = max(_STEPS, self._long)
        return steps if self._total is None else max(1, min(steps, self._total // 4))

    def _judge(self, seconds: float) -> None:
        """Go on to the next candidate, if this one is quicker than all before it."""
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
        self.size, self._compiled, self._long, self._windows = following, False, 0, []

    def _of_pass(self, size: int) -> float:
        """Return the seconds a step of a whole pass, whose remainder is taken step by step."""
        if self._total is None:
            return self._seconds[size]
        rest = self._total % size
        whole = self._total - rest
        return (whole * self._seconds[size] + rest * self._seconds[1]) / self._total

    def _best(self) -> int | None:
        """Return the least candidate that no other is clearly quicker than."""
        best: int | None = None
        for size in self._seconds:
            if best is None or self._of_pass(size) <= _GAIN * self._of_pass(best):
                best = size
        return best

    def _settle(self) -> None:
        self.size = self.found = self._best() or 1
        self._known[self._total, self._gathers] = self.found
        tried = ", ".join(f"{k}: {1e6 * time:.0f}" for k, time in self._seconds.items())
        _logger.info(
            'With steps_per_call="auto", a call takes %d steps from now on (microseconds a step '
            "by the steps of a call: %s).",
            self.size,
            tried or "none was timed",
        )
