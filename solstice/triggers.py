"""Triggers: when something fires, as a function of training steps, epochs and seconds.

A trigger holds no state: it compares two moments of a run, so it works with several steps per call,
across epochs and after a resume. A callback or the trainer keeps the moment of the last check in a
`Watch`.
"""

import abc
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.reprs import Shown

__all__ = ["AnyOf", "At", "Every", "First", "Moment", "Trigger", "Watch", "check_trigger"]


class Moment(NamedTuple):
    """The progress of a run.

    Attributes:
        steps: Training steps completed since the start of the run.
        epochs: Epochs completed, validation included.
        seconds: Time the run has taken, including the time before a resume.
        own_steps: The `steps` of this process: a resume starts at 0.
        fired: The `seconds` at which each of the trigger's `parts()` last fired; empty if none has.
    """

    steps: int = 0
    epochs: int = 0
    seconds: float = 0.0
    own_steps: int = 0
    fired: tuple[float, ...] = ()


class Trigger(Shown, abc.ABC):
    """Decides when something fires; `|` joins two into one that fires when either does.

    >>> from solstice.triggers import At, Every
    >>> trigger = Every(steps=100) | At(1)
    >>> watch = trigger.start()
    >>> [step for step in range(1, 301) if watch.after_step(step)]
    [1, 100, 200, 300]
    """

    @abc.abstractmethod
    def fires(self, before: Moment, after: Moment) -> bool:
        """Return whether it fires at `after`, if it was last checked at `before`.

        It fires at most once, no matter how much lies between the two.
        """

    def next_step(self, steps: int) -> float:
        """Return the first step after `steps` at which it may fire; it is not checked before.

        It may be too early but not too late; inf means that no step makes it fire. By default it
        is checked after each call.
        """
        return steps + 1

    @property
    def counts_epochs(self) -> bool:
        """Whether the end of an epoch may make it fire; False by default.

        A window of training steps that such a trigger ends may span several epochs.
        """
        return False

    def parts(self) -> tuple["Trigger", ...]:
        """Return the triggers that it joins; usually only this one."""
        return (self,)

    def start(self, clock: Callable[[], float] = time.monotonic) -> "Watch":
        """Return a `Watch` that checks this trigger during one run."""
        return Watch(self, clock)

    def __or__(self, other: "Trigger") -> "Trigger":
        return AnyOf(self, other)


@dataclasses.dataclass(frozen=True, repr=False)
class Every(Trigger):
    """Fires after every n training steps, epochs or seconds: give exactly one of them.

    `Every(steps=7)` fires after training steps 7, 14, ... of the run, across epochs, not in
    validation and not for a remainder. If a call takes several steps, it fires once at the end of
    the call that crosses a multiple. `Every(epochs=2)` fires after the validation of the second,
    fourth, ... epoch. `Every(seconds=60)` fires after the first training step (or epoch) that ends
    at least 60 seconds after the run's start or after it last fired. It depends on the clock, so
    processes may disagree.

    Raises:
        TypeError: Not exactly one is given, or it is not a number of its kind.
        ValueError: It is not positive.

    >>> from solstice.triggers import Every
    >>> watch = Every(steps=7).start()
    >>> [watch.after_step(steps) for steps in (5, 10, 15, 20)]  # five steps per call
    [False, True, True, False]
    """

    _: dataclasses.KW_ONLY
    steps: int | None = None
    epochs: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        units = {"steps": self.steps, "epochs": self.epochs, "seconds": self.seconds}
        given = [unit for unit, every in units.items() if every is not None]
        if len(given) != 1:
            raise InvalidTypeError(
                f"Every takes exactly one of steps=, epochs= and seconds=; it got "
                f"{', '.join(given) or 'none'}. Join two with |: Every(steps=9) | Every(epochs=1)."
            )
        (unit,) = given
        name = f"Every({unit}=)"
        if unit == "seconds":
            every = arguments.number(self.seconds, name, above=0)
        else:
            every = arguments.count(units[unit], name)
        object.__setattr__(self, unit, every)

    def fires(self, before: Moment, after: Moment) -> bool:
        if self.steps is not None:
            return after.steps // self.steps > before.steps // self.steps
        if self.epochs is not None:
            return after.epochs // self.epochs > before.epochs // self.epochs
        last = before.fired[0] if before.fired else 0.0
        return self.seconds is not None and after.seconds - last >= self.seconds

    def next_step(self, steps: int) -> float:
        if self.steps is not None:
            return (steps // self.steps + 1) * self.steps
        return math.inf if self.epochs is not None else steps + 1

    @property
    def counts_epochs(self) -> bool:
        return self.epochs is not None


@dataclasses.dataclass(frozen=True, repr=False)
class At(Trigger):
    """Fires after these training steps, counted from 1: `At(1)` fires after the first.

    If a call takes several steps, it fires once at the end of a call that takes any of them.

    Args:
        steps: One number of completed training steps, or several.

    Raises:
        TypeError: `steps` is not an int or an iterable of ints.
        ValueError: There is none, or one is below 1.

    >>> from solstice.triggers import At
    >>> At([100, 10])
    At(steps=(10, 100))
    """

    steps: Any

    def __post_init__(self) -> None:
        several = arguments.counts(self.steps, "At(steps)")
        if not several:
            raise InvalidValueError(
                f"At(steps) is expected to be one training step or several, such as "
                f"At([100, 1000]); it is {describe(self.steps)}."
            )
        object.__setattr__(self, "steps", tuple(sorted(set(several))))

    def fires(self, before: Moment, after: Moment) -> bool:
        return any(before.steps < step <= after.steps for step in self.steps)

    def next_step(self, steps: int) -> float:
        return next((step for step in self.steps if step > steps), math.inf)


@dataclasses.dataclass(frozen=True, repr=False)
class First(Trigger):
    """Fires after each of the first `n` training steps.

    If a call takes several steps, it fires once at the end of a call that takes any of them.

    Args:
        n: How many training steps.
        of_process: Count from the first step of this process, also after a resume, instead of from
            the start of the run: the first steps of a process compile.

    Raises:
        TypeError: `n` is not an int.
        ValueError: `n` is below 1.

    >>> from solstice.triggers import First
    >>> watch = First(2, of_process=True).start()
    >>> watch.set_state({"steps": 70, "epochs": 0, "seconds": 9.5})  # a resume after 70 steps
    >>> [watch.after_step(steps) for steps in (71, 72, 73)]
    [True, True, False]
    """

    n: int
    of_process: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", arguments.count(self.n, "First(n)"))
        object.__setattr__(self, "of_process", arguments.flag(self.of_process, "of_process"))

    def fires(self, before: Moment, after: Moment) -> bool:
        taken = before.own_steps if self.of_process else before.steps
        return after.steps > before.steps and taken < self.n

    def next_step(self, steps: int) -> float:
        return math.inf if steps >= self.n and not self.of_process else steps + 1


@dataclasses.dataclass(frozen=True, repr=False)
class AnyOf(Trigger):
    """Fires when either of two does; made by `|`."""

    _operator = "|"

    left: Trigger
    right: Trigger

    def __post_init__(self) -> None:
        check_trigger(self.left, "left")
        check_trigger(self.right, "right")

    def fires(self, before: Moment, after: Moment) -> bool:
        middle = len(self.left.parts())
        return self.left.fires(before._replace(fired=before.fired[:middle]), after) or (
            self.right.fires(before._replace(fired=before.fired[middle:]), after)
        )

    def next_step(self, steps: int) -> float:
        return min(self.left.next_step(steps), self.right.next_step(steps))

    @property
    def counts_epochs(self) -> bool:
        return self.left.counts_epochs or self.right.counts_epochs

    def parts(self) -> tuple[Trigger, ...]:
        return (*self.left.parts(), *self.right.parts())


class Watch:
    """Checks a trigger during one run, and keeps the moment of the last check.

    Call it after each call of the training step, and after each epoch if epochs matter. Save its
    state for a resume: without it, the trigger starts from the beginning.

    >>> from solstice.triggers import Every
    >>> watch = (Every(steps=4) | Every(epochs=1)).start()
    >>> watch.after_step(3), watch.after_epoch(1), watch.after_step(6)
    (False, True, True)
    """

    def __init__(self, trigger: Trigger, clock: Callable[[], float] = time.monotonic) -> None:
        check_trigger(trigger, "trigger")
        self._trigger = trigger
        self._parts = trigger.parts()
        self._clock = arguments.function(clock, "clock", takes="")
        self._start = clock()
        self._last = Moment()
        # When each part last fired: triggers joined by | each count their seconds.
        self._fired = (0.0,) * len(self._parts)
        # Steps completed, and the first step at which to check the trigger.
        self._steps = 0
        self._next = trigger.next_step(0)

    def after_step(self, steps: int) -> bool:
        """Return whether to fire, now that `steps` training steps of the run are completed."""
        self._steps = steps
        return steps >= self._next and self._ask(self._last.epochs)

    def after_epoch(self, epochs: int) -> bool:
        """Return whether to fire, now that `epochs` epochs are completed, validation included."""
        return self._ask(epochs)

    def get_state(self) -> dict[str, Any]:
        """Return the progress and time of the last check, and when the parts fired."""
        return {
            "steps": self._steps,
            "epochs": self._last.epochs,
            "seconds": self._last.seconds,
            "fired": list(self._fired),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from the moment that `get_state` returned, in a new process."""
        self._last = Moment(int(state["steps"]), int(state["epochs"]), float(state["seconds"]))
        self._start = self._clock() - self._last.seconds
        fired = tuple(map(float, state.get("fired", ())))
        if len(fired) != len(self._parts):  # of another trigger: as if all had just fired
            fired = (self._last.seconds,) * len(self._parts)
        self._fired = fired
        self._steps = self._last.steps
        self._next = self._trigger.next_step(self._steps)

    def _ask(self, epochs: int) -> bool:
        before = self._last._replace(fired=self._fired)
        own_steps = before.own_steps + self._steps - before.steps
        after = Moment(self._steps, epochs, self._clock() - self._start, own_steps)
        self._last = after
        self._next = self._trigger.next_step(self._steps)
        if not self._trigger.fires(before, after):
            return False
        self._fired = tuple(
            after.seconds
            if len(self._parts) == 1 or part.fires(before._replace(fired=(last,)), after)
            else last
            for part, last in zip(self._parts, self._fired, strict=True)
        )
        return True


def check_trigger(trigger: Any, name: str) -> None:
    """Raise a TypeError that names the argument if it is not a trigger.

    >>> check_trigger(100, "when")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: when is expected to be a trigger, such as Every(steps=100); \
it is the int 100.
    """
    arguments.instance(trigger, name, Trigger, "a trigger, such as Every(steps=100)")
