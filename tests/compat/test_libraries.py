"""What is particular to one library: its wrappers, bridges, shared and frozen parameters."""

import subprocess
import sys
import textwrap

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
from networks import LIBRARIES
from networks.linen import CNN
from networks.nnx import CNN as NNXCNN

import solstice
from solstice.compat import (
    EquinoxModel,
    FlaxModel,
    HaikuModel,
    KerasModel,
    NNXModel,
    as_model,
    unfreeze,
)
from solstice.tree import leaves_by_path

EVERY = [
    pytest.param(library, marks=() if library in ("linen", "equinox") else pytest.mark.slow)
    for library in LIBRARIES
]
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 3))


def step(model, inputs, key=KEY):
    """One step of gradient descent on the mean square."""

    @jax.jit
    def take(model, key):
        def loss(params):
            outputs, new = solstice.replace(model, params=params)(*inputs, key=key, train=True)
            return sum((leaf**2).mean() for leaf in jax.tree.leaves(outputs)), new

        grads, new = jax.grad(loss, has_aux=True)(model.params)
        params = jax.tree.map(lambda p, g: (p - 0.1 * g).astype(p.dtype), model.params, grads)
        return solstice.replace(new, params=params)

    return take(model, key)


# --- Linen ------------------------------------------------------------------------------------


class Coder(nn.Module):
    def setup(self):
        self.down, self.up = nn.Dense(2), nn.Dense(3)

    def __call__(self, x, train: bool):
        return self.up(self.down(x)) * (2 if train else 1)

    def encode(self, x):
        return self.down(x)

    def noisy(self, x, deterministic: bool):
        return self.down(x) + (0 if deterministic else 1)


def test_a_linen_method_is_called_by_name():
    model = FlaxModel(Coder(), X, key=KEY)
    native = Coder().apply(model.unwrap(), X, method="encode")
    assert (model(X, method="encode")[0] == native).all()
    assert (model(X, method="noisy")[0] == native).all()
    assert (model(X, method="noisy", train=True)[0] == native + 1).all()
    encoder = FlaxModel(Coder(), X, variables=model.unwrap(), call="encode")
    assert (encoder(X)[0] == native).all()


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(x))
        return nn.BatchNorm(use_running_average=not train)(x)


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        layers = nn.scan(
            lambda block, x, _: (block(x, train), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            length=3,
        )
        return layers(Block(), x, None)[0]


class Copies(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        blocks = nn.vmap(
            lambda block, x: block(x, train),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=None,
            out_axes=1,
            axis_size=2,
        )
        return blocks(Block(), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.remat(Block, static_argnums=(2,))(), (3, 3)),
        (Scanned(), (3, 3, 3)),
        (Copies(), (2, 3, 3)),
    ],
    ids=["remat", "scan", "vmap"],
)
def test_lifted_linen_networks_train_with_state_and_dropout(network, shape):
    model = FlaxModel(network, X, key=KEY)
    kernel = next(leaf for path, leaf in leaves_by_path(model.params).items() if "kernel" in path)
    assert kernel.shape == shape
    trained = step(model, (X,))
    for field in ("params", "state"):
        before, after = (
            leaves_by_path(getattr(model, field)),
            leaves_by_path(getattr(trained, field)),
        )
        assert any((before[path] != after[path]).any() for path in before)
    one, other = (model(X, key=jax.random.key(i), train=True)[0] for i in (1, 2))
    assert (one != other).any()
    assert (model(X)[0] == network.apply(model.unwrap(), X, False)).all()


def test_a_scanned_network_drops_differently_in_each_layer():
    class Drops(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            layers = nn.scan(
                lambda drop, x, _: (x, drop(jnp.ones_like(x), deterministic=not train)),
                variable_axes={"params": 0},
                split_rngs={"params": False, "dropout": True},
                length=4,
            )
            return layers(nn.Dropout(0.5), x, None)[1]

    masks, _ = FlaxModel(Drops(), X, key=KEY)(X, key=KEY, train=True)
    assert any((masks[0] != masks[i]).any() for i in (1, 2, 3))


# --- Haiku ------------------------------------------------------------------------------------


def coder():
    down, norm, up = hk.Linear(2), hk.BatchNorm(True, True, 0.9), hk.Linear(3)

    def encode(x, is_training=True):
        x = norm(down(x), is_training)
        return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x

    return lambda x: up(encode(x)), {"encode": encode, "decode": up}


def test_a_multi_transformed_haiku_network():
    network = hk.multi_transform_with_state(coder)

    def call(apply, *arguments, is_training, name="encode"):
        # encode takes the flag, decode takes none
        flag = {"is_training": is_training} if name == "encode" else {}
        return apply[name](*arguments, **flag)

    model = HaikuModel(network, X, key=KEY, call=call)
    params, state = network.init(KEY, X)
    codes, _ = model(X)
    native, _ = network.apply["encode"](params, state, None, X, is_training=False)
    assert (codes == native).all()
    assert model(codes, name="decode")[0].shape == (4, 3)
    trained = step(model, (X,))
    average = leaves_by_path(trained.state)["batch_norm/~/mean_ema/average"]
    assert (average != 0).any()
    with pytest.raises(ValueError, match=r"several apply functions.*HaikuModel\(\.\.\., call="):
        as_model(network, X, key=KEY)


def test_a_multi_transformed_network_without_state_or_key():
    def twice():
        linear = hk.Linear(2)
        return linear, (linear, linear)

    network = hk.without_apply_rng(hk.multi_transform(twice))
    model = HaikuModel(network, X, key=KEY, call=lambda apply, *arguments: apply[1](*arguments))
    assert (model(X)[0] == network.apply[0](model.unwrap(), X)).all()


# --- NNX --------------------------------------------------------------------------------------


def test_an_nnx_module_is_copied_and_comes_back_trained():
    module = NNXCNN(nnx.Rngs(0))
    inputs = LIBRARIES["nnx"]["cnn"].inputs
    before = leaves_by_path(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngKey))))
    model = NNXModel(module)
    trained = step(model, inputs, key=None)
    after = leaves_by_path(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngKey))))
    assert all((before[path] == after[path]).all() for path in before)
    back = trained.unwrap()
    assert type(back) is NNXCNN
    back.eval()
    np.testing.assert_allclose(back(*inputs), trained(*inputs)[0], rtol=1e-5)
    assert (trained(*inputs)[0] != model(*inputs)[0]).any()


def test_nnx_streams_advance_without_a_key_and_stay_with_one():
    model = NNXModel(NNXCNN(nnx.Rngs(0)))
    inputs = LIBRARIES["nnx"]["cnn"].inputs
    first, advanced = model(*inputs, train=True)
    second, _ = advanced(*inputs, train=True)
    assert (first != second).any()
    _, kept = model(*inputs, key=KEY, train=True)
    is_same = jax.tree.map(lambda a, b: bool((a == b).all()), model.state, kept.state)
    assert all(jax.tree.leaves(is_same["rngs"])) and not all(jax.tree.leaves(is_same["vars"]))


def test_an_nnx_module_that_changes_itself_is_named():
    class Counts(nnx.Module):
        def __init__(self):
            self.calls = 0

        def __call__(self, x):
            self.calls += 1
            return x

    with pytest.raises(ValueError, match=r"NNXModel: the call changed the module itself"):
        NNXModel(Counts())(X, train=True)


def test_shared_nnx_parameters_are_one():
    model = LIBRARIES["nnx"]["shared"].make_model(KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 4 * 4 + 4
    back = step(model, LIBRARIES["nnx"]["shared"].inputs).unwrap()
    assert back.first is back.second


@pytest.mark.slow
@pytest.mark.parametrize("way", ["to_nnx", "to_linen"])
def test_bridges_between_nnx_and_linen(way):
    inputs = LIBRARIES["linen"]["cnn"].inputs
    if way == "to_nnx":
        bridged = nnx.bridge.ToNNX(CNN(), rngs=nnx.Rngs(0)).lazy_init(*inputs, train=False)

        def call(module, x, train):
            # The bridge takes Linen's own keywords, and keeps what the call has changed.
            return module(x, train=train, mutable=["batch_stats"] if train else False)

        model = NNXModel(bridged, call=call)
        native = CNN().apply(
            {
                "params": nnx.to_pure_dict(nnx.state(bridged, nnx.Param)),
                "batch_stats": nnx.to_pure_dict(nnx.state(bridged, nnx.BatchStat)),
            },
            *inputs,
            train=False,
        )
    else:
        bridged = nnx.bridge.to_linen(NNXCNN)
        keys = {"params": KEY, "dropout": jax.random.key(1)}
        model = FlaxModel(bridged, inputs, key=keys)
        native = bridged.apply(model.unwrap(), *inputs)
    assert model.params
    np.testing.assert_allclose(model(*inputs)[0], native, rtol=1e-5)
    trained = step(model, inputs)
    before, after = leaves_by_path(model.params), leaves_by_path(trained.params)
    assert all((before[path] != after[path]).any() for path in before if "kernel" in path)


# --- Keras ------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("solstice_tests")
class Forgets(keras.Model):
    """A subclass that does not hand `training` on, which Keras then does itself."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.dropout = keras.layers.Dense(3), keras.layers.Dropout(0.5)

    def call(self, x):
        return self.dropout(self.dense(x))


def built(network, *inputs):
    network(*inputs)
    return network


def test_a_keras_subclass_gets_its_dropout_and_comes_back():
    network = built(Forgets(), X)
    model = KerasModel(network)
    assert (model(X, train=True)[0] == 0).any() and not (model(X)[0] == 0).any()
    before = [np.array(v.value) for v in network.variables]
    trained = step(model, (X,), key=None)
    pairs = zip(network.variables, before, strict=True)
    assert all((np.array(v.value) == old).all() for v, old in pairs)
    back = trained.unwrap()
    assert type(back) is Forgets and back is not network
    np.testing.assert_allclose(back(X), trained(X)[0], rtol=1e-5)


def test_a_keras_layer_is_a_network():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    model = as_model(layer)
    assert (model(X)[0] == layer(X)).all()
    np.testing.assert_allclose(model.unwrap()(X), layer(X), rtol=1e-5)


def test_what_keras_was_told_not_to_train_is_frozen():
    network = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4, name="body")])
    network.add(keras.layers.Dense(2, name="head"))
    network.layers[0].trainable = False
    model = KerasModel(network)
    assert [leaf.shape for leaf in jax.tree.leaves(model.params)] == [(4, 2), (2,)]
    before, after = leaves_by_path(model.frozen), leaves_by_path(step(model, (X,)).frozen)
    assert len(before) == 2 and all((before[path] == after[path]).all() for path in before)
    assert len(jax.tree.leaves(unfreeze(model).params)) == 4


def test_the_names_of_keras_variables_do_not_count_networks():
    def names():
        network = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
        return sorted(KerasModel(network).params)

    assert names() == names()


def test_keras_networks_that_cannot_be_adapted_say_why():
    with pytest.raises(ValueError, match=r"KerasModel: the network .* is not built.*Call it once"):
        KerasModel(keras.Sequential([keras.layers.Dense(2)]))
    penalised = keras.layers.Dense(2, kernel_regularizer="l2")
    penalised.build((None, 3))
    with pytest.warns(UserWarning, match=r"KerasModel: .* adds its own losses \(regularizers, "):
        KerasModel(penalised)


@pytest.mark.slow  # starts a process
def test_another_backend_of_keras_is_refused():
    code = """
        import keras
        from solstice.compat import KerasModel

        try:
            KerasModel(keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)]))
        except ValueError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={"KERAS_BACKEND": "numpy", "PATH": "", "JAX_PLATFORMS": "cpu"},
    )
    assert "runs on the backend 'numpy' here, and JAX is needed" in done.stdout
    assert "KERAS_BACKEND=jax" in done.stdout


@pytest.mark.slow
def test_training_equals_keras_own_fit():
    def make():
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [
                keras.layers.Input((3,)),
                keras.layers.Dense(8, activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.5, seed=1),
                keras.layers.Dense(2),
            ]
        )

    x = np.asarray(jax.random.normal(KEY, (32, 3)))
    y = np.arange(32, dtype="int32") % 2
    own = make()
    own.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    own.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)

    model = KerasModel(make())
    tx = optax.sgd(0.1, momentum=0.9)
    state = tx.init(model.params)
    for i in [*range(0, 32, 8)] * 2:
        batch = x[i : i + 8], y[i : i + 8]

        def loss(params, model=model, batch=batch):
            logits, new = solstice.replace(model, params=params)(batch[0], train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
            return losses.mean(), new

        grads, model_after = jax.grad(loss, has_aux=True)(model.params)
        updates, state = tx.update(grads, state, model.params)
        params = optax.apply_updates(model.params, updates)
        model = solstice.replace(model_after, params=params)
    for ours, theirs in zip(model.unwrap().variables, own.variables, strict=True):
        np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-4, atol=1e-6)


# --- Equinox ----------------------------------------------------------------------------------


class Tied(eqx.Module):
    tied: eqx.nn.Shared

    def __init__(self, key):
        first, second = (eqx.nn.Linear(3, 3, key=k) for k in jax.random.split(key))
        self.tied = eqx.nn.Shared(
            (first, second), where=lambda pair: pair[1].weight, get=lambda pair: pair[0].weight
        )

    def __call__(self, x):
        first, second = self.tied()
        return second(jax.nn.relu(first(x)))


def test_equinox_parameters_are_the_modules_in_its_order():
    module = eqx.nn.MLP(3, 2, 4, 11, key=KEY)
    model = EquinoxModel(module)
    own = jax.tree.leaves(eqx.filter(module, eqx.is_inexact_array))
    ours = jax.tree.leaves(model.params)
    assert len(own) == len(ours) == 24
    assert all((a == b).all() for a, b in zip(own, ours, strict=True))
    assert list(leaves_by_path(model.params))[:2] == ["layers/0/weight", "layers/0/bias"]


def test_equinox_shared_nodes_stay_tied():
    model = EquinoxModel(Tied(KEY))
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 3 * 3 + 3 + 3
    first, second = step(model, (X,)).unwrap().tied()
    assert first.weight is second.weight


# --- every library ----------------------------------------------------------------------------


def in_bfloat16(tree):
    return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


@pytest.mark.parametrize("library", EVERY)
def test_bfloat16_parameters_stay_bfloat16(library):
    subject = LIBRARIES[library]["mlp"]
    model = subject.make_model(KEY)
    model = solstice.replace(model, params=in_bfloat16(model.params))
    trained = step(step(model, subject.inputs), subject.inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained.params)} == {jnp.dtype("bfloat16")}
    before, after = leaves_by_path(model.params), leaves_by_path(trained.params)
    assert any((before[path] != after[path]).any() for path in before)


def test_networks_may_be_made_in_bfloat16():
    linen = FlaxModel(nn.Dense(2, param_dtype=jnp.bfloat16), X, key=KEY)
    module = NNXModel(nnx.Linear(3, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    equinox = EquinoxModel(eqx.nn.Linear(3, 2, dtype=jnp.bfloat16, key=KEY))
    for model in (linen, module, equinox):
        trained = step(model, (X,))
        assert {leaf.dtype for leaf in jax.tree.leaves(trained.params)} == {jnp.dtype("bfloat16")}


def of_a_mapping(inputs):
    return inputs["left"] + 2 * inputs["right"]


class LinenOfMapping(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2)(of_a_mapping(inputs))


class NNXOfMapping(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def __call__(self, inputs):
        return self.dense(of_a_mapping(inputs))


class EquinoxOfMapping(eqx.Module):
    dense: eqx.nn.Linear

    def __call__(self, inputs):
        return self.dense(of_a_mapping(inputs))


def keras_of_mapping():
    inputs = {name: keras.layers.Input((3,), name=name) for name in ("left", "right")}
    return keras.Model(inputs, keras.layers.Dense(2)(of_a_mapping(inputs)))


MAPPED = {
    "linen": LinenOfMapping,
    "nnx": NNXOfMapping,
    "haiku": lambda: hk.transform(lambda inputs: hk.Linear(2)(of_a_mapping(inputs))),
    "equinox": lambda: EquinoxOfMapping(eqx.nn.Linear(3, 2, key=KEY)),
    "keras": keras_of_mapping,
    "stax": lambda: (
        lambda rng, shapes: ((4, 2), jax.random.normal(rng, (3, 2))),
        lambda w, inputs, **_: of_a_mapping(inputs) @ w,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("library", MAPPED)
def test_an_input_may_be_a_mapping(library):
    inputs = {"left": X, "right": X + 1}
    model = as_model(MAPPED[library](), inputs, key=KEY)
    outputs, _ = model(inputs)
    swapped, _ = model({"left": inputs["right"], "right": inputs["left"]})
    assert outputs.shape == (4, 2) and (outputs != swapped).any()
    step(model, (inputs,))
