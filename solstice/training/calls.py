"""Calls: how many training steps the next compiled call takes.

A number is taken as given; "epoch" is the rest of the pass; "auto" is found by a `Trial`.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from solstice import arguments
from solstice.errors import InvalidValueError
from solstice.training.trial import CANDIDATES, Trial

_logger = logging.getLogger("solstice")

StepsPerCall = int | Literal["auto", "epoch"]

# The trials of "auto", by the steps of a pass and whether the step gathers its batches.
Trials = dict[tuple[int | None, bool], Trial]

_ALL = 2**62


def as_steps_per_call(value: Any) -> StepsPerCall:
    """Return the argument as an int, "auto" or "epoch".

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
        trials: The trials of "auto" in this process; new ones are added.
        clock: Returns the time in seconds.

    Attributes:
        asked: As above.
        found: The result of "auto", here or before a resume; None before that.

    >>> calls = Calls("epoch")
    >>> calls.fuses(17), Calls(4).fuses(17)
    (True, False)
    """

    def __init__(
        self,
        asked: StepsPerCall,
        trials: Trials | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.asked: StepsPerCall = asked
        self.found: int | None = None
        self._trials: Trials = {} if trials is None else trials
        self._trial: Trial | None = None
        self._clock = clock

    @property
    def size(self) -> int:
        """How many steps the next call takes, if the pass has that many left."""
        if isinstance(self.asked, int):
            return self.asked
        if self.asked == "epoch":
            return _ALL
        return self.found or (1 if self._trial is None else self._trial.size)

    @property
    def most(self) -> int:
        """The largest number of steps in a call."""
        return self.size if self.asked != "auto" else self.found or max(CANDIDATES)

    @property
    def in_evaluation(self) -> int:
        """How many steps a call takes outside training."""
        return self.asked if isinstance(self.asked, int) else 1

    def fuses(self, steps: int) -> bool:
        """Return whether this many steps are one compiled call, which is worth compiling."""
        return steps in (1, self.size) or self.asked == "epoch"

    def go_on(self, found: int | None) -> None:
        """Use the result of the run before the resume."""
        if self.asked == "auto" and found:
            self.found = found

    def begin(self, total: int | None, *, gathers: bool = False) -> None:
        """Record that a pass starts.

        Args:
            total: How many steps it has, if known.
            gathers: Whether its data is on the device, and the step gathers its batches.
        """
        if self.asked != "auto" or self.found is not None:
            return
        if self._trial is None:
            self._trial = self._trials.setdefault((total, gathers), Trial(total, self._clock))
            if self._trial.found is not None:
                _logger.info(
                    'With steps_per_call="auto", a call takes %d steps, as an earlier run found.',
                    self._trial.found,
                )
        self._trial.begin()
        self.found = self._trial.found

    def taken(self, steps: int, outs: Any) -> None:
        """Record that a call of this many steps was made; "auto" times it."""
        if self._trial is not None and self.found is None:
            self._trial.taken(steps, outs)
            self.found = self._trial.found
