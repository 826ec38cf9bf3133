"""Bring your own library: thirty lines of code, adapted, registered, checked and trained.

    python examples/bring_your_own.py
    python examples/bring_your_own.py --dataset mnist     # which tfds downloads

The library, `pebble`, is made up. Its layers keep weights and running statistics in two dicts and
call their train flag `learning`, so an adapter is needed.
"""

import argparse

import equinox as eqx
import handwriting
import jax
import jax.numpy as jnp
import optax

import solstice
from solstice import compat
from solstice.testing import check_model

# --- the library ------------------------------------------------------------------------------


class Pebble:
    """A perceptron with one hidden layer, a running mean of its inputs, and dropout."""

    def __init__(self, hidden, outputs, drop=0.2):
        self.hidden, self.outputs, self.drop = hidden, outputs, drop

    def start(self, key, x):
        one, two = jax.random.split(key)
        weights = {
            "in": jax.random.normal(one, (x.shape[-1], self.hidden)) * x.shape[-1] ** -0.5,
            "out": jax.random.normal(two, (self.hidden, self.outputs)) * self.hidden**-0.5,
            "bias": jnp.zeros(self.outputs),
        }
        return weights, {"mean": jnp.zeros(x.shape[-1])}

    def forward(self, weights, running, x, key, learning):
        mean = x.mean(0) if learning else running["mean"]
        if learning:
            running = {"mean": 0.9 * running["mean"] + 0.1 * mean}
        h = jax.nn.relu((x - mean) @ weights["in"])
        if learning:
            keep = jax.random.bernoulli(key, 1 - self.drop, h.shape)
            h = jnp.where(keep, h / (1 - self.drop), 0)
        return h @ weights["out"] + weights["bias"], running


# --- its adapter ------------------------------------------------------------------------------


class PebbleModel(compat.Model):
    """Three fields of arrays, the network as a static field, and a call."""

    params: dict
    frozen: dict | None
    state: dict
    network: compat.Static = eqx.field(static=True)

    def __init__(self, network, example, *, key):
        weights, running = network.start(key, example)
        self.params, self.frozen = compat.split_params(weights)
        self.state = solstice.tree.owned(running)
        self.network = compat.Static(network)

    def __call__(self, *inputs, key=None, train=False, **kwargs):
        train = compat.check_train(train, "PebbleModel")
        if train and key is None:
            raise compat.missing_key("PebbleModel")
        key = compat.single_key(key, "PebbleModel")
        weights = compat.join_params(self)
        outputs, running = self.network.value.forward(
            weights, self.state, *inputs, key, train, **kwargs
        )
        return outputs, solstice.replace(self, state=running) if train else self

    def unwrap(self):
        return compat.join_params(self), self.state


compat.register(Pebble, lambda network, example, key: PebbleModel(network, example, key=key))


# --- and its use ------------------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    handwriting.add_flags(parser, epochs=20)
    parser.add_argument("--examples", type=int, default=5, help="that each law is checked on")
    options = parser.parse_args(arguments)

    (x, y), (x_test, y_test) = handwriting.load(options.dataset)
    x, x_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    train_ds, test_ds = handwriting.batched(x, y), [(x_test, y_test)]

    network = Pebble(hidden=64, outputs=10)
    report = check_model(
        lambda key: compat.as_model(network, x[:1], key=key),
        x[:8],
        examples=options.examples,
        progress=True,
    )
    print(report)

    exp = solstice.ClassificationExperiment(network, optax.adam(3e-3), example_input=x[:1], key=0)
    exp = exp.train(options.epochs, train_ds)
    accuracy = exp.test(test_ds)["accuracy"]
    print(f"\ntest accuracy of a network of your own library: {accuracy:.3f}")
    if options.picture:
        probabilities = jax.nn.softmax(exp(x_test))
        solstice.plots.calibration(probabilities, y_test, bins=5).savefig(options.picture, dpi=200)
    return accuracy


if __name__ == "__main__":
    main()
