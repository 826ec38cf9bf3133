"""Triggers: where each fires, the laws of all, clocks, and what they refuse."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solstice.testing import TRIGGER_LAWS, LawError, TriggerSubject, check_trigger
from solstice.triggers import At, Every, First, Moment, Trigger


class Odd(Trigger):
    """A trigger of a user, which says nothing of its next step."""

    def fires(self, before, after):
        return any(step % 2 for step in range(before.steps + 1, after.steps + 1))

    def __eq__(self, other):
        return type(other) is Odd

    def __hash__(self):
        return hash(Odd)

    def __repr__(self):
        return "Odd()"


# Of each kind, the training steps of two epochs of ten at which it fires, and the epochs.
FIRES = {
    Every(steps=7): ([7, 14], []),
    Every(steps=10): ([10, 20], []),
    Every(epochs=1): ([], [1, 2]),
    Every(epochs=2): ([], [2]),
    At(range(9, 12)): ([9, 10, 11], []),
    First(2): ([1, 2], []),
    First(2, of_process=True): ([1, 2], []),
    Every(steps=7) | At(3): ([3, 7, 14], []),
    Every(steps=9) | Every(epochs=1): ([9, 18], [1, 2]),
    Odd(): ([1, 3, 5, 7, 9, 11, 13, 15, 17, 19], []),
    Odd() | Every(steps=10): ([1, 3, 5, 7, 9, 10, 11, 13, 15, 17, 19, 20], []),
}


@pytest.mark.parametrize("trigger", FIRES, ids=str)
def test_where_it_fires(trigger):
    watch, steps, epochs = trigger.start(), [], []
    for step in range(1, 21):
        steps += [step] * watch.after_step(step)
        if step % 10 == 0:
            epochs += [step // 10] * watch.after_epoch(step // 10)
    assert (steps, epochs) == FIRES[trigger]


SINCE_IT_FIRED = "Its seconds count from when it fired, which is at the end of a call."
# What is no fault: by trigger, the laws that do not hold, and why.
EXCLUDED = {
    First(2, of_process=True): {"runs_do_not_matter": "After a resume it counts anew."},
    Every(seconds=2.5): {"calls_do_not_matter": SINCE_IT_FIRED},
    Every(seconds=60) | At(3): {"calls_do_not_matter": SINCE_IT_FIRED},
    Every(seconds=9) | Every(steps=4) | Every(seconds=40): {"calls_do_not_matter": SINCE_IT_FIRED},
}


@pytest.mark.parametrize("trigger", {**FIRES, **EXCLUDED}, ids=str)
def test_every_law_holds(trigger):
    check_trigger(lambda: copy.deepcopy(trigger), exclude=EXCLUDED.get(trigger, ()))


@pytest.mark.parametrize(("trigger", "laws"), EXCLUDED.items(), ids=str)
def test_what_is_excluded_is_still_so(trigger, laws):
    for law in TRIGGER_LAWS:
        if law.name in laws:
            with pytest.raises(LawError):
                law.check(TriggerSubject(lambda: trigger), examples=100)


@given(n=st.integers(1, 9), own=st.integers(1, 12), resume=st.integers(0, 30))
def test_first_of_process_counts_anew_after_a_resume(n, own, resume):
    watch = First(n, of_process=True).start()
    watch.set_state({"steps": resume, "epochs": 0, "seconds": 0.0})
    steps = range(resume + 1, resume + own + 1)
    assert [step for step in steps if watch.after_step(step)] == list(steps)[:n]


@pytest.mark.parametrize(
    ("trigger", "steps"),
    [
        (Every(steps=7), [7, 14, 21]),
        (Every(epochs=1), []),
        (At([3, 9]), [3, 9]),
        (First(2), [1, 2]),
        (Every(steps=7) | At(3), [3, 7, 14, 21]),
    ],
)
def test_a_trigger_costs_the_other_steps_nothing(trigger, steps):
    asked = []

    class Heard(type(trigger)):
        def fires(self, before, after):
            asked.append(after.steps)
            return super().fires(before, after)

    watch = Heard(**vars(trigger)).start()
    assert [step for step in range(1, 22) if watch.after_step(step)] == asked == steps


class Clock:
    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


@given(
    every=st.integers(1, 20),
    waits=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    resumes=st.sets(st.integers(0, 20), max_size=3),
    other=st.integers(2, 9),
)
def test_every_n_seconds_fires_no_sooner_than_n_seconds_after_it_last_fired(
    every, waits, resumes, other
):
    clock = Clock()
    # What it is joined with fires by itself, and moves its clock by nothing.
    trigger = Every(seconds=every) | Every(steps=other)
    watch = trigger.start(clock)
    elapsed = last = 0
    for asked, wait in enumerate(waits):
        if asked in resumes:  # time between two processes does not count
            state, clock = watch.get_state(), Clock(asked * 1e3)
            watch = trigger.start(clock)
            watch.set_state(state)
        clock.now += wait
        elapsed += wait
        due = elapsed - last >= every
        last = elapsed if due else last
        assert watch.after_step(asked + 1) == (due or (asked + 1) % other == 0)


def test_seconds_are_counted_from_the_firing_after_an_epoch_too():
    clock = Clock()
    watch = Every(seconds=60).start(clock)
    for seconds, fires in ((50, False), (119, True), (121, False), (178, False), (179, True)):
        clock.now = 100 + seconds
        assert watch.after_epoch(1) == fires


def test_the_state_of_another_trigger_counts_seconds_from_the_resume():
    clock = Clock()
    watch = (Every(seconds=5) | Every(steps=100)).start(clock)
    watch.set_state({"steps": 3, "epochs": 0, "seconds": 70.0, "fired": [10.0]})
    clock.now += 4
    assert not watch.after_step(4)
    clock.now += 1
    assert watch.after_step(5)


def test_the_state_is_plain_numbers():
    clock = Clock()
    watch = (Every(steps=2) | Every(seconds=3)).start(clock)
    clock.now += 4
    watch.after_step(3)
    assert watch.get_state() == {"steps": 3, "epochs": 0, "seconds": 4.0, "fired": [4.0, 4.0]}


@pytest.mark.parametrize(
    ("trigger", "counts"),
    [
        (Every(epochs=1), True),
        (Every(steps=1), False),
        (Every(seconds=1), False),
        (At(1) | First(1), False),
        (At(1) | (Every(epochs=2) | Every(steps=3)), True),
    ],
)
def test_a_trigger_tells_whether_it_counts_epochs(trigger, counts):
    assert trigger.counts_epochs == counts


def test_triggers_are_values():
    assert At(5) == At([5]) == At(range(5, 6))
    assert Every(steps=2) | First(1) == Every(steps=2) | First(1)
    assert len({Every(steps=2), Every(steps=2), Every(epochs=2)}) == 2
    with pytest.raises(AttributeError):
        Every(steps=2).steps = 3
    assert Every(steps=2).fires(Moment(steps=1), Moment(steps=2))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Every(), TypeError, "exactly one of steps=, epochs= and seconds=; it got none"),
        (lambda: Every(steps=1, epochs=1), TypeError, r"it got steps, epochs\. Join two with \|"),
        (lambda: Every(7), TypeError, "positional"),
        (
            lambda: Every(steps=0),
            ValueError,
            r"Every\(steps=\) is expected to be at least 1; it is 0",
        ),
        (lambda: Every(steps=2.0), TypeError, r"expected to be an int; it is the float 2\.0"),
        (lambda: Every(epochs=True), TypeError, "expected to be an int; it is the bool True"),
        (lambda: Every(seconds=0), ValueError, "finite number above 0; it is 0"),
        (lambda: Every(seconds=float("nan")), ValueError, "finite number above 0; it is nan"),
        (lambda: Every(seconds=float("inf")), ValueError, "finite number above 0; it is inf"),
        (lambda: Every(seconds="60"), TypeError, "to be a number; it is the str '60'"),
        (
            lambda: At([]),
            ValueError,
            r"one training step or several, such as At\(\[100, 1000\]\); it is \[\]",
        ),
        (lambda: At([3, 0]), ValueError, r"At\(steps\) is expected to be at least 1; it is 0"),
        (lambda: At("10"), TypeError, r"At\(steps\) is expected to be an int; it is the str '10'"),
        (lambda: At(1.5), TypeError, r"it is the float 1\.5"),
        (lambda: First(0), ValueError, r"First\(n\) is expected to be at least 1"),
        (lambda: First(None), TypeError, "expected to be an int; it is the NoneType None"),
        (lambda: Every(steps=1) | 5, TypeError, "right is expected to be"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
