"""A training process to be killed: `python killed_run.py DIRECTORY [options]`.

It trains, resuming from DIRECTORY, logs to DIRECTORY/log.jsonl, and at its end writes digests of
all the bits of the trained experiment to DIRECTORY/result.json. Run by tests and by the soak.
"""

# ruff: noqa: E402 - the devices are set before jax is there
import argparse
import hashlib
import json
import os
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("directory", type=Path)
parser.add_argument("--network", default="linen")
parser.add_argument("--pause", type=float, default=0.0, help="seconds that each step takes")
parser.add_argument("--devices", type=int, default=0, help="so many simulated ones, SGD on them")
options = parser.parse_args()
if options.devices:
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={options.devices}"
    )

import jax
import numpy as np
import optax
from resuming import VAL, Net, X, Y, bits, experiment, shuffled

import solstice
from solstice.triggers import Every


class Pause(solstice.Callback):
    def on_step_end(self, outs, exp, global_step, mode, batch):
        time.sleep(options.pause)


def in_eights(epoch):
    """Batches that divide by the devices, in another order each epoch."""
    order = np.random.default_rng(epoch).permutation(24)
    return iter([(X[part], Y[part]) for part in np.split(order, 3)])


saving = solstice.CheckpointingCallback(
    options.directory / "checkpoints", every=Every(steps=3) | Every(epochs=1), keep=2
)
sinks = [
    solstice.loggers.JSONLines(options.directory / "log.jsonl"),
    solstice.loggers.CSV(options.directory / "log.csv"),
    solstice.loggers.TensorBoard(options.directory / "tensorboard"),
]
callbacks = [solstice.LoggingCallback(2, sinks), Pause(), saving]
if options.network != "ensemble":  # whose loss is one a member
    callbacks.append(
        solstice.EarlyStoppingCallback.no_improvement("average_loss", mode="min", patience=4)
    )
exp, val, sharding = experiment(options.network), VAL, None
if options.devices:
    assert len(jax.devices()) == options.devices
    sharding = solstice.sharding.DataParallel()
    sgd = optax.sgd(0.05, momentum=0.9)
    exp = solstice.ClassificationExperiment(Net(), sgd, example_input=X, key=0)

    val = [(X[:8], Y[:8]), (X[8:16], Y[8:16])]
exp = solstice.train(
    exp,
    12,
    in_eights if options.devices else shuffled,
    val,
    callbacks,
    sharding=sharding,
    resume_from=saving,
    progress=False,
)
model = exp.members.model if options.network == "ensemble" else exp.model
params = solstice.tree.leaves_by_path(model.params)
np.savez(options.directory / "params.npz", **{path: np.asarray(x) for path, x in params.items()})
digests = {
    path: hashlib.sha256(repr(leaf).encode()).hexdigest() for path, leaf in bits(exp).items()
}
unfinished = options.directory / "result.tmp"
unfinished.write_text(json.dumps(digests))
os.replace(unfinished, options.directory / "result.json")
