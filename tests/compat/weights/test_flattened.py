"""What runs along flattened features is reordered, wherever in a network it stands."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solstice import compat
from solstice.compat.weights.leaves import model_leaves

RNG = np.random.default_rng(0)
EPSILON = 1e-5


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def relu(x):
    return np.maximum(x, 0)


def linear(name, inputs, outputs):
    return {f"{name}.weight": normal(outputs, inputs), f"{name}.bias": normal(outputs)}


def dense(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def pointwise(state, name, x):
    """Return a 1 by 1 convolution of (batch, channels, height, width)."""
    x = np.einsum("oi,bihw->bohw", state[f"{name}.weight"][:, :, 0, 0], x)
    return x + state[f"{name}.bias"][:, None, None]


def features(state, x):
    return relu(pointwise(state, "conv", x.transpose(0, 3, 1, 2)))


def layer_norm(x):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPSILON)


NORM = {"norm.weight": normal(80), "norm.bias": normal(80)}
BATCH = {"norm.running_mean": normal(80), "norm.running_var": normal(80) ** 2 + 0.5}
# What a network does with flattened features, here and in numpy; and the arrays for it.
CASES = {
    "layer norm": (
        lambda h, _: nn.LayerNorm(epsilon=EPSILON, name="norm")(h),
        lambda h, s, _: layer_norm(h) * s["norm.weight"] + s["norm.bias"],
        NORM,
    ),
    "batch norm": (
        lambda h, _: nn.BatchNorm(use_running_average=True, epsilon=EPSILON, name="norm")(h),
        lambda h, s, _: (
            (h - s["norm.running_mean"])
            / np.sqrt(s["norm.running_var"] + EPSILON)
            * s["norm.weight"]
            + s["norm.bias"]
        ),
        NORM | BATCH,
    ),
    "shortcut": (
        lambda h, _: h + nn.relu(nn.Dense(80, name="wide")(h)),
        lambda h, s, _: h + relu(dense(s, "wide", h)),
        linear("wide", 80, 80),
    ),
    "pooled features beside them": (
        lambda h, x: jnp.concatenate([h, x.mean((1, 2))], 1),
        lambda h, _, x: np.concatenate([h, x.mean((2, 3))], 1),
        {},
    ),
}


class Flat(nn.Module):
    """A convolution, something along its flattened features, and a dense layer."""

    what: str

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(5, (1, 1), name="conv")(x))
        return nn.Dense(7, name="fc")(CASES[self.what][0](x.reshape(len(x), -1), x))


@pytest.mark.parametrize("what", CASES)
def test_what_is_between_a_flatten_and_a_layer_is_reordered_with_it(what):
    x = normal(3, 4, 4, 3)
    _, run, more = CASES[what]
    wide = 85 if what.startswith("pooled") else 80
    state = {"conv.weight": normal(5, 3, 1, 1), "conv.bias": normal(5)} | more
    state |= linear("fc", wide, 7)
    held = features(state, x)
    expected = dense(state, "fc", run(held.reshape(3, -1), state, held))
    _, report = compat.load(compat.as_model(Flat(what), x, key=0), state)
    assert report.check(x, expected) < 1e-5
    assert not report.ambiguous


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (1, 1), name="conv")(x))
        return x.reshape(len(x), -1) * self.param("scale", nn.initializers.ones, (80,))


def test_a_vector_of_the_same_name_is_reordered():
    x = normal(3, 4, 4, 3)
    state = {"conv.weight": normal(5, 3, 1, 1), "conv.bias": normal(5), "scale": normal(80)}
    model, _ = compat.load(compat.as_model(Scaled(), x, key=0), state)
    expected = features(state, x).reshape(3, -1) * state["scale"]
    expected = expected.reshape(3, 5, 4, 4).transpose(0, 2, 3, 1).reshape(3, -1)
    np.testing.assert_allclose(model(x)[0], expected, rtol=1e-5, atol=1e-5)


class Decoder(nn.Module):
    """Images from a vector."""

    channels: int

    @nn.compact
    def __call__(self, z):
        x = nn.relu(nn.LayerNorm(epsilon=EPSILON)(nn.Dense(9 * self.channels)(z)))
        return nn.Conv(4, (1, 1))(x.reshape(-1, 3, 3, self.channels))


@pytest.mark.parametrize("channels", [5, 3])
def test_features_that_become_an_image_are_reordered(channels):
    z, size = normal(2, 7), 9 * channels
    state = linear("fc", 7, size) | {"norm.weight": normal(size), "norm.bias": normal(size)}
    state |= {"conv.weight": normal(4, channels, 1, 1), "conv.bias": normal(4)}
    flat = layer_norm(dense(state, "fc", z)) * state["norm.weight"] + state["norm.bias"]
    image = pointwise(state, "conv", relu(flat).reshape(2, channels, 3, 3))
    expected = image.transpose(0, 2, 3, 1)
    model = compat.as_model(Decoder(channels), z, key=0)
    if channels == 3:  # as many as rows: the order is a guess
        with pytest.warns(UserWarning, match="cannot be told apart"):
            _, guessed = compat.load(model, state)
        assert {row.leaf for row in guessed.rows if row.doubt} == {
            f"params/{name}"
            for name in ("Dense_0/kernel", "Dense_0/bias", "LayerNorm_0/scale", "LayerNorm_0/bias")
        }
        assert " *" in str(guessed)
    else:
        _, report = compat.load(model, state)
        assert report.check(z, expected) < 1e-5
        assert not report.ambiguous
    _, settled = compat.load(model, state, example=z, outputs=expected)
    assert settled.check(z, expected) < 1e-5


class DecoderFirst(eqx.Module):
    """Images from a vector, with channels first inside."""

    fc: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    conv: eqx.nn.Conv2d
    channels: int

    def __init__(self, channels):
        self.fc = eqx.nn.Linear(7, 9 * channels, key=jax.random.key(0))
        self.norm = eqx.nn.LayerNorm(9 * channels)
        self.conv = eqx.nn.Conv2d(channels, 4, 1, key=jax.random.key(1))
        self.channels = channels

    def __call__(self, z):
        x = jax.nn.relu(self.norm(self.fc(z))).reshape(self.channels, 3, 3)
        return self.conv(x).transpose(1, 2, 0)


@pytest.mark.parametrize("channels", [5, 3])
def test_features_that_become_an_image_are_converted_both_ways(channels):
    z = normal(2, 7)
    last = compat.as_model(Decoder(channels), z, key=0)
    first = compat.as_model(DecoderFirst(channels))
    for model, like in ((first, last), (last, first)):
        converted = compat.convert(model, like=like, example=z)
        np.testing.assert_allclose(converted(2 * z)[0], model(2 * z)[0], rtol=1e-5, atol=1e-5)


class Heads(nn.Module):
    """Attention between convolutions that have as many channels as a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (1,), name="before")(x)
        parts = [nn.Dense(8, name=name)(x).reshape(*x.shape[:2], 2, 4) for name in "qkv"]
        x = nn.dot_product_attention(*parts)
        x = nn.DenseGeneral(4, axis=(-2, -1), name="out")(x)
        return nn.Conv(3, (1,), name="after")(x)


def test_heads_beside_convolutions_are_no_flattened_features():
    x = normal(2, 5, 3)
    model = compat.as_model(Heads(), x, key=0)
    source = {name: np.asarray(leaf) for name, leaf in model_leaves(model).items()}
    state = {}
    for name, leaf in source.items():
        layer, word = name.removeprefix("params/").split("/")
        if word == "bias":
            state[f"{layer}.bias"] = leaf
        else:
            matrix = leaf.reshape(-1, leaf.shape[-1]).T
            state[f"{layer}.weight"] = matrix[..., None] if leaf.shape[0] == 1 else matrix
    _, report = compat.load(compat.as_model(Heads(), x, key=1), state)
    assert report.check(x, model(x)[0]) < 1e-5
