"""bobbin's TrainTask and its step, in an environment of its own, without its CronTab.

bobbin leaves metrics to the loop that its users write; here they are summed by a compiled call. Its
CronTab, which logs, takes several times as long as a small step.
"""

import bobbin
import jax
import jax.numpy as jnp
import numpy as np
import optax
from problems import CLASSES, LEARNING_RATE

from .hand import Network


class Task(bobbin.TrainTask):
    def compute_loss(self, params, batch, *, extra_vars, prng_key, step):
        x, y = batch
        logits = self.model.apply({"params": params}, x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        confusion = jnp.zeros((CLASSES, CLASSES), jnp.int32).at[y, logits.argmax(-1)].add(1)
        return losses.mean(), ({}, confusion)


def contenders(problem):
    task = Task(Network(problem.widths, problem.channels), [problem.batches[0][0]])
    start = task.initialize_train_state(jax.random.key(0), optax.adam(LEARNING_RATE))
    key = jax.random.key(1)
    # Its own jit() passes jax.jit an argument that is about to go.
    step = jax.jit(task.make_training_step_fn().make_base_step_fn(), donate_argnums=0)
    add = jax.jit(lambda total, new: jax.tree.map(jnp.add, total, new), donate_argnums=0)

    def run():
        state = jax.device_put(start, may_alias=False)
        total = jnp.zeros(()), jnp.zeros((CLASSES, CLASSES), jnp.int32)
        for batch in problem.batches:
            state, info = step(state, batch, key)
            total = add(total, (info.loss, info.loss_aux_out))
        np.asarray(total[1])
        jax.block_until_ready(state)
        return float(total[0]) / len(problem.batches)

    return {"bobbin": run}
