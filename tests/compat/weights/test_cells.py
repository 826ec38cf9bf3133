"""Recurrent cells of files, of every kind, in networks of every library: equal, or refused."""

import contextlib

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from architectures import build
from architectures.common import INPUTS, drawn
from flax import nnx

from solstice import compat
from solstice.errors import InvalidValueError

RNG = np.random.default_rng(0)
X = INPUTS["gru"]
FIVE = "Linen", "NNX", "Haiku", "Equinox", "Keras"
ORDER = "ignore:load\\(\\). .* by order alone"


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(h, x, w, early=False):
    """One step of torch's GRU."""
    r, z, n = np.split(x @ w["weight_ih"].T + w["bias_ih"], 3, -1)
    hr, hz, hn = np.split(h @ w["weight_hh"].T + w["bias_hh"], 3, -1)
    r, z = sigmoid(r + hr), sigmoid(z + hz)
    if early:
        hn = (r * h) @ w["weight_hh"][-8:].T + w["bias_hh"][-8:]
    n = np.tanh(n + (hn if early else r * hn))
    return (1 - z) * n + z * h


def rnn(h, x, w, activation=np.tanh):
    return activation(x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"])


def unrolled(step, x, w, reverse=False):
    """All outputs, (batch, time, hidden), in the order of time."""
    h, way = np.zeros((len(x), 8)), slice(None, None, -1 if reverse else 1)
    outputs = [h := step(h, x[:, t], w) for t in range(x.shape[1])[way]]
    return np.stack(outputs[way], 1)


def weights(gates, inputs):
    shapes = {"weight_ih": (inputs,), "weight_hh": (8,), "bias_ih": (), "bias_hh": ()}
    return {name: normal(gates * 8, *shape) for name, shape in shapes.items()}


def named(w, layer="_l0", module="rnn"):
    return {f"{module}.{name}{layer}": array for name, array in w.items()}


FC = {"fc.weight": normal(3, 8), "fc.bias": normal(3)}
GRU = weights(3, 6)


def head(h):
    return h @ FC["fc.weight"].T + FC["fc.bias"]


@pytest.mark.parametrize("library", ["Linen", "Equinox", "Keras"])
def test_a_torch_gru_keeps_the_bias_inside_of_its_reset(library):
    _, report = compat.load(build(library, "gru", 1), named(GRU) | FC, example=X)
    assert report.check(X, head(unrolled(gru, X, GRU)[:, -1])) < 1e-5
    assert {row.how for row in report.rows if row.sources[0].startswith("rnn")} == {"gates"}
    assert not report.ambiguous


def test_nnx_s_gru_has_no_bias_inside_of_its_reset():
    with pytest.raises(InvalidValueError, match=r"bias 'rnn.bias_hh_l0' for its gate 'n' that is"):
        compat.load(build("NNX", "gru", 1), named(GRU) | FC, example=X)
    w = GRU | {"bias_hh": np.concatenate([GRU["bias_hh"][:16], np.zeros(8, np.float32)])}
    _, report = compat.load(build("NNX", "gru", 1), named(w) | FC, example=X)
    assert report.check(X, head(unrolled(gru, X, w)[:, -1])) < 1e-5


def keras_early(x, **options):
    layers = keras.layers.Input(x.shape[1:]), keras.layers.GRU(8, reset_after=False, **options)
    return compat.KerasModel(keras.Sequential([*layers, keras.layers.Dense(3)]))


EARLY = {"Haiku": lambda: build("Haiku", "gru", 1), "Keras": lambda: keras_early(X)}


@pytest.mark.parametrize("library", EARLY)
def test_a_gru_that_resets_early_is_refused_with_the_reason(library):
    says = r"'rnn_l0' is a GRU that resets after .*, and the model's resets before it: .*=True"
    with pytest.raises(InvalidValueError, match=says):
        compat.load(EARLY[library](), named(GRU) | FC, example=X)


@pytest.mark.parametrize("library", FIVE)
@pytest.mark.parametrize("source", EARLY)
def test_grus_that_reset_early_go_into_their_like(library, source, tmp_path):
    model = drawn(EARLY[source](), 3)
    compat.save(model, path := tmp_path / "gru.safetensors")
    target = EARLY.get(library, lambda: build(library, "gru", 2))()
    if library in EARLY:
        _, report = compat.load(target, path, example=X)
        assert report.check(X, model(X)[0]) < 1e-5
    else:
        with pytest.raises(InvalidValueError, match="resets before the product"):
            compat.load(target, path, example=X)


@pytest.mark.parametrize("library", ["Linen", "NNX", "Equinox", "Keras"])
@pytest.mark.parametrize("target", ["Linen", "Keras"])
def test_what_any_library_saved_of_a_gru_is_loaded(library, target, tmp_path):
    model = build(library, "gru", 1)
    compat.save(model, path := tmp_path / "gru.safetensors")
    _, report = compat.load(build(target, "gru", 2), path, example=X)
    assert report.check(X, model(X)[0]) < 1e-5


def keras_file(model, path):
    for variable in model._network.value.variables:
        variable.assign(normal(*variable.shape))
    model._network.value.save_weights(path)
    return compat.KerasModel(model._network.value)


@pytest.mark.parametrize("library", ["Linen", "Equinox", "Keras"])
def test_a_gru_of_keras_s_file_is_loaded(library, tmp_path):
    model = keras_file(build("Keras", "gru", 1), path := tmp_path / "gru.weights.h5")
    _, report = compat.load(build(library, "gru", 2), path, example=X)
    assert report.check(X, model(X)[0]) < 1e-5


class Simple(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.SimpleCell(8))(x)[:, -1])


class NNXSimple(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.SimpleCell(6, 8, rngs=rngs))
        self.fc = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.rnn(x)[:, -1])


def vanilla(x):
    core = hk.VanillaRNN(8)
    outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
    return hk.Linear(3)(outputs[:, -1])


def keras_simple():
    layers = keras.layers
    return compat.KerasModel(
        keras.Sequential([layers.Input((5, 6)), layers.SimpleRNN(8), layers.Dense(3)])
    )


SIMPLE = {
    "Linen": lambda: compat.as_model(Simple(), X, key=0),
    "NNX": lambda: compat.as_model(NNXSimple(nnx.Rngs(0))),
    "Haiku": lambda: compat.as_model(hk.transform(vanilla), X, key=0),
    "Keras": keras_simple,
}


@pytest.mark.parametrize("library", SIMPLE)
def test_a_plain_rnn_is_loaded(library):
    w = weights(1, 6)
    state = named(w) | FC
    _, report = compat.load(SIMPLE[library](), state, example=X)

    def step(h, x, w):
        return rnn(h, x, w, (lambda a: np.maximum(a, 0)) if library == "Haiku" else np.tanh)

    assert report.check(X, head(unrolled(step, X, w)[:, -1])) < 1e-5


@pytest.mark.parametrize("library", SIMPLE)
@pytest.mark.parametrize("form", ["safetensors", "h5"])
def test_plain_rnns_go_from_files_of_any_library_into_linen(library, form, tmp_path):
    if form == "h5" and library != "Keras":
        return
    model = drawn(SIMPLE[library](), 1)
    if form == "h5":
        model = keras_file(model, path := tmp_path / "rnn.weights.h5")
    else:
        compat.save(model, path := tmp_path / "rnn.safetensors")
    target = SIMPLE["Haiku" if library == "Haiku" else "Linen"]()
    _, report = compat.load(target, path, example=X)
    assert report.check(X, model(X)[0]) < 1e-5


def maybe_told(told):
    return pytest.warns(UserWarning, match="by order alone") if told else contextlib.nullcontext()


class Bidirectional(nn.Module):
    """Two layers, forwards and backwards, of torch's kind."""

    cell: type = nn.GRUCell

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.Bidirectional(nn.RNN(self.cell(8)), nn.RNN(self.cell(8)))(x)
        return x


def keras_bidirectional(layer):
    layers = [keras.layers.Bidirectional(layer(8, return_sequences=True)) for _ in range(2)]
    return compat.KerasModel(keras.Sequential([keras.layers.Input((5, 6)), *layers]))


class EquinoxBidirectional(eqx.Module):
    layers: list

    def __init__(self):
        key = jax.random.key(0)
        self.layers = [
            {way: eqx.nn.GRUCell(size, 8, key=key) for way in ("forward", "backward")}
            for size in (6, 16)
        ]

    def __call__(self, x):
        for layer in self.layers:
            both = [
                jax.lax.scan(
                    lambda h, x, cell=layer[way]: (cell(x, h),) * 2, jnp.zeros(8), x,
                    reverse=way == "backward",
                )[1]
                for way in ("backward", "forward")  # in another order than torch's
            ]  # fmt: skip
            x = jnp.concatenate(both[::-1], -1)
        return x


BOTH = {
    "Linen": lambda: compat.as_model(Bidirectional(), X, key=0),
    "Keras": lambda: keras_bidirectional(keras.layers.GRU),
    "Equinox": lambda: compat.as_model(EquinoxBidirectional()),
}
STACK = {
    f"_l{layer}{way}": weights(3, 16 if layer else 6)
    for layer in (0, 1)
    for way in ("", "_reverse")
}


def stacked(x):
    for layer in (0, 1):
        ways = [unrolled(gru, x, STACK[f"_l{layer}{way}"], bool(way)) for way in ("", "_reverse")]
        x = np.concatenate(ways, -1)
    return x


@pytest.mark.parametrize("library", BOTH)
@pytest.mark.parametrize("file", [False, True])
def test_stacked_and_bidirectional_cells_are_told_apart_by_their_names(library, file, tmp_path):
    state = {k: v for layer, w in STACK.items() for k, v in named(w, layer).items()}
    source = state
    if file:  # as safetensors sorts them
        import safetensors.numpy

        safetensors.numpy.save_file(state, source := tmp_path / "stack.safetensors")
    # Linen calls them GRUCell_0 and GRUCell_1.
    with maybe_told(library == "Linen"):
        _, report = compat.load(BOTH[library](), source, example=X)
    assert report.check(X, stacked(X)) < 1e-5
    assert bool(report.ambiguous) == (library == "Linen")


class Alike(nn.Module):
    """Two cells whose names say nothing; the second reads the input, and the first its output."""

    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.GRUCell(8), name="a")(nn.RNN(nn.GRUCell(8), name="b")(x))


def test_alike_cells_are_told_and_settled_by_outputs():
    x = normal(2, 4, 8)
    first, second = weights(3, 8), weights(3, 8)
    state = named(second, "", "one") | named(first, "", "two")
    expected = unrolled(gru, unrolled(gru, x, first), second)
    model = compat.as_model(Alike(), x, key=0)
    with pytest.warns(UserWarning, match="by order alone"):
        _, report = compat.load(model, state)
    assert {one for row in report.ambiguous for one in row.others} == {
        "one.weight_hh", "two.weight_hh",
    }  # fmt: skip
    _, settled = compat.load(model, state, example=x, outputs=expected)
    assert settled.check(x, expected) < 1e-5
    assert not settled.ambiguous


class Named(nn.Module):
    """Two cells, which the source has in another order."""

    @nn.compact
    def __call__(self, x):
        later = nn.RNN(nn.GRUCell(8, name="dec"))(x)
        return nn.RNN(nn.GRUCell(8, name="enc"))(x) - 2 * later


@pytest.mark.parametrize("layer", ["", "_l0"])  # torch's cell, and its module of one layer
def test_cells_of_equal_names_go_together(layer):
    x = normal(2, 4, 8)
    enc, dec = weights(3, 8), weights(3, 8)
    state = named(enc, layer, "enc") | named(dec, layer, "dec")
    _, report = compat.load(compat.as_model(Named(), x, key=0), state)
    assert report.check(x, unrolled(gru, x, enc) - 2 * unrolled(gru, x, dec)) < 1e-5
    assert not report.ambiguous


def test_layers_of_one_module_are_in_the_order_of_use():
    x = normal(2, 4, 8)
    first, second = weights(3, 8), weights(3, 8)
    state = named(first) | named(second, "_l1")
    _, report = compat.load(compat.as_model(Alike(), x, key=0), state)
    assert report.check(x, unrolled(gru, unrolled(gru, x, first), second)) < 1e-5
    assert not report.ambiguous


@pytest.mark.parametrize("architecture", ["lstm", "gru"])
def test_cells_without_biases_are_loaded(architecture):
    layer = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[architecture]
    layers = [keras.layers.Input((5, 6)), layer(8, use_bias=False), keras.layers.Dense(3)]
    gates = {"lstm": 4, "gru": 3}[architecture]
    w = {k: v for k, v in weights(gates, 6).items() if "bias" not in k}
    state = named(w) | FC
    _, full = compat.load(build("Linen", architecture, 1), state, example=X)
    expected = full._model(X)[0]
    _, report = compat.load(compat.KerasModel(keras.Sequential(layers)), state, example=X)
    assert report.check(X, expected) < 1e-5


def test_a_model_without_loops_may_have_layers_named_as_gates():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, use_bias=False, name="h")(nn.Dense(4, name="i")(x))

    x = normal(2, 3)
    model = drawn(compat.as_model(Named(), x, key=0), 1)
    source = {
        f"net/{layer}/{name}": np.asarray(leaf)
        for layer, leaves in model.params.items()
        for name, leaf in leaves.items()
    }
    _, report = compat.load(model, source)
    assert report.check(x, model(x)[0]) < 1e-6


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("library", ["Linen", "Keras"])
def test_real_cells_of_torch_give_its_outputs(kind, library):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = getattr(torch.nn, kind)(6, 8, num_layers=2, bidirectional=True, batch_first=True)
    cells = {"GRU": nn.GRUCell, "LSTM": nn.OptimizedLSTMCell, "RNN": nn.SimpleCell}
    layers = {"GRU": "GRU", "LSTM": "LSTM", "RNN": "SimpleRNN"}
    if library == "Linen":
        model = compat.as_model(Bidirectional(cells[kind]), X, key=0)
    else:
        model = keras_bidirectional(getattr(keras.layers, layers[kind]))
    with torch.no_grad():
        expected = layer(torch.tensor(X))[0].numpy()
    _, report = compat.load(model, layer.state_dict(), example=X, outputs=expected)
    assert report.check(X, expected) < 1e-5
    assert not report.ambiguous
