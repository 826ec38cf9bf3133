"""A real training process, killed by real signals at random moments, ends with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import solstice

# `nox -s soak` kills 30 times.
KILLS = int(os.environ.get("KILLS", "8"))
SCRIPT = Path(__file__).with_name("killed_run.py")


def start(directory, cache, network, pause):
    command = [sys.executable, SCRIPT, directory, "--network", network, "--pause", str(pause)]
    return subprocess.Popen(
        [*map(str, command), "--cache", str(cache)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
    )


def newest_of(directory):
    return max((path.name for path in directory.glob("checkpoints/checkpoint-*")), default="")


def unfinished(directory):
    return list(directory.glob("checkpoints/.checkpoint-*.tmp"))


def log(directory):
    records = solstice.loggers.read_json_lines(directory / "log.jsonl")
    return [{name: value for name, value in one.items() if name != "time"} for one in records]


def wait_for(condition, process, seconds=120):
    """Wait until it is so, or the process has ended."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the process does nothing"
        time.sleep(0.001)


def killed_run(directory, cache, network, kills, number, seed):
    """Run to the end, killing `kills` times; return how many fell into a save."""
    rng = random.Random(seed)
    directory.mkdir()
    in_save = done = 0
    while True:
        process = start(directory, cache, network, pause=0.05)
        if done < kills:
            newest = newest_of(directory)
            wait_for(lambda than=newest: newest_of(directory) > than, process)
            if done % 2:
                wait_for(lambda: unfinished(directory), process)
            else:
                time.sleep(rng.random() * 0.3)
        if done < kills and process.poll() is None:
            in_save += bool(unfinished(directory))
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
            expected = -signal.SIGKILL if number == signal.SIGKILL else 143
            assert process.returncode == expected, error.decode()[-2000:]
            done += 1
        else:
            _, error = process.communicate(timeout=300)
            assert process.returncode == 0, error.decode()[-2000:]
            return done, in_save


def whole_run(directory, cache, network):
    directory.mkdir()
    process = start(directory, cache, network, pause=0)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "number", "kills"),
    [
        ("linen", signal.SIGKILL, KILLS * 5 // 8),
        pytest.param("nnx", signal.SIGKILL, KILLS * 3 // 8, marks=pytest.mark.soak),
        ("linen", signal.SIGTERM, 3),
    ],
    ids=["SIGKILL-linen", "SIGKILL-nnx", "SIGTERM-linen"],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, network, number, kills):
    whole_run(tmp_path / "whole", tmp_path / "cache", network)
    done, in_save = killed_run(tmp_path / "run", tmp_path / "cache", network, kills, number, 0)
    assert done == kills and (in_save or number != signal.SIGKILL)
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "run")
    ]
    assert results[0] == results[1]
    assert log(tmp_path / "whole") == log(tmp_path / "run")
