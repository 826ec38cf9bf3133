"""Stopwatch: how much of a run's time its parts take, measured on the host.

It does not wait for devices, since that would slow the run down.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, ParamSpec, TypeVar

Part = Literal["input", "step", "callbacks"]
_P = ParamSpec("_P")
_T = TypeVar("_T")


class TimeReport(NamedTuple):
    """How the time of some steps was spent, in seconds on the host.

    Attributes:
        steps: The number of training steps; in a `test`, of its steps.
        total: How long they took, everything between them included.
        input: Waiting for batches.
        step: Taking steps of any mode, and waiting for the device after the last.
        callbacks: In hooks, which includes waiting for values that a device still computes.
        other: The rest: saving, the progress bar, starting a pass.

    >>> print(TimeReport(steps=10, total=2.0, input=0.5, step=1.2, callbacks=0.2, other=0.1))
    10 steps in 2 s: 25% input, 60% step, 10% callbacks, 5% other
    """

    steps: int
    total: float
    input: float
    step: float
    callbacks: float
    other: float

    def __str__(self) -> str:
        whole = self.total or 1.0
        parts = ("input", "step", "callbacks", "other")
        shares = ", ".join(f"{getattr(self, part) / whole:.0%} {part}" for part in parts)
        return f"{self.steps} steps in {self.total:.3g} s: {shares}"


class Stopwatch:
    """Adds up the time in functions between `start` and `stop`.

    >>> watch = Stopwatch()
    >>> double = watch.timed("step", lambda x: 2 * x)
    >>> watch.start()
    >>> double(4)
    8
    >>> watch.stop(lambda: None)
    >>> 0 < watch.report().step < watch.report().total
    True
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Reset everything."""
        self.steps = 0
        self._seconds: dict[Part, float] = {"input": 0.0, "step": 0.0, "callbacks": 0.0}
        self._total = 0.0
        self._since = math.inf
        self._until = math.inf
        self._last_input = 0.0

    def start(self) -> None:
        """Measure from now on, including the wait for the current batch."""
        self._since, self._until = self._clock(), math.inf
        self._seconds["input"] += self._last_input
        self._total += self._last_input

    def stop(self, wait: Callable[[], object]) -> None:
        """Stop measuring after `wait`, which is part of the step."""
        self._until = self._clock()
        try:
            wait()
        finally:
            waited = self._clock() - self._until
            self._seconds["step"] += waited
            self._total += self._until - self._since + waited

    def timed(self, part: Part, function: Callable[_P, _T]) -> Callable[_P, _T]:
        """Wrap the function so that its time is added to a part."""

        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            begin = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                self._add(part, begin)

        return call

    def timed_items(self, part: Part, items: Iterable[_T]) -> Iterator[_T]:
        """Yield the items; the time to get each is added to a part."""
        following = self.timed(part, iter(items).__next__)
        with contextlib.suppress(StopIteration):
            while True:
                yield following()

    def report(self) -> TimeReport:
        """Return how the time was spent."""
        seconds = self._seconds
        other = max(0.0, self._total - sum(seconds.values()))
        return TimeReport(
            self.steps,
            self._total,
            seconds["input"],
            seconds["step"],
            seconds["callbacks"],
            other,
        )

    def _add(self, part: Part, begin: float) -> None:
        now = self._clock()
        if part == "input":
            self._last_input = now - begin
        self._seconds[part] += max(0.0, min(now, self._until) - max(begin, self._since))
