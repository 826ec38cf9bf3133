"""A thousand small parameter leaves: Solstice, and leaves packed into one array, beside a loop.

    python benchmarks/leaves.py [--rounds 11] [--leaves 1000] [--steps 300]

Every contender takes the same steps of gradient descent in turn, and its time is divided by that of
the hand-written loop with the same leaves. The packed one carries a single array between the steps
and takes it apart within the compiled step: what an engine that packs small leaves would gain.
"""

import argparse
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import train
from tqdm import tqdm

import solstice

WIDTH = 8
REFERENCE = "hand-written loop"


def loss_of(leaves, x):
    return sum(jnp.mean((leaf - x) ** 2) for leaf in leaves)


def descended(leaves, x):
    loss, grads = jax.value_and_grad(loss_of)(leaves, x)
    return [leaf - 0.01 * grad for leaf, grad in zip(leaves, grads, strict=True)], loss


class Descent(solstice.Experiment):
    leaves: list[jax.Array]

    @solstice.jit
    def train_step(self, batch):
        leaves, loss = descended(self.leaves, batch)
        return solstice.replace(self, leaves=leaves), loss


def packed(array, x):
    leaves, loss = descended(list(array), x)
    return jnp.stack(leaves), loss


def by_hand(step, start, batches):
    compiled = jax.jit(step, donate_argnums=0)

    def run():
        carried = jax.device_put(start, may_alias=False)
        for x in batches:
            carried, loss = compiled(carried, x)
        jax.block_until_ready((carried, loss))

    return run


def contenders(number, batches):
    start = [jnp.full(WIDTH, float(i)) for i in range(number)]
    exp = Descent(start)

    def ours():
        jax.block_until_ready(solstice.train(exp, 1, batches, progress=False).leaves)

    return {
        REFERENCE: by_hand(descended, start, batches),
        "solstice": ours,
        "packed by hand": by_hand(packed, jnp.stack(start), batches),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--leaves", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    batches = list(rng.normal(size=(options.steps, WIDTH)).astype("float32"))
    turns = contenders(options.leaves, batches)
    for run in turns.values():
        run()
    ratios = {name: [] for name in turns}
    for _ in tqdm(range(options.rounds), leave=False):
        seconds = {}
        for name in random.sample(list(turns), len(turns)):
            start = time.perf_counter()
            turns[name]()
            seconds[name] = time.perf_counter() - start
        for name in turns:
            ratios[name].append(seconds[name] / seconds[REFERENCE])
    print(train.table({f"{options.leaves} leaves": ratios}, {}))


if __name__ == "__main__":
    main()
