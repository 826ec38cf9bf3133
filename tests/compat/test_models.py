"""What an adapter does with every kind of network: inputs, state, keys, modes, constants."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.example_libraries import stax
from networks import LIBRARIES
from networks.equinox import CNN as EquinoxCNN

import solstice
from solstice.compat import EquinoxModel, FlaxModel, HaikuModel, StaxModel, as_model

KEY = jax.random.key(0)
TOKENS = jnp.array([[1, 2, 3], [4, 5, 6]])
PAIR = (jnp.ones((2, 3)), jnp.full((2, 4), 2.0))


class LinenTwoInputs(nn.Module):
    @nn.compact
    def __call__(self, left, right):
        return nn.Dense(5)(left) + nn.Dense(5)(right)


class EquinoxTwoInputs(eqx.Module):
    left: eqx.nn.Linear
    right: eqx.nn.Linear

    def __call__(self, left, right):
        return self.left(left) + self.right(right)


TWO_INPUTS = {
    "linen": lambda: FlaxModel(LinenTwoInputs(), PAIR, key=KEY),
    "haiku": lambda: HaikuModel(
        hk.transform(lambda left, right: hk.Linear(5)(left) + hk.Linear(5)(right)), PAIR, key=KEY
    ),
    "equinox": lambda: EquinoxModel(
        EquinoxTwoInputs(eqx.nn.Linear(3, 5, key=KEY), eqx.nn.Linear(4, 5, key=KEY))
    ),
    "stax": lambda: StaxModel(
        stax.serial(stax.parallel(stax.Dense(5), stax.Dense(5)), stax.FanInSum), PAIR, key=KEY
    ),
}


@pytest.mark.parametrize("library", TWO_INPUTS)
def test_several_inputs(library):
    model = TWO_INPUTS[library]()
    outputs, _ = model(*PAIR)
    moved, _ = model(PAIR[0], PAIR[1] + 1)
    assert outputs.shape == (2, 5)
    assert not np.allclose(outputs, moved)


def stax_embedding():
    def init(key, shape):
        return (*shape, 4), jax.random.normal(key, (10, 4))

    return stax.serial((init, lambda table, tokens, **_: table[tokens]), stax.Dense(2))


class EquinoxEmbedding(eqx.Module):
    table: eqx.nn.Embedding
    dense: eqx.nn.Linear

    def __call__(self, tokens):
        return jax.vmap(self.dense)(jax.vmap(self.table)(tokens))


EMBEDDINGS = {
    "linen": lambda: FlaxModel(nn.Sequential([nn.Embed(10, 4), nn.Dense(2)]), TOKENS, key=KEY),
    "haiku": lambda: HaikuModel(
        hk.transform(lambda t: hk.Linear(2)(hk.Embed(10, 4)(t))), TOKENS, key=KEY
    ),
    "equinox": lambda: EquinoxModel(
        EquinoxEmbedding(eqx.nn.Embedding(10, 4, key=KEY), eqx.nn.Linear(4, 2, key=KEY))
    ),
    "stax": lambda: StaxModel(stax_embedding(), TOKENS, key=KEY),
}


@pytest.mark.parametrize("library", EMBEDDINGS)
def test_integer_inputs(library):
    model = EMBEDDINGS[library]()

    def loss(params):
        return solstice.replace(model, params=params)(TOKENS, train=True)[0].sum()

    grads = jax.grad(loss)(model.params)
    assert model(TOKENS)[0].shape == (2, 3, 2)
    assert jax.tree.structure(grads) == jax.tree.structure(model.params)
    assert any(jnp.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(grads))


class EquinoxScale(eqx.Module):
    def __call__(self, x):
        return 2 * x


PARAMETERLESS = {
    "linen": lambda: FlaxModel(nn.Sequential([lambda x: 2 * x]), PAIR[0], key=KEY),
    "haiku": lambda: HaikuModel(hk.transform(lambda x: 2 * x), PAIR[0], key=KEY),
    "equinox": lambda: EquinoxModel(EquinoxScale()),
    "stax": lambda: StaxModel(stax.elementwise(lambda x: 2 * x), PAIR[0], key=KEY),
}


@pytest.mark.parametrize("library", PARAMETERLESS)
def test_a_network_without_anything(library):
    model = PARAMETERLESS[library]()
    assert jax.tree.leaves(model) == []
    outputs, _ = model(PAIR[0], train=True)
    assert (outputs == 2).all()


class LinenCounter(nn.Module):
    @nn.compact
    def __call__(self, x):
        calls = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        scale = self.variable("constants", "scale", lambda: jnp.full((), 3.0))
        if not self.is_initializing() and self.is_mutable_collection("counters"):
            calls.value += 1
        self.sow("sown", "inputs", x)
        return nn.Dense(2)(x) * scale.value


def haiku_counter(x):
    calls = hk.get_state("calls", (), jnp.int32, init=jnp.zeros)
    hk.set_state("calls", calls + 1)
    return hk.Linear(2)(x)


class EquinoxCounter(eqx.Module):
    dense: eqx.nn.Linear
    calls: eqx.nn.StateIndex

    def __init__(self, key):
        self.dense = eqx.nn.Linear(3, 2, key=key)
        self.calls = eqx.nn.StateIndex(jnp.zeros((), jnp.int32))

    def __call__(self, x, state):
        return self.dense(x), state.set(self.calls, state.get(self.calls) + 1)


def test_every_mutable_collection_is_carried():
    linen = FlaxModel(LinenCounter(), PAIR[0], key=KEY)
    haiku = HaikuModel(hk.transform_with_state(haiku_counter), PAIR[0], key=KEY)
    with_state = as_model(eqx.nn.make_with_state(EquinoxCounter)(KEY))
    unsplit = as_model(EquinoxCounter(KEY))

    assert set(linen.state) == {"counters", "constants"}, "a sown collection must not be carried"
    for model in (linen, haiku, with_state, unsplit):
        start = [leaf for leaf in jax.tree.leaves(model.state) if leaf.dtype == jnp.int32]
        for _ in range(3):
            _, model = model(PAIR[0], train=True)
        end = [leaf for leaf in jax.tree.leaves(model.state) if leaf.dtype == jnp.int32]
        assert [int(b - a) for a, b in zip(start, end, strict=True)] == [3]
        _, evaluated = model(PAIR[0])
        assert evaluated is model


class LinenTwoStreams(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        x = nn.Dropout(0.5, deterministic=deterministic)(x)
        if not deterministic:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return x


def test_named_streams():
    x = jnp.ones((4, 8))
    model = FlaxModel(LinenTwoStreams(), x, key=KEY, streams=("dropout", "noise"))
    dropout, noise = jax.random.split(jax.random.key(1))

    def native(**rngs):
        return LinenTwoStreams().apply({}, x, deterministic=False, rngs=rngs)

    exact = model(x, key={"dropout": dropout, "noise": noise}, train=True)[0]
    assert (exact == native(dropout=dropout, noise=noise)).all()
    split = model(x, key=dropout, train=True)[0]
    assert (split == native(dropout=dropout, noise=jax.random.fold_in(dropout, 1))).all()
    with pytest.raises(ValueError, match=r"FlaxModel: .* stream 'noise'.*key=\{'noise': \.\.\.\}"):
        model(x, key={"dropout": dropout}, train=True)


class EquinoxBuffers(eqx.Module):
    dense: eqx.nn.Linear
    lookup: jax.Array
    order: np.ndarray

    def __call__(self, x):
        return self.dense(x[self.lookup])[self.order]


def test_integer_buffers_are_frozen_not_trained():
    module = EquinoxBuffers(eqx.nn.Linear(3, 2, key=KEY), jnp.array([2, 1, 0]), np.array([1, 0]))
    equinox = EquinoxModel(module)
    variables = {"params": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2), "steps": 7}}
    linen = FlaxModel(nn.Dense(2), PAIR[0], variables=variables)
    for model, frozen in ((equinox, 2), (linen, 1)):
        assert len(jax.tree.leaves(model.params)) == 2
        assert len(jax.tree.leaves(model.frozen)) == frozen
        grads = jax.grad(
            lambda params, model=model: solstice.replace(model, params=params)(PAIR[0])[0].sum()
        )(model.params)
        assert jax.tree.structure(grads) == jax.tree.structure(model.params)


CNNS = {library: subjects["cnn"] for library, subjects in LIBRARIES.items()}


@pytest.mark.parametrize("library", ["linen", "haiku", "equinox", "stax"])
def test_a_missing_key_names_adapter_stream_and_remedy(library):
    model = CNNS[library].make_model(KEY)
    message = rf"{type(model).__name__}: .*stream 'dropout'.*key=jax\.random\.key\(0\)"
    with pytest.raises(ValueError, match=message):
        model(*CNNS[library].inputs, train=True)


@pytest.mark.parametrize("library", CNNS)
def test_bad_train_and_bad_keys_are_type_errors(library):
    model = CNNS[library].make_model(KEY)
    (x,) = CNNS[library].inputs
    with pytest.raises(TypeError, match=rf"{type(model).__name__}: train is expected .* bool"):
        model(x, train=1)
    with pytest.raises(TypeError, match="PRNG key"):
        model(x, key=0, train=True)


@pytest.mark.parametrize("library", CNNS)
def test_a_changed_tree_names_adapter_difference_and_remedy(library):
    model = CNNS[library].make_model(KEY)
    other = solstice.replace(model, params={"other": jnp.ones(3)})
    name = type(model).__name__
    message = rf"{name}: params .* lack '.*and they have 'other' besides.*keep the tree: solstice"
    with pytest.raises(ValueError, match=message):
        other(*CNNS[library].inputs)


@pytest.mark.parametrize("library", CNNS)
def test_one_key_may_come_by_its_stream(library):
    model = CNNS[library].make_model(KEY)
    (x,) = CNNS[library].inputs
    bare, _ = model(x, key=jax.random.key(3), train=True)
    key = {"dropout": jax.random.key(3)}
    named, _ = model(x, key=key, train=True)
    assert bare.tobytes() == named.tobytes()


# Keras makes its own values, outside of jax.
@pytest.mark.slow
@pytest.mark.parametrize("library", [name for name in CNNS if name != "keras"])
def test_construction_works_under_jit_vmap_and_eval_shape(library):
    make = CNNS[library].make_model
    eager = make(KEY)
    jitted = jax.jit(make)(KEY)
    shapes = jax.eval_shape(make, KEY)
    stacked = jax.vmap(make)(jax.random.split(KEY, 3))
    for other in (jitted, shapes):
        pairs = zip(jax.tree.leaves(eager), jax.tree.leaves(other), strict=True)
        assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)
    assert all(len(leaf) == 3 for leaf in jax.tree.leaves(stacked.params))


def test_donating_an_equinox_model_leaves_the_users_module_alive():
    module, state = eqx.nn.make_with_state(EquinoxCNN)(KEY)
    model = EquinoxModel(module, state)
    jax.jit(lambda model: jax.tree.map(lambda a: a + 1, model), donate_argnums=0)(model)
    assert not any(
        leaf.is_deleted() for leaf in jax.tree.leaves(eqx.filter((module, state), eqx.is_array))
    )


def test_flags_and_calls_that_cannot_be_inferred():
    class Modal(nn.Module):
        @nn.compact
        def __call__(self, x, learn=False):
            return x + 1 if learn else x

        def doubled(self, x):
            return 2 * x

    x = jnp.zeros((1, 1))
    assert FlaxModel(Modal(), x, key=KEY)(x, train=True)[0] == 0
    assert FlaxModel(Modal(), x, key=KEY, flags={"learn": True})(x, train=True)[0] == 1
    assert FlaxModel(Modal(), x, key=KEY)(x, learn=True)[0] == 1
    assert FlaxModel(Modal(), x + 1, key=KEY, call="doubled")(x + 1)[0] == 2
    own = FlaxModel(Modal(), x, key=KEY, call=lambda module, x, train: module(x, learn=train) + 5)
    assert (own(x)[0], own(x, train=True)[0]) == (5, 6)

    def modal(x, mode="eval"):
        return x + (mode == "train")

    def with_mode(function, *arguments, train):
        return function(*arguments, mode="train" if train else "eval")

    haiku = HaikuModel(hk.transform(modal), x, key=KEY, call=with_mode)
    assert (haiku(x)[0], haiku(x, train=True)[0]) == (0, 1)

    def apply(params, inputs, train=False, **rest):
        return inputs + train

    assert StaxModel((stax.Relu[0], apply), x, key=KEY)(x, train=True)[0] == 1

    whole_batch = EquinoxModel(eqx.nn.Identity(), call=lambda module, x: x - x.mean(0))
    assert (whole_batch(jnp.array([1.0, 3.0]))[0] == jnp.array([-1.0, 1.0])).all()
    with pytest.raises(TypeError, match="flags are expected to map"):
        FlaxModel(Modal(), x, key=KEY, flags=("learn",))


def test_random_evaluation_is_refused():
    x = jnp.ones((2, 4))
    always = stax.serial(stax.Dropout(0.5), stax.Dense(2))
    with pytest.raises(ValueError, match=r"StaxModel: evaluation .* eval_apply="):
        StaxModel(always, x, key=KEY)(x)
    noisy = hk.transform(lambda x: x + jax.random.normal(hk.next_rng_key(), x.shape))
    with pytest.raises(ValueError, match=r"HaikuModel: evaluation .*`is_training`"):
        HaikuModel(noisy, x, key=KEY)(x)
    with pytest.raises(ValueError, match=r"FlaxModel: evaluation .* flags="):
        FlaxModel(nn.Sequential([nn.Dropout(0.5, deterministic=False)]), x, key=KEY)(x)


def test_a_haiku_network_may_ask_for_a_key_that_it_does_not_use():
    def network(x, is_training):
        return hk.dropout(hk.next_rng_key(), 0.5 if is_training else 0.0, x)

    x = jnp.ones((2, 4))
    assert (HaikuModel(hk.transform(network), x, key=KEY)(x)[0] == 1).all()


def test_a_haiku_network_without_rng():
    x = jnp.ones((2, 4))
    network = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(2)(x)))
    assert HaikuModel(network, x, key=KEY)(x, key=KEY, train=True)[0].shape == (2, 2)


def test_equinox_keeps_its_state_or_says_so():
    module, state = eqx.nn.make_with_state(EquinoxCounter)(KEY)
    with pytest.raises(ValueError, match=r"EquinoxModel: the network keeps state.*make_with_state"):
        EquinoxModel(module)
    model = EquinoxModel(module, state)
    model(PAIR[0], train=True)
    model(PAIR[0], train=True)
    back, back_state = model.unwrap()
    back(PAIR[0][0], back_state)
    model(PAIR[0])


def test_shapes_stand_for_an_example():
    shape = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    model = as_model(nn.Dense(2), shape, key=0)
    assert (model(PAIR[0])[0] == as_model(nn.Dense(2), PAIR[0][:1], key=0)(PAIR[0])[0]).all()
