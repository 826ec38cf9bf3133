"""What pyright makes out of a program with few types; mypy, which infers no results, does not."""

from typing import Any, assert_type

import jax

import solstice

Batch = tuple[jax.Array, jax.Array]


class Fit(solstice.experiments.Runnable):
    weight: jax.Array

    @solstice.jit
    def train_step(self, batch: Batch):
        return solstice.replace(self, weight=self.weight + batch[0]), batch[1]

    @solstice.jit
    def eval_step(self, batch: Batch):
        return self, solstice.metrics.Mean(batch[1])


def main(exp: Fit, batch: Batch) -> dict[str, Any]:
    assert_type(exp.train_step(batch), tuple[Fit, jax.Array])
    assert_type(Fit.train_step(exp, batch), tuple[Fit, jax.Array])
    assert_type(exp.eval_step(batch)[1], solstice.metrics.Mean)
    assert_type(exp.train(2, [batch], steps_per_call=2), Fit)
    return exp.test([batch])
