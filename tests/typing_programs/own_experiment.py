"""An experiment, a metric and a callback of one's own, with their types written down."""

from collections.abc import Callable
from typing import Any, Literal, Self, assert_type

import jax
import jax.numpy as jnp

import solstice
from solstice.loggers import Sink
from solstice.triggers import Every

Batch = tuple[jax.Array, jax.Array]


class Error(solstice.Metrics):
    total: jax.Array
    count: int

    def merge(self, other: Self) -> Self:
        return solstice.replace(self, total=self.total + other.total)

    def compute(self) -> dict[str, jax.Array]:
        return {"error": self.total / self.count}


class Fit(solstice.Experiment):
    weight: jax.Array

    @solstice.jit
    def train_step(self, batch: Batch) -> tuple[Self, jax.Array]:
        x, y = batch
        slope = 2 * x.T @ (x @ self.weight - y)
        return solstice.replace(self, weight=self.weight - 0.1 * slope), slope

    @solstice.jit
    def eval_step(self, batch: Batch) -> tuple["Fit", Error]:
        x, y = batch
        return self, Error(jnp.square(x @ self.weight - y).sum(), y.size)

    def predict(self, x: jax.Array) -> jax.Array:
        return x @ self.weight


class Watch(solstice.Callback):
    best: Fit | None = None

    def on_run_start(self, exp: Fit) -> None:
        assert_type(exp.weight, jax.Array)

    def on_step_start(self, exp: Fit, global_step: int, mode: str, batch: Batch) -> None:
        assert_type(exp.train_step(batch), tuple[Fit, jax.Array])

    def on_step_end(self, outs: Error, exp: Fit, global_step: int, mode: str, batch: Batch) -> None:
        print(outs.compute()["error"])

    def on_epoch_end(self, exp: Fit, epoch: int, mode: Literal["train", "val", "test"]) -> None:
        self.best = solstice.snapshot(exp)


class LogMore(solstice.LoggingCallback):
    def on_epoch_end(self, exp: Fit, epoch: int, mode: str) -> None:
        super().on_epoch_end(exp, epoch, mode)


class Lines(Sink):
    def on_write(self, record: dict[str, Any]) -> None:
        print(record["step"])


def evaluate(exp: Fit, batch: Batch, key: jax.Array) -> tuple[Fit, Error]:
    return exp.eval_step(batch)


def look(exp: Fit, step: int) -> float:
    return float(exp.weight.sum())


def plateau(outs: list[Error]) -> bool:
    return bool(solstice.reduce(outs).compute()["error"] < 0.1)


def log(metrics: dict[str, Any], step: int, mode: str) -> None:
    print(metrics, step, mode)


def main(exp: Fit, batch: Batch) -> None:
    assert_type(exp.train_step(batch), tuple[Fit, jax.Array])
    assert_type(Fit.train_step(exp, batch), tuple[Fit, jax.Array])
    step: Callable[[Batch], tuple[Fit, jax.Array]] = exp.train_step
    assert_type(step(batch)[0].weight, jax.Array)
    callbacks = [
        Watch(),
        LogMore(logging_fn=[log, Lines("lines")], when=Every(steps=5)),
        solstice.EvaluationCallback(evaluate, {"test": [batch]}, when=Every(epochs=1)),
        solstice.ScheduledCallback(look, Every(steps=2)),
        solstice.EarlyStoppingCallback(plateau),
    ]
    trained = solstice.train(exp, 3, [batch], [batch], callbacks, recompile="error")
    assert_type(trained, Fit)
    assert_type(solstice.train(trained, None, [batch], num_steps=3), Fit)
    assert_type(solstice.restore("checkpoints", trained, "best"), Fit)
    assert_type(trained.predict(batch[0]), jax.Array)
