"""Kauldron's Trainer with its progress bar; it computes metrics at every hundredth step alone.

That is its default, and less than the others do: a loss and a confusion matrix of every step.
"""

import dataclasses
import itertools
import tempfile
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from kauldron import kd
from kauldron.data.iterators import NonCheckpointableIterator
from problems import CLASSES, LEARNING_RATE

from .hand import Network as Plain


class Network(nn.Module):
    widths: tuple
    channels: tuple = ()
    x: kd.kontext.Key = "batch.x"

    @nn.compact
    def __call__(self, x):
        return Plain(self.widths, self.channels)(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches(kd.data.Pipeline):
    batches: Any = None

    def __iter__(self):
        given = ({"x": x, "y": y[:, None]} for x, y in itertools.cycle(self.batches))
        return NonCheckpointableIterator(source=self, iter=given)


@dataclasses.dataclass(kw_only=True, frozen=True, eq=True)
class Confusion(kd.metrics.Metric):
    logits: kd.kontext.Key = "preds"
    labels: kd.kontext.Key = "batch.y"

    @flax.struct.dataclass
    class State(kd.metrics.AutoState):
        counts: jax.Array = kd.metrics.sum_field()

        def compute(self):
            return jnp.trace(self.counts) / self.counts.sum()

    def get_state(self, logits, labels):
        counts = jnp.zeros((CLASSES, CLASSES), jnp.int32)
        return self.State(counts=counts.at[labels[:, 0], logits.argmax(-1)].add(1))


def contenders(problem):
    loss = kd.losses.SoftmaxCrossEntropyWithIntLabels(logits="preds", labels="batch.y")
    trainer = kd.train.Trainer(
        train_ds=Batches(batches=problem.batches, batch_size=len(problem.batches[0][0])),
        model=Network(problem.widths, problem.channels),
        optimizer=optax.adam(LEARNING_RATE),
        train_losses={"loss": loss},
        train_metrics={"confusion": Confusion()},
        num_train_steps=len(problem.batches) - 1,  # it counts the first one, step 0, apart
        writer=None,
        profiler=None,
        workdir=tempfile.mkdtemp(),
    )

    def run():
        state, aux = trainer.train()
        jax.block_until_ready(state.params)
        return float(aux.compute().loss_values["loss"]) if aux.loss_states else float("nan")

    return {"Kauldron": run}
