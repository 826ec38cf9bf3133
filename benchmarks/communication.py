"""What a step communicates, read from the compiled program itself.

    python benchmarks/communication.py [--devices 8 256] [--write docs/parallelism.md]

For each number of devices, a process of its own simulates them on the CPU, compiles the training
step of an MLP for both placements and reads the collectives of XLA's optimised program; nothing is
run, so it takes seconds on any machine. Bytes sent are those of the ring algorithms, in which each
of n devices sends (n - 1)/n of an array to gather or to scatter it, and twice that to reduce it for
all. `--write` puts the tables into a page, between its two comments.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

FEATURES, HIDDEN, CLASSES, BATCH = 784, 1024, 10, 1024
# Each width and bias from 1024 elements on is split by FullySharded's default.
WIDTHS = (FEATURES, HIDDEN, HIDDEN, CLASSES)
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
BEGIN, END = "<!-- python benchmarks/communication.py --write: begin -->", "<!-- end -->"


def collectives(program):
    """Return (kind, bytes of the results) of each collective in the text of a compiled program."""
    found = []
    for line in program.splitlines():
        match = re.search(rf" = (.+?) ({KINDS})(-start)?\(", line)
        if match is None:
            continue
        if match[3]:
            raise ValueError(f"A program without asynchronous collectives is expected: {line}")
        shapes = re.findall(r"([a-z]+)(\d*)\[([\d,]*)\]", match[1])
        found.append((match[2], sum(size(*shape) for shape in shapes)))
    return found


def size(kind, bits, shape):
    """Return the bytes of an array, such as ("f", "32", "8,4")."""
    count = 1
    for length in filter(None, shape.split(",")):
        count *= int(length)
    return count * (1 if kind == "pred" else int(bits) // 8)


def sent(kind, whole, devices):
    """Return the bytes of an array that each device sends where a ring of all does it."""
    share = (devices - 1) / devices
    return whole * {"all-reduce": 2 * share, "collective-permute": 1}.get(kind, share)


def compiled():
    """Return, by placement, the collectives of the step for the devices that there are."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.example_libraries import stax

    import solstice
    from solstice.tree.flat import Flat

    layers = [layer for width in WIDTHS[1:] for layer in (stax.Dense(width), stax.Relu)][:-1]
    exp = solstice.ClassificationExperiment(
        stax.serial(*layers), optax.adam(1e-3), example_input=jnp.zeros((1, FEATURES)), key=0
    )
    found = {}
    for sharding in (solstice.sharding.DataParallel(), solstice.sharding.FullySharded()):
        flat = Flat.of(exp)
        placement = sharding.placement(flat)
        # What `sharding.placed(flat)` and a batch on the mesh look like, without their values.
        split = jax.sharding.NamedSharding(sharding.mesh, sharding.batch_spec)
        flat = Flat(
            [
                jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)
                for array, place in zip(flat.arrays, placement.arrays, strict=True)
            ],
            flat.structure.placed(placement),
        )
        batch = (
            jax.ShapeDtypeStruct((BATCH, FEATURES), "float32", sharding=split),
            jax.ShapeDtypeStruct((BATCH,), "int32", sharding=split),
        )
        step = solstice.ClassificationExperiment.train_step
        program = step._fused.lower(flat, [batch]).compile().as_text()
        found[type(sharding).__name__] = collectives(program)
    return found


def simulated(devices):
    """Return what `compiled` does in a process with so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, __file__, "--compiled"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def expected(placement):
    """Return the bytes of whole arrays that a step ought to send about, by kind of collective."""
    parameters = sum(inputs * outputs + outputs for inputs, outputs in itertools.pairwise(WIDTHS))
    # The metrics' confusion matrix with two places for what is invalid, the sum of the losses, and
    # how many count, in the loss and in the metrics.
    metrics = CLASSES**2 + 2 + 1 + 2
    bytes_of = {"all-reduce": 4 * (parameters + metrics)}
    if placement == "FullySharded":
        bytes_of["all-gather"] = 4 * (parameters - CLASSES)  # the last bias is not split
    return bytes_of


def table(devices, found):
    """Return the lines of a number of devices."""
    lines = []
    for placement, each in found.items():
        wanted = expected(placement)
        for kind in sorted({kind for kind, _ in each} | {*wanted}):
            sizes = [size for one, size in each if one == kind]
            total, formula = sum(sizes), wanted.get(kind, 0)
            lines.append(
                f"| {devices} | `{placement}` | {kind} | {len(sizes)} | {total:,} "
                f"| {sent(kind, total, devices):,.0f} | {sent(kind, formula, devices):,.0f} |"
            )
    return lines


def tables(counts):
    lines = [
        "| devices | placement | collective | how many | bytes of the arrays "
        "| sent by each device | by the formula |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join(lines + [line for n in counts for line in table(n, simulated(n))])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 256])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    if options.compiled:
        print(json.dumps(compiled()))
        return
    printed = tables(options.devices)
    print(printed)
    if options.write:
        before, _, rest = options.write.read_text().partition(BEGIN)
        options.write.write_text(f"{before}{BEGIN}\n{printed}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
