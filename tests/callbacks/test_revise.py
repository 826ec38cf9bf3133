"""Callback.revise, the one hook that may change the experiment, and the best weights given back."""

import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax
from resuming import VAL, bits, experiment, shuffled

import solstice
from solstice import EarlyStoppingCallback

no_improvement = EarlyStoppingCallback.no_improvement


class Watching(solstice.Callback):
    """Keeps what each validation said of a metric, and the experiment after it."""

    def __init__(self, metric="average_loss", fails_at=None):
        self.metric, self.fails_at = metric, fails_at
        self.values, self.experiments = [], []

    def on_epoch_start(self, exp, epoch, mode):
        self.outs = []

    def on_step_end(self, outs, exp, global_step, mode, batch):
        self.outs.append(outs)
        if (mode, global_step) == self.fails_at:
            raise OSError("killed")

    def on_epoch_end(self, exp, epoch, mode):
        if mode == "val" and len(self.outs) == len(VAL):
            self.values.append(float(solstice.reduce(self.outs).compute()[self.metric]))
            self.experiments.append(solstice.snapshot(exp))


def run(epochs, callback, *more, network="linen", exp=None, **options):
    exp = experiment(network) if exp is None else exp
    callbacks = [callback, *more]
    return solstice.train(exp, epochs, shuffled, VAL, callbacks, progress=False, **options)


@pytest.mark.parametrize("network", ["linen", "ensemble"])
@pytest.mark.parametrize(("mode", "patience"), [("max", 2), ("min", 9), ("max", 9)])
def test_the_best_is_given_back_however_the_run_ends(network, mode, patience):
    watching = Watching()
    callback = no_improvement("loss", mode=mode, patience=patience, restore_best=True)
    exp = run(4, callback, watching, network=network)
    values = np.array(watching.values)
    best = int(values.argmin() if mode == "min" else values.argmax())
    assert bits(exp) == bits(watching.experiments[best])
    if mode == "max":
        assert best == 0 and len(values) == (3 if patience == 2 else 4)


def test_the_best_is_given_back_where_it_was_placed():
    watching = Watching()
    callback = no_improvement("loss", mode="max", patience=2, restore_best=True)
    exp = run(4, callback, watching, sharding=solstice.sharding.DataParallel())
    assert bits(exp) == bits(watching.experiments[0])


def test_the_best_is_not_kept_in_memory_after_the_run():
    callback = no_improvement("loss", mode="max", patience=2, restore_best=True)
    run(2, callback)
    gc.collect()
    before = len(jax.live_arrays())
    del callback
    gc.collect()
    assert len(jax.live_arrays()) == before


def test_what_is_given_back_can_be_trained_and_donated_again():
    callback = no_improvement("accuracy", patience=9, restore_best=True)
    exp = run(3, callback)
    again = run(1, callback, exp=exp, donate=True)
    assert jnp.isfinite(again.test(VAL, progress=False)["average_loss"])


def checkpoints(directory):
    return sorted(directory.glob("checkpoint-*"))


@pytest.mark.parametrize("fails_at", [("train", 7), ("val", 2), ("train", 19)])
def test_a_killed_run_gives_the_same_best_back(tmp_path, fails_at):
    def stopping():
        return no_improvement("accuracy", patience=2, restore_best=True)

    whole, watching = stopping(), Watching()
    expected = run(5, whole, watching)
    saving, cut = solstice.CheckpointingCallback(tmp_path), stopping()
    with pytest.raises(OSError, match="killed"):
        run(5, cut, saving, Watching(fails_at=fails_at))
    rest, seen = stopping(), Watching()
    exp = run(5, rest, saving, seen, resume_from=saving)
    assert bits(exp) == bits(expected)
    assert rest.get_state()["waited"] == whole.get_state()["waited"]
    assert watching.values[-len(seen.values) :] == seen.values
    # A run that is over returns it at once, also where its last save was lost.
    assert bits(run(5, stopping(), saving, resume_from=saving)) == bits(expected)
    shutil.rmtree(checkpoints(tmp_path)[-1])
    assert bits(run(5, stopping(), saving, resume_from=saving)) == bits(expected)


@pytest.mark.parametrize("patience", [1, 9])
def test_a_run_that_is_asked_for_more_goes_on_from_where_it_was(tmp_path, patience):
    def stopping():
        return no_improvement("accuracy", patience=patience, restore_best=True)

    expected = Watching()
    run(4, solstice.Callback(), expected)
    saving, first, then = solstice.CheckpointingCallback(tmp_path, keep=1), Watching(), Watching()
    run(2 if patience == 9 else 4, stopping(), saving, first)
    run(5, stopping(), saving, then, resume_from=saving)
    values = first.values + then.values
    assert len(values) > len(first.values)
    both = min(len(values), 4)
    assert values[:both] == expected.values[:both]


def test_the_best_checkpoint_is_that_of_its_validation(tmp_path):
    saving, watching = solstice.CheckpointingCallback(tmp_path, best="loss"), Watching()
    # The last validation has the least loss, and is not what is given back.
    callback = no_improvement("loss", mode="max", patience=9, restore_best=True)
    exp = run(3, callback, saving, watching)
    assert int(np.argmin(watching.values)) == 2 and bits(exp) == bits(watching.experiments[0])
    best = solstice.restore(tmp_path, experiment(), which="best")
    assert bits(best) == bits(watching.experiments[2])


class Revising(solstice.Callback):
    def __init__(self, change, events=()):
        self.change, self.events = change, events

    def on_epoch_end(self, exp, epoch, mode):
        self.events.append((mode, epoch))

    def after_epoch(self, exp, epochs):
        self.events.append(("after", epochs))

    def revise(self, exp):
        self.events.append(("revise", float(exp.total)))
        return self.change(exp)


def test_it_is_asked_after_each_epoch_and_at_the_end(train):
    events = []
    callback = Revising(lambda exp: solstice.replace(exp, total=exp.total * 2), events)
    exp = train(2, [1.0, 2.0], [0.0], [callback])
    assert events == [
        *[("train", 0), ("val", 0), ("after", 1), ("revise", 3.0)],
        *[("train", 1), ("val", 1), ("after", 2), ("revise", 9.0), ("revise", 18.0)],
    ]
    assert float(exp.total) == 36


def test_a_test_asks_for_no_revision(adding):
    events = []
    solstice.test(adding, [1.0], [Revising(lambda exp: None, events)], progress=False)
    assert events == [("test", 0)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda exp: None, TypeError, r"experiment to continue with.*it returned the NoneType"),
        (
            lambda exp: solstice.replace(exp, total=jnp.zeros(2)),
            ValueError,
            r"total was float32\[\] and is float32\[2\]",
        ),
        (
            lambda exp: solstice.replace(exp, total=2.0),
            ValueError,
            r"total was float32\[\] and is .*2\.0",
        ),
        (lambda exp: solstice.replace(exp, total=None), ValueError, r"total was .* and is None"),
    ],
)
def test_another_form_is_refused(train, change, error, message):
    with pytest.raises(error, match=message) as caught:
        train(1, [1.0], callbacks=[Revising(change, [])])
    assert "Raised by Revising.revise." in caught.value.__notes__


def test_a_stop_after_an_epoch_is_revised_too(train):
    def stop(exp, step):
        raise solstice.EarlyStoppingException("enough")

    stopping = solstice.ScheduledCallback(stop, solstice.triggers.Every(epochs=1))
    events = []
    train(3, [1.0], callbacks=[Revising(lambda exp: exp, events), stopping])
    assert events == [("train", 0), ("after", 1), ("revise", 1.0), ("revise", 1.0)]


def test_a_revision_compiles_nothing_anew():
    exp = run(1, solstice.Callback())
    halve = Halving()
    run(3, halve, exp=exp, recompile="error")
    assert halve.calls == 4


class Halving(solstice.Callback):
    calls = 0

    def revise(self, exp):
        self.calls += 1
        params = jax.tree.map(lambda leaf: leaf / 2, exp.model.params)
        return solstice.replace(exp, model=solstice.replace(exp.model, params=params))


@pytest.mark.parametrize("turned", [False, True])
def test_the_best_has_its_own_rate_whatever_the_order_of_the_callbacks(turned):
    sgd = optax.inject_hyperparams(optax.sgd)(0.5)
    exp = solstice.ClassificationExperiment(
        stax.serial(stax.Dense(3)), sgd, example_input=VAL[0][0], key=0
    )
    watching = Watching()
    callbacks = [
        no_improvement("loss", mode="max", patience=2, restore_best=True),
        solstice.callbacks.ReduceOnPlateau("loss", mode="max", patience=1),
    ]
    exp = run(6, watching, *(callbacks[::-1] if turned else callbacks), exp=exp)
    assert bits(exp) == bits(watching.experiments[0]) and len(watching.values) == 3
    assert float(exp.optimizer.learning_rate()) == 0.5
