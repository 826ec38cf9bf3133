"""What a network keeps that a Model cannot treat as it wants is refused, and never left to rot."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import pytest
from flax import nnx
from flax.linen import partitioning

from solstice.compat import FlaxModel, KerasModel, NNXModel
from solstice.errors import InvalidTypeError

X = jnp.ones((4, 6, 8))


class Holds(nn.Module):
    collection: str

    @nn.compact
    def __call__(self, x):
        scale = self.variable(self.collection, "scale", lambda: jnp.ones(()))
        return nn.Dense(2)(x * scale.value)


def test_a_special_collection_that_is_not_known_is_refused():
    message = r"FlaxModel: .*'_merge_with_gradient', whose underscore.*compat\.register"
    with pytest.raises(ValueError, match=message):
        FlaxModel(Holds("_merge_with_gradient"), X, key=0)
    assert list(FlaxModel(Holds("constants"), X, key=0).state) == ["constants"]


def test_a_special_collection_is_refused_through_the_bridge_too():
    def bridged(collection):
        module = nnx.bridge.ToNNX(Holds(collection), rngs=nnx.Rngs(0)).lazy_init(X)
        return NNXModel(module)

    with pytest.raises(ValueError, match=r"NNXModel: .*'_merge_with_gradient', whose underscore"):
        bridged("_merge_with_gradient")
    assert len(jax.tree.leaves(bridged("constants").state["vars"])) == 1


class Decodes(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, decode=True)(x, x)


@pytest.mark.parametrize("length", [1, 6])
def test_a_linen_network_that_decodes_is_refused(length):
    message = r"FlaxModel: .*cache of what it has decoded.*decode=False.*model\.unwrap\(\)"
    with pytest.raises(ValueError, match=message):
        FlaxModel(Decodes(), X[:, :length], key=0)


@pytest.mark.parametrize("train", [False, True])
def test_an_nnx_network_that_decodes_is_refused(train):
    module = nnx.MultiHeadAttention(2, 8, decode=True, rngs=nnx.Rngs(0))
    module.init_cache(X.shape)
    message = r"NNXModel: .*cache of what was decoded.*decode=False.*model\.unwrap\(\)"
    with pytest.raises(ValueError, match=message):
        NNXModel(module)(X[:, :1], train=train)
    module.set_attributes(decode=False)
    assert NNXModel(module)(X, train=train)[0].shape == X.shape


class Always(nn.Module):
    @nn.compact
    def __call__(self, x):
        count = self.variable("counters", "calls", lambda: jnp.zeros(()))
        count.value += 1
        return x * count.value


def test_a_linen_network_that_changes_variables_in_evaluation_says_so():
    model = FlaxModel(Always(), X, key=0)
    with pytest.raises(ValueError, match=r"FlaxModel: a call is expected to change only state"):
        model(X)


class Sows(nn.Module):
    name_: str

    @nn.compact
    def __call__(self, x):
        self.sow(self.name_, "square", (x**2).mean())
        return nn.Dense(2)(x)


def test_sown_losses_are_told_of():
    with pytest.warns(
        UserWarning, match=r"FlaxModel: the network sows 'aux_losses', which a Model"
    ):
        FlaxModel(Sows("aux_losses"), X, key=0)
    FlaxModel(Sows("statistics"), X, key=0)


class Penalised(keras.layers.Layer):
    def call(self, x):
        self.add_loss(jnp.mean(x))
        return x


KERAS = {
    "activity": keras.layers.Dense(2, activity_regularizer="l2"),
    "add_loss": Penalised(),
}


@pytest.mark.parametrize("name", KERAS)
def test_losses_that_keras_adds_in_a_call_are_told_of(name):
    model = KerasModel(keras.Sequential([keras.Input((8,)), KERAS[name]]))
    model(X[0])
    with pytest.warns(UserWarning, match=r"KerasModel: .*adds its own losses.*add_loss"):
        model(X[0], train=True)


def test_constraints_of_keras_are_told_of():
    dense = keras.layers.Dense(2, kernel_constraint="non_neg")
    with pytest.warns(UserWarning, match=r"KerasModel: .*constrains '.*kernel', which only Keras"):
        KerasModel(keras.Sequential([keras.Input((8,)), dense]))


class Perturbed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(self.perturb("hidden", nn.Dense(3)(x)))


class WithAxes(nn.Module):
    @nn.compact
    def __call__(self, x):
        ones = nn.initializers.ones
        return x @ partitioning.param_with_axes("w", ones, (8, 2), axes=("in", "out"))


@pytest.mark.parametrize("network", [Perturbed(), WithAxes()], ids=["perturbations", "axes"])
def test_what_says_nothing_of_values_is_let_pass(network):
    model = FlaxModel(network, X, key=0)
    assert jax.tree.leaves(model.state) == []
    for batch in (X, X[:3]):  # perturbations are of the example's shape
        outputs, trained = model(batch, train=True)
        assert (outputs == network.apply({"params": model.params}, batch)).all()
        assert jax.tree.structure(trained) == jax.tree.structure(model)


def test_a_collection_of_text_is_named():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("names", "mine", lambda: "dense")
            return nn.Dense(2)(x)

    with pytest.raises(InvalidTypeError, match=r"FlaxModel: a collection .* holds the str 'dense'"):
        FlaxModel(Named(), X, key=0)
