"""An example that shows too little proves nothing, and `convert` says so."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import build
from architectures.common import INPUTS, drawn

import solstice
from solstice import compat
from solstice.compat.weights import blind

ROWS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
SEQUENCES = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)


def function(apply, x, **shapes):
    def init(key, *_):
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, shape) / 2
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    return compat.FunctionModel(init, apply, x, key=0)


def attention(heads, *, fused=False):
    def apply(p, x):
        wide = (x @ p["qkv"]) if fused else jnp.concatenate([x @ p[one] for one in "qkv"], -1)
        q, k, v = (one.reshape(*x.shape[:2], heads, -1) for one in jnp.split(wide, 3, -1))
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k), -1)
        return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape)

    return apply


SPLIT, FUSED = dict.fromkeys("qkv", (8, 8)), {"qkv": (8, 24)}


@pytest.mark.parametrize(
    ("fused", "named"), [(False, "params/q, params/k are, or a part"), (True, "params/qkv is")]
)
def test_heads_of_another_number_do_not_pass_on_one_position(fused, named):
    shapes = FUSED if fused else SPLIT
    model, like = (function(attention(n, fused=fused), SEQUENCES, **shapes) for n in (2, 4))
    one = SEQUENCES[:, :1]
    moved = solstice.replace(like, params=model.params)
    np.testing.assert_allclose(moved(one)[0], model(one)[0], rtol=1e-6)  # and nothing differs
    with pytest.raises(ValueError, match=rf"whatever {named}.*longer sequences"):
        compat.convert(model, like=like, example=one)
    with pytest.raises(ValueError, match="outputs that differ by"):
        compat.convert(model, like=like, example=SEQUENCES)
    # The same weights behind the same heads are not proved there either.
    with pytest.raises(ValueError, match="proves by outputs"):
        compat.convert(model, like=model, example=one)
    compat.convert(model, like=model, example=SEQUENCES)


def test_heads_whose_sizes_look_like_exchanged_axes_are_no_flattened_features():
    """Two heads of four features, and four of two."""

    def network(heads):
        class Attention(nn.Module):
            @nn.compact
            def __call__(self, x):
                value = nn.Dense(8)(x).reshape(*x.shape[:2], heads, -1)
                return nn.Dense(8)((value / 2).reshape(x.shape))

        return compat.as_model(Attention(), SEQUENCES, key=0)

    model, like = drawn(network(2), 1), drawn(network(4), 2)
    converted = compat.convert(model, like=like, example=SEQUENCES)
    np.testing.assert_allclose(converted(SEQUENCES)[0], model(SEQUENCES)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("same", ["one token", "one row of numbers"])
def test_positions_that_are_all_alike_hide_the_query_and_the_key(same):
    ids = np.zeros((2, 5), np.int32)
    apply = attention(2)
    if same == "one token":
        embedded = function(lambda p, x: apply(p, p["table"][x]), ids, **SPLIT, table=(7, 8))
        x = ids
    else:
        embedded, x = function(apply, SEQUENCES, **SPLIT), SEQUENCES[:, :1].repeat(5, 1)
    with pytest.raises(ValueError, match=r"whatever params/q, params/k are"):
        compat.convert(embedded, like=embedded, example=x)


@pytest.mark.parametrize(("source", "target"), [("Linen", "Haiku"), ("Equinox", "Keras")])
def test_a_cell_that_takes_one_step_is_not_proved(source, target):
    model, like = build(source, "lstm", 1), build(target, "lstm", 2)
    if target == "Keras":  # which takes sequences of the length that it was built for
        model, like = like, model
    with pytest.raises(ValueError, match=r"whatever params/lstm|whatever params/cell"):
        compat.convert(model, like=like, example=INPUTS["lstm"][:, :1])


def test_a_kernel_over_one_pixel_is_not_proved():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))

    x = INPUTS["cnn"]
    model = compat.as_model(Network(), x, key=0)
    with pytest.raises(ValueError, match="whatever params/Conv_0/kernel is, or a part of it"):
        compat.convert(model, like=model, example=x[:, :1, :1])
    compat.convert(model, like=model, example=x[:, :2, :2])
    with pytest.warns(UserWarning, match="whatever params/Conv_0/kernel is, or a part of it"):
        compat.convert(model, like=model, example=x[:, :1, :1], strict=False)


def centred(p, x):
    x = x @ p["w"]
    return jnp.tanh(x - x.mean(0)) + p["bias"]


def scaled(p, x):
    x = x @ p["w"]
    norm = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return norm * p["scale"] + p["bias"]


@pytest.mark.parametrize(
    ("apply", "x", "width", "named"),
    [(centred, ROWS[:1], 3, "params/w is"), (scaled, ROWS, 1, "params/w, params/scale are")],
    ids=["a batch of one", "a norm of one value"],
)
def test_a_norm_of_one_value_hides_what_is_before_it(apply, x, width, named):
    shapes = {"w": (4, width), "bias": (width,)} | ({"scale": (width,)} if apply is scaled else {})
    model = function(apply, x, **shapes)
    with pytest.raises(ValueError, match=f"whatever {named}"):
        compat.convert(model, like=model, example=x)


def test_rows_that_are_mixed_are_seen_in_an_example_of_one_row():
    def mixing(p, x):
        return x @ p["w"] + (x @ p["w"]).mean(0)

    def doubling(p, x):
        return 2 * (x @ p["w"])

    model, like = function(mixing, ROWS, w=(4, 3)), function(doubling, ROWS, w=(4, 3))
    with pytest.raises(ValueError, match="two entries along axis 0, where the example has one"):
        compat.convert(model, like=like, example=ROWS[:1])
    compat.convert(model, like=model, example=ROWS[:1])


@pytest.mark.parametrize("ids", [False, True])
def test_the_mean_and_the_last_position_are_told_apart_in_an_example_of_one(ids):
    def network(pooled):
        def apply(p, x):
            return pooled(p["table"][x] if ids else x @ p["table"]) @ p["w"]

        x = np.array([[3]], np.int32) if ids else SEQUENCES[:, :1]
        return function(apply, x, table=(8, 6), w=(6, 3)), x

    (model, x), (like, _) = network(lambda x: x.mean(1)), network(lambda x: x[:, -1])
    with pytest.raises(ValueError, match="two entries along axis 1, where the example has one"):
        compat.convert(model, like=like, example=x)
    compat.convert(model, like=model, example=x)


# What is proved.


def stopped(p, x):
    return jax.lax.stop_gradient(jnp.tanh(x @ p["a"])) @ p["b"]


def looped(p, x):
    turn = lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["a"]))  # noqa: E731
    return jax.lax.while_loop(lambda c: c[0] < 3, turn, (0, x))[1] @ p["b"]


def chosen(p, x):
    return (jnp.tanh(x @ p["a"]) @ p["b"]).argmax(-1)


def rooted(p, x):
    """A derivative that is not finite."""
    return jnp.sqrt(jnp.square(x @ p["a"] * 0)) + jnp.tanh(x @ p["a"]) @ p["b"]


def masked(p, x):
    """Weights that no example needs."""
    return jnp.tanh(x @ (p["a"] * np.tri(4, dtype=np.float32))) @ p["b"]


@pytest.mark.parametrize("apply", [stopped, looped, chosen, rooted, masked])
def test_what_has_no_gradient_is_proved_by_changing_it(apply):
    model = function(apply, ROWS, a=(4, 4), b=(4, 4))
    converted = compat.convert(model, like=model, example=ROWS)
    np.testing.assert_array_equal(converted(ROWS)[0], model(ROWS)[0])


def test_units_that_are_off_for_some_weights_are_seen_with_others():
    def apply(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    model = function(apply, ROWS[:1], a=(4, 300), b=(300, 200), c=(200, 3))
    compat.convert(model, like=model, example=ROWS[:1])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_example_is_exchanged_for_one_that_shows_the_order_of_features(value):
    def last(p, x):
        return x.reshape(len(x), -1) @ p["w"]

    def first(p, x):
        return jnp.moveaxis(x, -1, 1).reshape(len(x), -1) @ p["w"]

    x = np.full((2, 3, 3, 3), value, np.float32)
    model, like = function(last, x, w=(27, 2)), function(first, x, w=(27, 2))
    converted = compat.convert(model, like=like, example=x)
    other = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    np.testing.assert_allclose(converted(other)[0], model(other)[0], rtol=1e-5, atol=1e-5)


def test_inputs_of_every_kind_may_have_one_row():
    def apply(p, x, mask, ids):
        return jnp.where(mask, x, 0) @ p["w"] + p["table"][ids]

    x, mask, ids = ROWS[:1], np.array([[True, True, False, True]]), np.array([2], np.int32)
    shapes = {"w": (4, 3), "table": (5, 3)}

    def init(key, *_):
        return {name: jax.random.normal(key, shape) for name, shape in shapes.items()}

    model = compat.FunctionModel(init, apply, (x, mask, ids), key=0)
    moved = compat.convert(model, like=model, example=(x, mask, ids))
    np.testing.assert_array_equal(moved.params["table"], model.params["table"])


MASKED = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)


def masked(sense):
    def apply(p, x, mask):
        kept = {"kept": mask > 0, "hidden": mask <= 0, "ignored": jnp.ones_like(mask, bool)}[sense]
        scores = jnp.einsum("btd,bsd->bts", x @ p["q"], x @ p["k"])
        weights = jax.nn.softmax(jnp.where(kept[:, None], scores, -1e9), -1)
        return weights @ (x @ p["v"])

    init = function(lambda p, x: x, MASKED, **SPLIT).params
    make = lambda key, *_: jax.tree.map(lambda w: w + jax.random.normal(key, w.shape), init)  # noqa: E731
    return lambda mask, key=0: compat.FunctionModel(make, apply, (MASKED, mask), key=key)


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_an_input_that_one_network_ignores_is_named_though_the_example_hides_nothing(dtype):
    mask = np.ones((2, 5), dtype)
    kept, ignored = masked("kept"), masked("ignored")
    for model, like, who in (kept, ignored, "like"), (ignored, kept, "model"):
        with pytest.raises(ValueError, match=rf"input '1'.*those of {who} do not: it ignores"):
            compat.convert(model(mask), like=like(mask, 1), example=(MASKED, mask))
    compat.convert(kept(mask), like=kept(mask, 1), example=(MASKED, mask))


def test_a_mask_in_another_sense_is_refused():
    def gate(sign):
        def apply(p, x, mask):
            return x @ p["w"] + jnp.where(mask[..., None], 0.0, sign * x)

        init = lambda key, *_: {"w": jax.random.normal(key, (8, 8))}  # noqa: E731
        return lambda key: compat.FunctionModel(init, apply, (MASKED, whole), key=key)

    whole = np.ones((2, 5), bool)
    with pytest.raises(ValueError, match=r"other values of input '1'.*outputs differ by"):
        compat.convert(gate(1)(0), like=gate(-1)(1), example=(MASKED, whole))


def test_positions_of_a_large_kernel_take_few_draws(monkeypatch):
    draws = []
    drawn = blind.drawn
    monkeypatch.setattr(blind, "drawn", lambda *rest: draws.append(1) or drawn(*rest))
    pixel = np.ones((2, 1, 1, 4), np.float32)
    model = compat.as_model(nn.Conv(16, (3, 3)), pixel, key=0)
    with pytest.raises(ValueError, match="params/kernel is, or a part"):
        compat.convert(model, like=model, example=pixel)
    assert len(draws) < 12  # not 16 for the gradients alone
