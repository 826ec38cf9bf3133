"""Two processes whose batches differ in number and size: `--address A --process I`."""

import argparse

import jax
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
rows = solstice.predict(exp, ds[:2], sharding=sharding, progress=False)
assert rows.shape == (sum(sizes[:2]),), rows.shape
assert (rows == solstice.sharding.gather(exp).predict(np.concatenate([x for x, _ in ds[:2]]))).all()
try:
    experiment(options.process).train(1, ds, sharding=sharding, progress=False)
except ValueError as error:
    print("seeds: refused" if "differs from process 0" in str(error) else error, flush=True)
print("process", jax.process_index(), "ends", flush=True)
