"""What `compat.save` writes: read by each library's own tools, and back bit for bit."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from architectures import build
from architectures.common import INPUTS
from flax import nnx
from flax.traverse_util import unflatten_dict
from jax.example_libraries import stax

from solstice import compat
from solstice.compat.weights.leaves import model_leaves
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.encoding import host_array

X = INPUTS["cnn"]
FIVE = "Linen", "NNX", "Haiku", "Equinox", "Keras"


class Dropping(nnx.Module):
    """A network with streams of random numbers, and a list."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.layers[0](x))


def stax_model(seed):
    return compat.as_model(stax.serial(stax.Dense(3), stax.Dense(3)), np.ones((1, 3)), key=seed)


def function_model(seed):
    def init(key, x):
        w = jax.random.normal(key, (3, 2))
        return {"w": w, "table": jnp.arange(3 + seed)[:3], "scale": compat.Overwritten(w[0])}

    return compat.FunctionModel(init, lambda p, x: x @ p["w"], np.ones((1, 3)), key=seed)


def dropping(seed):
    return compat.as_model(Dropping(nnx.Rngs(seed)))


MODELS = {name: lambda seed, name=name: build(name, "cnn", seed) for name in FIVE}
MODELS |= {"stax": stax_model, "function": function_model, "nnx with streams": dropping}


def bits(model):
    return {name: host_array(leaf).tobytes() for name, leaf in model_leaves(model).items()}


def in_bfloat16(model):
    def cast(leaf):
        return leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf

    return jax.tree.map(cast, model)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_saved_comes_back_bit_for_bit(tmp_path, make, dtype):
    model, other = make(1), make(2)
    if dtype == "bfloat16":
        model, other = in_bfloat16(model), in_bfloat16(other)
    assert bits(model) != (before := bits(other))
    compat.save(model, path := tmp_path / "model.safetensors")
    loaded, report = compat.load(other, path)
    assert bits(loaded) == bits(model)
    assert bits(other) == before
    assert len(report.rows) == len(bits(model))
    assert {row.how for row in report.rows} == {"name"}
    assert not report.kept


def test_frozen_parameters_are_saved_under_the_same_names(tmp_path):
    model = build("Linen", "cnn", 1)
    frozen = compat.freeze(model, "Conv_0/*")
    compat.save(frozen, path := tmp_path / "model.safetensors")
    loaded, _ = compat.load(model, path)
    assert bits(loaded) == bits(model)
    into, _ = compat.load(compat.freeze(build("Linen", "cnn", 2), "Conv_0/*"), path)
    assert jax.tree.structure(into.params) == jax.tree.structure(frozen.params)
    assert bits(into) == bits(model)


def test_dtypes_that_the_format_lacks_come_back(tmp_path):
    def make(seed):
        return compat.FunctionModel(
            lambda key, x: {"w": jax.random.normal(key, (3, 2)).astype(jnp.float8_e4m3fn)},
            lambda p, x: x @ p["w"].astype(jnp.float32),
            np.ones((1, 3)),
            key=seed,
        )

    compat.save(make(1), path := tmp_path / "model.safetensors")
    assert bits(compat.load(make(2), path)[0]) == bits(make(1))


def test_flax_linen_reads_its_file(tmp_path):
    model = build("Linen", "cnn", 1)
    compat.save(model, path := tmp_path / "model.safetensors")
    variables = unflatten_dict(safetensors.numpy.load_file(path), sep="/")
    network = model._module.value
    np.testing.assert_array_equal(network.apply(variables, X), model(X)[0])


def test_flax_nnx_reads_its_file(tmp_path):
    model, module = build("NNX", "cnn", 1), build("NNX", "cnn", 2).unwrap()
    compat.save(model, path := tmp_path / "model.safetensors")
    state = nnx.state(module)
    nnx.replace_by_pure_dict(state, unflatten_dict(safetensors.numpy.load_file(path), sep="/"))
    nnx.update(module, state)
    module.eval()
    np.testing.assert_allclose(module(X), model(X)[0], rtol=1e-6)


def test_flax_nnx_reads_a_list_and_leaves_out_streams(tmp_path):
    model, module = dropping(1), dropping(2).unwrap()
    names = {"^dropout/.*": None}
    compat.save(model, path := tmp_path / "model.safetensors", names=names)
    state = nnx.state(module, nnx.Not(nnx.RngState))
    pure = unflatten_dict(safetensors.numpy.load_file(path), sep="/")
    nnx.replace_by_pure_dict(state, nnx.restore_int_paths(pure))
    nnx.update(module, state)
    module.eval()
    np.testing.assert_allclose(module(np.ones((2, 3))), model(np.ones((2, 3)))[0], rtol=1e-6)


def test_haiku_reads_its_file(tmp_path):
    model = build("Haiku", "cnn", 1)
    compat.save(model, path := tmp_path / "model.safetensors")
    trees = {"params": {}, "state": {}}
    for name, array in safetensors.numpy.load_file(path).items():
        tree, module, leaf = re.fullmatch(r"(\w+)/(.*)/(\w+)", name).groups()
        trees[tree].setdefault(module, {})[leaf] = array
    apply, _ = model._functions.value
    outputs, _ = apply(trees["params"], trees["state"], None, X)
    np.testing.assert_array_equal(outputs, model(X)[0])


def test_equinox_reads_its_file(tmp_path):
    model = build("Equinox", "cnn", 1)
    module, state = build("Equinox", "cnn", 2).unwrap()
    compat.save(model, path := tmp_path / "model.safetensors")
    arrays = safetensors.numpy.load_file(path)

    def read(prefix, tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: arrays.get(
                prefix + jax.tree_util.keystr(path, simple=True, separator="/"), leaf
            ),
            tree,
        )

    found = compat.EquinoxModel(read("", module), read("state/", state))
    assert bits(found) == bits(model)


def test_keras_reads_its_file(tmp_path):
    model, network = build("Keras", "cnn", 1), build("Keras", "cnn", 2).unwrap()
    compat.save(model, path := tmp_path / "model.safetensors")
    arrays = safetensors.numpy.load_file(path)
    for variable, name in zip(network.variables, sorted(arrays), strict=True):
        variable.assign(arrays[name])
    np.testing.assert_allclose(network(X, training=False), model(X)[0], rtol=1e-5, atol=1e-6)


def test_another_s_names_are_written(tmp_path):
    model = compat.as_model(nn.Dense(2), np.ones((1, 3), np.float32), key=0)
    names = {"^params/": "head.", "kernel": "weight"}
    compat.save(model, path := tmp_path / "a.safetensors", names=names)
    assert set(safetensors.numpy.load_file(path)) == {"head.weight", "head.bias"}
    compat.save(model, path, names=lambda name: None if "bias" in name else name)
    assert set(safetensors.numpy.load_file(path)) == {"params/kernel"}


@pytest.mark.parametrize(
    ("path", "names", "error", "says"),
    [
        ("a.npz", None, InvalidValueError, "path is expected to end with '.safetensors'"),
        (
            "a.safetensors",
            {"kernle": "x"},
            InvalidValueError,
            "names: 'kernle' is expected to match",
        ),
        ("a.safetensors", {".*": "x"}, InvalidValueError, "both become 'x"),
        ("a.safetensors", "model", InvalidTypeError, r"compat.save\(compat.convert"),
    ],
)
def test_a_wrong_save_is_told_and_writes_nothing(tmp_path, path, names, error, says):
    model = stax_model(0)
    with pytest.raises(error, match=says):
        compat.save(model, tmp_path / path, names=model if names == "model" else names)
    assert not list(tmp_path.iterdir())


def test_a_strided_array_is_written_as_it_reads(tmp_path):
    model = compat.as_model(nn.Dense(2, use_bias=False), np.ones((1, 3), np.float32), key=0)
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    model = compat.load(model, {"params/kernel": turned})[0]
    compat.save(model, path := tmp_path / "a.safetensors")
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["params/kernel"], turned)
