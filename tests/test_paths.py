"""A relative path means where it was when it was given: no later `chdir` changes it."""

import inspect
import os

import pytest

import solstice
from solstice import LoggingCallback, callbacks, loggers
from solstice.loggers import CSV, JSONLines, MLflow, TensorBoard, WandB

# What is made with a relative path, and the file or directory that it makes.
SINKS = {
    "JSONLines": (lambda: JSONLines("new/log.jsonl"), "new/log.jsonl"),
    "CSV": (lambda: CSV("log.csv"), "log.csv"),
    "TensorBoard": (lambda: TensorBoard("board"), "board"),
    "MLflow": (lambda: MLflow("digits", tracking_uri="runs"), "runs"),
    "MLflow, a URI": (lambda: MLflow("digits", tracking_uri="file:runs"), "runs"),
    "WandB": (lambda: WandB("digits", dir="runs", mode="offline"), "runs"),
    "WandB, by default": (lambda: WandB("digits", mode="offline"), "wandb"),
}
CALLBACKS = {
    "CheckpointingCallback": (lambda: solstice.CheckpointingCallback("run"), "run"),
    "ProfilingCallback": (lambda: solstice.ProfilingCallback("profile", [2]), "profile"),
}
SLOW = ("MLflow", "MLflow, a URI", "WandB", "WandB, by default", "ProfilingCallback")
MAKERS = {
    name: (lambda make=make: LoggingCallback(1, make()), made)
    for name, (make, made) in SINKS.items()
} | CALLBACKS


class Elsewhere(solstice.Callback):
    """Changes the working directory in the middle of a run."""

    def __init__(self, directory):
        self._directory = directory

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if global_step == 1:
            os.chdir(self._directory)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Three directories: where things are made, where the run begins, and where it ends."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_SILENT", "true")
    here, there, elsewhere = (tmp_path / name for name in ("here", "there", "elsewhere"))
    for directory in (there, elsewhere, here):
        directory.mkdir()
        monkeypatch.chdir(directory)  # and back again at the end
    return here, there, elsewhere


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MAKERS],
)
def test_what_is_written_is_where_the_path_was_when_it_was_given(train, places, name):
    here, there, elsewhere = places
    make, made = MAKERS[name]
    callback = make()
    os.chdir(there)
    train(2, [1, 2, 3], callbacks=[callback, Elsewhere(elsewhere)])
    assert (here / made).exists()
    assert not list(there.iterdir()) and not list(elsewhere.iterdir())


@pytest.mark.parametrize("by_callback", [True, False])
def test_a_run_is_resumed_from_where_its_path_was(train, places, by_callback):
    here, there, elsewhere = places
    saving, sinks = solstice.CheckpointingCallback("run"), [JSONLines("log"), CSV("log.csv")]
    train(1, [1, 2, 3], callbacks=[saving, LoggingCallback(1, sinks), Elsewhere(elsewhere)])
    found = "../here/run"
    if by_callback:
        os.chdir(there)
        found = saving
    train(
        2,
        [1, 2, 3],
        callbacks=[saving, LoggingCallback(1, sinks), Elsewhere(elsewhere)],
        resume_from=found,
    )
    steps = [record["step"] for record in loggers.read_json_lines(here / "log")]
    assert steps == [1, 2, 3, 4, 5, 6] and saving.directory == here / "run"
    assert not list(there.iterdir()) and not list(elsewhere.iterdir())


def test_everything_that_takes_a_path_is_here():
    takes = set()
    for module in (loggers, callbacks):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) and "PathLike" in str(inspect.signature(thing.__init__)):
                takes.add(name)
    assert takes == {"JSONLines", "CSV", "TensorBoard", *CALLBACKS}
