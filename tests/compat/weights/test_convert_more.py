"""Conversions of networks that are put together otherwise in each library."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from architectures import equinox as equinoxes
from architectures.common import EPSILON, drawn
from keras import layers

from solstice import compat

pytestmark = pytest.mark.slow
SEQUENCES = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(2, 6, 6, 4)).astype(np.float32)


def sequential(inputs, *rest):
    return lambda: compat.KerasModel(keras.Sequential([layers.Input(inputs.shape[1:]), *rest]))


def compact(forward, inputs):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(forward(x))

    return lambda: compat.as_model(Network(), inputs, key=0)


def two_lstms(x):
    x = nn.RNN(nn.OptimizedLSTMCell(8))(x)
    return nn.RNN(nn.OptimizedLSTMCell(7))(x)[:, -1]


def both_ways(x):
    return nn.Bidirectional(nn.RNN(nn.LSTMCell(4)), nn.RNN(nn.LSTMCell(4)))(x)


def haiku_gru(x):
    core = hk.GRU(8)
    outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
    return hk.Linear(3)(outputs[:, -1])


def images(x):
    x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4)(x))
    x = nn.ConvTranspose(5, (3, 3), strides=(2, 2), transpose_kernel=True)(x)
    return x.reshape(len(x), -1)


def residual(shortcut_first):
    def norm(x):
        return nn.BatchNorm(use_running_average=True)(x)

    def shortcut(x):
        return norm(nn.Conv(8, (1, 1), use_bias=False)(x))

    def main(x):
        x = nn.relu(norm(nn.Conv(8, (3, 3), use_bias=False)(x)))
        return norm(nn.Conv(8, (3, 3), use_bias=False)(x))

    def forward(x):
        parts = (shortcut, main) if shortcut_first else (main, shortcut)
        one, other = (part(x) for part in parts)
        return nn.relu(one + other).mean((1, 2))

    return forward


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        h = nn.LayerNorm(epsilon=EPSILON)(x)
        x = x + nn.MultiHeadDotProductAttention(2)(h, h)
        h = nn.LayerNorm(epsilon=EPSILON)(x)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(h))), None


class Scanned(nn.Module):
    """A transformer whose layers are stacked, with a class token and positions."""

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.normal()
        token = self.param("token", normal, (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 8)), nn.Dense(8)(x)], 1)
        x = x + self.param("positions", normal, (1, 6, 8))
        stacked = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(3)(stacked()(x, None)[0][:, 0])


class Apart(eqx.Module):
    token: jax.Array
    positions: jax.Array
    first: eqx.nn.Linear
    blocks: list
    last: eqx.nn.Linear

    def __init__(self):
        one, other = jax.random.split(jax.random.key(0))
        self.token, self.positions = jnp.zeros(8), jnp.zeros((6, 8))
        self.first = eqx.nn.Linear(6, 8, key=one)
        self.blocks = [equinoxes.Attention() for _ in range(3)]
        self.last = eqx.nn.Linear(8, 3, key=other)

    def __call__(self, x):
        x = jnp.concatenate([self.token[None], jax.vmap(self.first)(x)]) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.last(x[0])


MORE = {
    "two LSTMs": (
        sequential(
            SEQUENCES, layers.LSTM(8, return_sequences=True), layers.LSTM(7), layers.Dense(3)
        ),
        compact(two_lstms, SEQUENCES),
        SEQUENCES,
    ),
    "an LSTM in both directions": (
        compact(both_ways, SEQUENCES),
        sequential(
            SEQUENCES,
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            layers.Dense(3),
        ),
        SEQUENCES,
    ),
    "a GRU that resets before the product": (
        lambda: compat.as_model(hk.transform(haiku_gru), SEQUENCES, key=0),
        sequential(SEQUENCES, layers.GRU(8, reset_after=False), layers.Dense(3)),
        SEQUENCES,
    ),
    "depthwise and transposed convolutions": (
        compact(images, IMAGES),
        sequential(
            IMAGES,
            layers.DepthwiseConv2D(3, padding="same"),
            layers.ReLU(),
            layers.Conv2DTranspose(5, 3, strides=2, padding="same"),
            layers.Flatten(),
            layers.Dense(3),
        ),
        IMAGES,
    ),
    "a shortcut before or after the main branch": (
        compact(residual(True), IMAGES),
        compact(residual(False), IMAGES),
        IMAGES,
    ),
    "stacked layers, a class token and positions": (
        lambda: compat.as_model(Scanned(), SEQUENCES, key=0),
        lambda: compat.as_model(Apart()),
        SEQUENCES,
    ),
}


@pytest.mark.parametrize("what", MORE)
def test_networks_put_together_otherwise_compute_the_same(what):
    make, make_like, x = MORE[what]
    model, like = drawn(make(), 1), drawn(make_like(), 2)
    converted = compat.convert(model, like=like, example=x)
    np.testing.assert_allclose(converted(2 * x)[0], model(2 * x)[0], rtol=1e-5, atol=1e-5)
    assert not np.allclose(like(2 * x)[0], model(2 * x)[0], atol=1e-2)
