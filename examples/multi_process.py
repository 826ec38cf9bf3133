"""Two processes on one machine train one network, each on its own half of the digits.

    python examples/multi_process.py [--directory checkpoints] [--epochs 5]

The program starts itself twice. On a cluster, Slurm, Open MPI or GKE starts the processes, and
`solstice.sharding.initialize()` without arguments finds the others.
"""

import argparse
import os
import socket
import subprocess
import sys

PROCESSES = 2


def work(options):
    import equinox as eqx
    import jax
    import numpy as np
    import optax
    from sklearn.datasets import load_digits

    import solstice

    solstice.sharding.initialize(
        options.address, options.processes, options.process, heartbeat_timeout_seconds=10
    )
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype("float32"), labels.astype("int32")

    def batches(epoch):
        """This process's part of each global batch of 64, in another order each epoch."""
        order = np.random.default_rng(epoch).permutation(1500)
        for rows in np.array_split(order, 24):
            own = np.array_split(rows, jax.process_count())[jax.process_index()]
            yield images[own], labels[own]

    rows = np.array_split(np.arange(1500, len(images)), jax.process_count())[jax.process_index()]
    test_ds = [(images[rows], labels[rows])]

    network = eqx.nn.MLP(64, 10, 64, 2, key=jax.random.key(0))
    exp = solstice.ClassificationExperiment(network, optax.adam(3e-3), num_classes=10)
    sharding = solstice.sharding.DataParallel()
    callbacks: list = [solstice.LoggingCallback(logging_fn=report)]
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
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--address")
    parser.add_argument("--process", type=int)
    options = parser.parse_args()
    if options.process is None:
        sys.exit(start(options))
    work(options)
