"""flax nnx: nnx.jit, nnx.Optimizer, nnx.MultiMetric."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from problems import CLASSES, LEARNING_RATE


class Network(nnx.Module):
    def __init__(self, shape, widths, channels, rngs):
        self.convs, self.denses = nnx.List(), nnx.List()
        for n in channels:
            self.convs.append(nnx.Conv(shape[-1], n, (3, 3), rngs=rngs))
            shape = (shape[0] // 2, shape[1] // 2, n)
        size = 1
        for n in shape:
            size *= n
        for n in widths:
            self.denses.append(nnx.Linear(size, n, rngs=rngs))
            size = n

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for dense in self.denses[:-1]:
            x = nnx.relu(dense(x))
        return self.denses[-1](x)


class Confusion(nnx.Metric):
    def __init__(self):
        self.counts = nnx.metrics.MetricState(jnp.zeros((CLASSES, CLASSES), jnp.int32))

    def reset(self):
        self.counts[...] = jnp.zeros((CLASSES, CLASSES), jnp.int32)

    def update(self, *, logits, labels, **_):
        self.counts[...] = self.counts[...].at[labels, logits.argmax(-1)].add(1)

    def compute(self):
        return self.counts[...]


def contenders(problem):
    shape = problem.batches[0][0].shape[1:]
    network = Network(shape, problem.widths, problem.channels, nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, optax.adam(LEARNING_RATE), wrt=nnx.Param)
    collected = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), confusion=Confusion())

    @nnx.jit
    def step(network, optimizer, collected, x, y):
        def loss_of(network):
            logits = network(x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), logits

        (loss, logits), grads = nnx.value_and_grad(loss_of, has_aux=True)(network)
        optimizer.update(network, grads)
        collected.update(loss=loss, logits=logits, labels=y)

    def run():
        collected.reset()
        for x, y in problem.batches:
            step(network, optimizer, collected, x, y)
        result = float(collected.compute()["loss"])
        jax.block_until_ready(nnx.state(network))
        return result

    return {"flax nnx": run}
