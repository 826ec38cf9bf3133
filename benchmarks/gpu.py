"""All tables for an accelerator, with what the machine has: jax, flax, optax and equinox do.

    python benchmarks/gpu.py [--rounds 7] [--quick] [--write]

It runs `train.py` and `arrays.py` with the contenders that can be imported, then `ensemble.py`,
and names the device. `--write` puts the tables into the pages of benchmarks and docs. It takes
some eight minutes on an H100.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import jax
import pages

HOUSE = Path(__file__).parent
# What is compiled by jax alone: PyTorch's trainer does not run on jax's device.
TRAINERS = ("hand", "ours", "equinox_eager", "flax_clu", "flax_nnx", "keras_fit")


def printed(name, *arguments):
    """Run a benchmark in a process of its own, and return the table that it printed last."""
    command = [sys.executable, HOUSE / name, *map(str, arguments)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(output, flush=True)
    tables = [part for part in output.strip().split("\n\n") if part.startswith("|")]
    return tables[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a smoke test; says nothing")
    parser.add_argument(
        "--write", action="store_true", help="into the pages of benchmarks and docs"
    )
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"On {device.device_kind}, jax {jax.__version__}\n", flush=True)
    common = ("--quick",) if options.quick else ("--rounds", options.rounds)
    text = (
        f"On one {device.device_kind}, jax {jax.__version__}, {options.rounds} rounds: median "
        f"(least-largest). Whole train calls, batches in a list of numpy arrays:\n\n"
        f"{printed('train.py', '--only', *TRAINERS, *common)}\n\n"
        f"Whole arrays, shuffled in each epoch:\n\n"
        f"{printed('arrays.py', '--epochs', 2, *common)}\n\n"
        f"Many runs as one:\n\n"
        f"{printed('ensemble.py', '--seconds', 60, *(() if options.quick else common))}"
    )
    (pages.results() / "gpu.md").write_text(text + "\n")
    if options.write:
        pages.write("gpu", text)


if __name__ == "__main__":
    main()
