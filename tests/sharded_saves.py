"""Several processes that save and restore sharded arrays: `--address A --process I --of N ...`.

`save` writes one checkpoint by all; `restore` reads the newest and prints the digest of all; `die`
has process 1 killed while it writes.
"""

import argparse
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import solstice
from solstice.callbacks import checkpointing
from solstice.sharding.arrays import as_global

parser = argparse.ArgumentParser()
parser.add_argument("--address")
parser.add_argument("--process", type=int, default=0)
parser.add_argument("--of", type=int, default=1)
parser.add_argument("--action", choices=["save", "restore", "die"])
parser.add_argument("--directory")
options = parser.parse_args()
if options.of > 1:
    solstice.sharding.initialize(
        options.address, options.of, options.process, heartbeat_timeout_seconds=10
    )
assert jax.process_count() == options.of

mesh = Mesh(np.array(jax.devices()), ("data",))
everywhere, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
values = {
    "bias": (np.arange(5, dtype=np.float32), everywhere),
    "keys": (jax.random.split(jax.random.key(0), 8), split),
    "large": (np.arange(4 * 2**20, dtype=np.float32).reshape(8, -1), split),
    "small": (np.arange(8 * 3, dtype=np.int32).reshape(8, 3), split),
}
fresh = options.action == "restore"
arrays = [jnp.zeros_like(x) if fresh and k != "keys" else x for k, (x, _) in values.items()]
shardings = [sharding for _, sharding in values.values()]
tree = dict(zip(values, as_global(arrays, shardings, may_alias=False), strict=True))
tree |= {"own": jnp.full(3, 0.0 if fresh else 7.0), "name": "net"}

saving = solstice.CheckpointingCallback(options.directory, on_error="raise")
if options.action == "restore":
    again = solstice.restore(options.directory, tree)
    for name, (wanted, sharding) in values.items():
        assert again[name].sharding == sharding, (name, again[name].sharding)
        whole = solstice.sharding.gather(again[name])
        same = solstice.tree.digest(whole) == solstice.tree.digest(wanted)
        assert same, (name, whole)
    assert (again["own"] == 7).all()
    print("restored", flush=True)
else:
    if options.action == "die" and options.process == 1:
        write = checkpointing.Checkpoints.write_arrays

        def dying(*arguments, **keywords):
            write(*arguments, **keywords)
            os.kill(os.getpid(), signal.SIGKILL)

        checkpointing.Checkpoints.write_arrays = dying
    saving.save(tree, lambda: lambda: {"epoch": 1})
    saving.wait()
    print("saved", flush=True)
