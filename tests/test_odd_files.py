"""Odd things where checkpoints lie: links, pipes, directories, crafted states."""

import copy
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.saving import checkpoints, claims, stores
from solstice.saving.checkpoints import Checkpoints
from solstice.training.position import Position
from solstice.tree.tensors import text_digest
from solstice.triggers import Every

TREE = {"w": jnp.ones(2)}


def put(path, kind, victim):
    """Put something odd at a path."""
    if path.exists():
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "deep":
        path.write_text("[" * 200_000)
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path, "link": victim}[kind])


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "thesis"
    path.write_text("three years of work")
    yield path
    assert path.read_text() == "three years of work"


@pytest.fixture
def home(tmp_path):
    there = Checkpoints(tmp_path / "run")
    there.write(TREE, {})
    there.write(TREE, {})
    return tmp_path / "run"


KINDS = ["pipe", "directory", "deep", "device", "loop", "link"]


@pytest.mark.parametrize("name", ["checkpoint.json", "arrays-0.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_of_a_checkpoint_is_damage_and_is_not_waited_for(home, name, kind, victim):
    put(home / "checkpoint-000001" / name, kind, victim)
    found = checkpoints.newest(Checkpoints(home), TREE)
    assert found is not None and found[0] == "checkpoint-000000"


@pytest.mark.parametrize("name", ["best.json", "start.json", "claim.json", ".lock"])
@pytest.mark.parametrize("kind", KINDS)
def test_odd_files_beside_checkpoints_stop_no_save_and_no_pruning(home, name, kind, victim):
    put(home / name, kind, victim)
    there = Checkpoints(home)
    if name == "best.json":
        with pytest.raises(solstice.DamagedFileError):
            solstice.restore(home, TREE, which="best")
    if name == "start.json":
        with pytest.raises(solstice.DamagedFileError):
            there.start()
    newest = there.write(TREE, {})
    there.prune(1)
    assert there.names() == [newest]
    claim = claims.Claim(there.store)
    unusable = {".lock": ["directory", "device", "loop", "link"], "claim.json": ["directory"]}
    if kind in unusable.get(name, ()):
        with pytest.raises(ValueError, match="cannot be written"):
            claim.take()
    else:
        claim.take()
        claim.release()


@pytest.mark.parametrize("name", ["claim", "best", "start"])
def test_nothing_is_written_through_a_link(home, name, victim):
    for file in (f".{name}.json.tmp", f"{name}.json"):
        (home / file).symlink_to(victim)
    there = Checkpoints(home)
    claim = claims.Claim(there.store)
    claim.take()
    there.note_start({"sinks": [], "callbacks": []})
    there.set_best(checkpoint="checkpoint-000000")
    claim.release()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_cannot_be_deleted_stops_no_other(home, kind, victim, caplog):
    doomed = home / ".checkpoint-000000.old"
    if kind == "directory":
        doomed.mkdir()
        (doomed / "mine.txt").write_text("mine")
    else:
        put(doomed, "deep" if kind == "file" else "link", victim)
    there = Checkpoints(home)
    newest = there.write(TREE, {})
    there.prune(1)
    assert there.names() == ["checkpoint-000000", newest]
    assert "checkpoint-000000 in" in caplog.text and "cannot be deleted" in caplog.text


def test_a_best_that_cannot_be_noted_stops_no_pruning(adding, tmp_path, caplog):
    (tmp_path / "best.json").mkdir()
    saving = solstice.CheckpointingCallback(tmp_path, best=("mean", "max"), keep=1)
    solstice.train(adding, 3, [1, 2], [5], [saving], progress=False)
    assert len(Checkpoints(tmp_path).names()) == 1
    assert "could not be saved: IsADirectoryError" in caplog.text


def test_records_take_no_more_memory_than_is_there(adding, tmp_path):
    history = solstice.callbacks.HistoryCallback()
    saving = solstice.CheckpointingCallback(tmp_path)
    solstice.train(adding, 1, [1, 2], callbacks=[history, saving], progress=False)
    there = Checkpoints(tmp_path)
    resign(tmp_path, lambda said: said["records"][0].update(size=2**62))
    with pytest.raises(solstice.DamagedFileError, match="digest"):
        there.read_run(there.names()[-1])


def resign(directory, change):
    """Change what the newest checkpoint says, and its digest."""
    file = directory / Checkpoints(directory).names()[-1] / "checkpoint.json"
    said = json.loads(file.read_text())["checkpoint"]
    change(said)
    inner = json.dumps(said)
    file.write_text(f'{{"digest": "{text_digest(inner)}", "checkpoint": {inner}}}\n')


TWO = {"$array": {"dtype": "float32", "shape": [2], "data": [1, 2]}}
ODD = (None, "x", -1, {"$float": "NaN"}, [], {}, True, 10**30, TWO, [3], [["a"]])


def paths(node, path=()):
    """The places in a tree of dicts and lists."""
    children = node.items() if type(node) is dict else enumerate(node) if type(node) is list else ()
    for name, child in children:
        yield (*path, name)
        yield from paths(child, (*path, name))


@pytest.mark.usefixtures("unchecked")
def test_a_crafted_state_is_a_run_or_a_clear_error(adding, tmp_path):
    def run(directory, num_epochs=3):
        saving = solstice.CheckpointingCallback(
            directory, every=Every(steps=2), keep=None, best=("mean", "max")
        )
        callbacks = [
            solstice.LoggingCallback(1, solstice.loggers.JSONLines(directory / "log.jsonl")),
            solstice.EarlyStoppingCallback(lambda outs: False, watch="train"),
            saving,
        ]
        solstice.train(
            adding,
            num_epochs,
            [1, 2, 3],
            [5],
            callbacks,
            resume_from=saving,
            progress=False,
            validate_every=Every(steps=2),
        )

    run(tmp_path, 2)
    name = Checkpoints(tmp_path).names()[0]
    for other in Checkpoints(tmp_path).names()[1:]:
        Checkpoints(tmp_path).store.delete(other)
    file, log = tmp_path / name / "checkpoint.json", tmp_path / "log.jsonl"
    content, records = file.read_text(), log.read_bytes()
    state = json.loads(content)["checkpoint"]["run"]
    places = list(paths(state))
    ended = {True: 0, False: 0}
    for number, path in enumerate(places):
        file.write_text(content)
        log.write_bytes(records)

        odd = ODD[number % len(ODD)]

        def change(said, path=path, odd=odd):
            node = said["run"]
            for part in path[:-1]:
                node = node[part]
            node[path[-1]] = copy.deepcopy(odd)

        resign(tmp_path, change)
        try:
            run(tmp_path)
            ended[True] += 1
        except solstice.SolsticeError:
            ended[False] += 1
        for other in Checkpoints(tmp_path).names():
            if other != name:
                Checkpoints(tmp_path).store.delete(other)
    assert min(ended.values()) > 5


@pytest.mark.parametrize(
    "change",
    [
        {"trained": -1},
        {"epoch": "x"},
        {"steps": {}},
        {"steps": {"train": 0, "val": 0, "test": -1}},
        {"ended": 7},
        {"cut": None},
        {"who": 1},
    ],
    ids=str,
)
def test_an_odd_position_is_damage(change):
    with pytest.raises(solstice.DamagedFileError):
        Position.from_state(Position().to_state() | change)
    assert Position.from_state(Position(epoch=3).to_state()) == Position(epoch=3)


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_a_url_of_a_directory_here_is_that_directory(tmp_path, scheme):
    assert stores.store(f"{scheme}://{tmp_path}").place == str(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "loop"])
def test_a_tree_replaces_nothing_but_files(tmp_path, kind):
    put(tmp_path / "odd", kind, None)
    with pytest.raises(OSError, match=r"regular file|symbolic"):
        solstice.tree.save(tmp_path / "odd", TREE)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]
    with pytest.raises(FileNotFoundError):
        solstice.tree.load(tmp_path / "odd")


def test_a_tree_may_have_the_longest_name_that_a_file_may_have(tmp_path):
    solstice.tree.save(tmp_path / ("n" * 255), TREE)
    assert solstice.tree.load(tmp_path / ("n" * 255))["w"].tolist() == [1, 1]


ODD_VALUES = {
    "another kind": '"text"',
    "a huge text": '{"$array": {"dtype": "S2000000000", "shape": [3], "data": ["a", "b", "c"]}}',
    "objects": '{"$array": {"dtype": "object", "shape": [1], "data": [1]}}',
}


@pytest.mark.parametrize("name", ODD_VALUES)
def test_a_value_of_another_kind_than_is_said_is_an_error(tmp_path, name):
    Checkpoints(tmp_path).write({"n": 3}, {})
    resign(tmp_path, lambda said: said["leaves"]["n"].update(value=ODD_VALUES[name]))
    with pytest.raises(solstice.SolsticeError):
        solstice.restore(tmp_path, {"n": 3})


@pytest.mark.parametrize(
    "array", [np.array(["text"]), np.array([{}], object), np.ma.array([1, 2], mask=[0, 1])]
)
def test_arrays_that_no_file_holds_are_named(tmp_path, array):
    with pytest.raises(TypeError, match="'w' is expected to be an array of numbers"):
        checkpoints.describe_leaves({"w": array})
    with pytest.raises(TypeError, match="'w' is expected to be an array of numbers"):
        solstice.tree.save(tmp_path / "tree", {"w": array})


def test_a_file_in_the_place_of_the_directory_is_named_before_the_first_step(adding, tmp_path):
    (tmp_path / "file").write_text("")
    saving = solstice.CheckpointingCallback(tmp_path / "file")
    with pytest.raises(ValueError, match="file cannot be written: FileExistsError"):
        solstice.train(adding, 1, [1], callbacks=[saving], resume_from=saving, progress=False)


@pytest.mark.parametrize("name", ["arrays-0.safetensors", "checkpoint.json"])
def test_a_file_of_another_checkpoint_is_damage(tmp_path, name):
    """Even one that is whole, of the same shapes."""
    there = Checkpoints(tmp_path)
    for i in range(3):
        there.write({"w": jnp.full(2, float(i))}, {"n": np.full(1, i)})
    content = (tmp_path / "checkpoint-000001" / name).read_bytes()
    (tmp_path / "checkpoint-000002" / name).write_bytes(content)
    found = checkpoints.newest(there, TREE)
    assert found is not None and found[0] == "checkpoint-000001"
    assert found[1]["w"].tolist() == [1, 1] and found[2]["n"].tolist() == [1]
