"""What every supervised task has: weights, averages, accumulation, mixed precision, padding."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax
from sklearn.metrics import r2_score

import solstice

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 3))).argmax(-1).astype("int32")
Z = (X @ RNG.normal(size=(4, 2))).astype("float32")


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(3)(x)


@functools.cache
def mlp(outputs=3):
    return stax.serial(stax.Dense(8), stax.Relu, stax.Dense(outputs))


SGD, ADAM = optax.sgd(0.1), optax.adam(0.03)


def classify(network=None, optimizer=None, **options):
    network = mlp() if network is None else network
    optimizer = SGD if optimizer is None else optimizer
    return solstice.ClassificationExperiment(network, optimizer, example_input=X, key=0, **options)


def close(one, other, **tolerance):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def loss_and_step(exp, batch):
    new, metrics = exp.train_step(batch)
    return float(metrics.loss_sum / metrics.count), new


def test_class_weights_and_smoothing_are_those_of_optax():
    weights = np.array([0.5, 2.0, 1.0])
    exp = classify(class_weights=weights, label_smoothing=0.2)
    loss, _ = loss_and_step(exp, (X, Y))
    smooth = optax.smooth_labels(jax.nn.one_hot(Y, 3), 0.2)
    expected = optax.softmax_cross_entropy(exp(X), smooth) * weights[Y]
    assert loss == pytest.approx(float(expected.mean()), rel=1e-5)
    with pytest.raises(ValueError, match="one for each of the 3 classes; there are 2"):
        classify(class_weights=[1, 2])
    with pytest.raises(ValueError, match=r"label_smoothing is .* at least 0 and below 1; it is 1"):
        classify(label_smoothing=1)


def test_example_weights_divide_by_the_number_of_examples():
    exp = classify()
    weight = RNG.uniform(size=24).astype("float32")
    loss, _ = loss_and_step(exp, {"image": X, "label": Y, "weight": weight})
    losses = optax.softmax_cross_entropy_with_integer_labels(exp(X), Y)
    assert loss == pytest.approx(float((losses * weight).sum() / 24), rel=1e-5)


def test_the_average_of_the_parameters_is_what_is_evaluated():
    exp = classify(ema_decay=0.9)
    plain, average = classify(), exp.model.params
    for _ in range(3):
        exp, _ = exp.train_step((X, Y))
        plain, _ = plain.train_step((X, Y))
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, average, plain.model.params)
    close(exp.model.params, plain.model.params, rtol=0, atol=0)
    close(exp.ema, average)
    close(exp(X), solstice.replace(plain.model, params=average)(X)[0])
    with pytest.raises(ValueError, match="ema_decay is expected to be a finite number above 0"):
        classify(ema_decay=1.0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("parts", [2, 3, 24])
def test_parts_of_a_batch_add_up_to_the_whole(parts, masked):
    batch = (X, Y, jnp.arange(24) < 17) if masked else (X, Y)
    whole, expected = classify().train_step(batch)
    accumulated, metrics = classify(accumulate_steps=parts).train_step(batch)
    close(whole.model.params, accumulated.model.params, rtol=1e-6, atol=1e-6)
    close(expected, metrics)
    with pytest.raises(ValueError, match="divide into accumulate_steps=2 parts; it has 23"):
        classify(accumulate_steps=2).train_step((X[:23], Y[:23]))


def test_parts_update_the_state_one_after_the_other():
    exp = classify(Normed(), accumulate_steps=2)
    new, _ = exp.train_step((X, Y))
    model = exp.model
    for part in (X[:12], X[12:]):
        _, model = model(part, train=True)
    close(new.model.state, model.state)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_learns_and_keeps_its_types(dtype):
    def dtypes(tree):
        return [leaf.dtype for leaf in jax.tree.leaves(tree)]

    exp = classify(Normed(), optax.adam(0.05), compute_dtype=dtype)
    text = str(jax.make_jaxpr(lambda x: exp(x))(X))
    assert {"bfloat16": "bf16", "float16": "f16"}[dtype] in text
    before = dtypes(exp)
    trained = exp.train(60, [(X, Y)], progress=False)
    assert dtypes(trained) == before and trained(X).dtype == jnp.float32
    assert trained.test([(X, Y)], progress=False)["accuracy"] > 0.9
    assert (trained.loss_scale is not None) == (dtype == "float16")


def test_a_step_that_overflows_float16_is_left_out():
    exp = classify(compute_dtype="float16")
    huge = X * np.float32(1e30)
    new, _ = exp.train_step((huge, Y))
    close(new.model.params, exp.model.params, rtol=0, atol=0)
    assert float(new.loss_scale.loss_scale) < float(exp.loss_scale.loss_scale)


def test_padded_batches_give_the_same_answer_in_evaluation():
    batches = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 24, 10)]
    exp = classify()
    plain = exp.test(batches, progress=False)
    padded = exp.test(solstice.pad_last(batches, 10), progress=False)
    assert plain == pytest.approx(padded, rel=1e-5)


def test_padding_is_refused_in_training_where_it_would_change_the_state():
    batch = (X, Y, jnp.arange(24) < 20)
    with pytest.raises(ValueError, match="Drop the last, shorter batch in training"):
        classify(Normed()).train_step(batch)
    classify().train_step(batch)
    classify(Normed()).eval_step(batch)


def regress(**options):
    return solstice.RegressionExperiment(mlp(2), ADAM, example_input=X, key=0, **options)


@pytest.mark.slow
def test_a_regression_learns_and_measures_as_scikit_learn_does():
    exp = regress(num_outputs=2).train(300, [(X, Z)], progress=False)
    found = exp.test([(X[:10], Z[:10]), (X[10:], Z[10:])], progress=False)
    assert found["r2"] == pytest.approx(r2_score(Z, exp.predict(X)), rel=1e-4)
    assert found["r2"] > 0.95 and "r2_output_1" in found
    assert solstice.predict(exp, [X[:5], X[5:]], progress=False).shape == (24, 2)


def test_a_masked_regression_is_that_of_the_rest():
    mask = jnp.arange(24) < 15
    masked, _ = regress().train_step((X, jnp.where(mask[:, None], Z, jnp.nan), mask))
    rest, _ = regress().train_step((X[:15], Z[:15]))
    close(masked.model.params, rest.model.params, rtol=1e-4)


def test_wrong_targets_are_named():
    with pytest.raises(ValueError, match="shape of the network's outputs"):
        regress().train(1, [(X, Z[:, 0])], progress=False)
    with pytest.raises(ValueError, match="expected to be finite; 48 of 48 are not, such as nan"):
        regress().train(1, [(X, Z * np.nan)], progress=False)
    with pytest.raises(ValueError, match="accumulate_steps is expected to be at least 1"):
        regress(accumulate_steps=0)


def test_equal_experiments_share_one_compilation():
    one, other = (classify(class_weights=[1, 2, 3], top_k=2) for _ in range(2))
    assert jax.tree.structure(one) != jax.tree.structure(classify())
    assert one._task == other._task and hash(one._task) == hash(other._task)
