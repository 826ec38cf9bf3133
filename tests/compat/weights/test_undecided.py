"""What given outputs decide, and what they do not."""

import flax.linen as nn
import numpy as np
import pytest

from solstice import compat
from solstice.errors import UnequalOutputsError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6)).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(6, use_bias=False)(x))
        return nn.Dense(2, use_bias=False)(x)


def network():
    return compat.as_model(Net(), X, key=0)


def swapped(size=1.0):
    """Return arrays whose order is not that of use, and what they compute."""
    state = {"second.weight": normal(6, 6), "first.weight": normal(6, 6)}
    state["head.weight"] = size * normal(2, 6)

    def run(x):
        for name in ("first", "second"):
            x = np.maximum(x @ state[f"{name}.weight"].T, 0)
        return x @ state["head.weight"].T

    return state, run


def test_an_example_that_fits_every_order_leaves_it_open():
    state, run = swapped()
    zeros = np.zeros_like(X)
    with pytest.warns(UserWarning, match="by order alone"):
        _, report = compat.load(network(), state, example=zeros, outputs=run(zeros))
    leaves = ["params/Dense_0/kernel", "params/Dense_1/kernel"]
    assert [row.leaf for row in report.ambiguous] == leaves
    assert "do not decide about 2 layers" in str(report)
    _, report = compat.load(network(), state, example=X, outputs=run(X))
    assert report.check(X, run(X)) < 1e-5
    assert not report.ambiguous


def test_an_example_that_fits_every_layout_leaves_it_open():
    state = {"a.weights": normal(6, 6), "b.weights": normal(6, 2)}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, use_bias=False)(nn.relu(nn.Dense(6, use_bias=False)(x)))

    model, zeros = compat.as_model(Net(), X, key=0), np.zeros_like(X)
    with pytest.warns(UserWarning, match="layouts of 1 leaves are guesses"):
        compat.load(model, state, example=zeros, outputs=np.zeros((4, 2), np.float32))


def test_equal_layers_are_not_open():
    state, _ = swapped()
    state["second.weight"] = state["first.weight"]
    x = np.maximum(np.maximum(X @ state["first.weight"].T, 0) @ state["first.weight"].T, 0)
    outputs = x @ state["head.weight"].T
    _, report = compat.load(network(), state, example=X, outputs=outputs)
    assert not report.ambiguous


def test_small_outputs_decide_too():
    state, run = swapped(1e-7)
    model, report = compat.load(network(), state, example=X, outputs=run(X))
    np.testing.assert_allclose(model(X)[0], run(X), rtol=1e-4, atol=1e-12)
    assert not report.ambiguous
    with pytest.raises(UnequalOutputsError, match="differ by"):
        compat.load(network(), state, example=X, outputs=2 * run(X))
