"""ScheduledCallback: when it acts, on which experiment, and what it keeps."""

import weakref

import jax
import jax.numpy as jnp
import pytest
from resuming import X, experiment, shuffled

import solstice
from solstice import ScheduledCallback
from solstice.triggers import At, Every, First


def total(exp, step):
    return step, float(exp.total)


def test_the_last_result_is_kept_by_name(train):
    callback = ScheduledCallback(total, Every(steps=2) | At(1), name="sum")
    assert callback.results == {}
    train(1, [1, 2, 3, 4, 5], callbacks=[callback])
    assert callback.results == {"sum": (3, 10.0)}
    callback = ScheduledCallback(total, Every(steps=2))
    train(1, [1, 2, 3], [9], callbacks=[callback])
    assert callback.results == {"total": (1, 3.0)}


@pytest.mark.parametrize(
    ("when", "steps_per_call", "seen"),
    [
        (Every(steps=2), 1, [1, 3, 5]),
        (Every(steps=2), 3, [2, 5]),
        (Every(epochs=1), 3, [2, 5]),
        (At([1, 5]), 3, [2, 5]),
        (First(2), 1, [0, 1]),
        (Every(seconds=1e-9), 1, [0, 1, 2, 2, 3, 4, 5, 5]),
    ],
)
def test_it_acts_when_its_trigger_fires(train, when, steps_per_call, seen):
    steps = []
    callback = ScheduledCallback(lambda exp, step: steps.append(step), when)
    train(2, [1, 2, 3], [9], [callback], steps_per_call=steps_per_call)
    assert steps == seen
    train(2, [1, 2, 3], [9], [callback], steps_per_call=steps_per_call)
    assert steps == seen * 2


@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_the_experiment_is_that_after_the_step_and_made_only_then(monkeypatch, steps_per_call):
    made, seen = [], []
    real = solstice.tree.flat.Flat.whole

    def whole(self):
        tree = real(self)
        if isinstance(tree, solstice.Experiment):
            made.append(tree)
        return tree

    monkeypatch.setattr(solstice.tree.flat.Flat, "whole", whole)

    def look(exp, step):
        seen.append((step, solstice.snapshot(exp)))

    solstice.train(
        experiment(),
        3,
        [(X[:8], X[:8].argmax(-1) % 3)] * 20,
        callbacks=[ScheduledCallback(look, At([20, 40]))],
        steps_per_call=steps_per_call,
        progress=False,
    )
    one = solstice.train(
        experiment(), 1, [(X[:8], X[:8].argmax(-1) % 3)] * 20, steps_per_call=1, progress=False
    )
    assert [step for step, _ in seen] == [19, 39]
    leaves = zip(*map(jax.tree.leaves, (seen[0][1].model.params, one.model.params)), strict=True)
    assert all(jnp.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in leaves)
    assert len(made) < 20


@pytest.mark.slow
def test_its_trigger_survives_a_resume(tmp_path):
    def run(directory, *limits):
        steps = []
        for n in limits:
            callback = ScheduledCallback(lambda exp, step: steps.append(step), Every(steps=7))
            epochs = ScheduledCallback(lambda exp, step: steps.append(-step), Every(epochs=2))
            saving = solstice.CheckpointingCallback(directory)
            solstice.train(
                experiment(),
                n,
                shuffled,
                callbacks=[callback, epochs, saving],
                resume_from=saving,
                progress=False,
            )
        return steps

    assert run(tmp_path / "a", 4) == [6, -9, 13, -19] == run(tmp_path / "b", 1, 2, 3, 4)


def test_an_early_stop_and_an_error_from_an_action(train):
    def stop(exp, step):
        raise solstice.EarlyStoppingException("enough")

    assert train(9, [1, 2], callbacks=[ScheduledCallback(stop, Every(steps=3))]).total == 4
    assert train(9, [1, 2], callbacks=[ScheduledCallback(stop, Every(epochs=2))]).total == 6

    def fail(exp, step):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as raised:
        train(9, [1, 2], callbacks=[ScheduledCallback(fail, Every(epochs=1))])
    assert raised.value.__notes__ == ["Raised by ScheduledCallback.after_epoch."]


def test_it_keeps_nothing_of_a_run_alive(adding):
    callback = ScheduledCallback(lambda exp, step: None, At(1))
    exp = solstice.train(adding, 1, [1], callbacks=[callback], progress=False)
    gone = weakref.ref(exp)
    del exp
    assert gone() is None


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match=r"a function of \(exp, step\); it is the int 3"):
        ScheduledCallback(3, At(1))
    with pytest.raises(TypeError, match="when is expected to be a trigger"):
        ScheduledCallback(total, 3)
