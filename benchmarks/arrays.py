"""Time of whole arrays, shuffled and cut into batches, as ratios to a hand-written loop.

    python benchmarks/arrays.py [--rounds 11] [--epochs 4] [--only tiny mlp cnn] [--quick] [--write]

The loop draws a permutation in each epoch and gathers each batch, x[rows]. Every contender trains
the same network as many epochs on the same arrays, in turn, each by its own way with arrays, and
its time is divided by that of the loop in the same round. Printed: the median of the ratios, the
least and the largest. Absolute times mean nothing on a shared machine.
"""

import argparse
import functools
import importlib.util
import json
import random
import time

import jax
import numpy as np
import pages
import problems
import train
from contenders import hand, ours
from tqdm import tqdm

import solstice

REFERENCE = "hand-written loop, x[rows]"


def arrays(problem):
    """Return x and y of all batches, and how many examples a batch has."""
    x, y = (np.concatenate(parts) for parts in zip(*problem.batches, strict=True))
    return x, y, len(problem.batches[0][0])


def by_hand(problem, epochs):
    x, y, size = arrays(problem)
    rng = np.random.default_rng(0)

    def read():
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for i in range(0, len(x), size):
                rows = order[i : i + size]
                yield x[rows], y[rows]

    return {REFERENCE: hand.loop(problem, read)}


def trainers(problem, epochs):
    """Return what trains on arrays by itself."""
    x, y, size = arrays(problem)
    found, exp = {}, ours.experiment(problem)
    data = solstice.data.Arrays(x, y, batch_size=size, shuffle=0)
    for where, ds in {"": data, ".on_device()": data.on_device()}.items():
        for steps in (1, 10, "auto", "epoch"):
            options = {"num_epochs": epochs, "steps_per_call": steps}
            found[f"Arrays{where}, steps_per_call={steps!r}"] = ours.run_with(exp, ds, **options)
    if importlib.util.find_spec("keras"):
        from contenders import keras_fit

        for steps in (1, 10, 50):
            fit = keras_fit.compiled(problem, steps).fit
            options = {"batch_size": size, "epochs": epochs, "shuffle": True, "verbose": 0}
            found[f"Keras fit(x, y), steps_per_execution={steps}"] = functools.partial(
                fit, x, y, **options
            )
    return found


def readers(problem, epochs):
    """Return the hand-written loop with the readers of other libraries, in front of it."""
    x, y, size = arrays(problem)
    found = {}
    if importlib.util.find_spec("tensorflow"):
        import tensorflow as tf

        ds = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).batch(size).prefetch(2)
        found["tf.data, that loop"] = ds.as_numpy_iterator
    if importlib.util.find_spec("grain"):
        import grain

        rows = grain.MapDataset.source(range(len(x))).seed(0).shuffle()
        found["grain, that loop"] = rows.map(lambda i: (x[i], y[i])).batch(size).__iter__
    if importlib.util.find_spec("torch"):
        from torch import from_numpy
        from torch.utils.data import DataLoader, TensorDataset

        pairs = TensorDataset(from_numpy(x), from_numpy(y))
        loader = DataLoader(pairs, batch_size=size, shuffle=True)
        found["torch DataLoader, that loop"] = lambda: (map(np.asarray, pair) for pair in loader)

    def repeated(read):
        return lambda: (batch for _ in range(epochs) for batch in read())

    return {name: hand.loop(problem, repeated(read)) for name, read in found.items()}


def measure(problem, rounds, epochs):
    ratios = {}
    # The readers bring threads of their own, so they come after all the others; some are so slow
    # that one epoch is enough.
    for contenders, passes in ((trainers, epochs), (readers, 1)):
        turns = by_hand(problem, passes) | contenders(problem, passes)
        for run in turns.values():
            with train.unseen():
                run()
        for name in turns:
            ratios.setdefault(name, [])
        for _ in tqdm(range(rounds), desc=problem.title, leave=False):
            seconds = {}
            for name in random.sample(list(turns), len(turns)):
                with train.unseen():
                    start = time.perf_counter()
                    turns[name]()
                    seconds[name] = time.perf_counter() - start
            for name in turns:
                ratios[name].append(seconds[name] / seconds[REFERENCE])
    return ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--epochs", type=int, default=4, help="of about 0.2 s each")
    parser.add_argument(
        "--only", nargs="*", default=["tiny", "mlp", "cnn", "large"], help="problems"
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of a fifth of the steps")
    parser.add_argument(
        "--write", action="store_true", help="into the pages of benchmarks and docs"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds = 3
    results = {}
    for name, problem in problems.all_problems(0.2 if options.quick else 1.0).items():
        if name in options.only:
            results[problem.title] = measure(problem, options.rounds, options.epochs)
    device = jax.devices()[0]
    where = "two shared CPU cores" if device.platform == "cpu" else device.device_kind
    text = (
        f"On {where}, jax {jax.__version__}, {options.rounds} rounds: median (least-largest).\n\n"
    )
    text += train.table(results, {})
    print(text)
    (pages.results() / "arrays.json").write_text(json.dumps(results))
    if options.write:
        pages.write("arrays", text)


if __name__ == "__main__":
    main()
