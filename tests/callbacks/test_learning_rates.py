"""Learning rates: set, reduced on a plateau, and in every record."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from jax.example_libraries import optimizers, stax
from resuming import bits

import solstice
from solstice.callbacks import ReduceOnPlateau
from solstice.compat import KerasOptimizer, OptaxOptimizer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = (X.sum(-1) > 0).astype("int32")
BATCHES = [(X, Y)] * 3
injected = optax.inject_hyperparams
SETTABLE = {
    "sgd": lambda rate: injected(optax.sgd)(rate),
    "adamw": lambda rate: injected(optax.adamw)(rate),
    "clipped": lambda rate: optax.chain(optax.clip(1.0), injected(optax.adam)(rate)),
    "in MultiSteps": lambda rate: optax.MultiSteps(injected(optax.adam)(rate), 2),
    "in inject": lambda rate: injected(
        lambda scale: optax.chain(optax.scale(scale), injected(optax.adam)(rate))
    )(1.0),
    "keras SGD": lambda rate: keras.optimizers.SGD(rate),
    "keras Adam": lambda rate: keras.optimizers.Adam(rate),
}


NET = stax.serial(stax.Dense(3), stax.Relu, stax.Dense(2))


def experiment(optimizer, key=0):
    return solstice.ClassificationExperiment(NET, optimizer, 2, example_input=X, key=key)


@pytest.mark.parametrize("name", SETTABLE)
def test_a_set_rate_is_that_of_the_next_steps(name):
    start = experiment(SETTABLE[name](0.1)).train(1, BATCHES, progress=False)
    exp = solstice.set_learning_rate(start, 0.0)
    assert float(exp.optimizer.learning_rate()) == 0
    after = exp.train(1, BATCHES, progress=False)
    # AdamW's decay is times the rate too.
    for new, old in zip(*map(jax.tree.leaves, (after.model.params, exp.model.params)), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-7)
    # At the old rate again, by a function of it, it is as if it had never changed.
    again = solstice.set_learning_rate(exp, lambda rate: rate + jnp.float32(0.1))
    assert bits(again.optimizer) == bits(start.optimizer)


def test_setting_a_rate_compiles_nothing_anew():
    class Setting(solstice.Callback):
        def revise(self, exp):
            return solstice.set_learning_rate(exp, lambda rate: rate / 2)

    exp = experiment(SETTABLE["adamw"](0.1))
    exp = exp.train(3, BATCHES, callbacks=[Setting()], recompile="error", progress=False)
    assert float(exp.optimizer.learning_rate()) == pytest.approx(0.1 / 16)


def schedule(count):
    return 0.1 / (1 + count)


KERAS_SCHEDULE = keras.optimizers.schedules.InverseTimeDecay(0.1, 1, 1.0)


@pytest.mark.parametrize(
    ("optimizer", "why"),
    [
        (optax.adam(0.1), "inside the functions"),
        (injected(optax.adam)(schedule), "a constant or a schedule's"),
        (OptaxOptimizer(optax.adam(schedule), learning_rate=schedule), "a schedule's"),
        (optimizers.adam(0.1), "jax.example_libraries have it in their functions"),
        (keras.optimizers.SGD(KERAS_SCHEDULE), "It is a schedule's"),
    ],
)
def test_a_rate_that_cannot_be_set_says_how_it_can(optimizer, why):
    exp = experiment(optimizer)
    with pytest.raises(ValueError, match=rf"{why}.*optax.inject_hyperparams"):
        solstice.set_learning_rate(exp, 0.1)
    with pytest.raises(ValueError, match=why):  # before the first step
        exp.train(1, BATCHES, None, [ReduceOnPlateau("accuracy", watch="train")], progress=False)


@pytest.mark.parametrize(
    "optimizer",
    [
        KerasOptimizer(keras.optimizers.SGD(0.1)),
        OptaxOptimizer(injected(optax.sgd)(1.0)),
        solstice.compat.by_path({"*": injected(optax.sgd)(1.0)}),
    ],
)
def test_an_optimizer_that_is_not_initialised_has_no_rate_to_set(optimizer):
    with pytest.raises(ValueError, match=r"not initialised: call `opt = opt\.init"):
        solstice.set_learning_rate(optimizer, 0.1)


def test_what_has_no_optimizer_and_what_is_no_rate_are_refused():
    with pytest.raises(TypeError, match=r"expected to have a compat\.Optimizer"):
        solstice.set_learning_rate({"w": jnp.ones(2)}, 0.1)
    exp = experiment(SETTABLE["sgd"](0.1))
    with pytest.raises(ValueError, match=r"rate is expected to be .* at least 0; it is -1"):
        solstice.set_learning_rate(exp, -1)
    with pytest.raises(ValueError, match=r"one number, or of the shape \(\)"):
        solstice.set_learning_rate(exp, jnp.ones(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.cosine_decay_schedule(0.1, 10),
        lambda: optax.constant_schedule(0.1),
        lambda: optax.join_schedules([optax.constant_schedule(0.1)] * 2, [3]),
        lambda: optimizers.exponential_decay(0.1, 1, 0.5),
        lambda: KERAS_SCHEDULE,
    ],
)
def test_a_schedule_is_no_function_of_the_rate(make):
    opt = OptaxOptimizer(injected(optax.sgd)(1.0)).init(jnp.ones(2))
    with pytest.raises(TypeError, match=r"a schedule\. .*inject_hyperparams.*OptaxOptimizer\(tx"):
        solstice.set_learning_rate(opt, make())


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (lambda rate: rate - 2, ValueError, r"what rate returns .* at least 0; it is -1\.0"),
        (lambda rate: -1, ValueError, r"what rate returns .* at least 0; it is -1"),
        (lambda rate: rate * jnp.nan, ValueError, "finite and at least 0; it is nan"),
        (1e300, ValueError, "finite and at least 0; it is inf in float32"),
        (lambda rate: rate / 0, ValueError, "finite and at least 0; it is inf"),
        (lambda rate: None, TypeError, "what rate returns is expected to be a number"),
        (lambda rate: rate > 0, TypeError, "what rate returns is expected to be a number"),
        (jnp.array(-1.0), ValueError, r"rate is expected .* at least 0; it is -1\.0"),
        ([0.1, -1.0], ValueError, r"rate is expected .* at least 0; it is \[ 0\.1 -1"),
        (np.float32(np.inf), ValueError, "finite"),
        (["fast"], TypeError, "rate"),
        (jax.random.key(0), TypeError, "rate is expected to be a number; it is key"),
    ],
)
@pytest.mark.parametrize("library", ["sgd", "keras SGD"])
def test_what_a_rate_cannot_be_is_refused(library, rate, error, message):
    opt = solstice.compat.as_optimizer(SETTABLE[library](1.0)).init(jnp.ones(2))
    with pytest.raises(error, match=message):
        solstice.set_learning_rate(opt, rate)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.apply_if_finite(tx, 2),
    ],
)
def test_a_schedule_tells_the_rate_of_the_updates(wrap):
    rates = optax.piecewise_constant_schedule(0.5, {1: 0.5, 3: 0.1})
    tx = wrap(optax.sgd(rates))
    params, grads = jnp.zeros(2), jnp.full(2, 0.25)
    opt = OptaxOptimizer(tx, learning_rate=rates).init(params)
    assert float(opt.learning_rate()) == 0.5
    for _ in range(10):
        new, opt = opt(grads, params)
        if (moved := np.asarray(params - new)).any():  # MultiSteps moves every other step
            np.testing.assert_allclose(moved, 0.25 * opt.learning_rate(), rtol=1e-6)
        params = new
    plain = OptaxOptimizer(tx).init(jnp.zeros(2))
    assert plain.learning_rate() is None
    for _ in range(10):
        _, plain = plain(grads, jnp.zeros(2))
    assert bits(plain.state) == bits(opt.state)  # telling changes no update


def test_a_schedule_without_a_count_is_refused():
    with pytest.raises(ValueError, match="has none"):
        OptaxOptimizer(optax.sgd(0.1), learning_rate=schedule).init(jnp.ones(2))
    assert float(
        OptaxOptimizer(optax.sgd(0.1), learning_rate=0.1).init(jnp.ones(2)).learning_rate()
    ) == pytest.approx(0.1)


def records(exp, epochs=2, every=None, steps_per_call=1, **options):
    history = solstice.HistoryCallback(every)
    exp.train(
        epochs,
        BATCHES,
        BATCHES[:1],
        [history],
        progress=False,
        steps_per_call=steps_per_call,
        **options,
    )
    return [(one["mode"], one["step"], one.get("learning_rate")) for one in history.records]


@pytest.mark.parametrize("library", ["optax", "told", "keras"])
def test_every_record_has_the_rate_of_the_last_step(library):
    make = {
        "optax": lambda: injected(optax.adam)(schedule),
        "told": lambda: OptaxOptimizer(optax.adam(schedule), learning_rate=schedule),
        "keras": lambda: keras.optimizers.Adam(KERAS_SCHEDULE),
    }[library]
    seen = records(experiment(make()), every=2)
    assert [one[:2] for one in seen] == [
        *[("train", 2), ("train", 3), ("val", 3)],
        *[("train", 4), ("train", 6), ("val", 6)],
    ]
    for _, step, rate in seen:
        assert rate == pytest.approx(schedule(step - 1), rel=1e-5)


def test_a_rate_that_nobody_knows_is_in_no_record():
    assert [one[2] for one in records(experiment(optax.adam(0.1)))] == [None] * 4
    assert [one[2] for one in records(experiment(optimizers.adam(0.1)))] == [None] * 4


def test_functions_get_the_rate_too():
    seen = []
    logging = solstice.LoggingCallback(logging_fn=lambda metrics, step, mode: seen.append(metrics))
    experiment(injected(optax.adam)(0.5)).train(1, BATCHES, callbacks=[logging], progress=False)
    assert seen[0]["learning_rate"] == 0.5


@pytest.mark.parametrize("rate", [0.5, jnp.float32(0.5), jnp.array([0.5, 0.25])])
def test_an_experiment_may_tell_numbers_and_arrays(rate):
    class Telling(solstice.ClassificationExperiment):
        def learning_rates(self):
            return {"one": rate, "other": jnp.float32(2.0), "accuracy": rate}

    net = stax.serial(stax.Dense(3), stax.Relu, stax.Dense(2))
    exp = Telling(net, optax.sgd(0.1), 2, example_input=X, key=0)
    history = solstice.HistoryCallback()
    exp.train(1, BATCHES, callbacks=[history], progress=False)
    (record,) = history.records
    np.testing.assert_array_equal(record["one"], rate)
    assert record["other"] == 2
    assert isinstance(record["accuracy"], float)  # the metric's, which has the name already


def test_rates_of_several_optimizers_and_members_have_names():
    exp = solstice.Ensemble.init(
        lambda key, rate: experiment(injected(optax.sgd)(rate), key), [0, 1], rate=[0.25, 0.75]
    )
    rates = {name: float(rate) for name, rate in exp.learning_rates().items()}
    assert rates == {
        "learning_rate": 0.5,
        "learning_rate_member_0": 0.25,
        "learning_rate_member_1": 0.75,
    }
    assert [one[2] for one in records(exp, epochs=1)] == [0.5, 0.5]
    exp = solstice.set_learning_rate(exp, jnp.array([1.0, 2.0]))
    assert exp.member(1).optimizer.learning_rate() == 2
    for same in ([1.0, 2.0], (1, 2), np.array([1.0, 2.0])):
        assert bits(solstice.set_learning_rate(exp, same)) == bits(exp)
    exp = solstice.set_learning_rate(exp, lambda rate: rate / 2)
    assert exp.member(0).optimizer.learning_rate() == 0.5
    two = {name: exp.member(i).optimizer for i, name in enumerate(("gen", "disc"))}
    assert set(solstice.compat.rates.learning_rates(two)) == {
        "gen/learning_rate",
        "disc/learning_rate",
    }


class Scored(solstice.Metrics):
    score: jax.Array

    def merge(self, other):
        return other

    def compute(self):
        return {"score": self.score}


class Scoring(solstice.Experiment):
    """Reports the batch of its validation as the score."""

    opt: solstice.compat.Optimizer
    w: jax.Array

    def train_step(self, batch):
        w, opt = self.opt(jnp.ones(()), self.w)
        return solstice.replace(self, opt=opt, w=w), None

    def eval_step(self, batch):
        return self, Scored(jnp.asarray(batch))


SCORES = [1.0, 2.0, 2.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def plateau(**options):
    return ReduceOnPlateau("score", mode="max", factor=0.5, patience=2, **options)


def scoring(scores, callbacks, rate=1.0, **options):
    opt = OptaxOptimizer(injected(optax.sgd)(rate)).init(jnp.zeros(()))
    return solstice.train(
        Scoring(opt, jnp.zeros(())),
        len(scores),
        [0],
        lambda epoch: iter([scores[epoch]]),
        callbacks,
        progress=False,
        **options,
    )


@pytest.mark.parametrize("min_rate", [0.0, 0.3])
def test_it_follows_a_loop_written_by_hand(min_rate):
    rate, w, best, waited = 1.0, 0.0, -np.inf, 0
    for score in SCORES:
        w -= rate
        best, waited = (score, 0) if score > best else (best, waited + 1)
        if waited == 2:
            rate, waited = max(rate * 0.5, min_rate), 0
    exp = scoring(SCORES, [plateau(min_rate=min_rate)])
    assert float(exp.opt.learning_rate()) == pytest.approx(rate)
    assert float(exp.w) == pytest.approx(w)


def test_a_reduction_is_told_when_it_is_made(caplog):
    caplog.set_level("INFO", "solstice")
    scoring(SCORES[:4], [plateau(min_rate=0.3)])
    told = [one for one in caplog.messages if "learning rate" in one]
    assert told == [
        "The learning rate is multiplied by 0.5, but not below 0.3: score has not improved on 2 "
        "in 2 val passes."
    ]
    caplog.clear()
    stopping = solstice.EarlyStoppingCallback.no_improvement("score", mode="max", patience=2)
    exp = scoring(SCORES, [plateau(), stopping])
    assert float(exp.opt.learning_rate()) == 1 and "learning rate" not in caplog.text


@pytest.mark.parametrize("last", range(1, 10))
def test_a_resumed_run_reduces_as_the_uninterrupted_one(tmp_path, last):
    class Failing(solstice.Callback):
        def on_epoch_start(self, exp, epoch, mode):
            if (epoch, mode) == (last, "val"):
                raise OSError("killed")

    saving = solstice.CheckpointingCallback(tmp_path)
    with pytest.raises(OSError, match="killed"):
        scoring(SCORES, [plateau(), saving, Failing()])
    exp = scoring(SCORES, [plateau(), saving], resume_from=saving)
    assert bits(exp) == bits(scoring(SCORES, [plateau()]))


def test_a_rate_below_the_least_stays():
    assert scoring([1.0] * 6, [plateau(min_rate=0.5)], rate=0.25).opt.learning_rate() == 0.25
