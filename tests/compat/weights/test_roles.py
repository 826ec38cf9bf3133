"""What a trace says of leaves: role, layout and order of use, in every library."""

from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import LIBRARIES, build
from architectures.common import INPUTS

from solstice import compat
from solstice.compat.weights.leaves import model_leaves
from solstice.compat.weights.roles import trace

CNN = Counter(
    {
        ("conv", (3, 3, 3, 4)): 1,
        ("conv", (3, 3, 4, 4)): 1,
        ("mean", (4,)): 2,
        ("variance", (4,)): 2,
        ("scale", (4,)): 2,
        ("bias", (4,)): 4,
        ("matrix", (4, 5)): 1,
        ("bias", (5,)): 1,
    }
)


@pytest.mark.parametrize("library", sorted(LIBRARIES.keys() - {"Stax"}))
def test_a_convolutional_network_has_the_same_roles_in_every_library(library):
    found = trace(build(library, "cnn", 1), INPUTS["cnn"])
    assert Counter((use.role, use.shape) for use in found.uses) == CNN
    roles = [use.role for use in found.uses if use.role in ("conv", "matrix")]
    assert roles == ["conv", "conv", "matrix"]
    assert [f"{one:.0e}" for one in found.epsilons] == ["1e-05", "1e-05"]


X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def uses(apply, x=X, **shapes):
    """The uses of a function's leaves, with what each reads of a leaf that counts upwards."""

    def init(key, x):
        return {
            name: jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
            for name, shape in shapes.items()
        }

    model = compat.FunctionModel(init, apply, x, key=0)
    return [(use.leaf.removeprefix("params/"), use.role, use.index) for use in trace(model, x).uses]


def only(found):
    (use,) = found
    return use


def test_axes_of_a_matrix_are_in_and_out():
    kernel = np.arange(8).reshape(4, 2)
    for apply, shape, expected in (
        (lambda p, x: x @ p["w"], (4, 2), kernel),
        (lambda p, x: x @ p["w"].T, (2, 4), np.arange(8).reshape(2, 4).T),
        (lambda p, x: (p["w"] @ x.T).T, (2, 4), np.arange(8).reshape(2, 4).T),
        (lambda p, x: jnp.einsum("bi,ihd->bhd", x, p["w"]), (4, 1, 2), kernel),
        (lambda p, x: jax.vmap(lambda one: p["w"] @ one)(x), (2, 4), np.arange(8).reshape(2, 4).T),
        (lambda p, x: jax.checkpoint(lambda w: x @ w)(p["w"]), (4, 2), kernel),
    ):
        leaf, role, index = only(uses(apply, w=shape))
        assert (leaf, role) == ("w", "matrix")
        np.testing.assert_array_equal(index, expected)


def test_transposed_and_flipped_kernels_are_as_they_are_slid():
    image = np.ones((1, 5, 5, 2), np.float32)

    def apply(p, x):
        return jax.lax.conv_transpose(
            x, p["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            transpose_kernel=True,
        )  # fmt: skip

    _, role, index = only(uses(apply, image, w=(3, 3, 6, 2)))
    assert role == "transposed" and index.shape == (3, 3, 2, 6)
    kernel = np.arange(108).reshape(3, 3, 6, 2)
    np.testing.assert_array_equal(index, np.flip(kernel, (0, 1)).swapaxes(2, 3))


def test_a_pointwise_convolution_is_a_matrix():
    def apply(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=numbers)

    _, role, index = only(uses(apply, np.ones((1, 5, 5, 2), np.float32), w=(1, 1, 2, 3)))
    assert (role, index.shape) == ("matrix", (2, 3))


def test_vectors_have_the_role_that_the_arithmetic_gives():
    def apply(p, x):
        x = (x - p["mean"]) * jax.lax.rsqrt(p["variance"] + 1e-3)
        return x * p["scale"] + p["bias"][None, :]

    names = ("mean", "variance", "scale", "bias")
    found = uses(apply, **dict.fromkeys(names, (4,)))
    assert [(leaf, role) for leaf, role, _ in found] == [(name, name) for name in names]


def test_leaves_joined_before_their_use_are_used_each():
    def apply(p, x):
        return x @ jnp.concatenate([p["a"], p["b"]], 1)

    found = uses(apply, a=(4, 2), b=(4, 3))
    assert [(leaf, index.shape) for leaf, _, index in found] == [("a", (4, 2)), ("b", (4, 3))]


def test_a_known_lookup_is_a_move_and_one_by_inputs_a_table():
    def known(p, x):
        return x + p["table"][jnp.array([1])]

    _, role, index = only(uses(known, table=(3, 4)))
    assert role == "bias"
    np.testing.assert_array_equal(index, [4, 5, 6, 7])
    ids = np.array([[0, 2]], np.int32)
    _, role, index = only(uses(lambda p, x: p["table"][x], ids, table=(3, 4)))
    assert (role, index.shape) == ("table", (3, 4))


def test_an_operation_not_known_gives_its_name():
    assert only(uses(lambda p, x: jnp.maximum(x, p["w"]), w=(4,)))[1] == "max"


def test_a_leaf_that_is_an_output_is_used_as_one():
    found = uses(lambda p, x: (x * p["a"], p["b"][:2]), a=(4,), b=(3,))
    assert [(leaf, role) for leaf, role, _ in found] == [("a", "scale"), ("b", "output")]


def test_what_the_outputs_do_not_depend_on_is_unused():
    model = compat.FunctionModel(
        lambda key, x: {"w": jnp.ones(4), "idle": jnp.ones(3)},
        lambda p, x: (p["idle"].sum(), x * p["w"])[1],
        X,
        key=0,
    )
    assert trace(model, X).unused == ("params/idle",)


@pytest.mark.parametrize("library", ["Linen", "NNX", "Haiku", "Equinox", "Keras"])
def test_a_cells_matrices_take_the_input_or_the_carry(library):
    for cell, gates in (("lstm", 4), ("gru", 3)):
        found = trace(build(library, cell, 1), INPUTS[cell]).uses
        columns = Counter()
        for use in found:
            if use.role == "matrix" and use.loop == 0:
                columns[use.of, use.shape[0]] += use.shape[1]
        assert columns == {("input", 6): 8 * gates, ("carry", 8): 8 * gates}


class Printing(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        jax.debug.print("{}", x.mean())
        return nn.Dense(2)(x)


def test_what_a_network_prints_is_no_use_of_a_leaf():
    x = np.ones((2, 3), np.float32)
    first, second = (compat.as_model(Printing(), x, key=key) for key in (0, 1))
    converted = compat.convert(first, like=second, example=x)
    np.testing.assert_array_equal(converted(x)[0], first(x)[0])
    names = [("0", "params/Dense_0"), ("1", "params/Dense_1")]
    leaves = model_leaves(first)
    arrays = {f"{new}.weight": np.asarray(leaves[f"{old}/kernel"]).T for new, old in names}
    arrays |= {f"{new}.bias": np.asarray(leaves[f"{old}/bias"]) for new, old in names}
    loaded, _ = compat.load(second, arrays)
    np.testing.assert_array_equal(loaded(x)[0], first(x)[0])
