"""Nothing here relies on jax's implicit promotion, of types or of ranks: a user may forbid it."""

import contextlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from law_table import OPTIMIZERS
from metrics_table import SIZE, TABLE
from networks import LIBRARIES
from networks.common import CLASSES
from optimizer_table import OPTAX

import solstice
from solstice.experiments import MemberStopping
from solstice.metrics import EnsembleMetrics

KEY = jax.random.key(0)
FORBID = {
    "ranks": lambda: jax.numpy_rank_promotion("raise"),
    "types": lambda: jax.numpy_dtype_promotion("strict"),
}


@contextlib.contextmanager
def forbidden(names=tuple(FORBID)):
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(FORBID[name]())
        yield


@pytest.mark.parametrize("mask", [None, np.arange(SIZE) < 5, (np.arange(SIZE) < 5).astype("f4")])
@pytest.mark.parametrize("name", TABLE)
def test_metrics_run_without_promotion(name, mask):
    row = TABLE[name]

    def make(batch):
        return row.make(batch, mask=mask)

    def traced():
        one = make(row.batch)
        merged = one.merge(make(row.batch))
        members = EnsembleMetrics(jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), one))
        found = [merged.compute(), members.merge(members).compute()]
        if hasattr(one, "error_bounds"):
            found.append(one.error_bounds())
        return jax.tree.leaves(found)

    with forbidden():
        if row.fixed:
            jax.eval_shape(traced)
        else:  # it merges and computes on the host
            make(row.batch).merge(make(row.batch)).compute()


@pytest.mark.parametrize("dtype", [bool, "int8", "uint32", "float16", "bfloat16"])
@pytest.mark.parametrize("metric", ["Mean", "Sum", "Min", "Max", "Std", "Last"])
def test_numbers_of_any_type_run_without_promotion(metric, dtype):
    values, mask = jnp.asarray([1, 0, 1], dtype), jnp.array([True, True, False])
    if metric == "Last":
        values, mask = values[0], None
    make = getattr(solstice.metrics, metric)
    options = {} if mask is None else {"mask": mask}
    with forbidden():
        jax.eval_shape(lambda: make(values, **options).merge(make(values)).compute())


X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = (np.arange(8) % CLASSES).astype("int32")
MASK = np.arange(8) < 5
TOKENS = np.repeat(X[:, None], 5, 1)


def linear(x):
    """A network that promotes nothing itself."""
    return solstice.compat.FunctionModel(
        lambda key, x: {"w": jax.random.normal(key, (4, CLASSES))},
        lambda params, x: jnp.matmul(x, params["w"]),
        x,
        key=0,
    )


# Inputs and a batch's other parts, for labels and for numbers.
BATCHES = {
    "plain": (X, Y),
    "mask": (X, Y, MASK),
    "float mask": (X, Y, MASK.astype("float32")),
    "weights": {"x": X, "y": Y, "weight": np.arange(8)},
    "float labels": (X, Y.astype("float32")),
    "narrow labels": (X, Y.astype("uint8")),
    "tokens": (TOKENS, np.repeat(Y[:, None], 5, 1), MASK),
}
OPTIONS = {
    "plain": {},
    "losses": {"class_weights": [1, 2, 3], "label_smoothing": 0.1},
    "metrics": {"top_k": (1, 2), "perplexity": True, "track": "totals"},
    "parts": {"accumulate_steps": 2, "ema_decay": 0.9},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "float16": {"compute_dtype": "float16", "ema_decay": 0.9, "accumulate_steps": 2},
}


def steps(exp, batch):
    """Trace what a run does with a batch; nothing is compiled."""
    exp.check_batch(batch)
    jax.eval_shape(lambda exp: exp.train_step(batch)[1].compute(), exp)
    jax.eval_shape(lambda exp: exp.eval_step(batch)[1].compute(), exp)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (form, options)
        for form in BATCHES
        for options in OPTIONS
        if form in ("plain", "tokens") or options in ("plain", "float16")
    ],
)
def test_experiments_run_without_promotion(form, options):
    batch, options, named = BATCHES[form], OPTIONS[options], ("x", "y", "mask", "weight")
    x = TOKENS if form == "tokens" else X
    with forbidden():
        model, tx = linear(x), optax.sgd(0.1)
        steps(solstice.ClassificationExperiment(model, tx, batch_keys=named, **options), batch)
        if options.keys() <= {"accumulate_steps", "ema_decay", "compute_dtype"}:
            for y in (x[..., :CLASSES], np.ones((*x.shape[:-1], CLASSES), "int8")):
                exp = solstice.RegressionExperiment(model, tx, num_outputs=CLASSES, **options)
                steps(exp, batch | {"y": y} if isinstance(batch, dict) else (x, y, *batch[2:]))


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["float32", "uint8", "bool"])
def test_questions_and_ranks_run_without_promotion(dtype, kind):
    hot, options = np.ones((8, CLASSES), kind), {"compute_dtype": dtype, "label_smoothing": 0.1}
    weights = np.arange(1, CLASSES + 1)
    with forbidden():
        model, tx = linear(X), optax.sgd(0.1)
        many = solstice.MultiLabelExperiment(
            model, tx, positive_weight=weights, ignore_index=-1, **options
        )
        one = solstice.BinaryClassificationExperiment(
            model, tx, positive_weight=2, ignore_index=255, **options
        )
        ranked = solstice.ClassificationExperiment(
            model, tx, ranking=True, overlap=True, ignore_index=-100, **options
        )
        classes = Y.astype("uint8" if kind == "bool" else kind)
        for exp, y in ((many, hot), (one, hot), (ranked, classes)):
            steps(exp, (X, y))
            steps(exp, (X, y, np.arange(8) < 5))


def test_a_run_goes_without_promotion():
    with forbidden():
        exp = solstice.ClassificationExperiment(linear(X), optax.sgd(0.1))
        ds = solstice.pad_last([(X, Y), (X[:3], Y[:3])], 8)
        callbacks = [
            solstice.LoggingCallback(2, lambda *_: None),
            solstice.callbacks.StopOnNaN(),
            solstice.callbacks.HistoryCallback(),
            solstice.ScheduledCallback(
                lambda exp, step: solstice.tree.norm(exp.model.params),
                solstice.triggers.Every(steps=1),
                name="norm",
            ),
        ]
        trained = exp.train(2, ds, ds, callbacks, steps_per_call=2, progress=False)
        predicted = solstice.predict(trained, ds, progress=False)
        accuracy = trained.test(ds, progress=False)["accuracy"]
    assert predicted.shape == (16,)
    right = predicted[:11] == np.concatenate([Y, Y[:3]])
    assert accuracy == pytest.approx(right.mean())


@pytest.mark.parametrize("own_batches", [False, True])
def test_ensembles_run_without_promotion(own_batches):
    def make(key, rate):
        tx = optax.inject_hyperparams(optax.sgd)(rate)
        return solstice.ClassificationExperiment(eqx.nn.MLP(4, 3, 8, 1, key=key), tx, 3)

    with forbidden():
        rule = MemberStopping("average_loss", patience=1)
        ensemble = solstice.Ensemble.init(
            make, [0, 1], own_batches=own_batches, stopping=rule, rate=[0.1, 0.2]
        )
        ds = [(np.stack([X, X]), np.stack([Y, Y])) if own_batches else (X, Y)]
        trained = ensemble.train(3, ds, ds, progress=False)
        assert trained.predict(X).shape == (8,) and trained.active.shape == (2,)
        assert trained.best("accuracy", ds).predict(X).shape == (8,)


def allowed(native):
    """What may be forbidden, for all that a library itself does."""
    names = []
    for name in FORBID:
        with contextlib.suppress(ValueError, TypeError), forbidden([name]):
            native()
            names.append(name)
    return names


# Those that want a function of the network, which an experiment has not, are left out.
WANTED = {"value", "grad", "value_fn"}


@pytest.mark.parametrize(
    "name", [name for name in OPTIMIZERS["optax"].split(", ") if {*OPTAX[name].takes} <= WANTED]
)
def test_an_optimizer_goes_as_far_without_promotion_as_it_does_alone(name):
    row = OPTAX[name]
    model = linear(X)
    extras = {
        "value": jnp.ones(()),
        "grad": model.params,
        "value_fn": lambda params: params["w"].sum(),
    }
    extras = {name: extras[name] for name in row.takes}

    def native():
        tx, params = row.make(), row.pair(model.params)
        jax.eval_shape(lambda: tx.update(model.params, tx.init(params), params, **extras))

    native()
    with forbidden(allowed(native)):
        steps(solstice.ClassificationExperiment(model, row.make()), (X, Y))


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_adapter_goes_as_far_without_promotion_as_its_library(library):
    subject = LIBRARIES[library]["mlp"]
    model, own = subject.make_model(KEY), subject.make_model(KEY).unwrap()

    def native():
        for train in (True, False):
            jax.eval_shape(
                lambda train=train: subject.call(own, *subject.inputs, key=KEY, train=train)
            )

    names = allowed(native)
    assert names == list(FORBID) or library not in ("equinox", "linen", "haiku")
    with forbidden(names):
        exp = solstice.ClassificationExperiment(model, optax.sgd(0.1), CLASSES, key=0)
        steps(exp, (subject.inputs[0], Y[:4]))
