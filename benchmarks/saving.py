"""What checkpoints cost a run: the ratio with and without them, and what one save takes.

    python benchmarks/saving.py [--rounds 11] [--parameters 50] [--directory DIR]

The tiny MLP trains for some seconds with a save every 2 s, with one at the end and without any, in
shuffled order; in each round the times are divided by that without. Then: for so many millions of
parameters, how long a save keeps the training thread, divided by the time of a copy of the same
arrays; and for 13 and 1000 small arrays and 200 MB, the time and the processor time of a save.
Printed: the medians, the least and the largest. The directory should be on the disk that holds
checkpoints.
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
    batches = problems.all_problems()["tiny"].batches * 40
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

    every = {"every 2 s": Every(seconds=2), "at the end only": Every(steps=10**7)}
    seconds()
    seconds(every["every 2 s"])
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


def save_costs(rounds, parent):
    trees = {
        "13 small arrays": {f"w{i}": jnp.ones((64, 32)) for i in range(13)},
        "1000 small arrays": {f"w{i}": jnp.ones((8, 8)) + i for i in range(1000)},
        "200 MB": {f"w{i}": jnp.full((5000, 1000), 1.0 + i) for i in range(10)},
    }
    for name, tree in trees.items():
        directory = tempfile.mkdtemp(dir=parent)
        saving = solstice.CheckpointingCallback(directory, keep=1)
        wall, cpu = [], []
        for _ in range(rounds + 1):
            start, processor = time.perf_counter(), time.process_time()
            saving.save(tree, lambda: dict)
            saving.wait()
            wall.append(1000 * (time.perf_counter() - start))
            cpu.append(1000 * (time.process_time() - processor))
        shutil.rmtree(directory)
        told(f"a save of {name} takes, in ms", wall[1:])  # the first describes the leaves
        told(f"a save of {name} takes of processors, in ms", cpu[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--parameters", type=int, default=50, help="in millions")
    parser.add_argument("--directory", default=None, help="where checkpoints go for the while")
    options = parser.parse_args()
    print(f"On {jax.devices()[0].device_kind}, jax {jax.__version__}, {options.rounds} rounds")
    train_ratio(options.rounds, options.directory)
    blocking(options.parameters, max(5, options.rounds // 3), options.directory)
    save_costs(options.rounds, options.directory)


if __name__ == "__main__":
    main()
