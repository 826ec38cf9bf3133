"""The estimators of scikit-learn, by its own checks and beside numpy."""

import functools
import pickle
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from jax.example_libraries import optimizers, stax
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import solstice
from solstice.experiments import SupervisedExperiment
from solstice.sklearn import Classifier, Regressor, making
from solstice.sklearn.making import made


# Networks and optimizers are made once: each new one is another program.
@functools.cache
def _network(outputs):
    return stax.serial(stax.Dense(8), stax.Tanh, stax.Dense(outputs))


_adam = functools.cache(optax.adam)


def network(outputs):
    return _network(outputs)


def adam(rate):
    return _adam(rate)


ADAM = functools.partial(adam, 0.05)
X, CODES = make_blobs(48, centers=3, cluster_std=0.5, random_state=0)
NAMES = np.array(["ant", "bee", "cat"])[CODES]


def classifier(net=network, optimizer=ADAM, **options):
    return Classifier(
        net, optimizer, **{"epochs": 8, "batch_size": 16, "random_state": 0} | options
    )


def regressor(net=network, optimizer=ADAM, **options):
    return Regressor(net, optimizer, **{"epochs": 2, "batch_size": 16, "random_state": 0} | options)


_STOCHASTIC = {
    f"check_sample_weight_equivalence_on_{kind}_data": "other rows make other batches"
    for kind in ("dense", "sparse")
}


@pytest.mark.slow
@parametrize_with_checks(
    [one(network, ADAM, epochs=5, batch_size=8) for one in (Classifier, Regressor)],
    expected_failed_checks=lambda estimator: _STOCHASTIC,
)
def test_scikit_learns_own_checks(estimator, check):
    if getattr(check, "func", check).__name__ == "check_array_api_input":
        return  # it skips unless SCIPY_ARRAY_API=1 was set before SciPy was imported
    check(estimator)


# What it learns.


@pytest.mark.parametrize("weighted", [False, True])
def test_a_line_takes_numpys_steps(weighted):
    x, w = X.astype(np.float32), np.arange(48.0) % 3
    y = x @ [1.0, -2.0] + 0.5
    line = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    zeros = jax.tree.map(np.zeros_like, eqx.filter(line, eqx.is_array))
    line = eqx.combine(zeros, line)
    fitted = regressor(line, functools.partial(optax.sgd, 0.01), epochs=5, batch_size=48)
    fitted.fit(x, y, 3 * w if weighted else None)
    slope, offset = np.zeros(2), 0.0
    for _ in range(5):
        error = 2 * (x @ slope + offset - y) * (w if weighted else 1) / 48  # their mean is 1
        slope, offset = slope - 0.01 * error @ x, offset - 0.01 * error.sum()
    np.testing.assert_allclose(fitted.predict(x), x @ slope + offset, rtol=1e-4)


def test_a_classifier_trains_the_experiment_that_it_says():
    fitted = classifier().fit(X, NAMES)
    assert fitted.classes_.tolist() == ["ant", "bee", "cat"]
    x = X.astype(np.float32)
    assert isinstance(fitted.experiment_, solstice.ClassificationExperiment)
    logits = np.asarray(fitted.experiment_(x))
    np.testing.assert_allclose(fitted.predict_proba(X), softmax(logits, -1), rtol=1e-5)
    np.testing.assert_array_equal(fitted.predict(X), fitted.classes_[logits.argmax(-1)])
    tested = fitted.experiment_.test([(x, CODES)], progress=False)
    assert fitted.score(X, NAMES) == pytest.approx(tested["accuracy"])
    assert fitted.score(X, NAMES) > 0.95


@pytest.mark.parametrize("make", [classifier, regressor])
def test_a_fit_depends_on_random_state_alone(make):
    def outputs(**options):
        fitted = make(**options).fit(X, CODES)
        return fitted.predict(X) if make is regressor else fitted.predict_proba(X)

    first = outputs()
    np.testing.assert_array_equal(first, outputs())
    assert not np.array_equal(first, outputs(random_state=1))
    assert not np.array_equal(outputs(random_state=None), outputs(random_state=None))
    state = functools.partial(np.random.RandomState, 3)
    np.testing.assert_array_equal(outputs(random_state=state()), outputs(random_state=state()))


def test_the_first_partial_fit_is_a_fit_of_one_epoch_and_the_next_go_on():
    once = classifier(epochs=1).fit(X, NAMES)
    parts = classifier().partial_fit(X, NAMES, classes=["cat", "bee", "ant"])
    np.testing.assert_array_equal(parts.predict_proba(X), once.predict_proba(X))
    for _ in range(9):
        parts.partial_fit(X[CODES < 2], NAMES[CODES < 2])
    assert parts.score(X[CODES < 2], NAMES[CODES < 2]) > 0.95
    assert parts.fit(X, NAMES).score(X, NAMES) > 0.95  # from new weights
    np.testing.assert_array_equal(
        parts.predict_proba(X), classifier().fit(X, NAMES).predict_proba(X)
    )


def test_a_weight_of_two_is_an_example_that_comes_twice():
    options = {"optimizer": functools.partial(optax.sgd, 0.1), "batch_size": 144, "epochs": 3}
    w = np.arange(48) % 4
    weighted = classifier(**options).fit(X, NAMES, w)
    repeated = classifier(**options).fit(np.repeat(X, w, 0), np.repeat(NAMES, w))
    expected = repeated.predict_proba(X)
    np.testing.assert_allclose(weighted.predict_proba(X), expected, rtol=1e-4)
    # In parts, weights are what they are: those of another part may be larger.
    parts = [
        classifier(**options).partial_fit(X, NAMES, np.unique(NAMES), scale * (w > 0))
        for scale in (1e-6, 1)
    ]
    assert not np.allclose(*(one.predict_proba(X) for one in parts))


def test_partial_fit_reads_the_same_data_in_another_order_each_time():
    seen = []

    class Seen(solstice.Callback):
        def on_step_start(self, exp, global_step, mode, batch):
            seen.append(np.asarray(batch["x"])[:, 0].tolist())

    fitted = regressor(batch_size=48, callbacks=lambda: [Seen()])
    for _ in range(2):
        fitted.partial_fit(X, CODES)
    assert seen[0] != seen[1]
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(X[:, 0].astype("float32").tolist())


def test_several_outputs_are_learned_at_once():
    y = np.stack([X[:, 0], -X[:, 1]], 1)
    fitted = regressor(epochs=30).fit(X, y)
    assert fitted.predict(X[:5]).shape == (5, 2)
    assert fitted.score(X, y) > 0.8
    fitted.partial_fit(X, y)


def test_a_network_may_return_one_number_an_example_without_an_axis():
    def flat(outputs):
        init, apply = network(outputs)
        return init, lambda *given, **options: apply(*given, **options)[:, 0]

    assert regressor(flat).fit(X, CODES).predict(X).shape == (48,)


def test_validation_and_callbacks_watch_a_fit():
    history = solstice.callbacks.HistoryCallback()
    watched = classifier(validation_fraction=0.25, callbacks=[history], epochs=2).fit(X, NAMES)
    modes = [record["mode"] for record in history.records]
    assert modes == ["train", "val"] * 2
    assert watched.n_features_in_ == 2


def test_what_is_kept_for_the_validation_is_the_same_in_each_pass():
    rows = []

    class Validated(solstice.Callback):
        def on_step_start(self, exp, global_step, mode, batch):
            if mode == "val":
                rows.append(set(np.asarray(batch["x"])[:, 0].tolist()))

    fitted = regressor(validation_fraction=0.25, batch_size=12, callbacks=lambda: [Validated()])
    for _ in range(2):
        fitted.partial_fit(X, CODES)
    assert len(rows) == 2
    assert rows[0] == rows[1]


def test_experiment_options_reach_the_experiment():
    fitted = classifier(experiment_options={"ema_decay": 0.5}).fit(X, NAMES)
    assert fitted.experiment_.ema is not None


def test_images_and_integers_go_in_as_they_are():
    images = X.reshape(48, 1, 2)

    def flattening(outputs):
        return stax.serial(stax.Flatten, stax.Dense(outputs))

    assert classifier(flattening).fit(images, NAMES).predict(images).shape == (48,)

    class Tokens(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return nn.Embed(9, self.outputs)(x).mean(1)  # which takes integers alone

    tokens = np.stack([CODES, CODES], 1)
    assert classifier(Tokens(3), epochs=30).fit(tokens, NAMES).score(tokens, NAMES) == 1


# Any library, clones and pickles.


class Linen(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(self.outputs)(nn.Dropout(0.1, deterministic=not train)(x))


def of_haiku(outputs):
    return hk.transform(lambda x: hk.nets.MLP([8, outputs])(x))


def of_nnx(outputs, example, key):
    return nnx.Linear(example.shape[-1], outputs, rngs=nnx.Rngs(key))


def of_equinox(outputs, example, key):
    return eqx.nn.MLP(example.shape[-1], outputs, 8, 1, key=key)


def of_keras(outputs, example):
    layers = [keras.layers.Input(example.shape[1:]), keras.layers.Dense(outputs)]
    return keras.Sequential(layers)


def injected():
    return optax.inject_hyperparams(optax.adam)(0.05)


SUBJECTS = {
    "linen": (Linen(3), ADAM),
    "linen, made": (functools.partial(Linen), ADAM),
    "haiku": (of_haiku, ADAM),
    "nnx": (of_nnx, injected),
    "equinox": (of_equinox, functools.partial(optimizers.adam, 0.05)),
    "keras": (of_keras, functools.partial(keras.optimizers.Adam, 0.05)),
    "stax": (network, ADAM),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_any_library_is_cloned_and_pickled_before_and_after_a_fit(name):
    estimator = classifier(*SUBJECTS[name], epochs=2)
    fitted = pickle.loads(pickle.dumps(clone(estimator))).fit(X, NAMES)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(fitted.predict_proba(X), again.predict_proba(X))
    assert repr(again) == repr(fitted) == repr(estimator)
    for one in (fitted, again):  # which go on in the same way
        one.partial_fit(X, NAMES)
    np.testing.assert_array_equal(fitted.predict_proba(X), again.predict_proba(X))


@pytest.mark.parametrize(
    "name", sorted(SUBJECTS.keys() - {"keras"})
)  # whose networks are all different
def test_another_fit_compiles_nothing(name):
    step = vars(SupervisedExperiment)["train_step"]
    outputs = vars(SupervisedExperiment)["_outputs"]
    estimator = classifier(*SUBJECTS[name], epochs=1)
    estimator.fit(X, NAMES).predict(X)
    before = step.traces, outputs._cache_size()
    clone(estimator).set_params(random_state=3).fit(X[:32], NAMES[:32]).predict(X[:7])
    assert (step.traces, outputs._cache_size()) == before


def test_what_code_makes_of_other_values_is_not_shared():
    rate = 0.0

    def sgd():
        return optax.sgd(rate)

    still = regressor(network, sgd).fit(X, CODES).predict(X)
    rate = 0.1
    assert not np.array_equal(regressor(network, sgd).fit(X, CODES).predict(X), still)


def test_an_array_that_has_changed_is_not_taken_for_what_it_was():
    scale = np.ones(2)

    def make():
        return (lambda key: None, lambda params: scale)

    first = making.made(make, "net")
    assert making.made(make, "net") is first
    scale[0] = 5
    assert making.made(make, "net") is not first


def test_a_list_that_has_changed_is_not_taken_for_what_it_was():
    def bound(values):
        return lambda: (lambda: values, lambda: values)

    rates = [0.1]
    first = made(bound(rates), "net")
    assert made(bound([0.1]), "net") is first
    rates[0] = 0.2
    assert made(bound([0.1]), "net")[0]() == [0.1]


def test_only_so_many_made_functions_are_kept(monkeypatch):
    monkeypatch.setattr(making, "_KEPT", {})
    first = made(functools.partial(optax.sgd, 0), "optimizer")
    for rate in range(1, 100):
        made(functools.partial(optax.sgd, rate), "optimizer")
        assert made(functools.partial(optax.sgd, 0), "optimizer") is first
    assert len(making._KEPT) == 64


def test_a_grid_over_a_pipeline_finds_the_rate_that_learns():
    rates = [functools.partial(optax.sgd, rate) for rate in (1e-6, 0.5)]
    grid = {"classifier__optimizer": rates, "classifier__batch_size": [16]}
    pipeline = make_pipeline(StandardScaler(), classifier())
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, NAMES)
    assert search.best_params_["classifier__optimizer"].args == (0.5,)
    assert search.score(X, NAMES) > 0.9
    assert "Classifier(" in repr(search)
    assert search._repr_html_()


# Errors.


class Large(nn.Module):
    """A class, where an instance is meant."""


@pytest.mark.parametrize(
    ("make", "y", "message"),
    [
        (lambda: classifier(network(2)), NAMES, r"each of the 3 classes of y.*returns \(1, 2\)"),
        (lambda: regressor(network(2)), CODES, r"return 1 number for .*returns \(1, 2\)"),
        (lambda: classifier(), NAMES[CODES == 1], "has 1 class: \\['bee'\\]"),
        (lambda: classifier(Large), NAMES, "Make one first: Large"),
        (lambda: classifier(lambda a, b, c, d: None), NAMES, "outputs, example, key.*requires 4"),
        (
            lambda: classifier(optimizer=optax.adam),
            NAMES,
            "optimizer.*without arguments.*requires 1",
        ),
        (lambda: classifier(epochs=1.5), NAMES, "epochs is expected to be an int"),
        (lambda: classifier(batch_size=0), NAMES, "batch_size is expected to be at least 1"),
        (lambda: classifier(random_state="a"), NAMES, "random_state is expected.*'a'"),
        (lambda: classifier(validation_fraction=1), NAMES, "validation_fraction.*below 1"),
        (lambda: classifier(experiment_options={"key": 0}), NAMES, "experiment_options.*'key'"),
        (lambda: classifier(experiment_options={"ema": 0}), NAMES, "did you mean 'ema_decay'"),
        (lambda: regressor(), CODES * 1e300, "y is expected to hold numbers that float32"),
    ],
    ids=range(13),
)
def test_what_cannot_be_fitted_is_told(make, y, message):
    with pytest.raises(solstice.SolsticeError, match=message):
        make().fit(X[: len(y)], y)


def test_a_network_of_another_width_is_told_how_to_be_made():
    with pytest.raises(solstice.SolsticeError, match="Classifier\\(lambda outputs"):
        classifier(network(4)).fit(X, NAMES)


def test_integers_that_jax_would_cut_are_refused():
    with pytest.raises(solstice.SolsticeError, match="integers from -2147483648"):
        classifier().fit(np.full((48, 2), 2**40), NAMES)


def test_partial_fit_knows_its_classes():
    with pytest.raises(solstice.SolsticeError, match="classes are expected in the first call"):
        classifier().partial_fit(X, NAMES)
    fitted = classifier().fit(X, NAMES)
    with pytest.raises(solstice.SolsticeError, match=r"classes .*it has \['dog'\]"):
        fitted.partial_fit(X[:2], ["dog", "ant"])
    with pytest.raises(solstice.SolsticeError, match="the same as before"):
        fitted.partial_fit(X, NAMES, classes=["ant", "dog"])
    with pytest.raises(solstice.SolsticeError, match="two labels or more"):
        classifier().partial_fit(X, NAMES, classes=["ant"])
    two = regressor().fit(X, X)
    with pytest.raises(
        solstice.SolsticeError, match=r"shape \(examples, 2\), as in the first call"
    ):
        two.partial_fit(X, CODES)


def test_other_shapes_than_those_of_the_fit_are_told():
    def flattening(outputs):
        return stax.serial(stax.Flatten, stax.Dense(outputs))

    fitted = classifier(flattening).fit(X.reshape(48, 1, 2), NAMES)
    with pytest.raises(solstice.SolsticeError, match="examples of shape \\(1, 2\\)"):
        fitted.predict(X.reshape(48, 1, 2, 1))
    with pytest.raises(ValueError, match="2 features"):
        classifier().fit(X, NAMES).predict(X[:, :1])


def of_another_shape(outputs):
    return stax.Dense(outputs)


def test_a_pickle_that_is_read_where_the_function_makes_another_network_is_told(monkeypatch):
    written = pickle.dumps(classifier(epochs=1).fit(X, NAMES))
    monkeypatch.setitem(globals(), "network", of_another_shape)
    with pytest.raises(solstice.SolsticeError, match="arrays of shapes"):
        pickle.loads(written)


@pytest.mark.slow  # starts a process
def test_without_scikit_learn_the_error_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import solstice.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingPackageError: solstice.sklearn needs the package 'scikit-learn'" in done.stderr
    assert "pip install 'jax-solstice[sklearn]'" in done.stderr
