"""ClassificationExperiment: any network, any optimizer, masks, keys, and what it refuses."""

import equinox as eqx
import flax.linen as nn
import flax.nnx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax
from networks import keras, nnx
from networks.equinox import CNN as EquinoxCNN
from networks.function import cnn, cnn_init
from networks.haiku import cnn as haiku_cnn
from networks.linen import CNN as LinenCNN
from networks.stax import cnn as stax_cnn

import solstice
from solstice.experiments.classification import softmax_cross_entropy

CLASSES = 3
TX = optax.adam(1e-2)
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(0), (8, 4, 4, 1))
Y = jax.random.randint(jax.random.key(1), (8,), 0, CLASSES)


class MLP(nn.Module):
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes)(nn.relu(nn.Dense(8)(x.reshape(x.shape[0], -1))))


def mlp(**options):
    return solstice.ClassificationExperiment(
        MLP(), TX, **({"example_input": X, "key": 0} | options)
    )


NETWORKS = {
    "linen": LinenCNN,
    "nnx": lambda: nnx.CNN(flax.nnx.Rngs(0)),
    "haiku": lambda: hk.transform_with_state(haiku_cnn),
    "equinox": lambda: eqx.nn.make_with_state(EquinoxCNN)(jax.random.key(0)),
    "stax": lambda: solstice.compat.StaxModel(
        stax_cnn("train"), X, key=0, eval_apply=stax_cnn("test")[1]
    ),
    "keras": keras.cnn,
    "function": lambda: solstice.compat.FunctionModel(cnn_init, cnn, X, key=0),
}


@pytest.mark.parametrize(
    "library",
    [
        pytest.param(name, marks=() if name in ("linen", "equinox") else pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_any_network_learns(library):
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, 96)
    x = rng.normal(size=(96, 4, 4, 1)).astype("float32") + 2 * y[:, None, None, None] - 2
    ds = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 96, 32)]
    exp = solstice.ClassificationExperiment(NETWORKS[library](), TX, example_input=x[:2], key=0)
    assert exp.num_classes == CLASSES
    trained = exp.train(num_epochs=15, train_ds=ds, val_ds=ds, progress=False)
    results = trained.test(ds, progress=False)
    assert results["accuracy"] > 0.95
    assert all(type(value) is float for value in results.values())
    assert trained(x).shape == (96, CLASSES)
    assert (trained.predict(x) == trained(x).argmax(-1)).all()
    assert exp.test(ds, progress=False)["accuracy"] < results["accuracy"]


def test_the_numbers_of_a_test_are_scikit_learns():
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    exp = mlp()
    ds = [(X, Y), (X[:3], Y[:3])]
    x, y = np.concatenate([X, X[:3]]), np.concatenate([Y, Y[:3]])
    results = exp.test(ds, progress=False)
    predicted = np.asarray(exp.predict(x))
    assert results["accuracy"] == pytest.approx(accuracy_score(y, predicted))
    assert results["f1_macro"] == pytest.approx(f1_score(y, predicted, average="macro"))
    probabilities = np.asarray(jax.nn.softmax(exp(x)), np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    expected = log_loss(y, probabilities, labels=range(CLASSES))
    assert results["average_loss"] == pytest.approx(expected, rel=1e-5)
    assert (solstice.predict(exp, ds, progress=False) == predicted).all()


def test_batches_of_every_form_are_the_same_batch():
    exp = mlp()
    named = mlp(batch_keys=("x", "y", "w"))
    reference = exp.eval_step((X, Y))[1]
    for other in (
        exp.eval_step([X, Y])[1],
        exp.eval_step((X, Y, jnp.ones(8, bool)))[1],
        exp.eval_step({"image": X, "label": Y, "id": jnp.arange(8)})[1],
        exp.eval_step({"image": X, "label": Y, "mask": jnp.ones(8)})[1],
        named.eval_step({"x": X, "y": Y})[1],
    ):
        assert eqx.tree_equal(reference, other)
    assert exp.batch_inputs({"image": X}) is X
    assert exp.batch_inputs((X, Y)) is X
    assert exp.batch_inputs(X) is X


def test_masked_positions_count_nowhere():
    exp = mlp()
    mask = jnp.arange(8) < 5
    labels = jnp.where(mask, Y, -100)
    exp.check_batch((X, labels, mask))
    short, _ = exp.train_step((X[:5], Y[:5]))
    masked, metrics = exp.train_step((X, labels, mask))
    for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(masked), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert int(metrics.count) == 5 and int(metrics.invalid) == 0
    nothing, metrics = exp.train_step((X, labels, jnp.zeros(8, bool)))
    assert int(metrics.count) == 0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(nothing.model))


def test_labels_past_the_first_batch_are_counted_and_teach_nothing():
    exp = mlp()
    wrong = Y.at[0].set(99).at[1].set(-1)
    with_wrong, metrics = exp.train_step((X, wrong))
    without, _ = exp.train_step((X, Y, jnp.arange(8) > 1))
    assert int(metrics.invalid) == 2
    for a, b in zip(*map(jax.tree.leaves, (with_wrong.model, without.model)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_tokens_and_pixels_are_the_same_experiment():
    exp = solstice.ClassificationExperiment(
        nn.Dense(4), TX, example_input=jnp.ones((2, 5, 3)), key=0
    )
    x, y = jnp.ones((2, 5, 3)), jnp.zeros((2, 5), int)
    exp, metrics = exp.train_step((x, y, jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])))
    assert exp.predict(x).shape == (2, 5)
    assert int(metrics.count) == 8


def test_several_inputs_come_as_a_tuple():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, a, b):
            return nn.Dense(3)(a) + nn.Dense(3)(b)

    a, b = jnp.ones((4, 2)), jnp.ones((4, 6))
    exp = solstice.ClassificationExperiment(Two(), TX, example_input=(a, b), key=0)
    exp, _ = exp.train_step(((a, b), jnp.zeros(4, int)))
    assert exp((a, b)).shape == (4, 3)


def test_only_a_network_that_draws_advances_the_key():
    plain = mlp()
    after, _ = plain.train_step((X, Y))
    assert after.key == plain.key
    drawing = solstice.ClassificationExperiment(LinenCNN(), TX, example_input=X, key=0)
    after, _ = drawing.train_step((X, Y))
    assert after.key != drawing.key
    model = solstice.compat.FlaxModel(MLP(), X, key=jax.random.key(0))
    keyless = solstice.ClassificationExperiment(model, TX, CLASSES)
    assert keyless.train_step((X, Y))[0].key is None


@pytest.mark.slow
def test_the_optimizer_may_want_the_loss():
    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    for tx in (optax.lbfgs(), optax.polyak_sgd(), plateau):
        exp = solstice.ClassificationExperiment(MLP(), tx, example_input=X, key=0)
        losses = []
        for _ in range(4):
            exp, metrics = exp.train_step((X, Y))
            losses.append(float(metrics.compute()["average_loss"]))
        assert losses[-1] < losses[0]


def test_evaluation_returns_the_experiment_itself():
    exp = mlp()
    assert exp.eval_step((X, Y))[0] is exp


def test_an_own_loss():
    def hinge(logits, labels):
        right = jnp.take_along_axis(logits, labels[..., None], -1)
        return jnp.maximum(0, 1 + logits - right).sum(-1) - 1

    assert float(mlp(loss=hinge).train_step((X, Y))[1].compute()["average_loss"]) > 0
    with pytest.raises(ValueError, match=r"a loss for each position, of shape \(8,\).*float32\[\]"):
        mlp(loss=lambda logits, labels: hinge(logits, labels).mean()).train_step((X, Y))


def test_the_default_loss_is_optaxs():
    logits = jax.random.normal(jax.random.key(0), (7, 5))
    labels = jnp.array([0, 1, 2, 3, 4, 0, 1])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), expected, rtol=1e-6)


@pytest.mark.slow
def test_construction_works_under_jit_vmap_and_eval_shape():
    def make(key):
        return solstice.ClassificationExperiment(LinenCNN(), TX, example_input=X, key=key)

    jitted = jax.jit(make)(jax.random.key(0))
    stacked = jax.vmap(make)(jax.random.split(jax.random.key(0), 3))
    shapes = jax.eval_shape(make, jax.random.key(0))
    assert jax.tree.structure(jitted) == jax.tree.structure(shapes)
    many, metrics = jax.vmap(lambda exp: exp.train_step((X, Y)))(stacked)
    assert metrics.confusion_matrix.shape == (3, CLASSES, CLASSES)
    assert jitted.train_step((X, Y))[1].num_classes == CLASSES
    assert jax.tree.structure(many) == jax.tree.structure(stacked)


def test_a_missing_key_example_or_number_of_classes_is_asked_for():
    with pytest.raises(ValueError, match=r"takes example.*and key"):
        solstice.ClassificationExperiment(MLP(), TX)
    with pytest.raises(ValueError, match=r"takes key, a seed or PRNG key"):
        solstice.ClassificationExperiment(MLP(), TX, example_input=X)
    model = solstice.compat.FlaxModel(LinenCNN(), X, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"stream 'dropout'.*an experiment takes key="):
        solstice.ClassificationExperiment(model, TX).train(1, [(X, Y)], progress=False)
    with pytest.raises(ValueError, match=r"stream 'dropout'.*an experiment takes key="):
        solstice.ClassificationExperiment(model, TX, example_input=X)
    with pytest.raises(TypeError, match=r"key is expected to be an int seed or one PRNG key"):
        mlp(key="seed")


def train_on(batch, **options):
    return mlp(**options).train(num_epochs=1, train_ds=[batch], progress=False)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ((X,), TypeError, r"A batch is expected to be \(x, y\).*it is \(float32\[8,4,4,1\]\)"),
        (X, TypeError, r"A batch is expected to be .*; it is float32"),
        ({"x": X, "y": Y}, ValueError, r"expected to have 'image'; it has 'x', 'y'.*batch_keys="),
        (
            (X, Y + 0.5),
            ValueError,
            r"labels are expected.* whole numbers\. 8 of 8 .* such as [012]\.5",
        ),
        ((X, Y * 1j), TypeError, r"labels are expected to be classes.*complex64\[8\]"),
        ((X, Y + 7), ValueError, r"classes from 0 to 2.*8 of 8 are not, such as 7"),
        ((X, Y - 1), ValueError, r"are not, such as -1\. Number the classes from 0"),
        ((X, jnp.eye(CLASSES, dtype=int)[Y]), ValueError, r"look one-hot: pass labels\.argmax"),
        ((X, Y[:4]), ValueError, r"one class per position, of shape \(8,\); they are int32\[4\]"),
        ((X, Y, jnp.ones(3)), ValueError, r"mask is expected to have the shape of the targets"),
    ],
)
def test_bad_batches_are_refused_before_training(bad, error, message):
    with pytest.raises(error, match=message) as caught:
        train_on(bad)
    assert "This is the first batch of train_ds." in getattr(caught.value, "__notes__", [""])[
        0
    ] or ("position" in str(caught.value))


def test_bad_validation_data_is_refused_before_training():
    exp = mlp()
    steps = []

    class Count(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            steps.append(global_step)

    with pytest.raises(ValueError, match="Labels are expected") as caught:
        exp.train(1, [(X, Y)], [(X, Y + 9)], [Count()], progress=False)
    assert steps == []
    assert caught.value.__notes__ == ["This is the first batch of val_ds."]


def test_outputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"num_classes=5 logits; they are float32\[8,3\]"):
        mlp(num_classes=5)
    model = solstice.compat.FlaxModel(MLP(), X, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"num_classes=5 logits.*Change the last layer"):
        solstice.ClassificationExperiment(model, TX, 5)
    flat = eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(16, 3, key=KEY)])
    exp = solstice.ClassificationExperiment(flat, TX, 5)
    with pytest.raises(ValueError, match=r"num_classes=5 logits.*Change the last layer"):
        exp.train(num_epochs=1, train_ds=[(X, Y)], progress=False)
    two_headed = stax.serial(
        stax.Flatten, stax.FanOut(2), stax.parallel(stax.Dense(3), stax.Dense(3))
    )
    with pytest.raises(TypeError, match=r"expected to return one array of logits.*it returned \["):
        solstice.ClassificationExperiment(two_headed, TX, example_input=X, key=0)


def test_a_network_class_and_unknown_objects_are_refused():
    with pytest.raises(TypeError, match=r"got the class 'MLP'.*MLP\(\.\.\.\)"):
        solstice.ClassificationExperiment(MLP, TX, example_input=X, key=0)
    with pytest.raises(TypeError, match=r"This network is not supported"):
        solstice.ClassificationExperiment("resnet", TX, example_input=X, key=0)
    with pytest.raises(TypeError, match=r"This optimizer is not supported"):
        solstice.ClassificationExperiment(MLP(), "adam", example_input=X, key=0)


def test_an_example_that_is_no_batch_is_named():
    network = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"matmul|ndim|shape") as raised:
        solstice.ClassificationExperiment(network, optax.sgd(0.1), example_input=np.ones(2))
    notes = "\n".join(raised.value.__notes__)
    assert "on example_input, float64[2]; it must be a batch such as x[:1]" in notes


def test_a_loss_that_is_no_array_is_refused():
    x = np.ones((2, 3), np.float32)
    for make, y in (
        (solstice.ClassificationExperiment, np.array([0, 1])),
        (solstice.RegressionExperiment, np.ones((2, 2), np.float32)),
    ):
        network = stax.serial(stax.Dense(2))
        exp = make(network, optax.sgd(0.1), example_input=x, key=0, loss=lambda a, b: 3.0)
        with pytest.raises(ValueError, match=r"a loss for each .*; it returned the float 3\.0"):
            exp.eval_step((x, y))
