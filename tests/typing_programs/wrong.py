"""Mistakes, each with what pyright says of its line."""

from typing import Any, Self

import jax

import solstice


class Fit(solstice.experiments.Runnable):
    weight: jax.Array

    @solstice.jit
    def train_step(self, batch: tuple[jax.Array, jax.Array]) -> tuple[Self, jax.Array]:
        return self, batch[0]


class NoPair(solstice.Experiment):
    @solstice.jit
    def train_step(self, batch: Any):  # in an incompatible manner
        return self


class NoBatch(solstice.Experiment):
    @solstice.jit  # Function accepts too few positional parameters
    def train_step(self) -> tuple[Self, None]:  # Positional parameter count mismatch
        return self, None


class Watch(solstice.Callback):
    def on_epoch_end(self, exp: Fit, epoch: str, mode: str) -> None:  # Parameter 3 type mismatch
        if mode == "train":
            exp.train_step(epoch)  # "str" is not assignable to "tuple[Array, Array]"

    def on_step_start(self, exp: Fit, global_step: int, mode: str) -> None:  # count mismatch
        print(exp.wieght)  # Cannot access attribute "wieght"


def run(exp: Fit, x: jax.Array, anything: Any) -> None:
    exp.train(num_epoch=2, train_ds=[x])  # No parameter named "num_epoch"
    exp.train(2, [x], progres=False)  # No parameter named "progres"
    exp.train("2", [x])  # "Literal['2']" is not assignable to "int"
    exp.train(2, [x], callbacks=[print])  # is not assignable to "Callback"
    exp.test([x], return_outs=True)  # No parameter named "return_outs"
    solstice.train(exp, 2, [x], steps_per_calls=4)  # No parameter named "steps_per_calls"
    solstice.train(exp, 2, [x], recompile="never")  # "Literal['never']" is not assignable to type
    solstice.predict(anything, [x], batch_size=2)  # No parameter named "batch_size"
    exp.train_step((x, x), train=True)  # No parameter named "train"
    Fit.train_step((x, x))  # Argument missing for parameter "batch"
    solstice.ClassificationExperiment(anything, anything, classes=2)  # No parameter named "classes"
    solstice.ClassificationExperiment(anything, anything, track="all")  # is not assignable
    solstice.compat.FlaxModle  # is not a known attribute of module
