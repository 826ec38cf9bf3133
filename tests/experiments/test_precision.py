"""Number types narrower than float32: what is averaged, skipped, kept, and what a loss is of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax
from networks import LIBRARIES
from networks.common import CLASSES, assert_same_bits

import solstice
from solstice.experiments.precision import LossScale

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = X[:, :3].argmax(-1).astype("int32")
DS = [(X, Y)]


def mlp(dtype=jnp.float32):
    types = {"dtype": dtype, "param_dtype": dtype}
    return nn.Sequential([nn.Dense(8, **types), nn.relu, nn.Dense(3, **types)])


def classify(network, tx=None, **options):
    tx = optax.adam(2e-3) if tx is None else tx
    return solstice.ClassificationExperiment(network, tx, example_input=X, key=0, **options)


class Exact(solstice.Callback):
    """The average in float64."""

    def __init__(self, exp, decay):
        self.average, self.decay = [], decay
        self.average = [np.asarray(leaf, "f8") for leaf in jax.tree.leaves(exp.model.params)]

    def on_step_end(self, outs, exp, global_step, mode, batch):
        params = [np.asarray(leaf, "f8") for leaf in jax.tree.leaves(exp.model.params)]
        pairs = zip(self.average, params, strict=True)
        self.average = [self.decay * old + (1 - self.decay) * new for old, new in pairs]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_an_average_of_narrow_parameters_is_exact(dtype):
    exp = classify(mlp(dtype), ema_decay=0.999)
    exact = Exact(exp, 0.999)
    trained = exp.train(100, DS, callbacks=[exact], progress=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained.model.params)} == {jnp.dtype(dtype)}
    for one, other in zip(jax.tree.leaves(trained.ema), exact.average, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    average = jax.tree.map(lambda leaf: leaf.astype(dtype), trained.ema)
    expected = jax.jit(lambda model: model(X)[0])(solstice.replace(trained.model, params=average))
    assert_same_bits([trained(X)], [expected])


# What has batch statistics, streams of random numbers, or both. The step undoes itself on arrays
# alone, after the adapter: of those that keep their state in a way of their own, one each.
def overflowing(library, accumulate_steps):
    if (library, accumulate_steps) in (("linen", 1), ("nnx", 2)):
        return ()
    kept = (library, accumulate_steps) in (("equinox", 2), ("keras", 1))
    return pytest.mark.slow if kept else (pytest.mark.slow, pytest.mark.soak)


@pytest.mark.parametrize(
    ("library", "accumulate_steps"),
    [
        pytest.param(library, steps, marks=overflowing(library, steps))
        for library in LIBRARIES
        for steps in (1, 2)
    ],
)
def test_a_float16_step_that_overflows_changes_nothing_but_the_scale(library, accumulate_steps):
    subject = LIBRARIES[library]["cnn"]
    x, y = subject.inputs[0], np.arange(4) % CLASSES
    exp = solstice.ClassificationExperiment(
        subject.make_model(KEY),
        optax.chain(optax.add_noise(0.1, 0.5, KEY), optax.adam(1e-2)),
        key=0,
        compute_dtype="float16",
        ema_decay=0.9,
        accumulate_steps=accumulate_steps,
    )
    # Of two parts, the second alone overflows.
    huge = np.concatenate([x[:2], x[2:] * np.float32(1e30)])
    after, _ = exp.train_step((huge, y))
    assert float(after.loss_scale.loss_scale) < float(exp.loss_scale.loss_scale)
    kept = solstice.replace(after, loss_scale=exp.loss_scale)
    assert_same_bits(*(jax.tree.leaves(one) for one in (exp, kept)))
    # At a scale that fits, the same step changes what a step changes, and stays finite.
    for _ in range(20):
        kept, _ = kept.train_step((x, y))
    for name in ("model", "optimizer", "ema"):
        before, found = (jax.tree.leaves(getattr(one, name)) for one in (exp, kept))
        floats = [leaf for leaf in found if jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in floats)
        assert any((a != b).any() for a, b in zip(before, found, strict=True))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x)))


def test_a_member_that_overflows_stays_alone_as_it_was():
    ensemble = solstice.Ensemble.init(
        lambda key: solstice.ClassificationExperiment(
            Normed(), optax.sgd(0.1), example_input=X, key=key, compute_dtype="float16"
        ),
        [0, 1],
        own_batches=True,
    )
    after, metrics = ensemble.train_step((np.stack([X, X * np.float32(1e30)]), np.stack([Y, Y])))
    same, changed = after.member(1).model, after.member(0).model
    assert_same_bits(jax.tree.leaves(same), jax.tree.leaves(ensemble.member(1).model))
    pairs = zip(*map(jax.tree.leaves, (changed, ensemble.member(0).model)), strict=True)
    assert all((a != b).any() for a, b in pairs)
    assert np.isfinite(metrics.per_member()["average_loss"][0])


def moving_mean(dtype):
    """A network whose state, if nobody cares, comes out in the type that it computes in."""

    def init(key, x):
        return {"w": jax.random.normal(key, (4, 3))}, {"mean": jnp.zeros(4, dtype)}

    def apply(params, x, state):
        mean = state["mean"].astype(x.dtype)
        return x @ params["w"], {"mean": 0.9 * mean + 0.1 * x.mean(0)}

    return solstice.compat.FunctionModel(init, apply, X, key=0)


@pytest.mark.parametrize("state", [jnp.float32, jnp.float16])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_a_state_keeps_its_own_type(compute, accumulate_steps, state):
    exp = solstice.ClassificationExperiment(
        moving_mean(state), optax.sgd(0.1), compute_dtype=compute, accumulate_steps=accumulate_steps
    )
    step, exp = type(exp).train_step, exp.train_step((X, Y))[0]
    traces = step.traces
    exp, _ = exp.train_step((X, Y))
    assert exp.model.state["mean"].dtype == state and step.traces == traces
    assert (exp.model.state["mean"] != 0).all()
    assert exp.train(2, DS, progress=False, recompile="error") is not None


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_gradients_of_narrow_parameters_are_unscaled_in_their_type(accumulate_steps):
    exp = classify(mlp(jnp.float16), compute_dtype="float16", accumulate_steps=accumulate_steps)
    after, _ = exp.train_step((X, Y))
    pairs = zip(*(jax.tree.leaves(one.model.params) for one in (exp, after)), strict=True)
    assert all(new.dtype == jnp.float16 and (new != old).any() for old, new in pairs)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_loss_of_narrow_outputs_is_summed_in_float32(dtype):
    x, y = RNG.normal(size=(300, 4)).astype("float32"), RNG.integers(0, 3, 300)
    exp = classify(mlp(dtype), class_weights=[0.3, 1.0, 3.0], label_smoothing=0.1)
    logits = exp(x)
    assert logits.dtype == dtype
    smooth = optax.smooth_labels(jax.nn.one_hot(y, 3), 0.1)
    wide = optax.softmax_cross_entropy(logits.astype(jnp.float32), smooth)
    expected = float((wide * jnp.array([0.3, 1.0, 3.0])[y]).mean())
    assert exp.test([(x, y)], progress=False)["average_loss"] == pytest.approx(expected, rel=1e-5)
    z = (x @ RNG.normal(size=(4, 3))).astype("float32")
    regression = solstice.RegressionExperiment(
        mlp(dtype), optax.sgd(0.1), example_input=x[:1], key=0
    )
    found = regression.test([(x, z)], progress=False)
    exact = np.mean((np.asarray(regression(x), "f8") - z) ** 2)
    assert found["mse"] == pytest.approx(exact, rel=1e-5)
    assert found["average_loss"] == pytest.approx(exact, rel=1e-5)


def asking():
    """An optimizer that notes what it is told of the loss."""

    def init(params):
        return {"value": jnp.zeros(()), "again": jnp.zeros(())}

    def update(updates, state, params=None, *, value, value_fn, **extras):
        return updates, {"value": value, "again": value_fn(params)}

    return optax.chain(optax.GradientTransformationExtraArgs(init, update), optax.scale(-0.1))


@pytest.mark.parametrize("compute", [None, "bfloat16", "float16"])
def test_a_line_search_sees_the_loss_without_its_scale(compute):
    net = stax.serial(stax.Dense(3))
    exp, metrics = classify(net, asking(), compute_dtype=compute).train_step((X, Y))
    told = exp.optimizer.state[0]
    assert float(told["value"]) == pytest.approx(float(told["again"]), rel=1e-5)
    assert float(told["value"]) == pytest.approx(float(metrics.compute()["average_loss"]))


def test_streams_of_random_numbers_are_a_state_of_any_type():
    subject = LIBRARIES["nnx"]["cnn"]
    exp = solstice.ClassificationExperiment(
        subject.make_model(KEY), optax.sgd(0.1), CLASSES, compute_dtype="bfloat16"
    )
    after = exp.train(2, [(subject.inputs[0], np.arange(4) % CLASSES)], progress=False)
    before, found = (jax.tree.leaves(one.model.state["rngs"]) for one in (exp, after))
    assert any((a != b).any() for a, b in zip(before, found, strict=True))


def moving_square():
    """A network whose state overflows where its gradients do not."""

    def init(key, x):
        return {"w": jax.random.normal(key, (4, 3))}, {"square": jnp.zeros(4), "least": jnp.inf}

    def apply(params, x, state):
        square = (x**2).mean(0)
        new = {"square": square.astype(jnp.float32), "least": state["least"]}
        return (x / jnp.sqrt(square)) @ params["w"], new

    return solstice.compat.FunctionModel(init, apply, X, key=0)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_state_that_overflows_alone_is_left_as_it_was(accumulate_steps):
    exp = solstice.ClassificationExperiment(
        moving_square(),
        optax.sgd(0.1),
        compute_dtype="float16",
        accumulate_steps=accumulate_steps,
    )
    gradients = solstice.compat.gradients(exp, (X * 1000, Y))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    assert jnp.isfinite(solstice.compat.training_norms(exp, (X * 1000, Y))["gradient_norm"])
    after, _ = exp.train_step((X * 1000, Y))
    assert float(after.loss_scale.loss_scale) < float(exp.loss_scale.loss_scale)
    assert_same_bits(*(jax.tree.leaves(one.model) for one in (exp, after)))
    # What was infinite from the start, and stays so, is no overflow.
    trained, _ = after.train_step((X, Y))
    assert (trained.model.state["square"] > 0).all()
    assert (trained.model.params["w"] != exp.model.params["w"]).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_gradients_of_many_parts_add_up_in_float32(dtype):
    x = RNG.normal(size=(512, 4)).astype(dtype) + 1
    y = RNG.integers(0, 3, 512)
    found = []
    for parts in (1, 512):
        exp = solstice.ClassificationExperiment(
            mlp(dtype), optax.sgd(0.1), example_input=x, key=0, accumulate_steps=parts
        )
        gradients = jax.tree.leaves(solstice.compat.gradients(exp, (x, y)))
        assert {leaf.dtype for leaf in gradients} == {jnp.dtype(dtype)}
        found.append(np.concatenate([np.asarray(leaf, "f4").ravel() for leaf in gradients]))
    whole, added = found
    assert np.abs(added - whole).max() < 0.02 * np.abs(whole).max()


def test_a_loss_scale_moves_as_published(monkeypatch):
    monkeypatch.setattr("solstice.experiments.precision._PERIOD", 3)
    scale, expected, count = LossScale(), 2.0**15, 0
    for finite in [False] * 17 + [True, True, False] + [True] * 400:
        scale = scale.adjust(jnp.array(finite))
        count = count + 1 if finite else 0
        if not finite:
            expected = max(expected / 2, 1.0)
        elif count % 3 == 0:
            expected = np.float32(expected) * 2 if expected < 2.0**127 else expected
        assert float(scale.loss_scale) == expected
    assert expected == 2.0**127  # and no more, which would be infinite
