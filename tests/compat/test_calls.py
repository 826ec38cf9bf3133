"""How a module is called, where that cannot be known: an error that names `call=`."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from solstice.compat import EquinoxModel, FlaxModel, NNXModel, as_model

X = jnp.ones((4, 8))
KEY = jax.random.key(0)


class Linen(nn.Module):
    @nn.compact
    def encode(self, x):
        return nn.Dense(3)(x)


class NNX(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(8, 3, rngs=nnx.Rngs(0))

    def encode(self, x):
        return self.dense(x)


class Equinox(eqx.Module):
    w: jax.Array

    def encode(self, x):
        return x @ self.w


def encoded(module, x):
    return module.encode(x)


WITHOUT_CALL = {
    "FlaxModel": lambda **call: FlaxModel(Linen(), X, key=0, **call),
    "NNXModel": lambda **call: NNXModel(NNX(), **call),
    "EquinoxModel": lambda **call: EquinoxModel(Equinox(jnp.ones((8, 3))), **call),
}


@pytest.mark.parametrize("adapter", WITHOUT_CALL)
def test_a_module_without_a_call_names_its_methods_and_the_remedy(adapter):
    message = rf"{adapter}: .*__call__; .* has the methods encode.*call=.*module\.encode\(x\)"
    with pytest.raises(TypeError, match=message):
        WITHOUT_CALL[adapter]()
    assert WITHOUT_CALL[adapter](call=encoded)(X)[0].shape == (4, 3)


class Distribution(eqx.Module):
    w: jax.Array

    def log_prob(self, x):
        return x @ self.w


class Normal(Distribution):
    def _private(self):
        return self.w


def test_methods_of_base_classes_are_named_too_but_not_the_librarys():
    with pytest.raises(TypeError, match=r"has the methods log_prob\. .*module\.log_prob\(x\)"):
        as_model(Normal(jnp.ones((8, 3))))


class Whole(eqx.Module):
    """Takes a whole batch, as haliax's and flowjax's networks do."""

    w: jax.Array

    def __call__(self, x):
        batch, features = x.shape
        return x.reshape(batch, features) @ self.w


@pytest.mark.parametrize("train", [False, True])
def test_an_equinox_module_that_takes_whole_batches_is_told_of_call(train):
    module = Whole(jnp.ones((8, 3)))
    message = (
        r"EquinoxModel: the module is expected to take one example.*float32\[4,8\].*not enough "
        r"values.*If Whole takes whole batches.*call="
    )
    with pytest.raises(ValueError, match=message):
        as_model(module)(X, train=train)
    model = EquinoxModel(module, call=lambda module, x: module(x))
    assert (model(X, train=train)[0] == module(X)).all()


class Cached(eqx.Module):
    """Keeps a cache for another method, which its call does not take."""

    w: jax.Array
    cache: eqx.nn.StateIndex

    def __init__(self):
        self.w, self.cache = jnp.ones((8, 3)), eqx.nn.StateIndex(jnp.zeros(3))

    def __call__(self, x):
        return x @ self.w

    def sample(self, x, state):
        return self(x) + state.get(self.cache), state.set(self.cache, self(x))


@pytest.mark.parametrize("train", [False, True])
def test_an_equinox_call_may_leave_out_the_state_which_then_stays_as_it_is(train):
    cached = eqx.nn.make_with_state(Cached)()
    calls = {"mapped": None, "call": lambda module, x: jax.vmap(module)(x)}
    for name, call in calls.items():
        model = EquinoxModel(*cached, call=call)
        outputs, new = model(X, train=train)
        assert (outputs == X @ cached[0].w).all(), name
        assert (jax.tree.leaves(new.state)[0] == 0).all(), name

    def sample_first(module, x, state):
        return module.sample(x[0], state)

    outputs, new = EquinoxModel(*cached, call=sample_first)(X, train=True)
    assert (jax.tree.leaves(new.state)[0] == outputs).all(), "a call that takes it changes it"


def test_one_example_in_place_of_a_batch_is_told():
    model = as_model(eqx.nn.MLP(8, 3, 4, 1, key=KEY))
    with pytest.raises(ValueError, match=r"one example, give them a batch axis: x\[None\]"):
        model(X[0])


def test_an_error_of_the_module_itself_stays_as_it_is():
    with pytest.raises(TypeError, match="dot_general") as caught:
        as_model(eqx.nn.MLP(5, 3, 4, 1, key=KEY))(X)
    assert "EquinoxModel" not in str(caught.value)
