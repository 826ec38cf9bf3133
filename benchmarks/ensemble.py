"""Sixty-four tiny networks as one ensemble against as many warm runs one after another.

    python benchmarks/ensemble.py [--rounds 9] [--members 64] [--seconds 300]

Both train by `solstice.train`, on the same batches, once to warm up; compile time is apart. In each
round both train in turn, and the ensemble's time is divided by that of all the single runs. Then
`DataParallel()` on one device in turn with a run without it. Printed as a table: the median of the
ratios, the least and the largest, and the most that the median may be; and how often the ensemble's
step was compiled. Each line ends after its share of the seconds, with the rounds that it has by
then. On a machine with a GPU, jax takes that; the first line names the device.
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


def compared(one, other, rounds, share):
    """Return the ratios of two timings, taken in turn until the rounds or the seconds are over."""
    end = time.perf_counter() + share
    ratios = [one() / other()]
    while len(ratios) < rounds and time.perf_counter() < end:
        ratios.append(one() / other())
    return ratios


def tell(name, bar, ratios):
    median, least, most = statistics.median(ratios), min(ratios), max(ratios)
    measured = f"{median:.3f} ({least:.3f} to {most:.3f}) | {len(ratios)}"
    verdict = "met" if median <= bar else "missed"
    print(f"| {name} | {measured} | {bar} | {verdict} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    rounds, share = options.rounds, options.seconds / 3
    keys = jax.random.split(jax.random.key(0), options.members)
    device = jax.devices()[0]
    print(f"{options.members} networks {FEATURES}-{HIDDEN}-{CLASSES} on {device.device_kind}\n")
    print("| time divided by that without | median (least to most) | rounds | bar | |")
    print("| --- | --- | --- | --- | --- |")
    # One structure for all, so that the single runs share a compilation.
    ensemble = solstice.Ensemble.init(make, keys)
    singles = [ensemble.member(i) for i in range(options.members)]
    step, compilations = solstice.Ensemble.train_step, {}
    for batch in (8, 128):
        ds, before = data(batch, options.steps), step.traces
        for exp in (ensemble, singles[0]):
            seconds(exp, ds)  # compiles
        ratios = compared(
            lambda ds=ds: seconds(ensemble, ds),
            lambda ds=ds: sum(seconds(one, ds) for one in singles),
            rounds,
            share,
        )
        tell(f"ensemble, batch {batch}", 1.15, ratios)
        compilations[batch] = step.traces - before
    sharding = solstice.sharding.DataParallel(jax.sharding.Mesh([device], ("data",)))
    ds = data(128, 20 * options.steps)
    for placement in (sharding, None):
        seconds(singles[0], ds, sharding=placement)
    ratios = compared(
        lambda: seconds(singles[0], ds, sharding=sharding),
        lambda: seconds(singles[0], ds),
        rounds,
        share,
    )
    tell("`DataParallel()` on one device", 1.05, ratios)
    print(f"\nThe ensemble's step was compiled so often, by batch size: {compilations}")


if __name__ == "__main__":
    main()
