"""A model's arrays by path, and other values for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import solstice
from solstice import compat
from solstice.compat.weights.leaves import float_leaves, model_leaves, numbers_like, with_leaves
from solstice.tree.encoding import host_array

X = jnp.ones((2, 3))


class Dropping(nnx.Module):
    """A layer in bfloat16, and a stream of random numbers."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, param_dtype=jnp.bfloat16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.layer(x))


@pytest.fixture(scope="module")
def model():
    return compat.as_model(Dropping(nnx.Rngs(0)))


def test_frozen_arrays_have_the_names_and_the_order_of_others(model):
    frozen = compat.freeze(model, "layer/kernel")
    assert frozen.frozen is not None
    assert list(model_leaves(frozen)) == list(model_leaves(model))
    assert list(float_leaves(frozen)) == ["params/layer/bias", "params/layer/kernel"]
    ones = with_leaves(frozen, {"params/layer/kernel": np.ones((3, 2))})
    assert jax.tree.structure(ones) == jax.tree.structure(frozen)
    np.testing.assert_array_equal(model_leaves(ones)["params/layer/kernel"], np.ones((3, 2)))


def test_values_get_the_dtype_and_the_device_of_what_they_replace(model):
    device = jax.devices()[-1]
    placed = solstice.replace(model, params=jax.device_put(model.params, device))
    values = {
        path: np.zeros(numbers_like(leaf).shape, "float64" if "params" in path else "uint32")
        for path, leaf in model_leaves(placed).items()
    }
    changed = with_leaves(placed, values)
    for path, leaf in model_leaves(changed).items():
        old = model_leaves(placed)[path]
        assert (leaf.dtype, leaf.shape, leaf.committed) == (old.dtype, old.shape, old.committed)
        assert leaf.devices() == old.devices()
        assert not host_array(leaf).any()


def test_a_traced_value_is_put_in_place_without_another_operation(model):
    kernel = jnp.ones((3, 2), jnp.bfloat16)
    program = jax.make_jaxpr(lambda w: with_leaves(model, {"params/layer/kernel": w}).params)(
        kernel
    )
    assert [eqn.primitive.name for eqn in program.eqns] == []


def test_a_wrong_path_or_shape_is_told(model):
    with pytest.raises(ValueError, match=r"The model has no leaf 'params/kernel'\."):
        with_leaves(model, {"params/kernel": np.ones(3)})
    with pytest.raises(ValueError, match=r"shape \(3, 2\); the value has \(2, 3\)"):
        with_leaves(model, {"params/layer/kernel": np.ones((2, 3))})


def test_a_name_is_no_part_of_a_message():
    params = {"have w": jnp.ones(2), "b": jnp.zeros(2)}
    model = compat.FunctionModel(
        lambda key, x: params, lambda params, x: x * params["b"], jnp.ones((1, 2)), key=0
    )
    changed = with_leaves(model, {"params/b": np.ones(2)})
    assert np.asarray(changed.params["b"]).tolist() == [1, 1]
