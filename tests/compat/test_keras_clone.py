"""unwrap() gives a Keras network that shares its layers as the user's does."""

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import solstice
from solstice.compat import KerasModel

layers = keras.layers
X = np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4)


def of_a_nested_model():
    x, tied = keras.Input((4,)), layers.Dense(4, name="tied")
    nested = keras.Model(x, layers.Dense(4)(tied(x)))
    x = keras.Input((4,))
    return keras.Model(x, tied(nested(x)))


def of_a_nested_sequence():
    x, tied = keras.Input((4,)), layers.Dense(4, name="tied")
    nested = keras.Sequential([keras.Input((4,)), tied, layers.ReLU()])
    return keras.Model(x, tied(nested(x)))


def of_a_wrapper():
    x, tied = keras.Input((4,)), layers.Dense(4, name="tied")
    rows = layers.Reshape((1, 4))(tied(x))
    return keras.Model(x, layers.Reshape((4,))(layers.TimeDistributed(tied)(rows)))


@keras.saving.register_keras_serializable("solstice_tests")
class Tied(keras.Model):
    """As the language models of keras_hub are: a class of its own around a functional graph."""

    def __init__(self, width, **options):
        x, tied = keras.Input((width,)), layers.Dense(width)
        nested = keras.Model(x, layers.Dense(width)(tied(x)))
        super().__init__(inputs=x, outputs=tied(nested(x)), **options)
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name}


NETWORKS = {
    "nested model": (of_a_nested_model, "tied"),
    "nested sequence": (of_a_nested_sequence, "tied"),
    "wrapper": (of_a_wrapper, "tied"),
    "class": (lambda: Tied(4), None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shared_layer_is_still_shared_in_the_trained_network(name):
    make, shared = NETWORKS[name]
    network = make()
    exp = solstice.ClassificationExperiment(network, optax.adam(1e-2), example_input=X)
    exp = exp.train(1, [(X, jnp.zeros(2, int))], progress=False)
    copy = exp.model.unwrap()
    assert type(copy) is type(network) and copy is not network
    np.testing.assert_allclose(copy(X), exp(X), rtol=1e-6)
    assert np.abs(copy(X) - network(X)).max() > 1e-3, "it is as it was before training"
    assert [v.shape for v in copy.variables] == [v.shape for v in network.variables]
    if shared is not None:  # changing it changes both of its uses
        before = copy(X)
        copy.get_layer(shared).kernel.assign(jnp.zeros((4, 4)))
        copy.get_layer(shared).bias.assign(jnp.ones(4))
        assert np.abs(copy(X) - before).max() > 1e-3
        np.testing.assert_allclose(copy(X), np.ones((2, 4)), rtol=1e-6)


class Holds(keras.Model):
    """What it is made of is in no configuration."""

    def __init__(self, layer, **options):
        super().__init__(**options)
        self.first, self.second = layer, keras.Sequential([layer])

    def call(self, x):
        return self.second(self.first(x))


def test_a_network_that_keras_cannot_clone_says_why():
    network = Holds(layers.Dense(4, name="both"))
    network(X)
    message = (
        r"KerasModel: unwrap\(\) .* duplicates the layers .*'both'.*Give Holds a get_config that"
    )
    with pytest.raises(TypeError, match=message):
        KerasModel(network).unwrap()
