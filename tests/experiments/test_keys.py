"""A key that an experiment is given reaches every network that asks for one, and no other."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from jax.example_libraries import stax
from networks import LIBRARIES

import solstice
from solstice.compat import FunctionModel, as_model, gradients

X, Y = jnp.ones((4, 3)), jnp.zeros(4, int)
SGD = optax.sgd(0.1)


def drop(key, rate, x):
    """Drop whole examples, as a residual network of stochastic depth does; of rate 0, none."""
    key = jax.random.split(key)[0]
    return x if rate == 0 else x * jax.random.bernoulli(key, 1 - rate, x.shape)


class Linen(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x, train=False):
        key = self.make_rng("drop_path")  # in evaluation too
        return nn.Dense(5)(drop(key, self.rate, x) if train else x)


def of_haiku(rate):
    def network(x, is_training):
        return hk.Linear(5)(drop(hk.next_rng_key(), rate if is_training else 0, x))

    return hk.transform(network)


class Equinox(eqx.Module):
    linear: eqx.nn.Linear
    rate: float
    inference: bool = False

    def __call__(self, x, key):
        return self.linear(drop(key, 0 if self.inference else self.rate, x))


DEFAULT = jax.random.key(42)


class EquinoxWithDefault(Equinox):
    def __call__(self, x, key=DEFAULT):
        return super().__call__(x, key)


class EquinoxMayDoWithout(Equinox):
    def __call__(self, x, key=None):
        return self.linear(x) if key is None else super().__call__(x, key)


def of_equinox(cls):
    return lambda rate: cls(eqx.nn.Linear(3, 5, key=jax.random.key(0)), rate)


class NNX(nnx.Module):
    def __init__(self, rate):
        self.linear, self.rate, self.deterministic = nnx.Linear(3, 5, rngs=nnx.Rngs(0)), rate, False

    def set_mode(self, deterministic=None, **options):
        self.deterministic = deterministic
        return options

    def __call__(self, x, rngs=None):
        return self.linear(x if self.deterministic else drop(rngs.drop_path(), self.rate, x))


class DropPath(keras.layers.Layer):
    def __init__(self, rate, **options):
        super().__init__(**options)
        self.rate, self.seed_generator = rate, keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        key = jax.random.wrap_key_data(self.seed_generator.next())
        return drop(key, self.rate if training else 0, x)


def of_keras(rate):
    return keras.Sequential([keras.Input((3,)), DropPath(rate), keras.layers.Dense(5)])


def of_functions(rate):
    def apply(params, x, key, train):
        return drop(key, rate if train else 0, x) @ params

    return FunctionModel(lambda key, x: jnp.ones((3, 5)), apply, X, key=0)


def of_stax(rate):
    layer = (lambda rng, shape: (shape, ())), lambda params, x, rng, **_: drop(rng, rate, x)
    still = (lambda rng, shape: (shape, ())), lambda params, x, rng, **_: drop(rng, 0, x)
    (init, train), (_, evaluate) = (stax.serial(one, stax.Dense(5)) for one in (layer, still))
    return solstice.compat.StaxModel((init, train), X, key=0, eval_apply=evaluate)


NETWORKS = {
    "linen": Linen,
    "haiku": of_haiku,
    "equinox": of_equinox(Equinox),
    "equinox, with a default": of_equinox(EquinoxWithDefault),
    "equinox, or without": of_equinox(EquinoxMayDoWithout),
    "nnx": NNX,
    "keras": of_keras,
    "functions": of_functions,
    "stax": of_stax,
}
WITH_EXAMPLE = {"with an example": True, "without": False}
# Whether there is an example is nothing to the adapters: without one, two of them are enough.
ROWS = [
    pytest.param(
        library,
        example,
        marks=()
        if WITH_EXAMPLE[example] or library in ("linen", "equinox, or without")
        else pytest.mark.soak,
    )
    for library in NETWORKS
    for example in WITH_EXAMPLE
]


def experiment(network, key, example):
    if example:
        return solstice.ClassificationExperiment(network, SGD, example_input=X, key=key)
    model = as_model(network, X, key=1)
    return solstice.ClassificationExperiment(model, SGD, num_classes=5, key=key)


@pytest.mark.parametrize(("library", "example"), ROWS)
def test_a_network_that_drops_nothing_gets_the_key_that_it_asks_for(library, example):
    exp = experiment(NETWORKS[library](0), 0, WITH_EXAMPLE[example])
    trained = exp.train(1, [(X, Y)] * 2, progress=False)
    before, after = (one.test([(X, Y)], progress=False)["average_loss"] for one in (exp, trained))
    assert after < before


@pytest.mark.parametrize(("library", "example"), ROWS)
def test_a_network_that_drops_drops_by_the_key(library, example):
    network = NETWORKS[library](0.5)
    one, two = (experiment(network, key, WITH_EXAMPLE[example]) for key in (0, 1))
    two = solstice.replace(two, model=one.model)  # the same parameters
    after, _ = one.train_step((X, Y))
    assert after.key != one.key
    grads = [gradients(exp, (X, Y)) for exp in (one, two, after)]
    for other in grads[1:]:
        pairs = zip(*map(jax.tree.leaves, (grads[0], other)), strict=True)
        assert any((a != b).any() for a, b in pairs)


NEED = [name for name in NETWORKS if name in ("linen", "haiku", "equinox", "functions", "stax")]


@pytest.mark.parametrize("rate", [0, 0.5])
@pytest.mark.parametrize("library", NEED)
def test_a_network_that_asks_for_a_key_that_was_not_given_says_so(library, rate):
    model = as_model(NETWORKS[library](rate), X, key=1)
    with pytest.raises(ValueError, match=rf"{type(model).__name__}: .* no key was given for it"):
        model(X, train=True)
    assert model(X)[0].shape == (4, 5)


def test_an_equinox_network_keeps_the_default_of_its_key():
    module = of_equinox(EquinoxWithDefault)(0.5)
    model = as_model(module)
    assert (model(X, train=True)[0] == jax.vmap(module)(X)).all()
    keys = jax.random.split(jax.random.key(3), 4)
    given, _ = model(X, key=jax.random.key(3), train=True)
    assert (given == jax.vmap(module)(X, keys)).all()
    assert (model(X)[0] == jax.vmap(eqx.nn.inference_mode(module))(X)).all()


def test_a_function_keeps_the_default_of_its_key():
    def apply(params, x, key=DEFAULT, train=True):
        return drop(key, 0.5, x) @ params if train else x @ params

    model = FunctionModel(lambda key, x: jnp.ones((3, 5)), apply, X, key=0)
    assert (model(X, train=True)[0] == apply(jnp.ones((3, 5)), X)).all()


class AlwaysRandom(eqx.Module):
    def __call__(self, x, key):
        return x + jax.random.normal(key, x.shape)


def test_a_network_that_is_random_in_evaluation_is_refused():
    def apply(params, x, key):
        return x + jax.random.normal(key, x.shape)

    function = FunctionModel(lambda key, x: (), apply, X, key=0)
    for model in (as_model(AlwaysRandom()), function):
        with pytest.raises(ValueError, match=r"evaluation is expected to be deterministic"):
            model(X)


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_used_in_the_backward_pass_alone_is_as_the_key_says(library):
    subject = LIBRARIES[library]["rounding"]
    (x,), y = subject.inputs, jnp.array([0, 1, 2, 0])
    model = subject.make_model(jax.random.key(5))
    exp = solstice.ClassificationExperiment(model, SGD, example_input=x, key=0)
    _, key = jax.random.split(exp.key)

    def loss(params):
        logits, _ = solstice.replace(model, params=params)(x, key=key, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    ours, theirs = (
        jax.tree.leaves(grads)
        for grads in (gradients(exp, (x, y)), jax.jit(jax.grad(loss))(model.params))
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    after, _ = exp.train_step((x, y))
    assert after.key != exp.key
    exp.test([(x, y)], progress=False)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_network_that_asks_for_no_key_carries_none(library):
    subject = LIBRARIES[library]["mlp"]
    model = subject.make_model(jax.random.key(0))
    exp = solstice.ClassificationExperiment(model, SGD, example_input=subject.inputs[0], key=0)
    assert exp.key is None


class Passing(eqx.Module):
    """An Equinox network that passes on whatever keyword it is given."""

    inner: eqx.Module

    def __call__(self, x, **rest):
        return self.inner(x, **rest)


class Noisy(eqx.Module):
    """A layer that draws nothing, in silence, where it gets no key."""

    linear: eqx.nn.Linear

    def __call__(self, x, *, key=None):
        return self.linear(x if key is None else x + jax.random.normal(key, x.shape))


def test_an_equinox_network_passes_its_key_on():
    linear = eqx.nn.Linear(3, 5, key=jax.random.key(0))
    keys = jax.random.split(jax.random.key(3), 4)
    for inner in (eqx.nn.Sequential([eqx.nn.Dropout(0.5), linear]), Noisy(linear)):
        module = Passing(inner)
        given, _ = as_model(module)(X, key=jax.random.key(3), train=True)
        expected = jax.vmap(lambda x, key, module=module: module(x, key=key))(X, keys)
        assert (given == expected).all()
        exp = solstice.ClassificationExperiment(module, SGD, key=0, example_input=X)
        assert exp.key is not None
    with pytest.raises(ValueError, match=r"EquinoxModel: .* no key was given for it"):
        as_model(Passing(eqx.nn.Dropout(0.5)))(X, train=True)


def test_an_equinox_network_whose_layers_take_no_key_is_given_none():
    class Scaled(eqx.Module):
        def __call__(self, x, scale=2.0):
            return scale * x

    model = as_model(Passing(Scaled()))
    assert (model(X, key=jax.random.key(3), train=True)[0] == 2 * X).all()
    assert (model(X, scale=3.0)[0] == 3 * X).all()
