"""Everything that acts by a trigger: when it acts, on what, and that a resume changes nothing."""

import gc
import logging
import signal
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.callbacks import (
    EvaluationCallback,
    HistoryCallback,
    InspectionCallback,
    LoggingCallback,
    ReplicationCallback,
    ScheduledCallback,
    TriggeredCallback,
)
from solstice.triggers import At, Every, First


class Own(TriggeredCallback):
    """A user's."""

    def act(self, exp, step):
        assert isinstance(exp, solstice.Experiment)


def evaluation(when):
    return EvaluationCallback(
        lambda exp, batch, key: exp.eval_step(batch)[1], {"more": [1.0]}, when=when, jit=False
    )


USERS = {
    "own": Own,
    "scheduled": lambda when: ScheduledCallback(lambda exp, step: exp.total, when),
    "replication": ReplicationCallback,
    "evaluation": evaluation,
    "inspection": lambda when: InspectionCallback(lambda exp, batch: batch, when=when, jit=False),
    "logging": lambda when: LoggingCallback(when=when),
    "history": lambda when: HistoryCallback(when=when),
}


def noting(user, when, events):
    """A callback that notes each time it acts: at which step, and what the experiment is then."""
    callback = USERS[user](when)
    act = callback.act

    def note(exp, step):
        looks = callback.acts_on_experiment
        events.append(("act", step, float(exp.total) if looks else None))
        act(exp, step)

    callback.act = note
    return callback


@pytest.fixture
def compiled(adding):
    class Compiled(type(adding)):
        train_step = solstice.jit(type(adding).train_step)
        eval_step = solstice.jit(type(adding).eval_step)

    return Compiled(jnp.asarray(0.0), jnp.asarray(0))


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("when", "steps_per_call", "steps"),
    [
        (Every(steps=2), 1, [1, 3, 5]),
        (Every(steps=2), 3, [2, 5]),
        (Every(epochs=1), 3, [2, 5]),
        (Every(epochs=2), 1, [5]),
        (At([1, 5]), 3, [2, 5]),
        (First(2), 1, [0, 1]),
        (Every(steps=2) | Every(epochs=1), 1, [1, 2, 3, 5, 5]),
        (Every(seconds=1e-9), 1, [0, 1, 2, 2, 3, 4, 5, 5]),
    ],
)
def test_it_acts_when_its_trigger_fires(compiled, user, when, steps_per_call, steps):
    events = []
    callback = noting(user, when, events)
    batches = [jnp.asarray(float(i)) for i in (1, 2, 3)]
    for _ in range(2):  # each run anew
        solstice.train(
            compiled,
            2,
            batches,
            [batches[0]],
            [callback],
            steps_per_call=steps_per_call,
            progress=False,
        )
    totals = np.cumsum([1, 2, 3, 1, 2, 3])  # the experiment is that after the step
    looks = callback.acts_on_experiment
    assert events == [("act", s, totals[s] if looks else None) for s in steps] * 2


@pytest.mark.parametrize("user", USERS)
def test_epochs_are_over_once_they_are_validated(train, user):
    events = []

    class Ends(solstice.Callback):
        def on_epoch_end(self, exp, epoch, mode):
            events.append((mode, epoch))

    # Its place in the list does not matter.
    callback = noting(user, Every(epochs=2), events)
    for callbacks in ([callback, Ends()], [Ends(), callback]):
        events.clear()
        train(2, [1, 2], [5], callbacks)
        *passes, (act, step, _) = events
        assert passes == [("train", 0), ("val", 0), ("train", 1), ("val", 1)]
        assert (act, step) == ("act", 3)


class Signal(solstice.Callback):
    """Sends Ctrl-C at the end of a step, after which the run is saved and ends."""

    def __init__(self, *at):
        self.at = at

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if (mode, global_step) == self.at:
            signal.raise_signal(signal.SIGINT)


STOPS = [("train", 1), ("train", 2), ("val", 0), ("val", 1), ("val", 3)]


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    "when", [Every(steps=2) | Every(epochs=1), Every(epochs=2)], ids=["both", "epochs"]
)
def test_a_resumed_run_acts_as_one_that_never_stopped(adding, tmp_path, user, when):
    adding = solstice.replace(adding, total=jnp.zeros(()))
    logged = {}

    def run(name, *more):
        events, log = [], logged.setdefault(name, [])
        callback = noting(user, when, events)
        if user in ("evaluation", "inspection", "logging"):
            callback._outlets._functions = [lambda *arguments: log.append(arguments)]
        saving = solstice.CheckpointingCallback(tmp_path / name)
        solstice.train(
            adding,
            3,
            [np.float32(i) for i in (1, 2, 3)],
            [np.float32(4), np.float32(6)],
            [callback, saving, *more],
            resume_from=saving,
            progress=False,
        )
        if user == "history":
            log += [{**record, "time": 0} for record in callback.records]
        return events

    whole = run("whole")
    for i, at in enumerate(STOPS):
        with pytest.raises(KeyboardInterrupt):
            run(f"cut-{i}", Signal(*at))
        rest = run(f"cut-{i}")
        assert rest == whole[len(whole) - len(rest) :], at
        assert str(logged[f"cut-{i}"]) == str(logged["whole"]), at


@pytest.mark.parametrize("user", USERS)
def test_it_keeps_nothing_of_a_run_alive(compiled, user):
    callback = USERS[user](Every(epochs=1))
    batches = [jnp.asarray(1.0)]
    exp = solstice.train(compiled, 1, batches, batches, [callback], progress=False)
    gone = weakref.ref(exp)
    del exp
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("user", USERS)
def test_the_step_hooks_need_no_experiment(user):
    assert not USERS[user](Every(steps=1)).needs_experiment


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("user", USERS)
def test_another_thing_than_a_trigger_is_refused(user):
    with pytest.raises(TypeError, match="when is expected to be a trigger, such as Every"):
        USERS[user](100)


def test_a_batch_that_no_checkpoint_holds_is_told_of(adding, tmp_path, caplog):
    class Batch(tuple):  # as a named tuple, it would come back as another one
        pass

    batch = Batch([np.float32(1)])

    class Summing(type(adding)):
        def train_step(self, batch):
            return super().train_step(batch[0])

    exp = Summing(jnp.zeros(()), adding.evaluated)

    def run(*more):
        looks = InspectionCallback(lambda exp, batch: {"b": batch[0]}, when=Every(epochs=1))
        saving = solstice.CheckpointingCallback(tmp_path)
        solstice.train(
            exp,
            1,
            [batch],
            [np.float32(2)] * 2,
            [looks, saving, *more],
            resume_from=saving,
            progress=False,
        )
        return looks.results

    with pytest.raises(KeyboardInterrupt):
        run(Signal("val", 0))
    with caplog.at_level(logging.WARNING, logger="solstice"):
        assert run() == {}
    assert "logs nothing after 1 training steps" in caplog.text


def test_looking_at_what_differs_between_copies_names_the_step(train):
    class Failing(ReplicationCallback):
        def act(self, exp, step):
            self._check = _fail
            super().act(exp, step)

    def _fail(exp):
        raise AssertionError("two copies differ")

    with pytest.raises(AssertionError, match="two copies") as raised:
        train(1, [1, 2], callbacks=[Failing(Every(steps=2))])
    assert "Found after 2 training steps." in raised.value.__notes__
    assert jax.process_count() == 1
