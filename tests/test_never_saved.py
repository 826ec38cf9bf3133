"""A run that is killed before its first checkpoint: started again, its log is that of one run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resume import BangError, Crash

import solstice
from solstice.triggers import Every

TRAIN, VAL = [np.full(2, i, "float32") for i in range(4)], [np.ones(2, "float32")]


def run(directory, exp, sink, *callbacks, every=None, resume=True):
    saving = solstice.CheckpointingCallback(
        directory / "saved", every=Every(steps=1000) if every is None else every
    )
    solstice.train(
        exp,
        2,
        TRAIN,
        VAL,
        [
            solstice.EnvironmentCallback(sink),
            solstice.LoggingCallback(1, sink),
            *callbacks,
            saving,
        ],
        resume_from=saving if resume else None,
        progress=False,
    )


def log(path):
    """What a sink's files hold, but for what depends on the clock."""
    if path.is_dir():
        return {
            mode: [(e.step, e.value) for e in _events(path / mode).Scalars("mean")]
            for mode in ("train", "val")
        }
    lines = path.read_text().splitlines()
    if path.suffix == ".csv":
        return [line.split(",")[:3] + line.split(",")[4:] for line in lines]
    return [json.loads(line) | {"time": 0} for line in lines]


def _events(directory):
    events = EventAccumulator(str(directory))
    events.Reload()
    return events


SINKS = {
    "log.jsonl": solstice.loggers.JSONLines,
    "log.csv": solstice.loggers.CSV,
    "events": solstice.loggers.TensorBoard,
}


@pytest.mark.parametrize("crash", [("train", 2), ("val", 0)], ids=str)
@pytest.mark.parametrize("name", SINKS)
def test_its_log_is_replaced(tmp_path, adding, name, crash):
    whole, path = tmp_path / "whole" / name, tmp_path / "run" / name
    run(tmp_path / "whole", adding, SINKS[name](whole))
    for _ in range(2):
        with pytest.raises(BangError):
            run(tmp_path / "run", adding, SINKS[name](path), Crash(*crash))
    run(tmp_path / "run", adding, SINKS[name](path))
    assert log(path) == log(whole)


def test_what_was_in_the_file_before_it_stays(tmp_path, adding):
    path = tmp_path / "log.jsonl"
    run(tmp_path / "before", adding, solstice.loggers.JSONLines(path))
    before = path.read_text()
    run(tmp_path / "whole", adding, solstice.loggers.JSONLines(tmp_path / "whole.jsonl"))
    sink = solstice.loggers.JSONLines(path, append=True)
    with pytest.raises(BangError):
        run(tmp_path, adding, sink, Crash("train", 2))
    run(tmp_path, adding, solstice.loggers.JSONLines(path, append=True))
    assert path.read_text().startswith(before)
    path.write_text(path.read_text().removeprefix(before))
    assert log(path) == log(tmp_path / "whole.jsonl")


def assert_refused(directory, adding, path, **options):
    before = path.read_text()
    with pytest.raises(FileExistsError, match="holds the log of another run"):
        run(directory, adding, solstice.loggers.JSONLines(path), **options)
    assert before and path.read_text() == before


def test_the_log_of_any_other_run_is_not_touched(tmp_path, adding, monkeypatch):
    path = tmp_path / "log.jsonl"
    with pytest.raises(BangError):
        run(tmp_path, adding, solstice.loggers.JSONLines(path), Crash("train", 2))
    # Without a word that it goes on with it.
    assert_refused(tmp_path, adding, path, resume=False)
    # Of another directory.
    assert_refused(tmp_path / "other", adding, path)
    # Another file, though its name is the same.
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "log.jsonl"
    other.write_text(path.read_text())
    assert_refused(tmp_path, adding, other)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_refused(tmp_path, adding, Path("log.jsonl"))


def test_a_run_that_has_saved_is_not_replaced_when_its_checkpoints_are_gone(tmp_path, adding):
    path = tmp_path / "log.jsonl"
    sink = solstice.loggers.JSONLines(path)
    with pytest.raises(BangError):
        run(tmp_path, adding, sink, Crash("train", 2), every=Every(steps=1))
    saved = tmp_path / "saved"
    for name in os.listdir(saved):
        (saved / name).rename(tmp_path / name)
    assert_refused(tmp_path, adding, path)


KILLED = """
import os, signal, sys
import numpy as np, solstice
from solstice.triggers import Every

class Still(solstice.Experiment):
    def train_step(self, batch):
        return self, solstice.metrics.Mean(batch)

    def eval_step(self, batch):
        return self, solstice.metrics.Mean(batch)

class Kill(solstice.Callback):
    def on_step_end(self, outs, exp, global_step, mode, batch):
        if global_step == int(sys.argv[1]):
            log.flush()
            os.kill(os.getpid(), signal.SIGKILL)

log = solstice.loggers.JSONLines("log.jsonl")
saving = solstice.CheckpointingCallback("saved")
solstice.train(
    Still(), 1, [np.full(2, i, "float32") for i in range(4)],
    callbacks=[solstice.LoggingCallback(1, log), Kill(), saving],
    resume_from=saving, progress=False,
)
"""


@pytest.mark.slow  # starts processes
def test_a_killed_process_is_started_again(tmp_path):
    def start(kill_at):
        command = [sys.executable, "-c", KILLED, str(kill_at)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert start(2).returncode == -signal.SIGKILL
    assert len(log(tmp_path / "log.jsonl")) == 3
    ended = start(-1)
    assert ended.returncode == 0, ended.stderr
    assert [record["step"] for record in log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]
