"""Exports for any number of examples, and networks that depend on it."""

import os

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports import X, exported, function_model
from networks.common import TX, assert_same_bits

import solstice
from solstice import compat


def test_several_unknown_sizes(tmp_path):
    batch, time = jax.export.symbolic_shape("batch, time")
    model = compat.as_model(nn.Embed(7, 2), np.zeros((1, 1), int), key=0)
    example = jax.ShapeDtypeStruct((batch, time), "int32")
    found = exported(model, tmp_path, example=example)
    assert repr(found.inputs) == "int32[batch,time]"
    for shape in ((2, 3), (3, 5)):
        assert found(np.ones(shape, int)).shape == (*shape, 2)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(len(x), -1))


def test_a_network_that_counts_by_len_is_told_what_to_write(tmp_path):
    model = compat.as_model(Counting(), X, key=0)
    with pytest.raises(
        solstice.errors.InvalidValueError, match=r"x.shape\[0\] or -1 instead of len\(x\)"
    ):
        exported(model, tmp_path)


class Pairs(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(2, -1, 4)).reshape(-1, 2)


def test_a_network_that_asks_for_the_number_of_examples_takes_a_fixed_one(tmp_path):
    model = compat.as_model(Pairs(), X[:4], key=0)
    with pytest.raises(
        solstice.errors.InvalidValueError, match=r"FlaxModel with \(float32\[batch,4\].*batch=32"
    ):
        exported(model, tmp_path)
    assert not os.listdir(tmp_path)
    for name, batch in ("four", 4), ("example", "example"):
        found = exported(model, tmp_path / name, batch=batch)
        assert_same_bits([jax.jit(lambda x: model(x)[0])(X[:4])], [found(X[:4])])
        with pytest.raises(solstice.errors.InvalidValueError, match=r"float32\[4,4\]; it is"):
            found(X)


def test_arrays_that_are_no_examples_keep_their_shapes(tmp_path):
    model = compat.FunctionModel(
        lambda key, nodes, edges: jnp.ones(()),
        lambda scale, nodes, edges: scale * nodes[edges].sum(1),
        (X, np.zeros((9, 2), int)),
        key=jax.random.key(0),
    )
    with pytest.raises(solstice.errors.InvalidValueError, match="batch='example'"):
        exported(model, tmp_path)
    edges = np.arange(18).reshape(9, 2) % 5
    found = exported(model, tmp_path, batch="example")
    assert_same_bits([jax.jit(lambda *x: model(*x)[0])(X, edges)], [found(X, edges)])


BRANCHES = {
    "another value": lambda w, x: x @ w * (2 if x.shape[0] == 1 else 1),
    "another operation": lambda w, x: jnp.tanh(x @ w) if x.shape[0] == 1 else x @ w,
}


@pytest.mark.parametrize("kind", BRANCHES)
def test_a_network_that_treats_one_example_otherwise_is_refused(kind, tmp_path):
    model = function_model(BRANCHES[kind])
    with pytest.raises(solstice.errors.InvalidValueError, match=r"for one example.*batch=32"):
        exported(model, tmp_path)
    assert not os.listdir(tmp_path)
    found = exported(model, tmp_path, batch=1)
    np.testing.assert_allclose(found(X[:1]), model(X[:1])[0], rtol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 5])  # the example has 5
def test_a_network_that_branches_on_another_number_is_refused(size, tmp_path):
    model = function_model(lambda w, x: x @ w * (100 if x.shape[0] == size else 1))
    with pytest.raises(
        solstice.errors.InvalidValueError, match=rf"for {size} examples.*\(x\.shape"
    ):
        exported(model, tmp_path)
    assert not os.listdir(tmp_path)


def test_a_network_that_computes_with_the_number_of_examples_is_exported(tmp_path):
    model = function_model(lambda w, x: x @ w / x.shape[0])
    found = exported(model, tmp_path)
    for size in 1, 2, 5:
        np.testing.assert_allclose(found(X[:size]), model(X[:size])[0], rtol=1e-5)


def test_a_network_that_computes_the_same_by_other_operations_is_exported(tmp_path):
    model = function_model(lambda w, x: x @ w if x.shape[0] == 1 else (w.T @ x.T).T)
    found = exported(model, tmp_path)
    for size in 1, 5:
        np.testing.assert_allclose(found(X[:size]), model(X[:size])[0], rtol=1e-5)


def test_a_batch_without_examples_is_told_why(loaded):
    with pytest.raises(solstice.errors.InvalidValueError, match=r"batch is 0; .* at least 1"):
        loaded(X[:0])


class Normalised(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        self.linear = eqx.nn.Linear(4, 8, key=key)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")

    def __call__(self, x, state):
        return self.norm(jax.numpy.sin(self.linear(x)), state)


@pytest.mark.parametrize(
    "options", [{}, {"batch": 7}, {"platforms": "cpu"}, {"batch": 7, "platforms": "cpu"}], ids=str
)
def test_a_trained_batch_norm_of_equinox_gives_the_same_bits(options, tmp_path):
    # Both of its moments are divided by one correction, which XLA may turn into a product.
    network = eqx.nn.make_with_state(Normalised)(jax.random.key(0))
    exp = solstice.ClassificationExperiment(network, TX, example_input=X[:1])
    x = np.random.default_rng(1).normal(size=(7, 4)).astype("float32")
    y = np.arange(7) % 3
    for i in range(3):
        exp = exp.train(2 + i, [(x, y)], progress=False)
        path = tmp_path / str(i)
        solstice.export(exp, path, **options)
        assert np.array_equal(solstice.load_exported(path)(x), exp(x))
