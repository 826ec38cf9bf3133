"""Runs that show all they can, to streams that fail: `shown_run.py DIRECTORY HOW...`."""

import logging
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import solstice
from solstice.loggers import Console, JSONLines


class Adding(solstice.Experiment):
    total: jax.Array

    @solstice.jit
    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch), solstice.metrics.Mean(batch)

    def eval_step(self, batch):
        return self, solstice.metrics.Mean(batch)


class Odd:
    """What somebody put in the place of a stream, without `isatty` and such."""

    def write(self, text):
        raise OSError("odd")

    def flush(self):
        return


def closed():
    sys.stdout.close()
    sys.stderr.close()


def failing():
    unwritable = os.open(os.devnull, os.O_RDONLY)
    os.dup2(unwritable, 1)
    os.dup2(unwritable, 2)


def odd():
    sys.stdout, sys.stderr = Odd(), Odd()


def none():
    sys.stdout = sys.stderr = None


def gone():
    """The other end of the terminal is closed, in the process that started this one."""
    os.close(int(os.environ["TELL"]))
    os.read(int(os.environ["HEAR"]), 1)


ACTIONS = {action.__name__: action for action in (closed, failing, odd, none, gone)}


class Midway(solstice.Callback):
    def __init__(self, how):
        self._action = ACTIONS.get(how)

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if mode == "train" and global_step == 1 and self._action is not None:
            self._action()


def run(how, directory):
    logging.basicConfig(level="INFO", force=True)
    logging.getLogger().addHandler(logging.FileHandler(directory / "lines"))
    exp = Adding(jnp.zeros(()))
    callbacks = [
        Midway(how),
        solstice.EnvironmentCallback(),
        solstice.LoggingCallback(1),
        solstice.LoggingCallback(1, [Console(), JSONLines(directory / "log")]),
    ]
    train_ds = [jnp.float32(i) for i in range(150)]
    exp = solstice.train(exp, 2, train_ds, train_ds[:1], callbacks)
    if how == "at once":
        solstice.train(exp, 1, train_ds)
    solstice.test(exp, train_ds[:1], callbacks[2:3])
    (directory / "result").write_text(str(float(exp.total)))


def with_streams_restored(how, directory):
    streams, kept = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    sys.stdout, sys.stderr = (os.fdopen(os.dup(end), "w", buffering=1) for end in (1, 2))
    try:
        run(how, directory)
    finally:
        for end in (1, 2):
            os.dup2(kept[end - 1], end)
        sys.stdout, sys.stderr = streams


if __name__ == "__main__":
    directory, *hows = sys.argv[1:]
    for how in hows:
        into = Path(directory, how)
        into.mkdir()
        (run if len(hows) == 1 else with_streams_restored)(how, into)
