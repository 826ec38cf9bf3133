"""Adversarial training by the fast gradient sign method, as your own experiment.

    python examples/adversarial.py
    python examples/adversarial.py --dataset mnist     # which tfds downloads

Each step attacks its own batch and learns from the result; evaluation attacks too. Two networks,
one trained on clean images and one on attacked ones, are then compared under the attack. The
experiment names no network library, so any network will do. The method is Goodfellow et al.,
https://arxiv.org/abs/1412.6572.
"""

import argparse

import flax.linen as nn
import handwriting
import jax
import jax.numpy as jnp
import optax

import solstice
from solstice import compat


class Adversarial(solstice.Experiment):
    """Trains on images that are moved by `strength` against the network; 0 trains on clean ones."""

    model: compat.Model
    opt: compat.Optimizer
    key: jax.Array
    # Arrays, since each new value of a Python number would recompile the steps.
    strength: jax.Array
    attack: jax.Array

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
    exp = solstice.replace(exp, attack=jnp.asarray(attack))
    outs = solstice.test(exp, ds, return_outs=True)
    return float(solstice.reduce(outs).compute()["accuracy"])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    handwriting.add_flags(parser, epochs=20)
    parser.add_argument("--strength", type=float, default=0.15, help="of pixels from 0 to 1")
    options = parser.parse_args(arguments)

    (x, y), (x_test, y_test) = handwriting.load(options.dataset)
    train_ds = handwriting.batched(x, y, 32)
    test_ds = handwriting.batched(x_test, y_test, 120)

    rows, trained = {}, {}
    for name, strength in {"clean": 0.0, "attacked": options.strength}.items():
        init_key, key = jax.random.split(jax.random.key(0))
        model = compat.as_model(CNN(), x[:1], key=init_key)
        opt = compat.as_optimizer(optax.adam(2e-3)).init(model.params)
        exp = Adversarial(model, opt, key, jnp.asarray(strength), jnp.asarray(0.0))
        exp = trained[name] = solstice.train(exp, options.epochs, train_ds)
        rows[name] = accuracy(exp, test_ds, 0.0), accuracy(exp, test_ds, options.strength)

    print(f"{'trained on':<12}{'clean':>8}{'attacked':>10}")
    for name, (clean, attacked) in rows.items():
        print(f"{name:<12}{clean:>8.3f}{attacked:>10.3f}")
    if options.picture:
        draw(trained, x_test[:8], y_test[:8], options.strength, options.picture)
    return rows


def draw(trained, x, y, strength, path):
    """Draw digits, and each network's attacked ones with its predictions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    rows = figure.subplots(3, len(x))
    images = {"clean": x}
    for name, exp in trained.items():
        images[f"trained on\n{name}"] = moved(exp.model, x, y, strength)
    taken = [
        y,
        *(exp.model(moved(exp.model, x, y, strength))[0].argmax(-1) for exp in trained.values()),
    ]
    for axes, (name, shown), classes in zip(rows, images.items(), taken, strict=True):
        axes[0].set_ylabel(name)
        for one, image, guess, true in zip(axes, shown, classes, y, strict=True):
            one.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
            one.set_title(int(guess), color="black" if guess == true else "tab:red")
            one.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
