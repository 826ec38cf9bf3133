"""A real training process, killed by real signals at random moments, ends with the same bits."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import solstice

# How often each network's run is killed, Linen's after a SIGTERM and in the middle of a save,
# Keras' at a random moment: `nox -s soak` kills 30 times in all. In one process, `test_resume.py`
# resumes Haiku's and NNX's too, and `test_ensemble.py` an ensemble.
KILLS = {"linen": 1, "keras": 1}
if os.environ.get("KILLS") == "30":
    KILLS = {"linen": 10, "nnx": 5, "haiku": 5, "keras": 5, "ensemble": 5}
SCRIPT = Path(__file__).with_name("killed_run.py")
# This clone, whatever else is installed.
PATHS = os.pathsep.join(map(str, (SCRIPT.parents[1], SCRIPT.parent)))


def start(directory, network, pause, devices=0):
    command = [sys.executable, SCRIPT, directory, "--network", network, "--pause", pause]
    command += ["--devices", devices]
    return subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": PATHS},
    )


def newest_of(directory):
    return max((path.name for path in directory.glob("checkpoints/checkpoint-*")), default="")


def unfinished(directory):
    return list(directory.glob("checkpoints/.checkpoint-*.tmp"))


def log(directory):
    records = solstice.loggers.read_json_lines(directory / "log.jsonl")
    return [{name: value for name, value in one.items() if name != "time"} for one in records]


def csv_log(directory):
    with (directory / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def curves(directory):
    """What the event files say: by mode, tag and step, the value."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted(directory.glob("tensorboard/*/*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                numbers = tuple(value.tensor.float_val) or value.tensor.tensor_content
                place = path.parent.name, value.tag, event.step
                assert place not in found, "twice"
                found[place] = numbers
    return found


def wait_for(condition, process, seconds=120):
    """Wait until it is so, or the process has ended."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the process does nothing"
        time.sleep(0.001)


def killed_run(directory, network, numbers, seed, devices=(0,)):
    """Run to the end, killed by each signal; return how often, and how often within a save.

    `devices` are how many it has in the first process, the second and so on, again and again.
    """
    rng = random.Random(seed)
    directory.mkdir()
    in_save = done = 0
    while True:
        # The last process is let alone, and need not wait.
        pause = 0.05 if done < len(numbers) else 0
        process = start(directory, network, pause, devices[done % len(devices)])
        if done < len(numbers):
            newest = newest_of(directory)
            wait_for(lambda than=newest: newest_of(directory) > than, process)
            if done % 2:
                wait_for(lambda: unfinished(directory), process)
            else:
                time.sleep(rng.random() * 0.3)
        if done < len(numbers) and process.poll() is None:
            in_save += bool(unfinished(directory))
            process.send_signal(numbers[done])
            _, error = process.communicate(timeout=60)
            expected = -signal.SIGKILL if numbers[done] == signal.SIGKILL else 143
            assert process.returncode == expected, error.decode()[-2000:]
            done += 1
        else:
            _, error = process.communicate(timeout=300)
            assert process.returncode == 0, error.decode()[-2000:]
            return done, in_save


def whole_run(directory, network, devices=0):
    directory.mkdir()
    process = start(directory, network, 0, devices)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "kills"),
    [pytest.param(network, kills, id=network) for network, kills in KILLS.items()],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, network, kills):
    whole_run(tmp_path / "whole", network)
    numbers = [signal.SIGTERM] * (network == "linen") + [signal.SIGKILL] * kills
    killed = tmp_path / "killed"
    done, in_save = killed_run(killed, network, numbers, 0)
    print(f"{done} times, {in_save} of them in the middle of a save")
    assert done == len(numbers) and (in_save or done == 1)
    one, other = (
        json.loads((path / "result.json").read_text()) for path in (tmp_path / "whole", killed)
    )
    assert one == other
    for read in (log, csv_log, curves):
        whole, run = read(tmp_path / "whole"), read(killed)
        assert whole and whole == run, read.__name__


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("devices", [(1, 4), (4, 1)], ids=["1-4", "4-1"])
def test_a_terminated_run_goes_on_with_another_number_of_devices(tmp_path, devices):
    whole_run(tmp_path / "whole", "linen", devices[0])
    done, _ = killed_run(tmp_path / "run", "linen", [signal.SIGTERM] * 3, 0, devices)
    assert done == 3  # so the fourth process has the second number again
    whole, run = (dict(np.load(tmp_path / name / "params.npz")) for name in ("whole", "run"))
    assert set(whole) == set(run) and len(whole) == 6
    for name, wanted in whole.items():
        np.testing.assert_allclose(run[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    records = [log(tmp_path / name) for name in ("whole", "run")]
    assert len(records[0]) == len(records[1])
    for one, other in zip(*records, strict=True):
        assert one["mode"] == other["mode"] and one["step"] == other["step"]
        assert one["average_loss"] == pytest.approx(other["average_loss"], rel=1e-5, abs=1e-5)
