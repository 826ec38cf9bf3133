"""What a run costs before its first step, and the memory it takes, each in a process of its own.

    python benchmarks/cold.py [--rounds 5] [--output benchmarks/results]

Printed: import time; time to the first step (building the experiment or the carry, tracing,
compiling, one step) and peak memory at 50 million parameters, as ratios to the hand-written loop.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def rounds(count, codes, what):
    found = {name: [] for name in codes}
    for _ in tqdm(range(count), desc=what, leave=False):
        for name, code in codes.items():
            found[name].append(measure(code))
    return {name: statistics.median(values) for name, values in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    lines = [
        "| | hand-written loop | solstice | solstice, donate=True |",
        "| --- | --- | --- | --- |",
    ]
    modules = {module: IMPORT.format(module=module) for module in ("jax", "equinox", "solstice")}
    found = rounds(options.rounds, modules, "imports")
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in found.items())
    for problem in ("tiny", "mlp", "cnn"):
        codes = {
            name: FIRST_STEP.format(module=module, make=make, problem=problem)
            for name, (module, make) in STEPS.items()
        }
        found = rounds(options.rounds, codes, f"first step, {problem}")
        hand = found["hand-written loop"]
        lines.append(f"| first step, {problem} | 1.00 | {found['solstice'] / hand:.2f} | |")
    codes = {name: MEMORY.format(make=make) for name, make in MEMORIES.items()}
    found = rounds(min(options.rounds, 3), codes, "memory")
    hand = found["hand-written loop"]
    cells = " | ".join(f"{value / hand:.2f}" for value in found.values())
    lines.append(f"| peak memory, 50M parameters | {cells} |")
    text = "\n".join([f"Import: {seconds}.", "", *lines, ""])
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "cold.md").write_text(text)


if __name__ == "__main__":
    main()
