"""Files of trees: whole or not there, whatever happens, and every damaged byte is noticed."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import solstice
from solstice import tree

VALUE = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": jnp.ones(3, jnp.bfloat16),
    "key": jax.random.key(1),
    "step": 7,
    "name": "adam",
    "empty": np.zeros((0, 2)),
}


@pytest.fixture
def file(tmp_path):
    tree.save(tmp_path / "state", VALUE)
    return tmp_path / "state"


def test_a_flipped_bit_in_any_byte_is_noticed(file):
    whole = file.read_bytes()
    for i in range(len(whole)):
        flipped = bytes([whole[i] ^ 1 << i % 8])
        file.write_bytes(whole[:i] + flipped + whole[i + 1 :])
        with pytest.raises(solstice.DamagedFileError, match=r"Use another copy|does not begin"):
            tree.load(file, VALUE)
    file.write_bytes(whole)
    assert tree.load(file, VALUE)["step"] == 7


def test_every_truncation_is_noticed(file):
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(solstice.DamagedFileError):
            tree.load(file, VALUE)


@pytest.mark.parametrize("change", [lambda b: b + b"\0", lambda b: b"\0" + b, lambda b: b + b])
def test_what_is_added_is_noticed(file, change):
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(solstice.DamagedFileError):
        tree.load(file, VALUE)


def test_a_block_that_is_left_out_or_put_in_is_noticed(file):
    whole = file.read_bytes()
    for changed in (whole[:16] + whole[20:], whole[:16] + b"more" + whole[16:]):
        file.write_bytes(changed)
        with pytest.raises(solstice.DamagedFileError):
            tree.load(file, VALUE)


def test_a_damaged_leaf_is_named(file):
    data = file.read_bytes().replace(np.float32(5).tobytes(), np.float32(6).tobytes(), 1)
    file.write_bytes(data)
    with pytest.raises(solstice.DamagedFileError, match="the bytes of 'w' are not those"):
        tree.load(file, VALUE)


def test_a_file_of_the_format_before_is_told_from_a_damaged_one(file):
    file.write_bytes(file.read_bytes().replace(b"solstice tree 2", b"solstice tree 1"))
    with pytest.raises(ValueError, match="has the format 1, and this version of Solstice reads 2"):
        tree.load(file, VALUE)


def test_a_pickle_is_not_read(file):
    import pickle

    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(solstice.DamagedFileError, match="does not begin as one"):
        tree.load(file, VALUE)


def test_files_that_are_not_there_raise_what_open_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        tree.load(tmp_path / "none", VALUE)
    with pytest.raises(FileNotFoundError):
        tree.save(tmp_path / "none" / "state", VALUE)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(file, monkeypatch):
    whole = file.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tree.save(file, {"w": np.zeros(3)})
    assert file.read_bytes() == whole
    assert [path.name for path in file.parent.iterdir()] == ["state"]


def test_a_file_has_the_rights_that_any_new_file_has(file, tmp_path):
    (tmp_path / "other").write_bytes(b"")
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


SAVING = """
    import itertools, pathlib, sys
    import numpy as np
    from solstice import tree

    file = pathlib.Path(sys.argv[1])
    for i in itertools.count():
        tree.save(file, {"i": i, "w": np.full(2**21, i)})
        if i == 0:
            print("saved", flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_in_a_save_leaves_a_whole_file(tmp_path):
    file, like = tmp_path / "state", {"i": 0, "w": np.zeros(2**21, int)}
    torn = 0
    for kill in range(30):
        program = [sys.executable, "-c", textwrap.dedent(SAVING), str(file)]
        process = subprocess.Popen(program, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"saved\n"
        time.sleep(0.01 + 0.017 * (kill % 6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        back = tree.load(file, like)
        assert (back["w"] == back["i"]).all()
        for left in tmp_path.glob(".state.*.tmp"):
            torn += 1
            left.unlink()
        if torn == 3:
            break
    assert torn, "no kill fell into a save, so nothing was shown"


SHARDED = """
    import jax, jax.numpy as jnp, numpy as np, sys
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from solstice import tree

    devices = np.array(jax.devices())
    assert len(devices) == 4
    rows = NamedSharding(Mesh(devices, "x"), P("x"))
    columns = NamedSharding(Mesh(devices[:2], "x"), P(None, "x"))
    values = np.arange(32.0, dtype=np.float32).reshape(8, 4)
    keys = jax.random.split(jax.random.key(0), 8)
    old = {"w": jax.device_put(values, rows), "keys": jax.device_put(keys, rows)}
    assert tree.digests(old) == tree.digests({"w": values, "keys": keys})
    tree.save(sys.argv[1], old)

    like = {"w": jax.device_put(jnp.zeros((8, 4)), columns), "keys": keys}
    new = tree.load(sys.argv[1], like)
    assert new["w"].sharding == columns and (np.asarray(new["w"]) == values).all()
    assert not new["keys"].committed and (new["keys"] == keys).all()

    struct = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=rows)
    assert tree.load(sys.argv[1], {**like, "w": struct})["w"].sharding == rows
    print("done")
"""


@pytest.mark.slow
def test_sharded_arrays_are_gathered_and_placed_as_the_like_is(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED), str(tmp_path / "state")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.stdout == "done\n", done.stderr


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class Stored(nnx.Module):
    """A network that keeps its random streams."""

    def __init__(self, rngs):
        self.dense, self.dropout = nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(x))


@pytest.mark.parametrize("network", [Linen, lambda: Stored(nnx.Rngs(0))], ids=["linen", "nnx"])
def test_an_experiment_that_was_saved_trains_on_bit_for_bit(tmp_path, network):
    x, y = np.random.default_rng(0).normal(size=(8, 4)).astype("f4"), np.arange(8) % 3

    def fresh(seed):
        optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 10))
        return solstice.ClassificationExperiment(network(), optimizer, example_input=x, key=seed)

    def train(exp):
        return exp.train(2, [(x, y)] * 3, progress=False)

    half = train(fresh(1))
    tree.save(tmp_path / "exp", half)
    again = tree.load(tmp_path / "exp", like=fresh(2))
    assert tree.digests(again) == tree.digests(half)
    assert tree.digests(train(again)) == tree.digests(train(half)) != tree.digests(half)
    abstract = tree.load(tmp_path / "exp", like=jax.eval_shape(lambda: half))
    assert tree.digest(abstract) == tree.digest(half)
