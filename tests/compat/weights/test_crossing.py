"""What `compat.save` wrote of a network with batch norms is loaded into other libraries."""

import itertools
import re

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import safetensors.numpy
from architectures.common import EPSILON, drawn, keys, pooled
from flax import nnx

from solstice import compat
from solstice.errors import InvalidValueError

X = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for features in (4, 6):
            x = nn.Conv(features, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, epsilon=EPSILON)(x))
        return nn.Dense(5)(pooled(x))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.before = nnx.BatchNorm(4, epsilon=EPSILON, rngs=rngs)
        self.body = nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.after = nnx.BatchNorm(6, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.before(self.stem(x)))
        return self.head(pooled(nnx.relu(self.after(self.body(x)))))


def haiku(x, is_training=False):
    for name, features in (("first", 4), ("second", 6)):
        x = hk.Conv2D(features, 3, name=f"{name}_filter")(x)
        norm = hk.BatchNorm(True, True, 0.99, eps=EPSILON, name=f"{name}_whitened")
        x = jax.nn.relu(norm(x, is_training))
    return hk.Linear(5, name="classes")(pooled(x))


class Equinox(eqx.Module):
    filters: list
    norms: list
    fc: eqx.nn.Linear

    def __init__(self, mode="batch"):
        a, b, c = keys(3)
        self.filters = [
            eqx.nn.Conv2d(3, 4, 3, padding=1, key=a),
            eqx.nn.Conv2d(4, 6, 3, padding=1, key=b),
        ]
        self.norms = [eqx.nn.BatchNorm(size, "batch", mode=mode) for size in (4, 6)]
        self.fc = eqx.nn.Linear(6, 5, key=c)

    def __call__(self, x, state):
        x = jnp.moveaxis(x, -1, 0)
        for conv, norm in zip(self.filters, self.norms, strict=True):
            x, state = norm(conv(x), state)
            x = jax.nn.relu(x)
        return self.fc(x.mean((1, 2))), state


def keras_network():
    blocks = [
        layer
        for name, features in (("one", 4), ("two", 6))
        for layer in (
            keras.layers.Conv2D(features, 3, padding="same", name=f"{name}_image"),
            keras.layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_scaled"),
            keras.layers.ReLU(),
        )
    ]
    last = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5, name="logits")
    return keras.Sequential([keras.layers.Input((4, 4, 3)), *blocks, *last])


MAKE = {
    "Linen": lambda: compat.as_model(Linen(), X, key=0),
    "NNX": lambda: compat.as_model(NNX(nnx.Rngs(0))),
    "Haiku": lambda: compat.as_model(hk.transform_with_state(haiku), X, key=0),
    "Equinox": lambda: compat.as_model(eqx.nn.make_with_state(Equinox)()),
    "Equinox, ema": lambda: compat.as_model(eqx.nn.make_with_state(Equinox)("ema")),
    "Keras": lambda: compat.as_model(keras_network()),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Models of all libraries, their files and their outputs."""
    folder, made = tmp_path_factory.mktemp("saved"), {}
    for seed, (name, make) in enumerate(MAKE.items()):
        model = drawn(make(), seed)
        compat.save(model, path := folder / f"{name}.safetensors")
        made[name] = model, path, model(X)[0]
    return made


@pytest.mark.parametrize(("source", "target"), [*itertools.permutations(MAKE, 2)])
def test_a_saved_network_with_batch_norms_crosses_to_another_library(saved, source, target):
    _, path, outputs = saved[source]
    loaded, report = compat.load(saved[target][0], path, example=X)
    assert report.check(X, outputs) < 1e-5
    assert not report.ambiguous
    np.testing.assert_allclose(loaded(X)[0], outputs, rtol=1e-4, atol=1e-5)


def test_averages_that_equinox_still_corrects_are_not_used(saved, tmp_path):
    model = drawn(MAKE["Equinox"](), 1)
    _, model = MAKE["Equinox"]()(X, train=True)
    compat.save(model, path := tmp_path / "early.safetensors")
    with pytest.raises(InvalidValueError, match=r"of 1 steps.*model.settle_averages\(\)"):
        compat.load(saved["Linen"][0], path)
    compat.save(model.settle_averages(), path)
    _, report = compat.load(saved["Linen"][0], path)
    assert report.check(X, model(X)[0]) < 1e-5


@pytest.mark.parametrize(("target", "advice"), [("NNX", {("bias", "bias")}), ("Equinox", set())])
def test_the_rename_that_is_advised_gives_no_array_another_role(saved, target, advice):
    arrays = safetensors.numpy.load_file(saved["Linen"][1])
    odd = {name: array for name, array in arrays.items() if not name.endswith("mean")}
    with pytest.raises(InvalidValueError, match="nothing was found") as told:
        compat.load(saved[target][0], odd, example=X)
    advised = re.findall(r"'([\w/]+)': '([\w/]+)'", str(told.value))
    assert {tuple(name.split("/")[-1] for name in pair) for pair in advised} == advice
