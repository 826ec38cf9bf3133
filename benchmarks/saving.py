"""What checkpoints cost a run: the ratio with and without them, and for how long a save blocks.

    python benchmarks/saving.py [--rounds 15] [--parameters 50] [--directory DIR]

The tiny MLP trains 6000 steps with a checkpoint every 100, with one at the end and without any, in
turn; in each round the times are divided by the last. Then, for so many millions of parameters, the
time that a save takes of the training thread, divided by that of a copy of the same arrays.
Printed: the medians, the least and the largest. It takes about a minute; the directory should be on
the disk that checkpoints go to.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems

import solstice
from solstice.triggers import Every


def told(name, ratios, unit=""):
    median, least, most = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{name}: {median:.3f}{unit} ({least:.3f} to {most:.3f})", flush=True)


def train_ratio(rounds, parent):
    batches = problems.all_problems()["tiny"].batches * 4
    net = eqx.nn.MLP(64, 10, 128, 1, key=jax.random.key(0))
    exp = solstice.ClassificationExperiment(net, optax.adam(1e-3), num_classes=10)

    def seconds(every=None):
        directory = tempfile.mkdtemp(dir=parent)
        saving = [solstice.CheckpointingCallback(directory, every=every)] if every else []
        start = time.perf_counter()
        trained = exp.train(1, batches, callbacks=saving, progress=False)
        jax.block_until_ready(jax.tree.leaves(trained))
        taken = time.perf_counter() - start
        shutil.rmtree(directory)
        return taken

    every = {"every 100 steps": Every(steps=100), "at the end only": Every(steps=10**6)}
    for _ in range(2):
        seconds()
        seconds(every["every 100 steps"])
    ratios = {name: [] for name in every}
    order = [None, *every]
    for _ in range(rounds):
        random.shuffle(order)  # what comes first in each round would be another thing
        taken = {name: seconds(every.get(name)) for name in order}
        for name, found in ratios.items():
            found.append(taken[name] / taken[None])
    for name, found in ratios.items():
        told(f"with a checkpoint {name} / without, {len(batches)} steps", found)


def blocking(millions, rounds, parent):
    width = 4096
    count = -(-millions * 10**6 // width**2)
    tree = {f"w{i}": jnp.full((width, width), 1.0 + i) for i in range(count)}
    arrays = jax.block_until_ready(list(tree.values()))
    size = sum(array.nbytes for array in arrays)
    directory = tempfile.mkdtemp(dir=parent)
    saving = solstice.CheckpointingCallback(directory, keep=1)
    taken, copies = [], []
    targets = [np.empty_like(array) for array in arrays]
    for _ in range(rounds):
        start = time.perf_counter()
        saving.save(tree, lambda: dict)
        middle = time.perf_counter()
        saving.wait()  # what another save would wait for is not this one's
        begin = time.perf_counter()
        for target, array in zip(targets, arrays, strict=True):
            np.copyto(target, array)
        copies.append(time.perf_counter() - begin)
        taken.append(middle - start)
    shutil.rmtree(directory)
    print(f"{len(tree) * width**2 / 1e6:.0f}M parameters, {size / 2**20:.0f} MiB")
    told("a save blocks, in copies", [a / b for a, b in zip(taken, copies, strict=True)])
    told("a copy, GiB/s", [size / 2**30 / seconds for seconds in copies])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--parameters", type=int, default=50, help="in millions")
    parser.add_argument("--directory", default=None, help="where checkpoints go for the while")
    options = parser.parse_args()
    print(f"On {jax.devices()[0].device_kind}, jax {jax.__version__}, {options.rounds} rounds")
    train_ratio(options.rounds, options.directory)
    blocking(options.parameters, max(5, options.rounds // 3), options.directory)


if __name__ == "__main__":
    main()
