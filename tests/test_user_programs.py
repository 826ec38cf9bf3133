"""Two programs as users have written them for this interface; they must run as they are."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import solstice


class RandomClassifier(solstice.Experiment):
    """Guesses; a raw key as a field, plain jax.jit on the steps, float predictions."""

    rng: jax.Array

    def __init__(self, seed: int):
        self.rng = jax.random.PRNGKey(seed)

    @jax.jit
    def train_step(self, batch):
        _, y = batch
        rng, sub = jax.random.split(self.rng)
        preds = jnp.round(jax.random.uniform(sub, y.shape))
        metrics = solstice.ClassificationMetrics(preds, y, loss=jnp.nan, num_classes=2)
        return solstice.replace(self, rng=rng), metrics

    @jax.jit
    def eval_step(self, batch):
        return self.train_step(batch)


def test_a_random_binary_classifier():
    rng = np.random.default_rng(0)
    ds = [(rng.normal(size=(32, 4)), rng.integers(0, 2, 32)) for _ in range(20)]
    logs = []
    exp = RandomClassifier(0)
    trained = solstice.train(
        exp,
        num_epochs=1,
        train_ds=ds,
        val_ds=ds,
        callbacks=[solstice.LoggingCallback(logging_fn=lambda *log: logs.append(log))],
    )
    assert trained.rng.tolist() != exp.rng.tolist()
    assert [(step, mode) for _, step, mode in logs] == [(0, "train"), (0, "val")]
    for metrics, _, _ in logs:
        assert 0.4 < metrics["accuracy"] < 0.6
        assert np.isnan(metrics["average_loss"])


class MeanSquares(solstice.Metrics):
    total: jax.Array
    count: jax.Array

    def merge(self, other):
        return MeanSquares(self.total + other.total, self.count + other.count)

    def compute(self):
        return {"mse": self.total / self.count}


class Regression(solstice.Experiment):
    """Fields hold plain functions and an optax transformation; eqx.filter_jit on the steps."""

    params: Any
    apply: Callable
    activation: Callable
    tx: optax.GradientTransformation
    opt_state: Any

    @eqx.filter_jit
    def train_step(self, batch):
        x, y = batch

        def loss_fn(params):
            return jnp.mean((self.activation(self.apply(params, x)) - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(self.params)
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        metrics = MeanSquares(loss * len(x), jnp.array(len(x)))
        return solstice.replace(self, params=params, opt_state=opt_state), metrics

    @eqx.filter_jit
    def eval_step(self, batch):
        x, y = batch
        error = self.activation(self.apply(self.params, x)) - y
        return self, MeanSquares(jnp.sum(error**2), jnp.array(len(x)))


def test_fields_of_functions_and_filter_jit():
    x = np.linspace(-1, 1, 64, dtype="float32")
    ds = [(x, np.tanh(3 * x + 0.5))] * 50
    tx = optax.adam(0.05)
    params = {"w": jnp.zeros(()), "b": jnp.zeros(())}
    exp = Regression(params, lambda p, x: p["w"] * x + p["b"], jnp.tanh, tx, tx.init(params))
    trained = solstice.train(exp, 6, ds)
    outs = solstice.test(trained, ds[:2], return_outs=True)
    assert solstice.reduce(outs).compute()["mse"] < 1e-3
    assert float(trained.params["w"]) == np.float32(trained.params["w"])
    assert exp.params["w"] == 0
