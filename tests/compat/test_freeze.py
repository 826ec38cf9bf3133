"""Fine-tuning a part of a network, the same in every library."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from networks import LIBRARIES

import solstice
from solstice.compat import NNXModel, freeze, unfreeze
from solstice.testing import check_model
from solstice.tree import leaves_by_path

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 3))
EVERY = [
    pytest.param(library, marks=() if library in ("linen", "equinox") else pytest.mark.slow)
    for library in LIBRARIES
]
HEADS = {
    "linen": "Dense_1",
    "nnx": "second",
    "haiku": "linear/",
    "equinox": "layers/layers/1",
    "stax": "2/",
    "keras": ("02", "03"),
    "function": "1/",
}
PARTS = {
    "head": lambda library: lambda path, leaf: not path.startswith(HEADS[library]),
    "biases": lambda library: lambda path, leaf: leaf.ndim > 1,
}


# A part is told by its path, which a library names, or by its leaf, which is an array in each.
@pytest.mark.parametrize(
    ("part", "library"),
    [*(pytest.param("head", *one.values, marks=one.marks) for one in EVERY), ("biases", "linen")],
)
def test_a_part_is_fine_tuned_with_one_line(library, part):
    subject = LIBRARIES[library]["mlp"]
    model = freeze(subject.make_model(KEY), PARTS[part](library))
    exp = solstice.ClassificationExperiment(
        model, optax.adam(0.1), example_input=subject.inputs[0], key=0
    )
    assert len(jax.tree.leaves(model.params)) == len(jax.tree.leaves(model.frozen)) == 2
    y = jnp.array([0, 1, 2, 0])
    trained = exp.train(num_epochs=2, train_ds=[(subject.inputs[0], y)], progress=False).model
    before, after = leaves_by_path(model.frozen), leaves_by_path(trained.frozen)
    assert all((before[path] == after[path]).all() for path in before)
    before, after = leaves_by_path(model.params), leaves_by_path(trained.params)
    assert len(before) == 2 and all((before[path] != after[path]).any() for path in before)
    whole = unfreeze(trained)
    assert len(jax.tree.leaves(whole.params)) == 4
    np.testing.assert_allclose(whole(*subject.inputs)[0], trained(*subject.inputs)[0], rtol=1e-5)


def test_only_lora_parameters_are_fine_tuned():
    module = nnx.Sequential(
        nnx.LoRALinear(3, 4, lora_rank=2, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    )
    model = freeze(NNXModel(module), lambda path, leaf: "lora" not in path)
    assert sorted(leaves_by_path(model.params)) == ["layers/0/lora/lora_a", "layers/0/lora/lora_b"]
    exp = solstice.ClassificationExperiment(model, optax.adam(0.1), example_input=X, key=0)
    trained = exp.train(num_epochs=3, train_ds=[(X, jnp.array([0, 1, 1, 0]))], progress=False).model
    back = trained.unwrap()
    assert (back.layers[0].lora.lora_a[...] != module.layers[0].lora.lora_a[...]).any()
    assert (back.layers[0].kernel[...] == module.layers[0].kernel[...]).all()
    assert (back.layers[1].kernel[...] == module.layers[1].kernel[...]).all()


def test_freezing_nothing_lists_the_paths():
    model = LIBRARIES["linen"]["mlp"].make_model(KEY)
    with pytest.raises(ValueError, match=r"selects none of Dense_0/bias, Dense_0/kernel"):
        freeze(model, lambda path, leaf: False)


def test_a_glob_freezes_what_it_matches():
    model = LIBRARIES["linen"]["mlp"].make_model(KEY)
    found = freeze(model, "Dense_0/*")
    expected = freeze(model, lambda path, leaf: path.startswith("Dense_0/"))
    assert leaves_by_path(found.params).keys() == leaves_by_path(expected.params).keys()
    with pytest.raises(ValueError, match=r"'Desne_0/\*', matches none of Dense_0/bias"):
        freeze(model, "Desne_0/*")


@pytest.mark.parametrize("change", [lambda exp: freeze(exp, "*"), unfreeze])
def test_what_is_no_model_is_told_where_one_is(change):
    subject = LIBRARIES["linen"]["mlp"]
    model = subject.make_model(KEY)
    exp = solstice.ClassificationExperiment(model, optax.sgd(0.1), 3)
    with pytest.raises(TypeError, match=r"such as exp\.model .* compat\.as_model"):
        change(exp)
    frozen = solstice.replace(exp, model=freeze(model, "Dense_0/*"))
    with pytest.raises(ValueError, match=r"exp\.with_model\(model\)"):
        frozen.train_step((subject.inputs[0], np.zeros(4, int)))


@pytest.mark.parametrize("predicate", [lambda path: True, lambda model, path, leaf: True])
def test_a_predicate_of_other_arguments_is_refused(predicate):
    model = LIBRARIES["linen"]["mlp"].make_model(KEY)
    with pytest.raises(
        TypeError, match=r"predicate is expected to be a function of \(path, leaf\)"
    ):
        freeze(model, predicate)


# The laws of `test_laws.py` freeze parts of each library's networks. A network that is frozen from
# the start is held to all of them where a library keeps its arrays in variables.
@pytest.mark.slow
@pytest.mark.parametrize(
    "library",
    [
        pytest.param(library, marks=() if library in ("nnx", "keras") else pytest.mark.soak)
        for library in LIBRARIES
    ],
)
def test_a_frozen_network_keeps_the_laws(library):
    subject = LIBRARIES[library]["mlp"]
    check_model(
        lambda key: freeze(subject.make_model(key), lambda path, leaf: leaf.ndim == 1),
        subject.inputs,
        native=subject.call,
        examples=1,
    )
