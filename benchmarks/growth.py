"""How a run grows: with its steps, classes, parameter leaves and callbacks.

    python benchmarks/growth.py [--quick] [--write]

Each curve is microseconds a step of one warm `solstice.train` call, and the memory that the run
added: what the process holds after it beyond what it held after a first, short one. Four small
panels in a picture, one table. Times are the least of some, on a shared machine: the slope of a
curve says something, its height does not.
"""

import argparse
import gc
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pages
import picture
from tqdm import tqdm

import solstice

AXES = {
    "steps": [10, 100, 1000, 10_000, 100_000],
    "classes": [2, 10, 100, 1000, 10_000],
    "parameter leaves": [1, 10, 100, 1000],
    "callbacks": [0, 1, 5, 10, 20],
}


class Sums(solstice.Experiment):
    """Adds the batch to each of its leaves: a step that costs next to nothing."""

    leaves: list[jax.Array]
    classes: int

    @solstice.jit
    def train_step(self, batch):
        x, y = batch
        leaves = [leaf + x.mean() for leaf in self.leaves]
        track = "confusion" if self.classes <= 1000 else "totals"
        outs = solstice.ClassificationMetrics(y, y, 0.5, self.classes, track=track, per_class=False)
        return solstice.replace(self, leaves=leaves), outs

    def eval_step(self, batch):
        return self, None


class Watcher(solstice.Callback):
    """A user's: it looks at each step's index and not at the experiment."""

    needs_experiment = False

    def __init__(self):
        self.last = -1

    def on_step_end(self, outs, exp, global_step, mode, batch):
        self.last = global_step


def held():
    """Return the process's resident memory in MiB."""
    gc.collect()
    pages_held = int(Path("/proc/self/statm").read_text().split()[1])
    return pages_held * 4096 / 2**20


def measure(*, steps=1000, classes=10, leaves=4, callbacks=1, rounds=3):
    """Return microseconds a step and the MiB that a whole run added."""
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(32, 4)).astype("float32"), rng.integers(0, classes, 32, "int32")
    exp = Sums([jnp.full(8, float(i)) for i in range(leaves)], classes)

    def run(count):
        logging = solstice.LoggingCallback(logging_fn=lambda *_: None)
        watching = [logging, *(Watcher() for _ in range(callbacks))]
        start = time.perf_counter()
        trained = solstice.train(exp, 1, [batch] * count, callbacks=watching, progress=False)
        jax.block_until_ready(trained.leaves)
        return (time.perf_counter() - start) / count

    run(10), run(100)  # pyright: ignore[reportUnusedExpression]
    before = held()
    least = min(run(steps) for _ in range(rounds))
    return least * 1e6, held() - before


def settings(axis, value):
    """Return what is measured for one value of an axis, in a bounded time."""
    steps = value if axis == "steps" else 300
    if axis == "classes" and value >= 1000:
        steps = 50  # each of these steps has a matrix of 4 MB, or 10^4 counts three times
    name = {"parameter leaves": "leaves"}.get(axis, axis)
    return {"steps": steps, name: value, "rounds": 1 if steps > 10_000 else 3}


def table(found):
    lines = ["| | | us a step | MiB added |", "| --- | --- | --- | --- |"]
    for axis, rows in found.items():
        for value, (micros, mebibytes) in rows.items():
            lines.append(f"| {axis} | {value} | {micros:.0f} | {max(mebibytes, 0):.1f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the first two values of each axis")
    parser.add_argument(
        "--write", action="store_true", help="into the pages of benchmarks and docs"
    )
    options = parser.parse_args()
    found = {}
    for axis, every in AXES.items():
        found[axis] = {}
        for value in tqdm(every[:2] if options.quick else every, desc=axis, leave=False):
            found[axis][value] = measure(**settings(axis, value))
    text = table(found)
    print(text)
    picture.growth(found, pages.results() / "growth.png")
    if options.write:
        pages.write("growth", text)
        picture.growth(found, pages.IMAGES / "growth.png")


if __name__ == "__main__":
    main()
