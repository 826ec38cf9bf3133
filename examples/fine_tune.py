"""Fine-tuning: a backbone trained on one task is frozen, and a new head learns another one.

    python examples/fine_tune.py

The backbone learns to tell the ten digits apart; a new head then learns from a few examples which
of them are even. What is frozen is no parameter any more: it has no gradient and no optimizer
state, and the 130 numbers of the head do about as well as all 13,000 from scratch.
"""

import argparse

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import solstice
from solstice import compat


class CNN(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        for features in (16, 32):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(64, name="features")(x.reshape(len(x), -1)))
        return nn.Dense(self.classes, name="head")(x)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--examples", type=int, default=20, help="of the new task")
    options = parser.parse_args(arguments)

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype("float32").reshape(-1, 8, 8, 1), y[order].astype("int32")
    pretrain_ds = batched(x[:1000], y[:1000], 32)
    few, rest = slice(1000, 1000 + options.examples), slice(1000 + options.examples, None)
    even = (y % 2 == 0).astype("int32")
    tune_ds, test_ds = batched(x[few], even[few], 10), [(x[rest], even[rest])]

    backbone = solstice.ClassificationExperiment(
        CNN(10), optax.adam(2e-3), example_input=x[:1], key=0
    )
    backbone = backbone.train(options.epochs, pretrain_ds)

    fresh = compat.FlaxModel(CNN(2), x[:1], key=jax.random.key(1))
    weights = {**backbone.model.params, "head": fresh.params["head"]}
    model = compat.freeze(
        solstice.replace(fresh, params=weights), lambda path, leaf: not path.startswith("head")
    )
    tuned = solstice.ClassificationExperiment(model, optax.adam(2e-3), example_input=x[:1])
    print(solstice.summary(tuned))
    tuned = tuned.train(5 * options.epochs, tune_ds)

    scratch = solstice.ClassificationExperiment(
        CNN(2), optax.adam(2e-3), example_input=x[:1], key=1
    )
    scratch = scratch.train(5 * options.epochs, tune_ds)
    results = {}
    for name, exp in {"frozen backbone, new head": tuned, "all from scratch": scratch}.items():
        results[name] = exp.test(test_ds)["accuracy"]
        trained = solstice.tree.size(exp.model.params)
        print(f"{name:<28}{trained:>8,} numbers trained, accuracy {results[name]:.3f}")
    return backbone, tuned, results


def batched(x, y, size):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x) - size + 1, size)]


if __name__ == "__main__":
    main()
