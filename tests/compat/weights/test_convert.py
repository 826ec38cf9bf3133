"""Networks go from one library to another and compute the same, or are refused with the reason."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import build
from architectures.common import INPUTS, drawn
from jax.example_libraries import stax

import solstice
from solstice import compat
from solstice.compat.weights import convert as converting
from solstice.compat.weights.leaves import float_leaves
from solstice.errors import InvalidValueError

# Each library on both sides, each architecture; `conversions.py` runs every pair.
CELLS = [
    ("Stax", "Equinox", "mlp"),
    ("Keras", "Stax", "mlp"),
    ("Haiku", "Keras", "cnn"),
    ("Equinox", "NNX", "cnn"),
    ("Haiku", "Linen", "lstm"),
    ("Equinox", "Keras", "lstm"),
    ("NNX", "Haiku", "attention"),
    ("Keras", "Linen", "attention"),
    ("Linen", "Equinox", "embedding"),
    ("NNX", "Keras", "gru"),
]


@pytest.mark.parametrize(("source", "target", "architecture"), CELLS)
def test_a_converted_network_computes_the_same(source, target, architecture):
    model, like = build(source, architecture, 1), build(target, architecture, 2)
    before = jax.tree.map(np.array, float_leaves(model)), jax.tree.map(np.array, float_leaves(like))
    x = INPUTS[architecture]
    converted = compat.convert(model, like=like, example=x)
    assert type(converted) is type(like)
    assert jax.tree.structure(converted) == jax.tree.structure(like)
    assert jax.tree.map(_form, converted) == jax.tree.map(_form, like)
    # Other values than those that the proof ran on.
    other = x if x.dtype == np.int32 else x[::-1] * 1.5
    np.testing.assert_allclose(converted(other)[0], model(other)[0], rtol=1e-5, atol=1e-5)
    assert not np.allclose(like(other)[0], model(other)[0], atol=1e-2)
    for arrays, one in zip(before, (model, like), strict=True):
        jax.tree.map(np.testing.assert_array_equal, arrays, float_leaves(one))


def _form(leaf):
    return leaf.shape, leaf.dtype, leaf.weak_type


@pytest.mark.parametrize(
    ("source", "target"), [("Linen", "Haiku"), ("Linen", "Equinox"), ("Equinox", "Linen")]
)
def test_a_converted_network_trains_on_as_the_source_would(source, target):
    x = INPUTS["cnn"]
    model = build(source, "cnn", 1)
    if source == "Equinox":  # its moments are corrected for three steps
        model = compat.EquinoxModel(*eqx.nn.make_with_state(_equinox_cnn())())
        for scale in (1, 2, 3):
            _, model = model(x * scale, train=True)
    converted = compat.convert(model, like=build(target, "cnn", 2), example=x)
    # In evaluation after a training step, which moves the averages by one per cent.
    after, after_converted = (one(x * 4 + 1, train=True)[1] for one in (model, converted))
    if source == "Equinox":  # the correction itself moves the source's
        assert np.allclose(converted(x)[0], model(x)[0], atol=1e-5)
        statistics = converted.state["batch_stats"]["BatchNorm_0"]["mean"]
        moved = after_converted.state["batch_stats"]["BatchNorm_0"]["mean"]
        assert 0 < np.abs(moved - statistics).max() < 0.05
        return
    np.testing.assert_allclose(after_converted(x)[0], after(x)[0], rtol=1e-4, atol=1e-5)
    assert np.abs(after(x)[0] - model(x)[0]).max() > 1e-3


def _equinox_cnn():
    from architectures.equinox import CNN

    return CNN


# Networks as functions, which cost nothing to make.


def function(apply, x, **shapes):
    def init(key, *inputs):
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, shape)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    return compat.FunctionModel(init, apply, x, key=0)


X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
SQUARE = {"a": (4, 4), "b": (4, 4), "bias": (4,)}


def two(p, x):
    return jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"]


def test_layers_of_one_shape_go_by_their_order_of_use():
    def reversed_names(p, x):
        return jnp.tanh(x @ p["b"] + p["bias"]) @ p["a"]

    model, like = function(two, X, **SQUARE), function(reversed_names, X, **SQUARE)
    converted = compat.convert(model, like=like, example=X)
    np.testing.assert_array_equal(converted.params["a"], model.params["b"])


def test_branches_in_another_order_are_settled_by_their_outputs():
    def first(p, x):
        return jnp.tanh(x @ p["a"]) + jnp.cos(x @ p["b"]) + p["bias"]

    def second(p, x):
        right = jnp.cos(x @ p["b"])
        return jnp.tanh(x @ p["a"]) + right + p["bias"]

    model, like = function(first, X, **SQUARE), function(second, X, **SQUARE)
    converted = compat.convert(model, like=like, example=X)
    np.testing.assert_array_equal(converted.params["a"], model.params["a"])


def test_a_fused_projection_fits_three_and_the_reverse():
    def fused(p, x):
        q, k, v = jnp.split(x @ p["qkv"] + p["bias"], 3, -1)
        return jnp.tanh(q) * k + v

    def split(p, x):
        q, k, v = (x @ p[one] + p[f"b{one}"] for one in "qkv")
        return jnp.tanh(q) * k + v

    parts = dict.fromkeys("qkv", (4, 2)) | {f"b{one}": (2,) for one in "qkv"}
    one, several = function(fused, X, qkv=(4, 6), bias=(6,)), function(split, X, **parts)
    converted = compat.convert(one, like=several, example=X)
    np.testing.assert_array_equal(converted.params["k"], one.params["qkv"][:, 2:4])
    back = compat.convert(several, like=one, example=X)
    np.testing.assert_array_equal(back.params["bias"][4:], several.params["bv"])


IDS = np.arange(6, dtype=np.int32).reshape(2, 3) % 5


def tied(p, x):
    return jnp.tanh(p["table"][x]) @ p["table"].T


def untied(p, x):
    return jnp.tanh(p["table"][x]) @ p["out"]


def test_a_tied_embedding_becomes_two_leaves_and_one_again():
    one, other = function(tied, IDS, table=(5, 4)), function(untied, IDS, table=(5, 4), out=(4, 5))
    converted = compat.convert(one, like=other, example=IDS)
    np.testing.assert_array_equal(converted.params["out"], one.params["table"].T)
    again = compat.convert(converted, like=one, example=IDS)
    np.testing.assert_array_equal(again.params["table"], one.params["table"])
    with pytest.raises(ValueError, match=r"params/table is used twice in the target.*Untie it"):
        compat.convert(other, like=one, example=IDS)


def positions(p, x):
    return (x + p["pos"][: x.shape[1]]) @ p["w"]


def turned_positions(p, x):
    return (x + p["pos"].T[: x.shape[1]]) @ p["w"]


def test_rows_that_the_example_does_not_use_go_over_too():
    x = np.ones((2, 3, 4), np.float32)
    model = function(positions, x, pos=(7, 4), w=(4, 2))
    like = function(turned_positions, x, pos=(4, 7), w=(4, 2))
    converted = compat.convert(model, like=like, example=x)
    np.testing.assert_array_equal(converted.params["pos"], model.params["pos"].T)
    shorter = function(positions, x, pos=(5, 4), w=(4, 2))
    with pytest.raises(ValueError, match=r"uses 12 of its 28 elements.*the longest sequence"):
        compat.convert(shorter, like=like, example=x)


@pytest.mark.parametrize("size", [3, 2])
def test_features_flattened_channels_first_fit_those_flattened_last(size):
    """Of a cube (size 2) the shapes do not tell which axis is which."""

    class First(eqx.Module):
        conv: eqx.nn.Conv2d
        dense: eqx.nn.Linear

        def __call__(self, x):
            return self.dense(jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0)).ravel()))

    class Last(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(2, (3, 3))(x))
            return nn.Dense(3)(x.reshape(x.shape[0], -1))

    x = np.random.default_rng(0).normal(size=(4, size, size, 1)).astype(np.float32)
    one, other = jax.random.split(jax.random.key(0))
    module = First(
        eqx.nn.Conv2d(1, 2, 3, padding=1, key=one), eqx.nn.Linear(2 * size**2, 3, key=other)
    )
    first, last = compat.as_model(module), compat.as_model(Last(), x, key=0)
    for model, like in ((first, last), (last, first)):
        converted = compat.convert(model, like=like, example=x)
        np.testing.assert_allclose(converted(x)[0], model(x)[0], rtol=1e-5, atol=1e-5)


def test_an_example_of_other_axes_is_turned_by_a_call_as_the_error_says():
    class Last(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(2, (3, 3))(x).mean((1, 2))

    class First(eqx.Module):
        conv: eqx.nn.Conv2d

        def __call__(self, x):
            return self.conv(x).mean((1, 2))

    x = np.random.default_rng(0).normal(size=(4, 6, 5, 3)).astype(np.float32)
    model = compat.as_model(Last(), x, key=0)
    module = First(eqx.nn.Conv2d(3, 2, 3, padding=1, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="feature dimension") as raised:
        compat.convert(model, like=compat.as_model(module), example=x)
    assert "the EquinoxModel failed on it" in raised.value.__notes__[-1]
    like = compat.EquinoxModel(module, call=lambda net, x: jax.vmap(net)(x.transpose(0, 3, 1, 2)))
    converted = compat.convert(model, like=like, example=x)
    np.testing.assert_allclose(converted(x)[0], model(x)[0], rtol=1e-5, atol=1e-5)


def zero_centred(p, x):
    return x * (1 + p["scale"]) - p["minus"]


def plain(p, x):
    return x * p["scale"] + p["bias"]


def test_a_scale_kept_as_its_distance_from_one_is_moved():
    model = function(zero_centred, X, scale=(4,), minus=(4,))

    def same(p, x):
        return p["scale"] * x - p["bias"]

    like = function(same, X, scale=(4,), bias=(4,))
    converted = compat.convert(model, like=like, example=X)
    np.testing.assert_allclose(converted.params["scale"], 1 + model.params["scale"])


def test_layers_stacked_for_a_scan_fit_layers_side_by_side():
    def stacked(p, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]

    def apart(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"])

    model = function(stacked, X, w=(2, 4, 4))
    converted = compat.convert(model, like=function(apart, X, a=(4, 4), b=(4, 4)), example=X)
    np.testing.assert_array_equal(converted.params["b"], model.params["w"][1])


def test_frozen_parameters_go_over_and_stay_frozen():
    model, like = function(two, X, **SQUARE), drawn(function(two, X, **SQUARE), 3)
    frozen = compat.freeze(like, "a")
    converted = compat.convert(compat.freeze(model, "b"), like=frozen, example=X)
    assert converted.params["a"] is None
    np.testing.assert_array_equal(converted.frozen["a"], model.params["a"])


# What is refused.


def test_other_sizes_are_named():
    flax = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    wide = stax.serial(stax.Dense(9), stax.Relu, stax.Dense(2))
    model, like = compat.as_model(flax, X, key=0), compat.as_model(wide, X, key=0)
    with pytest.raises(ValueError, match="one architecture") as caught:
        compat.convert(model, like=like, example=X)
    said = str(caught.value)
    assert "params/0/0 (matrix 4x9)" in said
    assert "params/layers_0/kernel (matrix 4x8)" in said
    assert caught.value.target == "params/0/0"
    assert caught.value.source == "params/layers_0/kernel"


def test_a_missing_layer_is_named():
    like = function(lambda p, x: x @ p["a"] + p["bias"], X, a=(4, 4), bias=(4,))
    with pytest.raises(ValueError, match=r"nothing more where the source uses params/b \(matrix"):
        compat.convert(function(two, X, **SQUARE), like=like, example=X)


def norm(epsilon):
    def apply(p, x):
        x = x @ p["w"]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * p["scale"] + p["bias"]

    return function(apply, X, w=(4, 4), scale=(4,), bias=(4,))


def gelu(approximate):
    return function(
        lambda p, x: jax.nn.gelu(x @ p["a"], approximate=approximate) @ p["b"] + p["bias"],
        X,
        **SQUARE,
    )


@pytest.mark.parametrize(
    ("model", "like", "said"),
    [
        (norm(1e-3), norm(1e-5), "epsilon: 0.001 in model, 1e-05 in like"),
        (gelu(True), gelu(False), "activation: tanh in model, erfc? in like"),
    ],
    ids=["epsilon", "gelu"],
)
def test_other_hyper_parameters_are_named(model, like, said):
    with pytest.raises(ValueError, match=f"the weights fit and hyper-parameters differ: {said}"):
        compat.convert(model, like=like, example=X)


def test_the_first_layer_that_differs_is_named():
    def network(second):
        def apply(p, x):
            x = jnp.tanh(x @ p["a"])
            x = second(x @ p["b"])
            return jnp.tanh(x @ p["c"]) @ p["d"]

        return function(apply, X, **dict.fromkeys("abcd", (4, 4)))

    model, like = network(jnp.tanh), network(lambda x: 2 * jnp.tanh(x))
    said = "up to params/b of like they agree, and differ from params/c of like on"
    with pytest.raises(ValueError, match=said):
        compat.convert(model, like=like, example=X)
    first = function(lambda p, x: x @ p["a"], X, a=(4, 4))
    halved = function(lambda p, x: (x / 2) @ p["a"], X, a=(4, 4))
    with pytest.raises(ValueError, match=": they differ from params/a of like on"):
        compat.convert(first, like=halved, example=X)
    after = function(lambda p, x: 2 * (x @ p["a"]), X, a=(4, 4))
    with pytest.raises(ValueError, match="params/a of like they agree, and differ after the last"):
        compat.convert(first, like=after, example=X)


def test_heads_of_another_number_are_found_where_they_are_joined():
    class Attention(nn.Module):
        heads: int

        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(self.heads)(x, x)

    x = INPUTS["attention"]
    model, like = (compat.as_model(Attention(heads), x, key=0) for heads in (2, 4))
    said = "value/kernel of like they agree, and differ from .*/out/kernel of like on"
    with pytest.raises(ValueError, match=said):
        compat.convert(model, like=like, example=x)


def test_layers_joined_otherwise_are_refused():
    def skipping(p, x):
        return x + jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"]

    with pytest.raises(ValueError, match=r"outputs that differ by .* combine them differently"):
        compat.convert(function(two, X, **SQUARE), like=function(skipping, X, **SQUARE), example=X)


def test_cells_of_two_kinds_are_refused():
    model, like = build("Linen", "gru", 1), build("Haiku", "gru", 2)
    with pytest.raises(ValueError, match="recurrent cells are of two kinds"):
        compat.convert(model, like=like, example=INPUTS["gru"])


def test_statistics_that_one_side_does_not_keep_are_told():
    model, like = build("Linen", "cnn", 1), build("Stax", "cnn", 2)
    with pytest.raises(ValueError, match="the target keeps no batch statistics"):
        compat.convert(model, like=like, example=INPUTS["cnn"])


def test_a_parameter_without_a_use_is_named():
    like = function(two, X, **SQUARE, idle=(3,))
    with pytest.raises(ValueError, match="do not depend on params/idle"):
        compat.convert(function(two, X, **SQUARE), like=like, example=X)


def test_outputs_of_other_shapes_are_refused():
    like = function(lambda p, x: two(p, x)[:, :2], X, **SQUARE)
    with pytest.raises(ValueError, match=r"float32\[3,4\] and those of like float32\[3,2\]"):
        compat.convert(function(two, X, **SQUARE), like=like, example=X)


def test_outputs_that_are_not_finite_prove_nothing():
    model = function(two, X, **SQUARE)
    broken = solstice.replace(model, params=jax.tree.map(lambda a: a * jnp.nan, model.params))
    with pytest.raises(ValueError, match="not finite"):
        compat.convert(broken, like=model, example=X)


def test_arguments_of_a_wrong_type_are_refused():
    model = function(two, X, **SQUARE)
    with pytest.raises(TypeError, match=r"model is expected to be a compat.Model"):
        compat.convert(two, like=model, example=X)
    with pytest.raises(TypeError, match=r"like is expected to be a compat.Model"):
        compat.convert(model, like=two, example=X)
    with pytest.raises(TypeError, match=r"example is expected to be a batch's inputs"):
        compat.convert(model, like=model, example=None)
    with pytest.raises(TypeError, match="an argument is traced"):
        jax.jit(lambda x: compat.convert(model, like=model, example=x))(X)


# Planted faults: a matching that is wrong does not pass.


@pytest.mark.parametrize("roles", ["matrix", "bias"])
def test_a_wrong_matching_is_caught(monkeypatch, roles):
    def both(p, x):
        return jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"] + p["last"]

    def swapped(target, source):
        one, other = [use for use in source if use.role == roles]
        order = [{one: other, other: one}.get(use, use) for use in source]
        yield next(original(target, order))

    original = converting.candidates
    monkeypatch.setattr(converting, "candidates", swapped)
    model = function(both, X, **SQUARE, last=(4,))
    # As fresh networks have them, which would hide that they are exchanged.
    zeros = {name: jnp.zeros(4) for name in ("bias", "last")}
    model = solstice.replace(model, params=model.params | zeros)
    with pytest.raises(ValueError, match="outputs that differ by"):
        compat.convert(model, like=model, example=X)


def test_a_wrong_value_is_caught_by_the_real_weights(monkeypatch):
    model = function(two, X, **SQUARE)
    original = converting.values
    calls = []

    def spoiled(pairs, source, target):
        calls.append(0)
        found = original(pairs, source, target)
        return found if len(calls) == 1 else found | {"params/a": found["params/b"]}

    monkeypatch.setattr(converting, "values", spoiled)
    with pytest.raises(ValueError, match="outputs that differ by"):
        compat.convert(model, like=model, example=X)
    assert len(calls) == 2


@pytest.mark.parametrize("ends", [jax.nn.relu6, lambda x: jnp.clip(jax.nn.relu(x), None, 5.0)])
def test_an_activation_that_ends_early_is_refused_though_the_example_never_gets_there(ends):
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)

    def network(activation):
        return compat.as_model(nn.Sequential([nn.Dense(8), activation, nn.Dense(2)]), x, key=0)

    with pytest.raises(InvalidValueError, match=r"large biases.*relu6"):
        compat.convert(network(jax.nn.relu), like=network(ends), example=x)
    compat.convert(network(ends), like=network(ends), example=x)
