"""For every law of a Trigger: a fault, and the law's word."""

import pytest

from solstice.testing import TRIGGER_LAWS, LawError, TriggerSubject
from solstice.triggers import AnyOf, At, Trigger, Watch


class Thirds(Trigger):
    """Fires after every third step; the faults are subclasses that change one thing."""

    def fires(self, before, after):
        return after.steps // 3 > before.steps // 3

    def next_step(self, steps):
        return (steps // 3 + 1) * 3

    def __eq__(self, other):
        return type(other) is type(self)

    def __hash__(self):
        return hash(type(self))

    def __repr__(self):
        return f"{type(self).__name__}()"


class LooksAtItsLastStep(Thirds):
    """Misses a third step within a call."""

    def fires(self, before, after):
        return after.steps > before.steps and after.steps % 3 == 0


class CountsThisProcess(Thirds):
    def fires(self, before, after):
        return after.own_steps // 3 > before.own_steps // 3

    def next_step(self, steps):
        return steps + 1


class SpoiledState(Thirds):
    """Takes what a checkpoint holds for what was asked last."""

    class _Watch(Watch):
        def get_state(self):
            state = super().get_state()
            self.set_state({**state, "steps": 0})
            return state

    def start(self, clock):
        return self._Watch(self, clock)


class FiresWhileItLasts(Thirds):
    def fires(self, before, after):
        return after.steps > 0 and after.steps % 3 == 0


class NextIsLate(Thirds):
    def next_step(self, steps):
        return steps + 3


class CountsEpochsUntold(Thirds):
    def fires(self, before, after):
        return super().fires(before, after) or after.epochs > before.epochs


class JoinsAsBoth(Thirds):
    """Takes `|` for `&`."""

    class _Both(AnyOf):
        def fires(self, before, after):
            return self.left.fires(before, after) and self.right.fires(before, after)

    def __or__(self, other):
        return self._Both(self, other)


class RemembersItself(Thirds):
    """Keeps when it fired in itself, and not in its watch."""

    def __init__(self):
        self.last = 0

    def fires(self, before, after):
        fires = after.steps // 3 > self.last // 3
        self.last = after.steps
        return fires


class EqualToNone(Thirds):
    def __eq__(self, other):
        return self is other

    __hash__ = object.__hash__


class HoldsAFunction(Thirds):
    def __init__(self):
        self.count = lambda steps: steps // 3


FAULTS = {
    "calls_do_not_matter": (LooksAtItsLastStep, "one step per call, .* says True and False after"),
    "runs_do_not_matter": (CountsThisProcess, "in a whole run, and in a resumed one: it says"),
    "taking_the_state_changes_nothing": (SpoiledState, "without and with its state taken: it"),
    "it_fires_once_a_question": (FiresWhileItLasts, "it fires after 3 steps.*just asked"),
    "next_step_is_never_late": (NextIsLate, "always asked, and by `next_step`: it says True and"),
    "it_tells_whether_it_counts_epochs": (CountsEpochsUntold, "is false, and it fires after"),
    "joined_fires_when_either_does": (JoinsAsBoth, r"either alone, and JoinsAsBoth\(\) \|"),
    "watches_are_independent": (RemembersItself, "alone, and beside another: it says"),
    "it_is_a_value": (EqualToNone, "made alike, are not equal"),
    "it_can_be_pickled": (HoldsAFunction, "pickle"),
}


def test_every_law_has_a_fault():
    assert {law.name for law in TRIGGER_LAWS} == set(FAULTS)


@pytest.mark.parametrize("law", TRIGGER_LAWS, ids=str)
def test_a_law_catches_its_fault_and_passes_what_is_sound(law):
    fault, message = FAULTS[law.name]
    for sound in (Thirds, lambda: Thirds() | At(2)):
        law.check(TriggerSubject(sound), examples=20)
    with pytest.raises(LawError, match=message) as caught:
        law.check(TriggerSubject(fault), examples=20)
    assert f"breaks the law {law}: {law.statement}" in str(caught.value)
