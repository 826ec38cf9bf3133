"""Two processes on one machine train one network, each on its own half of the digits.

    python examples/multi_process.py [--directory checkpoints] [--epochs 5]
    python examples/multi_process.py --dataset mnist     # which tfds downloads

The program starts itself twice. On a cluster, Slurm, Open MPI or GKE starts the processes, and
`solstice.sharding.initialize()` without arguments finds the others.
"""

import argparse
import os
import socket
import subprocess
import sys

import handwriting

PROCESSES = 2


def work(options):
    import equinox as eqx
    import jax
    import numpy as np
    import optax

    import solstice

    solstice.sharding.initialize(
        options.address, options.processes, options.process, heartbeat_timeout_seconds=10
    )
    (images, labels), (test_images, test_labels) = handwriting.load(options.dataset)

    def batches(epoch):
        """This process's part of each global batch of some 64, in another order each epoch."""
        order = np.random.default_rng(epoch).permutation(len(images))
        for rows in np.array_split(order, len(images) // 63):
            own = own_part(rows)
            yield images[own], labels[own]

    def own_part(rows):
        return np.array_split(rows, jax.process_count())[jax.process_index()]

    rows = own_part(np.arange(len(test_images)))
    test_ds = [(test_images[rows], test_labels[rows])]

    mlp = eqx.nn.MLP(images[0].size, 10, 64, 2, key=jax.random.key(0))
    network = eqx.nn.Sequential([eqx.nn.Lambda(jax.numpy.ravel), mlp])
    exp = solstice.ClassificationExperiment(network, optax.adam(3e-3), num_classes=10)
    sharding = solstice.sharding.DataParallel()
    history = solstice.HistoryCallback()
    callbacks: list = [solstice.LoggingCallback(logging_fn=report), history]
    resume = None
    if options.directory:
        resume = solstice.CheckpointingCallback(options.directory)
        callbacks.append(resume)
    exp = exp.train(
        options.epochs, batches, callbacks=callbacks, sharding=sharding, resume_from=resume,
        progress=False,
    )  # fmt: skip
    solstice.sharding.assert_replicated(exp)
    results = exp.test(test_ds, sharding=sharding, progress=False)
    print(
        f"process {jax.process_index()} of {jax.process_count()}: test accuracy "
        f"{results['accuracy']:.4f}, digest {solstice.tree.digest(solstice.sharding.gather(exp))}",
        flush=True,
    )
    if options.picture and jax.process_index() == 0:
        curves = solstice.plots.learning_curves(history, ["average_loss", "accuracy"])
        curves.savefig(options.picture, dpi=200)


def report(metrics, step, mode):
    print(f"{mode} {step}: loss {metrics['average_loss']:.6f}", flush=True)


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(options):
    address = f"localhost:{free_port()}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "--address", address, *sys.argv[1:]]
    processes = [
        subprocess.Popen([*command, "--process", str(i)], env=environment)
        for i in range(options.processes)
    ]
    return max(abs(process.wait()) for process in processes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory")
    handwriting.add_flags(parser, epochs=5)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--address")
    parser.add_argument("--process", type=int)
    options = parser.parse_args()
    if options.process is None:
        sys.exit(start(options))
    work(options)
