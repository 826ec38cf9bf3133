"""A training process to be killed: `python killed_run.py DIRECTORY [options]`.

It trains, resuming from DIRECTORY, logs to DIRECTORY/log.jsonl, and at its end writes digests of
all the bits of the trained experiment to DIRECTORY/result.json. Run by tests and by the soak.
"""

# ruff: noqa: E402 - the cache is set before anything compiles
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
parser.add_argument("--cache", default=None)
options = parser.parse_args()

import jax

if options.cache:
    jax.config.update("jax_compilation_cache_dir", options.cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

from resuming import VAL, bits, experiment, shuffled

import solstice
from solstice.triggers import Every


class Pause(solstice.Callback):
    def on_step_end(self, outs, exp, global_step, mode, batch):
        time.sleep(options.pause)


saving = solstice.CheckpointingCallback(
    options.directory / "checkpoints", every=Every(steps=3) | Every(epochs=1), keep=2
)
log = solstice.loggers.JSONLines(options.directory / "log.jsonl")
callbacks = [
    solstice.LoggingCallback(2, log),
    solstice.EarlyStoppingCallback.no_improvement("average_loss", patience=4),
    Pause(),
    saving,
]
exp = solstice.train(
    experiment(options.network),
    12,
    shuffled,
    VAL,
    callbacks,
    resume_from=saving,
    progress=False,
)
digests = {
    path: hashlib.sha256(repr(leaf).encode()).hexdigest() for path, leaf in bits(exp).items()
}
unfinished = options.directory / "result.tmp"
unfinished.write_text(json.dumps(digests))
os.replace(unfinished, options.directory / "result.json")
