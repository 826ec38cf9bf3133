"""A run as a trigger sees it: when it is called, and with which clock. Nothing is trained."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from solstice.tree.json import from_json, to_json
from solstice.triggers import Trigger, Watch


class Question(NamedTuple):
    """A moment at which a trigger is called.

    Attributes:
        steps: Training steps completed.
        epochs: Epochs completed.
        seconds: The time that the run has taken.
        ends_epoch: Whether it is called after an epoch, or after a call.
    """

    steps: int
    epochs: int
    seconds: float
    ends_epoch: bool

    def __str__(self) -> str:
        about = f"after {self.steps} steps, {self.epochs} epochs and {self.seconds:g} s"
        return f"{about}, at an epoch's end" if self.ends_epoch else about


class Run(NamedTuple):
    """The lengths of a run's epochs and calls, and the time that it takes.

    Attributes:
        epochs: How many steps each epoch has.
        calls: How many steps the calls take, in turn; none goes beyond an epoch's end.
        waits: How many seconds the steps, and each epoch's validation, take, in turn.

    >>> run = Run(epochs=[3, 2], calls=[2], waits=[1.0])
    >>> [question.steps for question in run.questions()]
    [2, 3, 3, 5, 5]
    """

    epochs: Sequence[int]
    calls: Sequence[int]
    waits: Sequence[float]

    def one_step_a_call(self) -> "Run":
        """The same run with one step per call."""
        return self._replace(calls=[1])

    def questions(self) -> list[Question]:
        """Each question that the run asks."""
        asked, steps, seconds = [], 0, 0.0
        lengths, times = itertools.cycle(self.calls), itertools.cycle(self.waits)
        for epoch, length in enumerate(self.epochs):
            end = steps + length
            while steps < end:
                taken = min(next(lengths), end - steps)
                seconds += sum(itertools.islice(times, taken))
                steps += taken
                asked.append(Question(steps, epoch, seconds, ends_epoch=False))
            seconds += next(times)
            asked.append(Question(steps, epoch + 1, seconds, ends_epoch=True))
        return asked


class Process:
    """One process of a run: the watch of a trigger, and the clock that it reads.

    >>> from solstice.triggers import Every
    >>> process = Process(Every(seconds=2))
    >>> [process.ask(question) for question in Run([3], [1], [1.0]).questions()]
    [False, True, False, True]
    """

    def __init__(self, trigger: Trigger) -> None:
        self._now = self._start = 100.0
        self._seconds = 0.0
        self.watch: Watch = trigger.start(lambda: self._now)

    def ask(self, question: Question) -> bool:
        self._seconds = question.seconds
        self._now = self._start + question.seconds
        if question.ends_epoch:
            return self.watch.after_epoch(question.epochs)
        return self.watch.after_step(question.steps)

    def resumed(self, trigger: Trigger) -> "Process":
        """The process that resumes from this one's state, later and with another clock."""
        other = Process(trigger)
        other._now += 60.0  # reading a checkpoint does not count as time of the run
        other.watch.set_state(from_json(to_json(self.watch.get_state())))
        other._start, other._seconds = other._now - self._seconds, self._seconds
        return other
