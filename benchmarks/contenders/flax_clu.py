"""flax's TrainState with clu's metrics, as flax's own examples have them."""

import flax
import jax
import jax.numpy as jnp
import optax
from clu import metrics
from flax.training.train_state import TrainState
from problems import CLASSES, LEARNING_RATE

from .hand import Network


@flax.struct.dataclass
class Confusion(metrics.Metric):
    counts: jax.Array

    @classmethod
    def from_model_output(cls, *, logits, labels, **_):
        return cls(jnp.zeros((CLASSES, CLASSES), jnp.int32).at[labels, logits.argmax(-1)].add(1))

    def merge(self, other):
        return self.replace(counts=self.counts + other.counts)

    def compute(self):
        return self.counts


@flax.struct.dataclass
class Collection(metrics.Collection):
    loss: metrics.Average.from_output("loss")
    confusion: Confusion


def contenders(problem):
    network = Network(problem.widths, problem.channels)
    params = network.init(jax.random.key(0), problem.batches[0][0])["params"]
    start = TrainState.create(apply_fn=network.apply, params=params, tx=optax.adam(LEARNING_RATE))

    def step(state, collected, x, y):
        def loss_of(params):
            logits = state.apply_fn({"params": params}, x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), logits

        (loss, logits), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        update = Collection.single_from_model_output(loss=loss, logits=logits, labels=y)
        return state.apply_gradients(grads=grads), collected.merge(update)

    compiled = jax.jit(step, donate_argnums=(0, 1))

    def run():
        state = jax.device_put(start, may_alias=False)
        confusion = Confusion(jnp.zeros((CLASSES, CLASSES), jnp.int32))
        average = metrics.Average(jnp.zeros(()), jnp.zeros(()))
        collected = Collection(
            _reduction_counter=metrics._ReductionCounter.empty(), loss=average, confusion=confusion
        )
        for x, y in problem.batches:
            state, collected = compiled(state, collected, x, y)
        result = float(collected.compute()["loss"])
        jax.block_until_ready(state)
        return result

    return {"flax TrainState + clu": run}
