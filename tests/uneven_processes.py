"""Two processes whose batches differ in number and size: `--address A --process I`."""

import argparse
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.example_libraries import stax

import solstice

parser = argparse.ArgumentParser()
parser.add_argument("--address")
parser.add_argument("--process", type=int)
options = parser.parse_args()
solstice.sharding.initialize(options.address, 2, options.process, heartbeat_timeout_seconds=10)

# Three steps an epoch, though the second process has five batches; one of them is of 3 examples.
sizes = [[8, 8, 3], [4, 8, 8, 8, 8]][options.process]
rng = np.random.default_rng(options.process)
ds = [(rng.normal(size=(n, 4)).astype("float32"), rng.integers(0, 3, n)) for n in sizes]
seen = []
record = solstice.Callback()
record.on_step_end = lambda outs, *rest: seen.append(int(outs.count))


def experiment(key):
    return solstice.ClassificationExperiment(
        stax.serial(stax.Dense(3)), optax.adam(0.1), example_input=ds[0][0], key=key
    )


sharding = solstice.sharding.DataParallel()
exp = experiment(0).train(2, ds, callbacks=[record], sharding=sharding, progress=False)
solstice.sharding.assert_replicated(exp)
print(f"took {len(seen)} steps, {sum(seen)} examples", flush=True)
try:
    solstice.sharding.assert_replicated(
        {"w": np.float32([1, 0.25 * options.process]) + jnp.zeros(2)}
    )
except AssertionError as error:
    print(error, flush=True)
rows = solstice.predict(exp, ds[:2], sharding=sharding, progress=False)
assert rows.shape == (sum(sizes[:2]),), rows.shape
assert (rows == solstice.sharding.gather(exp).predict(np.concatenate([x for x, _ in ds[:2]]))).all()
start, digests = experiment(0), []
for one in (start, start, exp, exp):  # what is passed in stays alive as it was
    one.train(1, ds, sharding=sharding, progress=False)
    digests.append(solstice.tree.digest(solstice.sharding.gather(one)))
assert digests[0] == digests[1] and digests[2] == digests[3], digests
kept = solstice.sharding.gather(solstice.snapshot(exp))
assert solstice.tree.digest(kept) == digests[2]
for prefetch in (1, 4):  # it ends in the middle of a pass, what was read ahead is dropped
    ahead = experiment(0).train(
        None, ds, ds, num_steps=5, prefetch=prefetch, sharding=sharding, progress=False
    )
    direct = experiment(0).train(None, ds, num_steps=5, sharding=sharding, progress=False)
    assert solstice.tree.digest(solstice.sharding.gather(ahead)) == solstice.tree.digest(
        solstice.sharding.gather(direct)
    )
print("read ahead", flush=True)


def at_step_1(action):
    """A callback that does something in the second process alone."""
    callback = solstice.Callback()
    seen.clear()

    def on_step_end(outs, exp, step, mode, batch):
        seen.append(step)
        if options.process == 1 and step == 1:
            action()

    callback.on_step_end = on_step_end
    return callback


def stop():
    raise solstice.EarlyStoppingException


try:
    experiment(0).train(2, ds, callbacks=[at_step_1(stop)], sharding=sharding, progress=False)
except RuntimeError as error:
    print(f"stopped alone: {error}", flush=True)
for prefetch in (0, 2):
    callback = at_step_1(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        experiment(0).train(
            50, ds, callbacks=[callback], sharding=sharding, prefetch=prefetch, progress=False
        )
    except SystemExit as ending:
        steps = solstice.sharding.processes.exchange(f"steps-{prefetch}", str(len(seen)))
        print(f"ended by {ending.code}, in step: {len({*steps}) == 1}", flush=True)
try:
    experiment(options.process).train(1, ds, sharding=sharding, progress=False)
except ValueError as error:
    print("seeds: refused" if "differs from process 0" in str(error) else error, flush=True)
print("process", jax.process_index(), "ends", flush=True)
