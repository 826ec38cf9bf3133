"""What a run costs before its first step, and the memory it takes, each in a process of its own.

    python benchmarks/cold.py [--rounds 5] [--quick] [--write]

Printed: import time; time to the first step (building the experiment or the carry, tracing,
compiling, one step) and peak memory at 50 million parameters, as ratios to the hand-written loop.
"""

import argparse
import statistics
import subprocess
import sys

import pages
from tqdm import tqdm

IMPORT = """
import time; start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""

FIRST_STEP = """
import sys, time
sys.path.insert(0, "benchmarks")
import problems
from contenders import {module}
import dataclasses
problem = problems.all_problems(0.01)["{problem}"]
problem = dataclasses.replace(problem, batches=problem.batches[:1])
start = time.perf_counter()
run = {make}
run()
print(time.perf_counter() - start)
"""

# 50 million parameters: two hidden layers of 6956; adam keeps two numbers more of each.
MEMORY = """
import resource, sys
sys.path.insert(0, "benchmarks")
import problems
from contenders import hand, ours
import jax
jax.numpy.zeros(()).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
problem = problems.make("large", (64,), (6956, 6956, 10), batch=8, steps=3)
run = {make}
run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""

STEPS = {
    "hand-written loop": ("hand", "hand.loop(problem)"),
    "solstice": ("ours", "ours.run_with(ours.experiment(problem), problem)"),
}
MEMORIES = {
    "hand-written loop": "hand.loop(problem)",
    "solstice": "ours.run_with(ours.experiment(problem), problem)",
    "solstice, donate=True": "ours.run_with(ours.experiment(problem), problem, donate=True)",
}


def measure(code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=pages.ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def rounds(count, codes, what):
    found = {name: [] for name in codes}
    for _ in tqdm(range(count), desc=what, leave=False):
        for name, code in codes.items():
            found[name].append(measure(code))
    return found


def ratio(found, name):
    """Return the median of the rounds' ratios to the hand-written loop, the least and largest."""
    pairs = zip(found[name], found["hand-written loop"], strict=True)
    ratios = [value / of_hand for value, of_hand in pairs]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, of the tiny network")
    parser.add_argument(
        "--write", action="store_true", help="into the pages of benchmarks and docs"
    )
    options = parser.parse_args()
    sizes = ("tiny",) if options.quick else ("tiny", "mlp", "cnn")
    if options.quick:
        options.rounds = 1
    lines = [
        "| | hand-written loop | solstice | solstice, donate=True |",
        "| --- | --- | --- | --- |",
    ]
    modules = {module: IMPORT.format(module=module) for module in ("jax", "equinox", "solstice")}
    found = rounds(options.rounds, modules, "imports")
    seconds = ", ".join(
        f"{name} {statistics.median(values):.2f} s" for name, values in found.items()
    )
    for problem in sizes:
        codes = {
            name: FIRST_STEP.format(module=module, make=make, problem=problem)
            for name, (module, make) in STEPS.items()
        }
        found = rounds(options.rounds, codes, f"first step, {problem}")
        lines.append(f"| first step, {problem} | 1.00 | {ratio(found, 'solstice')} | |")
    codes = {name: MEMORY.format(make=make) for name, make in MEMORIES.items()}
    found = rounds(min(options.rounds, 3), codes, "memory")
    cells = f"{ratio(found, 'solstice')} | {ratio(found, 'solstice, donate=True')}"
    lines.append(f"| peak memory, 50M parameters | 1.00 | {cells} |")
    text = "\n".join([f"Import: {seconds}.", "", *lines])
    print(text)
    (pages.results() / "cold.md").write_text(text)
    if options.write:
        pages.write("cold", text)


if __name__ == "__main__":
    main()
