"""The folder of an export: whole, damaged, replaced, and left by a killed process."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from exports import X, exported, linear, make, moved
from jax.example_libraries import stax
from networks.common import assert_same_bits

import solstice
from solstice import compat
from solstice.exporting import folder as folders
from solstice.exporting.folder import ABOUT, WEIGHTS, read, write
from solstice.tree.staging import tidy


def about_of(folder):
    return json.loads((folder / ABOUT).read_text())


def test_only_what_evaluation_needs_is_written(tmp_path):
    exp = make("linen", "mlp")
    exported(exp, tmp_path)
    held = solstice.tree.load(tmp_path / "export" / WEIGHTS)
    names = {name for name in held if name != "of export"}
    assert names == {f"ema/{path}" for path in solstice.tree.paths(exp.ema)}


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def reword(path):
    path.write_text(path.read_text().replace("ClassificationExperiment", "RegressionExperiment"))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def newer(path):
    path.write_text(path.read_text().replace("solstice export 1", "solstice export 2"))


DAMAGE = {
    f"{do.__name__} {name}": (name, do)
    for name in (ABOUT, WEIGHTS, "outputs.jax_export")
    for do in (Path.unlink, cut, flip, pipe)
} | {"changed": (ABOUT, reword)}


@pytest.fixture
def folder(loaded, tmp_path):
    """A copy of an export."""
    import shutil

    return Path(shutil.copytree(loaded.path, tmp_path / "copy"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_told(damage, folder):
    name, do = DAMAGE[damage]
    do(folder / name)
    with pytest.raises(solstice.DamagedFileError) as raised:
        solstice.load_exported(folder)
    assert str(folder) in str(raised.value)


def test_weights_of_another_export_are_told(folder, tmp_path):
    exported(linear(), tmp_path / "other")
    (tmp_path / "other" / "export" / WEIGHTS).replace(folder / WEIGHTS)
    with pytest.raises(solstice.DamagedFileError, match="belongs to another export"):
        solstice.load_exported(folder)


def test_a_newer_format_and_another_folder_are_told(folder, tmp_path):
    newer(folder / ABOUT)
    with pytest.raises(solstice.errors.InvalidValueError, match="'solstice export 2'"):
        solstice.load_exported(folder)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(solstice.DamagedFileError, match=r"a file export.json; it has notes.txt"):
        solstice.load_exported(tmp_path / "foreign")
    with pytest.raises(solstice.errors.MissingFileError, match="there is none at"):
        solstice.load_exported(tmp_path / "nowhere")


def test_nothing_of_somebody_elses_is_replaced(tmp_path):
    exp, place = linear(), tmp_path / "export"
    (tmp_path / "file").write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    for path in (tmp_path / "file", foreign):
        with pytest.raises(solstice.errors.ExistingFileError, match="did not write"):
            solstice.export(exp, path, platforms="cpu", overwrite=True)
    place.mkdir()  # an empty one will do
    first = exported(exp, tmp_path)
    with pytest.raises(solstice.errors.ExistingFileError, match="overwrite=True"):
        solstice.export(exp, place, platforms="cpu")
    (place / "notes.txt").write_text("mine")
    with pytest.raises(solstice.errors.ExistingFileError, match="did not write"):
        solstice.export(exp, place, platforms="cpu", overwrite=True)
    (place / "notes.txt").unlink()
    new = solstice.replace(
        exp, model=solstice.replace(exp.model, params=moved(exp.model.params, 1))
    )
    solstice.export(new, place, platforms="cpu", overwrite=True)
    assert_same_bits([new(X)], [solstice.load_exported(place)(X)])
    assert_same_bits([exp(X)], [first(X)])
    assert sorted(os.listdir(tmp_path)) == ["export", "file", "foreign"]
    with pytest.raises(solstice.errors.InvalidValueError, match="a folder on this machine"):
        solstice.export(exp, "s3://bucket/export")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    exp = linear()
    first = exported(exp, tmp_path)
    monkeypatch.setattr("solstice.exporting.folder.save", full)
    with pytest.raises(OSError, match="No space"):
        solstice.export(exp, tmp_path / "export", platforms="cpu", overwrite=True)
    assert os.listdir(tmp_path) == ["export"]
    assert_same_bits([first(X)], [solstice.load_exported(tmp_path / "export")(X)])


STOPPING = """
    import os, pathlib, sys, time
    import equinox as eqx, jax, numpy as np
    import solstice
    from solstice.exporting import folder

    path, where = sys.argv[1:]

    def stop(*arguments):
        print("here", flush=True)
        time.sleep(600)

    if where == "writing":
        folder._write = stop
    else:  # the older one is out of the way, and the new one has not got its name
        pathlib.Path.rename = lambda self, to: stop() if self.name == "new" else os.rename(self, to)
    model = solstice.compat.EquinoxModel(eqx.nn.Linear(4, 2, key=jax.random.key(0)))
    example = np.ones((1, 4), np.float32)
    solstice.export(model, path, example=example, platforms="cpu", overwrite=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["writing", "renaming"])
def test_what_a_killed_export_left_is_deleted_by_the_next_and_what_a_live_one_writes_is_not(
    where, tmp_path
):
    exp, path = linear(), tmp_path / "export"
    solstice.export(exp, path, platforms="cpu")
    program = [sys.executable, "-c", textwrap.dedent(STOPPING), str(path), where]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"here\n"
            (staging,) = tmp_path.glob(".export.*.tmp")
            whole = {*staging.rglob("*")}
            solstice.export(exp, tmp_path / "another", platforms="cpu")
            tidy(path)  # as the next export does, while the other one lives
            assert {*staging.rglob("*")} == whole
        finally:
            process.send_signal(signal.SIGKILL)
    assert path.exists() == (where == "writing") and staging.exists()
    with pytest.raises(solstice.errors.ExistingFileError, match="is an export"):
        solstice.export(exp, path, platforms="cpu")  # the older one, which has its name again
    assert sorted(os.listdir(tmp_path)) == ["another", "export"]
    assert_same_bits([exp(X)], [solstice.load_exported(path)(X)])


def test_what_has_come_into_an_export_since_is_not_replaced(tmp_path):
    place = tmp_path / "export"
    solstice.export(linear(), place, platforms="cpu")
    content = read(place)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(solstice.errors.ExistingFileError, match="did not write"):
        write(place, content)
    assert os.listdir(tmp_path) == ["export"]
    assert (place / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/export", r"'.*file' is none"),
        ("file/deep/export", r"'.*file' is none"),
        ("é" * 150, r"refuses the name .*too long"),
        ("new/" + "n" * 300, r"refuses the name .*too long"),
    ],
)
def test_a_path_that_cannot_be_is_told_before_any_work(name, message, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("solstice.exporting.export._traced", None)
    with pytest.raises(solstice.errors.InvalidValueError, match=message):
        solstice.export(linear(), tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("gap", [False, True])
def test_a_folder_that_is_replaced_meanwhile_is_read_again(gap, tmp_path, monkeypatch):
    exported(linear(), tmp_path / "a")
    last = exported(linear(), tmp_path / "b")
    place, load = tmp_path / "a" / "export", folders.load

    def replace():
        os.rename(tmp_path / "b" / "export", place)

    def replacing(path):
        monkeypatch.setattr(folders, "load", load)
        os.rename(place, tmp_path / "old")
        replace()
        return load(path)

    if gap:  # nothing has the name for a moment
        os.rename(place, tmp_path / "old")
        monkeypatch.setattr(folders.time, "sleep", lambda _: replace())
    else:
        monkeypatch.setattr(folders, "load", replacing)
    assert_same_bits([last(X)], [solstice.load_exported(place)(X)])


def test_long_names_of_folders_are_cut_by_bytes(tmp_path):
    solstice.export(linear(), tmp_path / ("é" * 120), platforms="cpu")
    model = compat.as_model(stax.serial(stax.Dense(2)), X, key=0)
    compat.save(model, tmp_path / ("é" * 110 + ".safetensors"))
    assert len(os.listdir(tmp_path)) == 2


def load_again(found):
    return solstice.load_exported(found.path)


def test_the_package_that_jax_exports_with_is_asked_for(loaded, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    without = lambda name, *rest: None if name == "flatbuffers" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    for use in (lambda: exported(linear(), tmp_path, example=X), lambda: load_again(loaded)):
        with pytest.raises(ImportError, match=r"'flatbuffers'.*jax-solstice\[checkpoint\]"):
            use()
