"""A run with everything that can go wrong on a resume, and what is compared of two of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

import solstice

RNG = np.random.default_rng(0)
X = RNG.normal(size=(26, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 3))).argmax(-1).astype("int32")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


class StreamNet(nnx.Module):
    """Keeps its streams of random numbers in itself."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.first(x))))


def shuffled(epoch):
    """Batches of 6, the last of 2, in another order each epoch."""
    order = np.random.default_rng(epoch).permutation(len(X))
    return iter([(X[part], Y[part]) for part in np.split(order, range(6, len(X), 6))])


VAL = [(X[:7], Y[:7]), (X[7:14], Y[7:14])]


def haiku_net():
    import haiku as hk

    def forward(x, is_training):
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training))
        x = hk.dropout(hk.next_rng_key(), 0.3, x) if is_training else x
        return hk.Linear(3)(x)

    return hk.transform_with_state(forward)


def keras_net():
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3, seed=1),
            layers.Dense(3),
        ]
    )


NETWORKS = {
    "linen": Net,
    "nnx": lambda: StreamNet(nnx.Rngs(0)),
    "haiku": haiku_net,
    "keras": keras_net,
}
TX = optax.adam(optax.cosine_decay_schedule(1e-2, 40))


def experiment(network="linen", key=0):
    """An experiment with dropout, and batch norm or streams of its own; "ensemble" is two."""
    if network == "ensemble":
        return solstice.Ensemble.init(lambda key: experiment(key=key), [0, 1])
    net = NETWORKS[network]()
    return solstice.ClassificationExperiment(net, TX, example_input=X, key=key)


def bits(tree):
    """The bits of every array, by path, and every other leaf."""
    found = {}
    for path, leaf in solstice.tree.leaves_by_path(tree).items():
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array | np.ndarray):
            leaf = (str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes())
        found[path] = leaf
    return found
