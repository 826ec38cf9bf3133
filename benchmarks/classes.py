"""What ClassificationMetrics costs a step, from 2 to 10^4 classes.

    python benchmarks/classes.py

For each number of classes, a jitted step makes the metrics of one batch and merges them into a
running total, once with the confusion matrix and once with the totals alone. Beside them: the
matrix as a product of one-hot matrices, the usual way. Times are the least of many, on a shared
machine; memory is what XLA says the compiled step needs beside its inputs.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from solstice import ClassificationMetrics


def one_hot(total, preds, targets, num_classes):
    rows, columns = (jax.nn.one_hot(labels, num_classes) for labels in (targets, preds))
    return total + (rows.T @ columns).astype(jnp.int32)


def tracked(total, preds, targets, num_classes, track):
    return total.merge(ClassificationMetrics(preds, targets, 0.5, num_classes, track=track))


def contenders(preds, targets, num_classes):
    for track in ("confusion", "totals"):
        total = ClassificationMetrics(preds, targets, 0.5, num_classes, track=track)
        yield track, functools.partial(tracked, num_classes=num_classes, track=track), total
    zeros = jnp.zeros((num_classes, num_classes), jnp.int32)
    yield "one-hot", functools.partial(one_hot, num_classes=num_classes), zeros


def measure(step, total, batch, rounds):
    """Return microseconds a step, and mebibytes."""
    compiled = jax.jit(step, donate_argnums=0).lower(total, *batch).compile()
    needs = compiled.memory_analysis()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        total = jax.block_until_ready(compiled(total, *batch))
        times.append(time.perf_counter() - start)
    memory = needs.temp_size_in_bytes + needs.output_size_in_bytes
    return min(times) * 1e6, memory / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    names = ("confusion", "totals", "one-hot")
    print("| classes |" + "".join(f" {name}, us | MiB |" for name in names))
    print("| --- |" + " --- | --- |" * len(names))
    for num_classes in tqdm([2, 10, 100, 1000, 10_000], leave=False):
        labels = np.random.default_rng(0).integers(0, num_classes, (2, options.batch))
        batch = tuple(map(jnp.asarray, labels))
        cells = []
        for _, step, total in contenders(*batch, num_classes):
            micros, mebibytes = measure(step, total, batch, options.rounds)
            cells.append(f" {micros:.0f} | {mebibytes:.3f} |")
        tqdm.write(f"| {num_classes} |" + "".join(cells))


if __name__ == "__main__":
    main()
