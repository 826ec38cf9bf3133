"""Triggers against a plain simulation of runs: steps a call, epochs, resumes, clocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solstice.triggers import At, Every, First, Moment, Trigger

counts = st.integers(1, 9)
runs = st.fixed_dictionaries(
    {
        "epochs": st.integers(1, 4),
        "epoch_steps": st.integers(1, 12),
        "per_call": st.integers(1, 5),
        "resumes": st.sets(st.integers(0, 30), max_size=3),
    }
)


def calls(epochs, epoch_steps, per_call):
    """Each question of a run: (steps before, steps after, None) or (None, None, epochs)."""
    done = 0
    for epoch in range(epochs):
        left = epoch_steps
        while left:
            taken = min(per_call, left)
            yield done, done + taken, None
            done, left = done + taken, left - taken
        yield None, None, epoch + 1


def simulate(trigger, run, says):
    """Ask a watch through a run that is killed and resumed; compare each answer with `says`."""
    options = dict(run)
    resumes = options.pop("resumes")
    watch, own = trigger.start(), 0
    for asked, (before, after, epoch) in enumerate(calls(**options)):
        if asked in resumes:
            state, watch, own = watch.get_state(), trigger.start(), 0
            watch.set_state(state)
        if epoch is None:
            taken = range(before + 1, after + 1)
            assert watch.after_step(after) == says(taken, own, None)
            own += after - before
        else:
            assert watch.after_epoch(epoch) == says(range(0), own, epoch)


@given(n=counts, run=runs)
def test_every_n_steps_fires_at_the_call_that_takes_a_multiple(n, run):
    simulate(Every(steps=n), run, lambda taken, own, epoch: any(s % n == 0 for s in taken))


@given(n=counts, run=runs)
def test_every_n_epochs_fires_after_an_epoch_that_is_a_multiple(n, run):
    simulate(Every(epochs=n), run, lambda taken, own, epoch: bool(epoch) and epoch % n == 0)


@given(steps=st.sets(st.integers(1, 50), min_size=1), run=runs)
def test_at_fires_at_the_call_that_takes_one_of_its_steps(steps, run):
    simulate(At(steps), run, lambda taken, own, epoch: bool(steps & set(taken)))


@given(n=counts, run=runs)
def test_first_fires_at_calls_that_take_one_of_the_first_steps(n, run):
    simulate(First(n), run, lambda taken, own, epoch: any(s <= n for s in taken))


@given(n=counts, run=runs)
def test_first_of_process_counts_anew_after_each_resume(n, run):
    def says(taken, own, epoch):
        return any(own + i < n for i in range(len(taken)))

    simulate(First(n, of_process=True), run, says)


@given(n=counts, at=st.integers(1, 50), run=runs)
def test_joined_triggers_fire_when_either_does_and_only_once(n, at, run):
    def says(taken, own, epoch):
        return any(s % n == 0 or s == at for s in taken) or epoch is not None

    simulate(Every(steps=n) | At(at) | Every(epochs=1), run, says)


class Odd(Trigger):
    """A trigger of a user, which says nothing of its next step."""

    def fires(self, before, after):
        return any(step % 2 for step in range(before.steps + 1, after.steps + 1))


@given(n=counts, run=runs)
def test_a_trigger_that_says_nothing_of_its_next_step_is_asked_after_each_call(n, run):
    def says(taken, own, epoch):
        return any(s % 2 or s % n == 0 for s in taken)

    simulate(Odd() | Every(steps=n), run, says)


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
)
def test_every_n_seconds_fires_at_the_first_question_after_each_multiple(every, waits, resumes):
    clock = Clock()
    watch = Every(seconds=every).start(clock)
    elapsed = 0
    for asked, wait in enumerate(waits):
        if asked in resumes:  # time between two processes does not count
            state, clock = watch.get_state(), Clock(asked * 1e3)
            watch = Every(seconds=every).start(clock)
            watch.set_state(state)
        clock.now += wait
        passed = range(elapsed + 1, elapsed + wait + 1)
        elapsed += wait
        fired = watch.after_epoch(1) if asked % 3 == 2 else watch.after_step(asked + 1)
        assert fired == any(second % every == 0 for second in passed)


def test_the_state_is_plain_numbers():
    watch = Every(steps=2).start(Clock())
    watch.after_step(3)
    assert watch.get_state() == {"steps": 3, "epochs": 0, "seconds": 0.0}


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
        (lambda: Every(seconds=0), ValueError, "positive and finite; it is 0"),
        (lambda: Every(seconds=float("nan")), ValueError, "positive and finite; it is nan"),
        (lambda: Every(seconds=float("inf")), ValueError, "positive and finite; it is inf"),
        (lambda: Every(seconds="60"), TypeError, "to be a number; it is the str '60'"),
        (lambda: At([]), ValueError, "at least one training step; it got none"),
        (lambda: At([3, 0]), ValueError, r"At\(\) is expected to be at least 1; it is 0"),
        (lambda: At("10"), TypeError, r"such as At\(\[100, 1000\]\); it got the str '10'"),
        (lambda: At(1.5), TypeError, r"it got the float 1\.5"),
        (lambda: First(0), ValueError, r"First\(n\) is expected to be at least 1"),
        (lambda: First(None), TypeError, "expected to be an int; it is the NoneType None"),
        (lambda: Every(steps=1) | 5, TypeError, "unsupported operand"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
