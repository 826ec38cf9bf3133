"""Weights in torch's layouts, as numpy's arrays, in networks of every library; and the report."""

import dataclasses
import re
import warnings

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import safetensors.numpy
from architectures import build
from architectures.common import INPUTS
from flax import nnx
from jax.example_libraries import stax

import solstice
from solstice import compat
from solstice.compat.weights.leaves import model_leaves
from solstice.errors import InvalidTypeError, InvalidValueError, UnequalOutputsError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3)).astype(np.float32)
ORDER = "ignore:load\\(\\). .* by order alone"


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def linear(name, inputs, outputs):
    return {f"{name}.weight": normal(outputs, inputs), f"{name}.bias": normal(outputs)}


def dense(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


MLP = linear("0", 3, 8) | linear("2", 8, 8) | linear("4", 8, 2)


def mlp(state, x):
    return dense(state, "4", relu(dense(state, "2", relu(dense(state, "0", x)))))


class Module(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(8, 2, rngs=rngs)  # the last is defined first
        self.a, self.b = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.b(nnx.relu(self.a(x)))))


def linen(x=X):
    layers = [nn.Dense(8), nn.relu, nn.Dense(8), nn.relu, nn.Dense(2)]
    return compat.as_model(nn.Sequential(layers), x, key=0)


def keras_mlp():

    dense = keras.layers.Dense
    layers = [keras.layers.Input((3,)), dense(8, "relu"), dense(8, "relu"), dense(2)]
    return compat.as_model(keras.Sequential(layers))


MLPS = {
    "linen": linen,
    "nnx": lambda: compat.as_model(Module(nnx.Rngs(0))),
    "haiku": lambda: compat.as_model(hk.transform(lambda x: hk.nets.MLP([8, 8, 2])(x)), X, key=0),
    "equinox": lambda: compat.as_model(eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(0))),
    "keras": keras_mlp,
    "stax": lambda: compat.as_model(
        stax.serial(stax.Dense(8), stax.Relu, stax.Dense(8), stax.Relu, stax.Dense(2)), X, key=0
    ),
}


@pytest.mark.parametrize("make", MLPS.values(), ids=MLPS)
def test_a_torch_mlp_is_loaded_by_order_of_use(make):
    model = make()
    before = jax.tree.map(np.array, model.params)
    loaded, report = compat.load(model, MLP, example=X)
    assert report.check(X, mlp(MLP, X)) < 1e-6
    np.testing.assert_allclose(loaded(X)[0], mlp(MLP, X), rtol=1e-5, atol=1e-5)
    assert jax.tree.map(np.array_equal, model.params, before)  # it is as it was
    assert all(map(np.array_equal, jax.tree.leaves(model.params), jax.tree.leaves(before)))
    # Stax numbers its layers as torch's Sequential does.
    assert {row.how for row in report.rows} == {"name" if "Stax" in repr(model) else "order of use"}
    assert not (report.missing or report.unused or report.kept or report.ambiguous)
    turned = [row.turned for row in report.rows if row.sources == ("0.weight",)]
    assert turned == ["as it is" if "Equinox" in type(model).__name__ else "transposed (1, 0)"]


def batch_norm(x, state, name):
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scaled = (x - mean) / np.sqrt(var + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def norm(name, width):
    return {
        f"{name}.weight": normal(width),
        f"{name}.bias": normal(width),
        f"{name}.running_mean": normal(width),
        f"{name}.running_var": normal(width) ** 2 + 0.5,
        f"{name}.num_batches_tracked": np.array(7),
    }


def conv(x, weight):
    """Return a padded 3 by 3 convolution, OIHW, of (batch, height, width, in)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return np.einsum("bhwikl,oikl->bhwo", windows, weight)


CNN = {
    "conv1.weight": normal(4, 3, 3, 3),
    "conv1.bias": normal(4),
    **norm("bn1", 4),
    "conv2.weight": normal(4, 4, 3, 3),
    "conv2.bias": normal(4),
    **norm("bn2", 4),
    **linear("fc", 4, 5),
}


def cnn(state, x):
    for i in (1, 2):
        x = conv(x, state[f"conv{i}.weight"]) + state[f"conv{i}.bias"]
        x = relu(batch_norm(x, state, f"bn{i}"))
    return dense(state, "fc", x.mean((1, 2)))


FIVE = "Linen", "NNX", "Haiku", "Equinox", "Keras"


@pytest.mark.parametrize("library", FIVE)
@pytest.mark.parametrize("sorted_names", [False, True])
def test_a_torch_cnn_with_batch_statistics_is_loaded(library, sorted_names, tmp_path):
    source, x = CNN, INPUTS["cnn"]
    if sorted_names:  # as safetensors writes them
        safetensors.numpy.save_file(CNN, source := tmp_path / "cnn.safetensors")
    with warnings.catch_warnings():
        warnings.filterwarnings(*ORDER.split(":", 1))
        model, report = compat.load(build(library, "cnn", 1), source, example=x)
    assert report.check(x, cnn(CNN, x)) < 1e-5
    assert set(report.ignored) == {"bn1.num_batches_tracked", "bn2.num_batches_tracked"}
    # Averages go on from the values loaded, as those of a network that trained long.
    _, trained = model(x, train=True)
    statistics = [
        np.asarray(leaf)
        for path, leaf in model_leaves(trained).items()
        if path.startswith("state/") and leaf.size == 4
    ]
    for name in ("bn1.running_mean", "bn2.running_var"):
        near = min(np.abs(one.reshape(-1) - CNN[name]).max() for one in statistics)
        assert near < 0.5 * np.abs(CNN[name]).max()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


LSTM = {
    "rnn.weight_ih_l0": normal(32, 6),
    "rnn.weight_hh_l0": normal(32, 8),
    "rnn.bias_ih_l0": normal(32),
    "rnn.bias_hh_l0": normal(32),
    **linear("fc", 8, 3),
}


def lstm(state, x):
    h = c = np.zeros((len(x), 8))
    for t in range(x.shape[1]):
        gates = x[:, t] @ state["rnn.weight_ih_l0"].T + h @ state["rnn.weight_hh_l0"].T
        gates = gates + state["rnn.bias_ih_l0"] + state["rnn.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4, 1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return dense(state, "fc", h)


@pytest.mark.parametrize("library", FIVE)
def test_a_torch_lstm_is_loaded_with_its_two_biases_and_its_order_of_gates(library):
    x = INPUTS["lstm"]
    _, report = compat.load(build(library, "lstm", 1), LSTM, example=x)
    assert report.check(x, lstm(LSTM, x)) < 1e-5
    how = {row.how for row in report.rows if row.sources[0].startswith("rnn")}
    assert how == {"gates"}
    assert not report.ambiguous


def layer_norm(x, state, name):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


ATTENTION = {  # torch's order of definition is not that of use
    "attn.in_proj_weight": normal(24, 8),
    "attn.in_proj_bias": normal(24),
    **linear("attn.out_proj", 8, 8),
    **linear("up", 8, 16),
    **linear("down", 16, 8),
    "norm1.weight": normal(8),
    "norm1.bias": normal(8),
    "norm2.weight": normal(8),
    "norm2.bias": normal(8),
}


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(state, x, heads=2):
    h = layer_norm(x, state, "norm1")
    qkv = h @ state["attn.in_proj_weight"].T + state["attn.in_proj_bias"]
    batch, time, width = x.shape
    q, k, v = (
        part.reshape(batch, time, heads, -1).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, -1)
    )
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(width // heads)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(batch, time, width)
    x = x + dense(state, "attn.out_proj", mixed)
    h = layer_norm(x, state, "norm2")
    return x + dense(state, "down", gelu(dense(state, "up", h)))


@pytest.mark.parametrize("library", FIVE)
@pytest.mark.filterwarnings(ORDER)
def test_a_torch_attention_block_is_loaded_from_its_fused_projection(library):
    x = INPUTS["attention"]
    _, report = compat.load(build(library, "attention", 1), ATTENTION, example=x)
    assert report.check(x, attention(ATTENTION, x)) < 1e-5
    split = [row for row in report.rows if row.sources == ("attn.in_proj_weight",)]
    assert len(split) == 3
    assert all("of 192 elements" in row.turned for row in split)


def test_alike_layers_are_told_and_settled_by_outputs():
    x = INPUTS["attention"]
    # A definition in another order than that of use, which nothing but the outputs tells.
    names = ["norm2", "norm1", "up", "down", "attn"]
    odd = {k: v for name in names for k, v in ATTENTION.items() if k.startswith(name)}
    odd = {k.replace("norm", "n"): v for k, v in odd.items()}
    with pytest.warns(UserWarning, match="matched by order alone, such as 'params/.*' with"):
        _, report = compat.load(build("Linen", "attention", 1), odd, example=x)
    assert "n1.weight" in {one for row in report.ambiguous for one in row.others}
    assert "* another array has this form" in str(report)
    expected = attention(ATTENTION, x)
    with pytest.raises(UnequalOutputsError, match=r"may be swapped: .*outputs=outputs"):
        report.check(x, expected)
    _, settled = compat.load(build("Linen", "attention", 1), odd, example=x, outputs=expected)
    assert settled.check(x, expected) < 1e-5
    assert not settled.ambiguous
    assert re.search(
        r"The given outputs decided between layers of equal shapes, at try \d+", str(settled)
    )


def test_outputs_that_no_order_gives_are_an_error_with_the_number_of_tries():
    x = INPUTS["attention"]
    with pytest.raises(
        UnequalOutputsError, match=r"2 ways to match and to lay out the arrays of .* none gives"
    ) as e:
        compat.load(
            build("Linen", "attention", 1), ATTENTION, example=x, outputs=np.zeros((2, 5, 8))
        )
    assert e.value.difference > 1e-2
    assert "outputs=outputs" not in str(e.value)
    assert "Every leaf had one" not in str(e.value)


def test_outputs_that_the_one_match_does_not_give_are_explained_without_swaps():
    model = linen()
    named = {name: np.asarray(leaf) for name, leaf in model_leaves(model).items()}
    with pytest.raises(UnequalOutputsError, match="Every leaf had one array that fits, so") as told:
        compat.load(model, named, example=X, outputs=mlp(MLP, X))
    assert "6 arrays have exactly the model's own names and shapes; those are never" in str(
        told.value
    )
    assert "were tried" not in str(told.value)


def test_an_example_that_the_network_does_not_take_is_named():
    ids = IDS.astype(np.float32)
    with pytest.raises((TypeError, ValueError), match=r"integer|dtype") as told:
        compat.load(compat.as_model(Twin(), IDS, key=0), TWIN, example=ids)
    assert "FlaxModel failed on its example inputs, float32[3,5]." in told.value.__notes__[-1]


class Twin(nn.Module):
    """A head that may share the embedding's table, and a fused projection."""

    tied: bool = False

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(11, 6)
        x = embed(ids)
        gate, value = jnp.split(nn.Dense(8, name="fused")(x), 2, -1)
        x = nn.Dense(6, name="back")(gate * value)
        return embed.attend(x) if self.tied else nn.Dense(11, use_bias=False, name="head")(x)


IDS = RNG.integers(0, 11, size=(3, 5)).astype(np.int32)
TABLE = normal(11, 6)
TWIN = {
    "wte.weight": TABLE,
    **linear("gate", 6, 4),
    **linear("value", 6, 4),
    **linear("back", 4, 6),
}


def twin_outputs(head):
    x = TABLE[IDS]
    x = dense(TWIN, "back", dense(TWIN, "gate", x) * dense(TWIN, "value", x))
    return x @ head.T


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.filterwarnings(ORDER)
def test_tied_embeddings_are_loaded_however_the_file_holds_them(tied, both):
    source = TWIN | ({"lm_head.weight": TABLE.copy()} if both else {})
    model = compat.as_model(Twin(tied), IDS, key=0)
    _, report = compat.load(model, source)
    assert report.check(IDS, twin_outputs(TABLE)) < 1e-5
    if both and tied:
        assert "'lm_head.weight' is tied to 'wte.weight'" in str(report)
    if not both and not tied:
        assert [row.how for row in report.rows if "head" in row.leaf] == ["tied"]


def test_a_head_that_is_not_the_embedding_does_not_go_into_a_tied_network():
    source = TWIN | {"lm_head.weight": normal(11, 6)}
    with pytest.raises(InvalidValueError, match=r"lm_head.weight \(11, 6\) of the mapping went"):
        compat.load(compat.as_model(Twin(tied=True), IDS, key=0), source)


def test_names_decide_where_orders_differ():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="second")(nn.relu(nn.Dense(3, name="first")(x)))

    source = linear("net.second", 3, 3) | linear("net.first", 3, 3)
    model = compat.as_model(Named(), X, key=0)
    expected = dense(source, "net.second", relu(dense(source, "net.first", X)))
    _, report = compat.load(model, source, rename={r"^net\.": ""})
    assert report.check(X, expected) < 1e-5
    assert {row.how for row in report.rows} == {"name"}
    # Square matrices are turned all the same.
    assert [row.turned for row in report.rows if row.leaf.endswith("second/kernel")] == [
        "transposed (1, 0)"
    ]


def test_a_rename_to_a_leaf_s_own_name_turns_the_layout_too():
    source = {"a.weight": normal(3, 3), "a.bias": normal(3)}
    model = compat.as_model(nn.Dense(3), X, key=0)
    rules = {r"a\.weight": "params/kernel", r"a\.bias": "params/bias"}
    _, report = compat.load(model, source, rename=rules)
    assert report.check(X, dense(source, "a", X)) < 1e-6


def test_a_rename_says_what_a_whole_network_is():
    source = {f"backbone.{name}": value for name, value in MLP.items()}
    layers = {rf"^backbone\.{i}\.": f"layers_{i}/" for i in (0, 2, 4)}
    _, report = compat.load(linen(), source, rename=layers)
    assert {row.how for row in report.rows} == {"name"}
    assert report.check(X, mlp(MLP, X)) < 1e-6


def test_what_is_left_over_is_an_error_that_lists_shapes_and_a_rename():
    source = {name: value for name, value in MLP.items() if not name.startswith("4")}
    source |= {"head.weight": normal(5, 8), "head.bias": normal(5)}
    with pytest.raises(InvalidValueError) as told:
        compat.load(linen(), source)
    said = str(told.value)
    assert "params/layers_4/bias (2,), params/layers_4/kernel (8, 2) of the model" in said
    assert "head.weight (5, 8), head.bias (5,) of the mapping went nowhere" in said
    assert "strict=False" in said
    assert "rename={'head.weight': None}" in said
    before = linen()
    model, report = compat.load(before, source, strict=False)
    assert report.missing == {"params/layers_4/bias": (2,), "params/layers_4/kernel": (8, 2)}
    assert report.unused == {"head.weight": (5, 8), "head.bias": (5,)}
    assert "missing: params/layers_4/bias (2,)" in str(report)
    np.testing.assert_array_equal(
        model.params["layers_4"]["kernel"], before.params["layers_4"]["kernel"]
    )
    _, report = compat.load(before, source, strict=False, rename={"^head": None})
    assert not report.unused


class Odd(nn.Module):
    """A network with a weight that is used as no layer uses one."""

    @nn.compact
    def __call__(self, x):
        return jnp.sin(self.param("odd", nn.initializers.ones, (4, 3))) * nn.Dense(3)(x)


def test_the_error_says_which_rename_would_fit_and_it_does():
    source = linear("a", 3, 3) | {"strange": normal(4, 3)}
    model = compat.as_model(Odd(), X, key=0)
    with pytest.raises(InvalidValueError, match=re.escape("rename={'strange': 'params/odd'}")):
        compat.load(model, source)
    _, report = compat.load(model, source, rename={"strange": "params/odd"})
    assert report.check(X, np.sin(source["strange"]) * dense(source, "a", X)) < 1e-6


def test_a_name_that_says_no_layout_is_told():
    source = {"mixing": normal(3, 3)}
    with pytest.warns(UserWarning, match="the layouts of 1 leaves are guesses: The name 'mixing'"):
        _, report = compat.load(compat.as_model(nn.Dense(3, use_bias=False), X, key=0), source)
    assert "The name 'mixing' says no layout: it was guessed." in report.notes


def test_more_layers_than_the_model_has_go_by_likeness():
    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="decoder_layer")(x)

    source = linear("encoder.block", 3, 3) | linear("decoder.block", 3, 3)
    model = compat.as_model(Decoder(), X, key=0)
    with pytest.raises(InvalidValueError, match=r"encoder.block.weight .* went nowhere"):
        compat.load(model, source)
    _, report = compat.load(model, source, strict=False)
    assert {row.how for row in report.rows} == {"likeness of names"}
    assert report.check(X, dense(source, "decoder.block", X)) < 1e-6


def test_a_model_without_an_example_asks_for_one_where_names_do_not_suffice():
    model = compat.as_model(Module(nnx.Rngs(0)))
    with pytest.raises(InvalidValueError, match=r"NNXModel does not know .* example=x"):
        compat.load(model, MLP)
    kernels = {name: normal(*leaf.shape) for name, leaf in model_leaves(model).items()}
    own = {name.removeprefix("params/"): value for name, value in kernels.items()}
    loaded, report = compat.load(model, own)
    assert {row.how for row in report.rows} == {"name"}
    assert all(np.array_equal(kernels[k], v) for k, v in model_leaves(loaded).items())


def test_equinox_has_torch_s_names_and_layouts_and_needs_no_example():
    model = compat.as_model(eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(0)))
    source = {f"layers.{i}.{name}": MLP[f"{2 * i}.{name}"] for i in range(3) for name in
              ("weight", "bias")}  # fmt: skip
    _, report = compat.load(model, source)
    assert report.check(X, mlp(MLP, X)) < 1e-6


def test_dtypes_follow_the_model_and_are_told():
    source = {name: value.astype(np.float64) for name, value in MLP.items()}
    model, report = compat.load(linen(), source)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"float32"}
    assert all(row.turned.endswith("float64 to float32") for row in report.rows)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), linen())
    loaded, _ = compat.load(half, MLP)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}


def test_integers_do_not_go_into_weights():
    source = {name: value.astype(np.int32) for name, value in MLP.items()}
    with pytest.raises(InvalidValueError, match="nothing was found for params/layers_0/bias"):
        compat.load(linen(), source)


def test_loading_works_in_an_experiment_and_keeps_its_program():
    model = linen()
    loaded, _ = compat.load(model, MLP)
    traces = []

    @jax.jit
    def forward(model, x):
        traces.append(1)
        return model(x)[0]

    forward(model, X)
    forward(loaded, X)
    assert len(traces) == 1
    frozen, _ = compat.load(compat.freeze(model, "layers_0/*"), MLP)
    np.testing.assert_array_equal(frozen(X)[0], loaded(X)[0])
    replaced = solstice.replace(model, params=loaded.params)
    np.testing.assert_array_equal(replaced(X)[0], loaded(X)[0])


def test_check_says_what_a_difference_points_to():
    model = compat.as_model(nn.Sequential([nn.Dense(8), nn.LayerNorm(epsilon=1e-2)]), X, key=0)
    source = linear("a", 3, 8) | {"n.weight": normal(8), "n.bias": normal(8)}
    expected = layer_norm(dense(source, "a", X), source, "n")
    _, report = compat.load(model, source)
    with pytest.raises(UnequalOutputsError, match=r"epsilon of a norm \(here 0.01\)") as told:
        report.check(X, expected)
    assert 1e-5 < told.value.difference < 1e-2
    assert report.check(X, expected, tolerance=0.1) == told.value.difference
    with pytest.raises(UnequalOutputsError, match="in an activation"):
        report.check(X, expected + 1)
    with pytest.raises(
        InvalidValueError, match=r"outputs is expected to be like .* float32\[4,8\]"
    ):
        report.check(X, expected[:2])
    with pytest.raises(UnequalOutputsError):
        report.check(X, np.full_like(expected, np.nan))


@pytest.mark.parametrize("library", ["linen", "nnx", "haiku", "equinox", "keras"])
def test_check_names_the_first_layer_that_differs(library):
    first = dense(MLP, "0", X)
    second = dense(MLP, "2", relu(first))
    inside = {"0": first, "1": relu(first), "2": second, "3": relu(second), "4": mlp(MLP, X)}
    spoilt = MLP | {"2.bias": MLP["2.bias"] + 1}
    _, report = compat.load(MLPS[library](), spoilt, example=X)
    with pytest.raises(UnequalOutputsError, match=r"they differ from .* on: the closest") as told:
        report.check(X, mlp(MLP, X), inside=inside)
    layers = {row.sources[0]: row.leaf for row in report.rows}
    assert told.value.layer is not None
    path = layers["2.weight"].removeprefix("params/").rpartition("/")[0]
    assert told.value.layer in (path, "dense_1", "dense_4") or library == "keras"
    with pytest.raises(UnequalOutputsError, match="so they differ after these") as told:
        compat.load(MLPS[library](), MLP, example=X)[1].check(X, mlp(MLP, X) + 1, inside=inside)
    assert told.value.layer is None


def test_the_report_prints_a_table_and_a_short_repr():
    _, report = compat.load(linen(), MLP)
    lines = str(report).splitlines()
    assert lines[0] == "LoadReport of the mapping"
    assert lines[2].split() == ["leaf", "from", "how", "turned"]
    assert re.fullmatch(r"params/layers_0/bias +0.bias +order of use +as it is", lines[3])
    assert repr(report) == "LoadReport(6 leaves from the mapping)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.source = "other"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"model": nn.Dense(2)}, InvalidTypeError, "model is expected to be a compat.Model"),
        ({"source": MLPS["linen"]}, InvalidTypeError, "source is expected to be the path"),
        ({"strict": "no"}, InvalidTypeError, "strict is expected to be True or False"),
        ({"example": "x"}, InvalidTypeError, "example is expected"),
        ({"outputs": X}, InvalidTypeError, "example is expected to be the inputs that outputs"),
        ({"rename": {"layer": "x"}}, InvalidValueError, "'layer' is expected to match a name"),
        ({"rename": {r"\d": "x"}}, InvalidValueError, "both become 'x.weight'"),
    ],
)
def test_wrong_arguments_are_told(arguments, error, says):
    right = {"model": linen(), "source": MLP}
    with pytest.raises(error, match=says):
        compat.load(**right | arguments)


def test_a_model_as_source_is_sent_to_convert():
    with pytest.raises(InvalidTypeError, match=r"compat.convert\(source, like=model"):
        compat.load(linen(), linen())


@pytest.mark.parametrize("library", ["Keras", "Linen", "Equinox"])
@pytest.mark.parametrize("architecture", ["cnn", "lstm", "attention"])
@pytest.mark.filterwarnings(ORDER)
def test_a_file_of_keras_is_loaded(tmp_path, library, architecture):
    model, x = build("Keras", architecture, 1), INPUTS[architecture]
    for name, leaf in model_leaves(model).items():
        model._variables.value[model.library_name(name)].assign(leaf)
    model._network.value.save_weights(path := tmp_path / "model.weights.h5")
    _, report = compat.load(build(library, architecture, 2), path, example=x)
    assert report.check(x, model(x)[0]) < 1e-5


@pytest.mark.parametrize("library", FIVE)
@pytest.mark.parametrize("architecture", ["lstm", "attention"])
@pytest.mark.filterwarnings(ORDER)
def test_what_any_library_saved_is_loaded_by_linen(tmp_path, library, architecture):
    model, x = build(library, architecture, 1), INPUTS[architecture]
    compat.save(model, path := tmp_path / "model.safetensors")
    _, report = compat.load(build("Linen", architecture, 2), path, example=x)
    assert report.check(x, model(x)[0]) < 1e-5


class Flat(nn.Module):
    """A convolution whose features are flattened, channels last."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3))(x))
        return nn.Dense(2)(x.reshape(len(x), -1))


class FlatFirst(eqx.Module):
    """The same, channels first."""

    conv: eqx.nn.Conv2d
    fc: eqx.nn.Linear

    def __init__(self):
        self.conv = eqx.nn.Conv2d(3, 5, 3, padding=1, key=jax.random.key(0))
        self.fc = eqx.nn.Linear(5 * 4 * 4, 2, key=jax.random.key(0))

    def __call__(self, x):
        return self.fc(jax.nn.relu(self.conv(x.transpose(2, 0, 1))).reshape(-1))


@pytest.mark.parametrize("first", [False, True])
def test_flattened_features_are_put_into_the_network_s_order(first):
    x = normal(2, 4, 4, 3)
    state = {"conv.weight": normal(5, 3, 3, 3), "conv.bias": normal(5)} | linear("fc", 80, 2)
    features = relu(conv(x, state["conv.weight"]) + state["conv.bias"])
    outputs = dense(state, "fc", features.transpose(0, 3, 1, 2).reshape(2, -1))  # as torch does
    networks = (lambda: compat.as_model(Flat(), x, key=0)), (lambda: compat.as_model(FlatFirst()))
    model, report = compat.load(networks[first](), state, example=x)
    assert report.check(x, outputs) < 1e-5
    weights = {name.removeprefix("params/"): np.asarray(leaf) for name, leaf in
               model_leaves(model).items()}  # fmt: skip
    _, back = compat.load(networks[not first](), weights, example=x)
    assert back.check(x, outputs) < 1e-5


class Stacked(nn.Module):
    """Two cells, one over the other, and a third that reads backwards."""

    @nn.compact
    def __call__(self, x):
        h = nn.RNN(nn.LSTMCell(8))(nn.RNN(nn.LSTMCell(8))(x))
        back = nn.RNN(nn.LSTMCell(8), reverse=True, keep_order=True)(x)
        return nn.Dense(3)(h[:, -1] + back[:, 0])


def test_several_cells_are_loaded_in_order():
    cells = {"l0": 6, "l1": 8, "back_l0": 6}
    state = linear("fc", 8, 3)
    for name, inputs in cells.items():
        place, _, layer = name.rpartition("_")
        for what, shape in (
            ("weight_ih", (32, inputs)), ("weight_hh", (32, 8)), ("bias_ih", 32), ("bias_hh", 32)
        ):  # fmt: skip
            state[f"{place or 'rnn'}.{what}_{layer}"] = normal(*np.atleast_1d(shape))

    def run(place, layer, x):
        h = c = np.zeros((len(x), 8))
        weights = [state[f"{place}.{w}_{layer}"] for w in
                   ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]  # fmt: skip
        for t in range(x.shape[1]):
            gates = x[:, t] @ weights[0].T + h @ weights[1].T + weights[2] + weights[3]
            i, f, g, o = np.split(gates, 4, 1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            yield h

    x = INPUTS["lstm"]
    first = np.stack(list(run("rnn", "l0", x)), 1)
    h = list(run("rnn", "l1", first))[-1] + list(run("back", "l0", x[:, ::-1]))[-1]
    with pytest.warns(UserWarning, match="by order alone"):  # two cells read the input
        _, report = compat.load(compat.as_model(Stacked(), x, key=0), state)
    assert report.check(x, dense(state, "fc", h)) < 1e-5


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (np.full((2, 3), 1e300), "infinite in it"),
        (np.full((2, 3), 1 + 1j), "imaginary parts"),
    ],
)
def test_numbers_that_a_leaf_cannot_hold_are_refused(weight, says):
    model = compat.as_model(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
    with pytest.raises(InvalidValueError, match=f"params/weight .*{says}"):
        compat.load(model, {"weight": weight, "bias": np.ones(2)})


def test_loading_and_saving_under_a_transformation_are_refused(tmp_path):
    model = compat.as_model(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
    source = {"weight": np.ones((2, 3)), "bias": np.ones(2)}
    functions = {
        "load": lambda model: compat.load(model, source),
        "load from": lambda weight: compat.load(model, source | {"weight": weight}),
        "save": lambda model: compat.save(model, tmp_path / "a.safetensors"),
        "export": lambda model: solstice.export(model, tmp_path / "a", example=X),
    }
    for name, function in functions.items():
        argument = np.ones((2, 3)) if name == "load from" else model
        with pytest.raises(InvalidTypeError, match=r"outside of jax\.jit"):
            jax.jit(function)(argument)


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(True)(nn.LayerNorm(epsilon=1e-5)(x))


def test_a_batch_norm_after_a_layer_norm_of_its_size_keeps_its_scale():
    state = {"ln.weight": normal(3), "ln.bias": normal(3), "bn.weight": normal(3)}
    state |= {"bn.bias": normal(3), "bn.running_mean": normal(3)}
    state |= {"bn.running_var": 0.5 + normal(3) ** 2}
    _, report = compat.load(compat.as_model(Norms(), X, key=0), state)
    centred = X - X.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(X.var(-1, keepdims=True) + 1e-5)
    scaled = scaled * state["ln.weight"] + state["ln.bias"]
    assert report.check(X, batch_norm(scaled, state, "bn")) < 1e-5


class Looked(nn.Module):
    @nn.compact
    def __call__(self, ids):
        return nn.Dense(8, use_bias=False)(jnp.tanh(nn.Embed(8, 8)(ids)))


def test_a_square_table_that_could_be_a_matrix_is_told_and_settled():
    state, ids = {"head.weight": normal(8, 8), "tok.weight": normal(8, 8)}, np.arange(8)[None]
    model = compat.as_model(Looked(), ids, key=0)
    with pytest.warns(UserWarning, match="by order alone"):
        _, report = compat.load(model, state)
    assert len(report.ambiguous) == 2
    expected = np.tanh(state["tok.weight"])[None] @ state["head.weight"].T
    loaded, report = compat.load(model, state, example=ids, outputs=expected)
    assert not report.ambiguous
    np.testing.assert_allclose(loaded(ids)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_check_of_no_examples_is_refused():
    model = compat.as_model(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
    _, report = compat.load(model, {"weight": np.ones((2, 3)), "bias": np.ones(2)})
    with pytest.raises(InvalidValueError, match="batch with examples"):
        report.check(X[:0], np.zeros((0, 2)))
