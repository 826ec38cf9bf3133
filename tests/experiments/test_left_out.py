"""Invalid labels do not count, not even in the loss, and are reported once per pass."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax

import solstice
from solstice import loggers
from solstice.metrics import BinaryMetrics, EnsembleMetrics, MetricsDict
from solstice.metrics.left_out import LeftOut

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4)).astype("float32")
Y = np.arange(8) % 3
# All of one half, so that parts of a batch have unequal numbers that count; one is masked below.
WRONG = np.array([0, 1, 2, 6])
WITH_WRONG = Y.copy()
WITH_WRONG[WRONG] = [99, -1, 255, 3]
RIGHT = np.setdiff1d(np.arange(8), WRONG)


NET, TX = stax.serial(stax.Dense(3)), optax.sgd(0.1)


def classify(**options):
    return solstice.ClassificationExperiment(NET, TX, example_input=X, key=0, **options)


def close(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


OPTIONS = {
    "plain": {},
    "class weights": {"class_weights": (0.5, 2.0, 1.0)},
    "smoothing": {"label_smoothing": 0.2},
    "parts": {"accumulate_steps": 2},
    "all": {"class_weights": (0.5, 2.0, 1.0), "label_smoothing": 0.2, "accumulate_steps": 4},
}


@pytest.mark.parametrize(
    ("name", "labels", "masked"),
    [
        *((name, np.int32, i % 2 > 0) for i, name in enumerate(OPTIONS)),
        *((name, np.float32, i % 2 == 0) for i, name in enumerate(OPTIONS)),
    ],
)
def test_they_teach_nothing_and_divide_nothing(name, labels, masked):
    options = OPTIONS[name]
    whole = {name: each for name, each in options.items() if name != "accumulate_steps"}
    mask = np.arange(8) != 7
    right = RIGHT[mask[RIGHT]] if masked else RIGHT
    batch = (X, WITH_WRONG.astype(labels), *([mask] if masked else []))
    exp, expected = classify(**options), classify(**whole)
    for step in ("train_step", "eval_step"):
        new, metrics = getattr(exp, step)(batch)
        known, without = getattr(expected, step)((X[right], Y[right]))
        close(new.model, known.model)
        found, wanted = metrics.compute(), without.compute()
        assert found == pytest.approx(wanted, rel=1e-5)
        assert int(metrics.invalid) == 4 and int(metrics.count) == 4 + len(right)


def test_weights_are_divided_by_what_counts():
    exp, weight = classify(), np.linspace(0, 2, 8).astype("float32")
    named = {
        "image": X,
        "label": WITH_WRONG,
        "weight": np.where(np.isin(WITH_WRONG, Y), weight, np.nan),
    }
    right = {"image": X[RIGHT], "label": Y[RIGHT], "weight": weight[RIGHT]}
    close(exp.train_step(named)[0].model, exp.train_step(right)[0].model)


def test_a_batch_of_wrong_labels_alone_changes_nothing():
    exp = classify()
    for options in ({}, {"accumulate_steps": 2}):
        new, metrics = classify(**options).train_step((X, np.full(8, 255, "uint8")))
        close(new.model, exp.model)
        assert float(metrics.loss_sum) == 0 and int(metrics.invalid) == 8


def test_pixels_of_no_class_are_left_out_too():
    exp = solstice.ClassificationExperiment(
        stax.serial(stax.Dense(3)), optax.sgd(0.1), example_input=X[:, None, None], key=0
    )
    x = RNG.normal(size=(2, 4, 4, 4)).astype("float32")
    y = RNG.integers(0, 3, (2, 4, 4)).astype("uint8")
    void = RNG.random((2, 4, 4)) < 0.3
    new, metrics = exp.train_step((x, np.where(void, 255, y)))
    masked, expected = exp.train_step((x, y, ~void))
    close(new.model, masked.model)
    assert metrics.compute() == pytest.approx(expected.compute(), rel=1e-5)
    assert int(metrics.invalid) == void.sum()


GOOD, BAD = (X, Y), (X, WITH_WRONG)
TOLD = "4 examples had a label that is not a class from 0 to 2, or a mask that is neither 0 nor 1, "
TOLD += "which does not count, not even in the loss."
RUNS = {
    "nothing": {},
    "steps": {"callbacks": lambda: [solstice.LoggingCallback(1, lambda *_: None)]},
    "epochs": {"callbacks": lambda: [solstice.LoggingCallback(logging_fn=lambda *_: None)]},
    "sinks": {
        "callbacks": lambda: [
            solstice.LoggingCallback(2, [loggers.Console(), lambda *_: None]),
            solstice.callbacks.HistoryCallback(1),
        ]
    },
    "calls of several steps": {"steps_per_call": 2},
    "bar": {"progress": True},
    "own": {"callbacks": lambda: [Computing()]},
}


class Computing(solstice.Callback):
    def on_step_end(self, outs, exp, global_step, mode, batch):
        outs.compute()


@pytest.mark.parametrize("run", RUNS)
def test_they_are_told_once_a_pass_whatever_is_logged(run, caplog):
    options = {"progress": False} | RUNS[run]
    options = options | {"callbacks": options.get("callbacks", list)()}
    with caplog.at_level(logging.WARNING, logger="solstice"):
        classify().train(2, [GOOD, GOOD, BAD], [GOOD, GOOD, BAD], **options)
    passes = ("epoch 0/1", "epoch 0/1 val", "epoch 1/1", "epoch 1/1 val")
    assert caplog.messages == [f"{title}: {TOLD}" for title in passes]


def test_a_test_tells_once_and_good_data_is_not_spoken_of(caplog):
    exp = classify()
    exp.train(1, [GOOD], [GOOD], progress=False)
    assert exp.test([GOOD], progress=False)["accuracy"] >= 0 and caplog.messages == []
    results = exp.test([GOOD, BAD], progress=False)
    assert caplog.messages == [f"test: {TOLD}"]
    both = (np.concatenate([X, X[RIGHT]]), np.concatenate([Y, Y[RIGHT]]))
    assert results == pytest.approx(exp.test([both], progress=False), rel=1e-5)


def test_all_of_a_long_pass_is_told(caplog):
    exp = classify()
    outs = [exp.eval_step(batch)[1] for batch in (BAD, GOOD)]
    tally = LeftOut()
    for i in range(200):
        tally.add(outs[i % 2])
    assert tally.texts() == [TOLD.replace("4", "400", 1)[:-1]]
    assert tally.texts() == tally.texts()


def test_an_ensemble_tells_of_its_batches_once(caplog):
    ensemble = solstice.Ensemble.init(lambda key: classify(), [0, 1, 2])
    ensemble.train(1, [GOOD, BAD], progress=False)
    assert caplog.messages == [f"epoch 0: {TOLD}"]
    caplog.clear()
    metrics = ensemble.eval_step(BAD)[1]
    assert isinstance(metrics, EnsembleMetrics)
    metrics.compute()
    assert caplog.messages == [TOLD]


class Both(solstice.experiments.Runnable):
    """Steps that return several metrics as one."""

    def train_step(self, batch):
        return self, batch

    def eval_step(self, batch):
        return self, jax.jit(both)(batch)


def both(labels):
    zeros = jnp.zeros(len(labels))
    return MetricsDict(
        solstice.ClassificationMetrics(zeros, labels, 0.0, 2),
        mean=solstice.metrics.Mean(zeros),
        binary=BinaryMetrics(zeros, labels),
    )


def test_each_of_several_metrics_tells_what_it_left_out(caplog):
    exp = Both()
    exp.test([np.array([0, 1]), np.array([0, 7])], progress=False)
    assert [text[:44] for text in caplog.messages] == [
        "test: 1 example had a label that is not a cl",
        "test: 1 example had a target, or a mask, tha",
    ]


def test_an_evaluation_tells_for_itself(caplog):
    evaluation = solstice.EvaluationCallback(
        lambda exp, batch, key: exp.eval_step(batch)[1],
        {"held out": [GOOD, BAD]},
        when=solstice.triggers.Every(epochs=1),
        logging_fn=lambda *_: None,
    )
    classify().train(1, [GOOD], callbacks=[evaluation], progress=False)
    assert caplog.messages == [f"held out: {TOLD}"]


def test_metrics_tell_for_themselves_outside_of_a_run(caplog):
    outs = solstice.test(classify(), [GOOD], return_outs=True, progress=False)
    outs.append(classify().eval_step(BAD)[1])
    solstice.reduce(outs).compute()
    assert caplog.messages == [TOLD]
