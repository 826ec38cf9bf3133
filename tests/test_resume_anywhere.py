"""A run that ends anywhere, in any way, and is resumed, is the run that was never interrupted."""

import collections
import contextlib
import itertools
import os
import signal
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from resuming import bits

import solstice
from solstice.triggers import Every

EPOCHS = 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(13, 4)).astype("float32")
Y = RNG.integers(0, 3, 13)
# In an epoch, of a form that calls of several steps divide unevenly.
CUTS = [0, 3, 6, 9, 12, 13]
STEPS = len(CUTS) - 1


class Learning(solstice.Experiment):
    """All that a resume could lose: weights, momentum, a key; an evaluation that changes it too."""

    weights: jax.Array
    momentum: jax.Array
    key: jax.Array
    evaluated: jax.Array

    @solstice.jit
    def train_step(self, batch):
        x, y = batch
        key, sub = jax.random.split(self.key)

        def loss_of(weights):
            kept = jnp.where(jax.random.bernoulli(sub, 0.8, x.shape), x, 0)
            scores = jax.nn.log_softmax(kept @ weights)
            return -jnp.take_along_axis(scores, y.astype(int)[:, None], 1).mean()

        loss, grads = jax.value_and_grad(loss_of)(self.weights)
        momentum = 0.9 * self.momentum + grads
        new = Learning(self.weights - 0.1 * momentum, momentum, key, self.evaluated)
        return new, solstice.metrics.Mean(jnp.full(len(x), loss))

    @solstice.jit
    def eval_step(self, batch):
        x, _ = batch
        noise = jax.random.normal(jax.random.fold_in(self.key, self.evaluated), x.shape)
        seen = solstice.replace(self, evaluated=self.evaluated + 1)
        return seen, solstice.metrics.Mean(((x + noise) @ self.weights).sum(-1))


def learning():
    zeros = jnp.zeros((4, 3))
    return Learning(zeros, zeros, jax.random.key(0), jnp.zeros((), int))


def batches(x, y):
    return [(x[a:b], y[a:b]) for a, b in itertools.pairwise(CUTS)]


class Unsized:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def shuffled(y):
    def dataset(epoch):
        order = np.random.default_rng(epoch).permutation(len(X))
        yield from batches(X[order], y[order])

    return dataset


DATASETS = {
    "list": lambda y: batches(X, y),
    "without length": lambda y: Unsized(batches(X, y)),
    "function": shuffled,
}


class Counting(solstice.Callback):
    """Counts what was done, in all processes, and what of it counts."""

    def __init__(self, done):
        self.done, self.counted = done, 0

    def on_epoch_end(self, exp, epoch, mode):
        self.done[mode] += 1
        self.counted += mode == "val"

    def get_state(self):
        return {"counted": self.counted}

    def set_state(self, state):
        self.counted = state["counted"]


class End(solstice.Callback):
    """Ends the run in some way, at a step or at the end of a pass."""

    def __init__(self, how, mode, at):
        self.how, self.at = how, (mode, at)

    def _end_at(self, mode, at):
        if (mode, at) != self.at:
            return
        if self.how == "crash":
            raise ConnectionError("the machine is gone")
        if self.how == "stop":
            raise solstice.EarlyStoppingException("enough")
        os.kill(os.getpid(), signal.SIGTERM)

    def on_step_end(self, outs, exp, global_step, mode, batch):
        self._end_at(mode, global_step)

    def on_epoch_end(self, exp, epoch, mode):
        self._end_at(f"end of {mode}", epoch)


class Run:
    """Runs in a directory, and all that they leave behind."""

    def __init__(self, directory, every, log_every, **options):
        self.directory, self.every, self.log_every = Path(directory), every, log_every
        self.options = {"num_epochs": EPOCHS, "progress": False} | options
        self.done = collections.Counter()

    def go(self, *callbacks, **options):
        counting = Counting(self.done)
        history, epochs = solstice.HistoryCallback(self.log_every), solstice.HistoryCallback()
        sink = solstice.loggers.JSONLines(self.directory / "log.jsonl")
        saving = solstice.CheckpointingCallback(self.directory / "saved", every=self.every, keep=1)
        logging = solstice.LoggingCallback(self.log_every, sink)
        callbacks = [history, epochs, counting, logging, *callbacks, saving]
        exp = solstice.train(
            learning(), callbacks=callbacks, resume_from=saving, **(self.options | options)
        )
        records = [*history.records, *epochs.records]
        logged = solstice.loggers.read_json_lines(self.directory / "log.jsonl")
        return {
            "bits": bits(exp),
            "records": [{**record, "time": 0} for record in records],
            "logged": [{**record, "time": 0} for record in logged],
            "validations": counting.counted,
        }


ENDS = st.one_of(
    st.tuples(st.just("num_steps"), st.just("train"), st.integers(1, EPOCHS * STEPS - 1)),
    st.tuples(
        st.sampled_from(["crash", "stop", "signal"]),
        st.sampled_from(["train", "end of train", "val", "end of val"]),
        st.integers(0, EPOCHS * STEPS - 1),
    ),
)
EVERY = [Every(steps=1), Every(steps=3), Every(epochs=1), Every(steps=1000)]
VALIDATE = [None, Every(steps=4), Every(steps=STEPS), Every(epochs=2)]


@pytest.mark.slow
@settings(max_examples=15)
@given(
    end=ENDS,
    k=st.integers(1, 3),
    prefetch=st.tuples(*[st.sampled_from([0, 2])] * 2),
    dtype=st.sampled_from(["int64", "int32", "float32"]),
    dataset=st.sampled_from(list(DATASETS)),
    every=st.sampled_from(EVERY),
    validate=st.sampled_from(VALIDATE),
    log_every=st.integers(1, 4),
)
@example(("num_steps", "train", STEPS), 1, (0, 0), "int64", "list", EVERY[3], None, 2)
@example(("num_steps", "train", 2 * STEPS), 3, (2, 0), "int64", "function", EVERY[0], None, 3)
@example(("num_steps", "train", 4), 3, (0, 2), "int32", "without length", EVERY[2], None, 1)
@example(("stop", "train", STEPS - 1), 1, (0, 0), "int32", "list", EVERY[1], None, 2)
@example(("stop", "end of val", 0), 1, (0, 0), "int32", "function", EVERY[1], None, 2)
@example(("stop", "train", 9), 2, (0, 0), "int32", "function", EVERY[3], VALIDATE[2], 3)
@example(("crash", "train", 3), 1, (2, 0), "int64", "function", EVERY[0], None, 2)
@example(("crash", "train", 0), 1, (2, 2), "int64", "list", EVERY[3], None, 2)
@example(("signal", "val", 2), 2, (0, 0), "int64", "list", EVERY[3], VALIDATE[3], 2)
@example(("signal", "val", 1), 1, (0, 2), "int64", "list", EVERY[3], VALIDATE[1], 2)
def test_a_resumed_run_is_the_same(end, k, prefetch, dtype, dataset, every, validate, log_every):
    how, mode, at = end
    val_ds = batches(X[:9], Y[:9])[:3]
    options = {
        "train_ds": DATASETS[dataset](Y.astype(dtype)),
        "val_ds": val_ds,
        "validate_every": validate,
        "steps_per_call": k,
    }
    with tempfile.TemporaryDirectory() as directory:
        whole = Run(f"{directory}/whole", every, log_every, **options)
        expected = whole.go()
        run = Run(f"{directory}/run", every, log_every, **options)
        if how == "num_steps":
            run.go(num_steps=at, num_epochs=None, prefetch=prefetch[0])
        else:
            # A stop is an end, from which a run goes on if it is asked for more.
            epochs = EPOCHS - (how == "stop")
            with contextlib.suppress(ConnectionError if how == "crash" else SystemExit):
                run.go(End(how, mode, at), prefetch=prefetch[0], num_epochs=epochs)
        resumed = run.go(prefetch=prefetch[1])
    assert resumed == expected
    if how == "num_steps":
        # An epoch that it cut short was validated there too, or a step of a shorter call.
        assert run.done["val"] - whole.done["val"] in ((0, 1) if at % STEPS else (0,))
    elif how in ("stop", "signal") and not mode.endswith("val"):
        assert run.done["val"] == whole.done["val"]
