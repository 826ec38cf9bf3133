"""What watching costs: whole train calls of the tiny MLP, as ratios to one without callbacks.

    python benchmarks/watching.py [--rounds 15] [--steps 8000] [--output benchmarks/results]

In each round every row trains one warm epoch, in turn, and its time is divided by that of the row
that watches nothing. Printed: the median of the ratios, the least and the largest. The bar is drawn
in a pseudo-terminal, the sinks write to new files of their own. A round takes about 5 s; a short
epoch shows what opening and closing the files costs.
"""

import argparse
import contextlib
import fcntl
import os
import pty
import random
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

import jax
import problems
from contenders.ours import experiment
from tqdm import tqdm

import solstice
from solstice import loggers

REFERENCE = "nothing"
EVERY = 50


@contextlib.contextmanager
def terminal():
    """Standard error as a terminal that somebody reads."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    before, sys.stderr = sys.stderr, os.fdopen(theirs, "w", buffering=1, encoding="utf-8")
    reader = threading.Thread(target=_read, args=[ours])
    reader.start()
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = before
        reader.join()
        os.close(ours)


def _read(end):
    with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
        while os.read(end, 65536):
            pass


def logging(*make):
    def callbacks():
        directory = Path(tempfile.mkdtemp(dir=_FILES.name))
        return [solstice.LoggingCallback(EVERY, [one(directory) for one in make])]

    return callbacks


_FILES = tempfile.TemporaryDirectory()


def json_lines(directory):
    return loggers.JSONLines(directory / "log.jsonl")


def tensorboard(directory):
    return loggers.TensorBoard(directory / "tensorboard")


ROWS = {
    REFERENCE: (False, list),
    "the bar": (True, list),
    "JSON lines": (False, logging(json_lines)),
    "TensorBoard": (False, logging(tensorboard)),
    "the bar, JSON lines and TensorBoard": (True, logging(json_lines, tensorboard)),
}


def seconds(exp, batches, progress, callbacks):
    made = callbacks()
    with terminal():
        start = time.perf_counter()
        trained = solstice.train(exp, 1, batches, callbacks=made, progress=progress)
        jax.block_until_ready(jax.tree.leaves(trained))
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, nargs="*", default=[1000, 8000])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    problem = problems.make("MLP 64-128-10", (64,), (128, problems.CLASSES), steps=1000)
    exp = experiment(problem)
    columns = {}
    for steps in options.steps:
        batches = (problem.batches * -(-steps // 1000))[:steps]
        ratios = {name: [] for name in ROWS}
        order = list(ROWS)
        for name in order:
            seconds(exp, batches, *ROWS[name])
        for _ in tqdm(range(options.rounds), desc=f"{steps} steps", leave=False):
            random.shuffle(order)
            took = {name: seconds(exp, batches, *ROWS[name]) for name in order}
            for name in ROWS:
                ratios[name].append(took[name] / took[REFERENCE])
        columns[steps] = ratios
    lines = [f"| | {' | '.join(f'{steps} steps' for steps in columns)} |"]
    lines.append(f"| --- |{' --- |' * len(columns)}")
    for name in ROWS:
        found = [columns[steps][name] for steps in columns]
        cells = [f"{statistics.median(f):.2f} ({min(f):.2f}-{max(f):.2f})" for f in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = f"{problem.title}, logged every {EVERY} steps, {options.rounds} rounds:\n\n"
    text += "\n".join(lines) + "\n"
    print(text)
    (options.output / "watching.md").write_text(text)


if __name__ == "__main__":
    main()
