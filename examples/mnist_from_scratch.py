"""MNIST from scratch: an experiment in plain JAX, with its own network and optimizer.

python examples/mnist_from_scratch.py                      # scikit-learn's handwritten digits
python examples/mnist_from_scratch.py --dataset mnist      # MNIST, which tfds downloads
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import solstice


class Digits(solstice.Experiment):
    """Two layers, and gradient descent with momentum."""

    params: dict[str, jax.Array]
    velocity: dict[str, jax.Array]
    rate: float
    momentum: float

    def __init__(self, pixels, key, hidden=128, rate=0.1, momentum=0.9):
        one, two = jax.random.split(key)
        self.params = {
            "hidden": jax.random.normal(one, (pixels, hidden)) * pixels**-0.5,
            "bias": jnp.zeros(hidden),
            "out": jax.random.normal(two, (hidden, 10)) * hidden**-0.5,
        }
        self.velocity = jax.tree.map(jnp.zeros_like, self.params)
        self.rate, self.momentum = rate, momentum

    @solstice.jit
    def train_step(self, batch):
        x, y = batch

        def loss_fn(params):
            logits = forward(params, x)
            return cross_entropy(logits, y), logits

        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(self.params)
        velocity = jax.tree.map(lambda v, g: self.momentum * v + g, self.velocity, grads)
        params = jax.tree.map(lambda p, v: p - self.rate * v, self.params, velocity)
        metrics = solstice.ClassificationMetrics(logits.argmax(-1), y, loss, num_classes=10)
        return solstice.replace(self, params=params, velocity=velocity), metrics

    @solstice.jit
    def eval_step(self, batch):
        x, y = batch
        logits = forward(self.params, x)
        loss = cross_entropy(logits, y)
        return self, solstice.ClassificationMetrics(logits.argmax(-1), y, loss, num_classes=10)


def forward(params, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["hidden"] + params["bias"])
    return hidden @ params["out"]


def cross_entropy(logits, labels):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -chosen.mean()


def load_digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype("float32"), y[order].astype("int32")
    return batched(x[:1437], y[:1437]), batched(x[1437:], y[1437:])


def load_mnist():
    import tensorflow_datasets as tfds

    def split(name):
        data: Any = tfds.data_source("mnist", split=name)
        examples = [data[i] for i in range(len(data))]
        x = np.stack([example["image"] for example in examples])
        y = np.array([example["label"] for example in examples], "int32")
        return batched((x / 255).astype("float32"), y)

    return split("train"), split("test")


def batched(x, y, size=64):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x) - size + 1, size)]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--picture", help="the file to draw the learning curves into")
    options = parser.parse_args(arguments)

    train_ds, test_ds = load_mnist() if options.dataset == "mnist" else load_digits()
    exp = Digits(train_ds[0][0][0].size, jax.random.key(0))
    history = solstice.HistoryCallback()
    solstice.train(exp, options.epochs, train_ds, test_ds, [history])
    accuracy = history.records[-1]["accuracy"]
    print(f"test accuracy after {options.epochs} epochs: {accuracy:.4f}")
    if options.picture:
        curves = solstice.plots.learning_curves(history, ["average_loss", "accuracy"])
        curves.savefig(options.picture, dpi=200)
    return accuracy


if __name__ == "__main__":
    main()
