"""Sixty-four tiny networks as one ensemble against as many warm runs one after another.

    python benchmarks/ensemble.py [--rounds 5] [--members 64]

Both train by `solstice.train`, on the same batches, once to warm up; compile time is apart. In each
round both train in turn, and the ensemble's time is divided by that of all the single runs.
Printed: the median of the ratios, the least and the largest, how often the ensemble's step was
traced; and of `DataParallel()` on one device the same against a run without it.
"""

import argparse
import statistics
import time

import equinox as eqx
import jax
import numpy as np
import optax

import solstice

FEATURES, HIDDEN, CLASSES = 64, 128, 10


def make(key):
    net = eqx.nn.MLP(FEATURES, CLASSES, HIDDEN, 1, key=key)
    return solstice.ClassificationExperiment(net, TX, num_classes=CLASSES)


TX = optax.adam(1e-3)


def data(batch, steps):
    rng = np.random.default_rng(0)
    return [
        (
            rng.normal(size=(batch, FEATURES)).astype("float32"),
            rng.integers(0, CLASSES, batch).astype("int32"),
        )
        for _ in range(steps)
    ]


def seconds(exp, ds, **options):
    start = time.perf_counter()
    trained = exp.train(1, ds, progress=False, **options)
    jax.block_until_ready(jax.tree.leaves(trained))
    return time.perf_counter() - start


def told(name, ratios):
    median, least, most = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{name}: {median:.3f} ({least:.3f} to {most:.3f})", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), options.members)
    device = jax.devices()[0]
    print(f"{options.members} networks {FEATURES}-{HIDDEN}-{CLASSES} on {device.device_kind}")
    # One structure for all, so that the single runs share a compilation.
    ensemble = solstice.Ensemble.init(make, keys)
    singles = [ensemble.member(i) for i in range(options.members)]
    step = solstice.Ensemble.train_step
    for batch in (8, 128):
        ds = data(batch, options.steps)
        before = step.traces
        seconds(ensemble, ds), seconds(singles[0], ds)  # pyright: ignore[reportUnusedExpression]
        ratios = []
        for _ in range(options.rounds):
            together = seconds(ensemble, ds)
            ratios.append(together / sum(seconds(one, ds) for one in singles))
        told(f"batch {batch}, ensemble to single runs", ratios)
        print(f"batch {batch}, compilations of the ensemble's step: {step.traces - before}")
    sharding, ratios = solstice.sharding.DataParallel(jax.sharding.Mesh([device], ("data",))), []
    ds = data(128, 20 * options.steps)
    for _ in range(options.rounds + 1):
        ratios.append(seconds(singles[0], ds, sharding=sharding) / seconds(singles[0], ds))
    told("DataParallel on one device to none", ratios[1:])


if __name__ == "__main__":
    main()
