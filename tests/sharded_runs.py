"""Trains on so many simulated devices and writes what came of it; run as a program of its own.

python sharded_runs.py <devices> <output.npz> [<processes> <address> <process>]

With several processes, each has so many devices, and the first one writes.
"""

# ruff: noqa: E402 - the flags are set before jax is imported
import os
import sys

DEVICES = int(sys.argv[1])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
)

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import solstice
from solstice.sharding import DataParallel, FullySharded

PROCESSES, PROCESS = 1, 0
if len(sys.argv) > 3:
    PROCESSES, PROCESS = int(sys.argv[3]), int(sys.argv[5])
    solstice.sharding.initialize(sys.argv[4], PROCESSES, PROCESS)
warnings.simplefilter("error")
CLASSES = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 32)).astype("float32")
Y = (X @ RNG.normal(size=(32, CLASSES))).argmax(-1).astype("int32")
# Of each batch of 16, this process's part.
ROWS = [np.array_split(np.arange(i, i + 16), PROCESSES)[PROCESS] for i in range(0, 64, 16)]
DS = [(X[rows], Y[rows]) for rows in ROWS]


def networks():
    import equinox as eqx
    import flax.linen as nn
    import haiku as hk
    from flax import nnx
    from jax.example_libraries import stax

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            x = nn.Dense(64, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            return nn.Dense(CLASSES)(nn.Dropout(0.2, deterministic=not train)(x))

    class NNX(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = (
                nnx.Linear(32, 64, rngs=rngs),
                nnx.Linear(64, CLASSES, rngs=rngs),
            )
            self.norm = nnx.BatchNorm(64, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    def keras():
        import keras

        keras.utils.set_random_seed(0)
        layers = keras.layers
        return keras.Sequential(
            [keras.Input((32,)), layers.Dense(64, activation="relu"), layers.Dense(CLASSES)]
        )

    return {
        "linen": Linen,
        "nnx": lambda: NNX(nnx.Rngs(0)),
        "haiku": lambda: hk.transform(lambda x: hk.nets.MLP([64, CLASSES])(x)),
        "equinox": lambda: eqx.nn.MLP(32, CLASSES, 64, 1, key=jax.random.key(0)),
        "stax": lambda: stax.serial(stax.Dense(64), stax.Relu, stax.Dense(CLASSES)),
        "keras": keras,
    }


def train(make, sharding, ds=DS, **options):
    exp = solstice.ClassificationExperiment(
        make(), optax.sgd(0.05, momentum=0.9), CLASSES, example_input=X[:2], key=0
    )
    seen = []
    record = solstice.Callback()
    record.on_step_end = lambda outs, exp, step, mode, batch: seen.append(outs.compute())
    record.needs_experiment = False
    options = {"num_epochs": None, "num_steps": 50, "recompile": "error"} | options
    trained = exp.train(
        train_ds=ds, callbacks=[record], sharding=sharding, progress=False, **options
    )
    return trained, [float(one["average_loss"]) for one in seen], seen[-1]


def results(found, name, trained, losses, metrics):
    params = solstice.tree.leaves_by_path(solstice.sharding.gather(trained.model.params))
    found[f"{name}/losses"] = np.array(losses)
    found |= {f"{name}/metrics/{key}": float(value) for key, value in metrics.items()}
    found |= {f"{name}/{path}": value for path, value in params.items()}


def main():
    found = {}
    devices = DEVICES * PROCESSES
    assert len(jax.devices()) == devices
    for library, make in networks().items():
        for sharding in (DataParallel(), FullySharded(min_size=128)):
            kind = type(sharding).__name__
            trained, losses, metrics = train(make, sharding)
            results(found, f"{library}/{kind}", trained, losses, metrics)
            if devices > 1:
                split = kind == "FullySharded"
                for leaf in jax.tree.leaves((trained.model, trained.optimizer)):
                    parts = devices if split and leaf.size >= 128 else 1
                    shard = leaf.addressable_shards[0].data
                    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                        assert shard.nbytes * parts == leaf.nbytes, (library, leaf.shape)
    if PROCESS == 0:
        np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
