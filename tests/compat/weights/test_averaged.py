"""A checkpoint may hold averages of its weights, which are not confused with them."""

import flax.linen as nn
import numpy as np
import pytest

from solstice import compat
from solstice.errors import InvalidValueError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6)).astype(np.float32)
# The prefixes of the weights and of their averages.
NAMES = {"ema": ("", "ema."), "model": ("model.", "model_ema."), "nested": ("net.", "ema_net.net.")}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(6)(x))
        return nn.Dense(2)(x)


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("before", [False, True])
def test_averages_beside_the_weights_are_left_out(names, before):
    state = {}
    for layer, size in enumerate([6, 6, 6, 2]):
        state[f"{2 * layer}.weight"] = RNG.normal(size=(size, 6)).astype(np.float32)
        state[f"{2 * layer}.bias"] = RNG.normal(size=size).astype(np.float32)
    x = X
    for layer in range(4):
        x = x @ state[f"{2 * layer}.weight"].T + state[f"{2 * layer}.bias"]
        x = np.maximum(x, 0) if layer < 3 else x
    own, other = NAMES[names]
    weights = {own + name: array for name, array in state.items()}
    averages = {other + name: np.zeros_like(array) for name, array in state.items()}
    both = averages | weights if before else weights | averages
    model = compat.as_model(Net(), X, key=0)
    with pytest.raises(InvalidValueError, match="went nowhere"):
        compat.load(model, both)
    with pytest.warns(UserWarning, match="by order alone"):
        _, report = compat.load(model, both, strict=False)
    assert report.check(X, x) < 1e-5
    assert set(report.unused) == set(averages)
    assert "Averages of other arrays were left out" in str(report)
