"""A number in place of an array is named, in the trees of every model and optimizer."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import optax
import pytest
from flax import nnx
from jax.example_libraries import optimizers
from networks import LIBRARIES

import solstice
from solstice.compat import (
    FlaxModel,
    FunctionModel,
    HaikuModel,
    JaxOptimizer,
    KerasOptimizer,
    NNXModel,
    OptaxOptimizer,
)
from solstice.testing.compare import assert_same_signature

X = jnp.ones((2, 3))
PARAMS = {"w": jnp.ones(3)}
OPTIMIZERS = {
    "optax": lambda: OptaxOptimizer(optax.inject_hyperparams(optax.adam)(1e-2)),
    "jax": lambda: JaxOptimizer(optimizers.momentum(0.1, 0.9)),
    "keras": lambda: KerasOptimizer(keras.optimizers.SGD(0.1)),
}


@pytest.mark.parametrize("library", OPTIMIZERS)
def test_a_number_in_an_optimizers_state_is_named(library):
    opt = OPTIMIZERS[library]().init(PARAMS)
    paths = solstice.tree.paths(opt.state)
    leaves, structure = jax.tree.flatten(opt.state)
    broken = solstice.replace(opt, state=jax.tree.unflatten(structure, [*leaves[:-1], 0.5]))
    message = (
        rf"{type(opt).__name__}: .*'state/{paths[-1]}' is the float 0\.5.*"
        r"jnp\.asarray\(0\.5, jnp\.float32\)"
    )
    with pytest.raises(TypeError, match=message):
        broken(PARAMS, PARAMS)


def test_a_learning_rate_that_is_written_as_a_number_is_named_before_a_step():
    exp = solstice.ClassificationExperiment(
        nn.Dense(2), optax.inject_hyperparams(optax.adam)(1e-2), example_input=X, key=0
    )
    batch = (X, jnp.zeros(2, int))
    rates = exp.optimizer.state.hyperparams
    rates["learning_rate"] = 1e-4
    message = r"'state/hyperparams/learning_rate' is the float 0\.0001.*jnp\.asarray\(0\.0001"
    with pytest.raises(TypeError, match=message):
        exp.train(1, [batch], progress=False)
    rates["learning_rate"] = jnp.asarray(1e-4, jnp.float32)
    trained = exp.train(1, [batch], progress=False)
    assert float(trained.optimizer.learning_rate()) == pytest.approx(1e-4)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_number_among_a_models_leaves_is_named(library):
    subject = LIBRARIES[library]["cnn"]
    model = subject.make_model(jax.random.key(0))
    for field in ("params", "state"):
        leaves, structure = jax.tree.flatten(getattr(model, field))
        if not leaves:
            continue
        tree = jax.tree.unflatten(structure, [*leaves[:-1], 2])
        with pytest.raises(TypeError, match=rf"{type(model).__name__}: .*'{field}/.*the int 2"):
            solstice.replace(model, **{field: tree})(*subject.inputs)


class LinenCounter(nn.Module):
    @nn.compact
    def __call__(self, x):
        calls = self.variable("counters", "calls", lambda: 0)
        if not self.is_initializing() and self.is_mutable_collection("counters"):
            calls.value += 1
        return x * calls.value


class NNXCounter(nnx.Module):
    def __init__(self):
        self.calls = nnx.Variable(0)

    def __call__(self, x):
        self.calls[...] += 1
        return x * self.calls[...]


def haiku_counter(x):
    calls = hk.get_state("calls", (), init=lambda shape, dtype: 0)
    hk.set_state("calls", calls + 1)
    return x * calls


COUNTERS = {
    "linen": lambda: FlaxModel(LinenCounter(), X, key=0),
    "nnx": lambda: NNXModel(NNXCounter()),
    "haiku": lambda: HaikuModel(hk.transform_with_state(haiku_counter), X, key=0),
    "function": lambda: FunctionModel(
        lambda key, x: ({}, 0), lambda params, x, state: (x * state, state + 1), X, key=0
    ),
}


@pytest.mark.parametrize("library", COUNTERS)
def test_state_that_begins_with_a_number_is_an_array(library):
    model = COUNTERS[library]()
    step = jax.jit(lambda model: model(X, train=True)[1])
    after = step(step(model))
    assert [int(leaf) for leaf in jax.tree.leaves(after.state)] == [2]
    assert_same_signature(model, after, "after two steps")
