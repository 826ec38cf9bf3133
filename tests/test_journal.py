"""What grows from checkpoint to checkpoint: written once, whole in each, whatever happens."""

import errno
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice.errors import DamagedFileError
from solstice.saving.checkpoints import Checkpoints
from solstice.tree.growing import Growing

TREE = {"w": jnp.ones(2)}


class Log:
    """A list that grows, which counts how often an entry is encoded."""

    def __init__(self):
        self.entries = []
        self.encoded = 0

    def add(self, *entries):
        self.entries += [{"value": entry} for entry in entries]
        return self

    def now(self):
        def encode(entry):
            self.encoded += 1
            return entry

        return Growing(self.entries, encode)


def values(state):
    return [entry["value"] for entry in state["log"]]


def read(directory, name):
    """What a checkpoint holds, alone in a directory of its own, as after a copy."""
    other = directory.parent / f"copy of {name}"
    shutil.copytree(directory / name, other / name, dirs_exist_ok=True)
    _, rest = Checkpoints(other).read(name, like=TREE)
    assert Checkpoints(other).read_run(name)["log"] == rest["log"]
    shutil.rmtree(other)
    return values(rest)


def test_each_save_writes_only_what_came_since_the_last_and_each_checkpoint_has_all(tmp_path):
    store, log = Checkpoints(tmp_path / "run"), Log()
    for i in range(6):
        log.add(i, -i)
        store.write(TREE, {"log": log.now(), "i": i})
        assert log.encoded == 2 * (i + 1)
    for i, name in enumerate(store.names()):
        assert read(tmp_path / "run", name) == [sign * n for n in range(i + 1) for sign in (1, -1)]
    inodes = {os.stat(tmp_path / "run" / name / "records-0").st_ino for name in store.names()}
    assert len(inodes) == 1
    store.prune(keep=2)
    assert [len(read(tmp_path / "run", name)) for name in store.names()] == [10, 12]


def test_a_history_costs_a_save_no_more_than_what_came_since_the_last(adding, tmp_path):
    written = {}
    for steps in (40, 80):
        encoded = []
        history = solstice.HistoryCallback(1)
        real = history._list.get_state

        def get_state(real=real, encoded=encoded):
            growing = real()
            return Growing(growing.entries, lambda one: encoded.append(1) or growing._encode(one))

        history._list.get_state = get_state
        saving = solstice.CheckpointingCallback(
            tmp_path / str(steps), every=solstice.triggers.Every(steps=4)
        )
        solstice.train(
            adding, None, [1] * 10, callbacks=[history, saving], num_steps=steps, progress=False
        )
        written[steps] = len(encoded)
        assert len(history.records) == steps
    assert written == {40: 40, 80: 80}


def test_two_lists_are_kept_apart(tmp_path):
    store, one, two = Checkpoints(tmp_path / "run"), Log().add(1), Log().add(2.5, np.nan)
    for _ in range(2):
        name = store.write(TREE, {"log": one.now(), "nested": [{"more": (two.now(),)}]})
        one.add(3)
    _, rest = store.read(name, like=TREE)
    assert values(rest) == [1, 3]
    assert np.isnan(rest["nested"][0]["more"][0][1]["value"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda log: log.entries.clear(), [9]),
        (lambda log: log.entries.pop(), [0, 1, 9]),
        (lambda log: log.entries.__setitem__(slice(1, 3), []), [0, 9]),
        (lambda log: setattr(log, "entries", list(log.entries)), [0, 1, 2, 9]),
    ],
)
def test_a_list_that_was_changed_otherwise_is_written_anew(tmp_path, change, expected):
    store, log = Checkpoints(tmp_path / "run"), Log().add(0, 1, 2)
    first = store.write(TREE, {"log": log.now()})
    change(log)
    second = store.write(TREE, {"log": log.add(9).now()})
    assert read(tmp_path / "run", first) == [0, 1, 2]
    assert read(tmp_path / "run", second) == expected


def test_a_save_that_failed_leaves_the_others_whole(tmp_path, monkeypatch):
    store, log = Checkpoints(tmp_path / "run"), Log().add(0)
    store.write(TREE, {"log": log.now()})
    rename = os.rename

    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        store.write(TREE, {"log": log.add(1, 1, 1).now()})
    monkeypatch.setattr(os, "rename", rename)
    log.entries[1:] = [{"value": 2}]
    store.write(TREE, {"log": log.now()})
    assert [read(tmp_path / "run", name) for name in store.names()] == [[0], [0, 2]]


def test_without_hard_links_it_is_copied(tmp_path, monkeypatch):
    def unknown(*paths):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unknown)
    store, log = Checkpoints(tmp_path / "run"), Log()
    for i in range(3):
        store.write(TREE, {"log": log.add(i).now()})
    assert [read(tmp_path / "run", name) for name in store.names()] == [[0], [0, 1], [0, 1, 2]]
    assert log.encoded == 3


def test_another_process_goes_on_and_leaves_the_first_ones_alone(tmp_path):
    store, log = Checkpoints(tmp_path / "run"), Log()
    for i in range(3):
        store.write(TREE, {"log": log.add(i).now()})
    again = Log().add(*read(tmp_path / "run", store.names()[1]))  # from an older one
    other = Checkpoints(tmp_path / "run")
    for i in (7, 8):
        other.write(TREE, {"log": again.add(i).now()})
    expected = [[0], [0, 1], [0, 1, 2], [0, 1, 7], [0, 1, 7, 8]]
    assert [read(tmp_path / "run", name) for name in store.names()] == expected


@settings(max_examples=40)
@given(at=st.integers(0, 10_000), flip=st.integers(1, 255), which=st.integers(0, 2))
def test_damage_is_noticed_where_it_matters(tmp_path_factory, at, flip, which):
    directory = tmp_path_factory.mktemp("damage") / "run"
    store, log, sizes = Checkpoints(directory), Log(), []
    for i in range(3):
        name = store.write(TREE, {"log": log.add(i, "text").now()})
        sizes.append((directory / name / "records-0").stat().st_size)
    name = store.names()[which]
    path = directory / name / "records-0"
    data = bytearray(path.read_bytes())
    place = at % len(data)
    data[place] ^= flip
    path.write_bytes(data)  # the same file under three names
    for i, one in enumerate(store.names()):
        if place < sizes[i]:
            with pytest.raises(DamagedFileError, match="records-0 is damaged"):
                store.read(one, like=TREE)
        else:
            assert len(read(directory, one)) == 2 * (i + 1)
    path.unlink()
    with pytest.raises(DamagedFileError, match="records-0 is damaged: FileNotFoundError"):
        store.read(name, like=TREE)
