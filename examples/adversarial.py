"""Adversarial training by the fast gradient sign method, as an experiment of one's own.

    python examples/adversarial.py

Each step attacks its own batch and learns from the result; evaluation attacks too. Two networks,
one trained on clean images and one on attacked ones, are then compared under the attack. The
experiment names no network library, so any network will do. The method is Goodfellow et al.,
https://arxiv.org/abs/1412.6572.
"""

import argparse

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import solstice
from solstice import compat


class Adversarial(solstice.Experiment):
    """Trains on images that are moved by `strength` against the network; 0 trains on clean ones."""

    model: compat.Model
    opt: compat.Optimizer
    key: jax.Array
    strength: float
    attack: float = eqx.field(static=True)

    @solstice.jit
    def train_step(self, batch):
        x, y = batch
        key, sub = jax.random.split(self.key)
        x = moved(self.model, x, y, self.strength)

        def loss_fn(params):
            logits, model = solstice.replace(self.model, params=params)(x, key=sub, train=True)
            return cross_entropy(logits, y), (logits, model)

        params = self.model.params
        (loss, (logits, model)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        params, opt = self.opt(grads, params)
        model = solstice.replace(model, params=params)
        metrics = solstice.ClassificationMetrics(logits.argmax(-1), y, loss, num_classes=10)
        return solstice.replace(self, model=model, opt=opt, key=key), metrics

    @solstice.jit
    def eval_step(self, batch):
        x, y = batch
        logits, _ = self.model(moved(self.model, x, y, self.attack))
        loss = cross_entropy(logits, y)
        return self, solstice.ClassificationMetrics(logits.argmax(-1), y, loss, num_classes=10)


def moved(model, x, y, strength):
    """Return the images, each pixel moved by `strength` to where the loss is higher."""
    slope = jax.grad(lambda x: cross_entropy(model(x)[0], y))(x)
    return jnp.clip(x + strength * jnp.sign(slope), 0, 1)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x.reshape(len(x), -1))))


def accuracy(exp, ds, attack):
    metrics = [solstice.replace(exp, attack=attack).eval_step(batch)[1] for batch in ds]
    return float(solstice.reduce(metrics).compute()["accuracy"])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.15, help="of pixels from 0 to 1")
    options = parser.parse_args(arguments)

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype("float32").reshape(-1, 8, 8, 1), y[order].astype("int32")
    train_ds = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 1408, 32)]
    test_ds = [(x[1408:], y[1408:])]

    rows = {}
    for name, strength in {"clean": 0.0, "attacked": options.strength}.items():
        init_key, key = jax.random.split(jax.random.key(0))
        model = compat.as_model(CNN(), x[:1], key=init_key)
        opt = compat.as_optimizer(optax.adam(2e-3)).init(model.params)
        exp = Adversarial(model, opt, key, strength, attack=options.strength)
        exp = solstice.train(exp, options.epochs, train_ds)
        rows[name] = accuracy(exp, test_ds, 0.0), accuracy(exp, test_ds, options.strength)

    print(f"{'trained on':<12}{'clean':>8}{'attacked':>10}")
    for name, (clean, attacked) in rows.items():
        print(f"{name:<12}{clean:>8.3f}{attacked:>10.3f}")
    return rows


if __name__ == "__main__":
    main()
