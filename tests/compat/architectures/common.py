"""Inputs, sizes, and weights drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np

from solstice.compat.weights.leaves import float_leaves, with_leaves

EPSILON = 1e-5
_generator = np.random.default_rng(0)
INPUTS = {
    "mlp": _generator.normal(size=(4, 8)).astype(np.float32),
    "cnn": _generator.normal(size=(2, 8, 8, 3)).astype(np.float32),
    "lstm": _generator.normal(size=(3, 5, 6)).astype(np.float32),
    "attention": _generator.normal(size=(2, 5, 8)).astype(np.float32),
    "embedding": _generator.integers(0, 11, size=(3, 5)).astype(np.int32),
    "gru": _generator.normal(size=(3, 5, 6)).astype(np.float32),
    "resnet": _generator.normal(size=(4, 8, 8, 3)).astype(np.float32),
    "transformer": _generator.integers(0, 11, size=(4, 5)).astype(np.int32),
}


def drawn(model, seed):
    """Return the model with other values: normal parameters, positive state."""
    generator = np.random.default_rng(seed)

    def value(path, leaf):
        normal = 0.4 * generator.normal(size=leaf.shape)
        return np.abs(normal) + 0.5 if path.startswith("state/") else normal

    arrays = {path: value(path, leaf) for path, leaf in float_leaves(model).items()}
    return with_leaves(model, arrays).settle_averages()


def keys(count):
    """Return keys for layers."""
    return jax.random.split(jax.random.key(0), count)


def pooled(x):
    """Return the mean over height and width."""
    return jnp.mean(x, (1, 2))
