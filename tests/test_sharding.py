"""Sharding on simulated devices and in real processes on the loopback."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import solstice

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "multi_process.py"


def environment(devices=1):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path}


def run(*command, devices=1, seconds=600):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_eight_devices_do_as_one():
    file = HERE / "on_eight_devices.py"
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", file, devices=8)


@pytest.mark.soak
@pytest.mark.slow
def test_the_number_of_devices_and_processes_changes_nothing_for_any_library(tmp_path):
    script, file = HERE / "sharded_runs.py", tmp_path / "found.npz"
    run(script, 1, file)
    alone = dict(np.load(file))
    assert len({name.split("/")[0] for name in alone}) == 6
    for devices, processes in ((2, 1), (4, 1), (8, 1), (1, 2), (1, 4)):
        file.unlink()
        address = f"localhost:{free_port()}"
        started = [
            subprocess.Popen(
                list(map(str, (sys.executable, script, devices, file, *many))),
                env=environment(devices),
            )
            for many in [(processes, address, i) for i in range(processes)]
        ]
        try:
            assert [one.wait(timeout=600) for one in started] == [0] * processes
        finally:
            for one in started:
                one.kill()
        found = np.load(file)
        assert set(found) == set(alone)
        for name, wanted in alone.items():
            message = f"{name} on {processes} times {devices}"
            np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5, err_msg=message)


def results(printed):
    """Loss lines, and the digest that each process ends with."""
    losses = [float(loss) for loss in re.findall(r"train \d+: loss (\S+)", printed)]
    return losses, re.findall(r"accuracy (\S+), digest ([0-9a-f]{64})", printed)


@pytest.fixture(scope="module")
def by_one():
    return results(run(EXAMPLE, "--processes", 1, "--epochs", 2))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_processes_train_as_one_does(processes, by_one):
    wanted, alone = by_one
    found, ends = results(run(EXAMPLE, "--processes", processes, "--epochs", 2))
    assert len(found) == 2  # only the first one logs
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert len(ends) == processes and len(set(ends)) == 1
    assert ends[0][0] == alone[0][0]


@pytest.mark.soak
@pytest.mark.slow
def test_a_checkpoint_goes_on_in_another_number_of_processes(tmp_path):
    wanted, whole = results(run(EXAMPLE, "--epochs", 3))
    run(EXAMPLE, "--epochs", 1, "--directory", tmp_path)
    second, _ = results(run(EXAMPLE, "--epochs", 2, "--processes", 1, "--directory", tmp_path))
    third, ends = results(run(EXAMPLE, "--epochs", 3, "--directory", tmp_path))
    np.testing.assert_allclose(second + third, wanted[1:], rtol=1e-5)
    assert ends[0][0] == whole[0][0]


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(script, *arguments, processes=2, log):
    address = f"localhost:{free_port()}"
    started = []
    for i in range(processes):
        command = [sys.executable, script, "--address", address, "--process", i, *arguments]
        with (log / f"{i}.log").open("w") as output:
            started.append(
                subprocess.Popen(
                    list(map(str, command)), env=environment(), stdout=output, stderr=output
                )
            )
    return started


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_ends_the_others_and_all_resume_to_the_same_bits(tmp_path, victim):
    _, whole = results(run(EXAMPLE, "--epochs", 6))
    directory = tmp_path / "checkpoints"
    arguments = ("--epochs", 100_000, "--directory", directory)
    started = start(EXAMPLE, *arguments, log=tmp_path)
    end = time.monotonic() + 120
    while len(solstice.saving.checkpoints.Checkpoints(directory).names()) < 2:
        assert time.monotonic() < end, (tmp_path / "0.log").read_text()
        assert [one.poll() for one in started] == [None, None], (tmp_path / "0.log").read_text()
        time.sleep(0.01)
    started[victim].send_signal(signal.SIGKILL)
    try:
        assert started[1 - victim].wait(timeout=20) != 0
    except subprocess.TimeoutExpired:
        pytest.fail((tmp_path / f"{1 - victim}.log").read_text())
    finally:
        for one in started:
            one.kill()
    said = (tmp_path / f"{1 - victim}.log").read_text()
    assert re.search("another task died|has left this pass|Connection (closed|reset)", said), said
    # It had got further than 6 epochs, or not; what it resumes to is what 6 or more are.
    newest = solstice.saving.checkpoints.Checkpoints(directory)
    epochs = max(newest.read_run(newest.names()[-1])["epoch"] + 1, 6)
    if epochs != 6:
        _, whole = results(run(EXAMPLE, "--epochs", epochs))
    _, ends = results(run(EXAMPLE, "--epochs", epochs, "--directory", directory))
    assert ends == whole


def together(tmp_path, action, processes, seconds=120):
    """Run `sharded_saves.py` in so many processes; return how they ended and what they said."""
    arguments = ("--of", processes, "--action", action, "--directory", tmp_path / "checkpoints")
    script = HERE / "sharded_saves.py"
    started = start(script, *arguments, processes=processes, log=tmp_path)
    try:
        codes = [one.wait(timeout=seconds) for one in started]
    finally:
        for one in started:
            one.kill()
    return codes, [(tmp_path / f"{i}.log").read_text() for i in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "finding"),  # one reads what is whole, two are told of what is not
    [(2, 1, 2), *(pytest.param(*row, marks=pytest.mark.soak) for row in [(1, 2, 2), (2, 4, 4)])],
)
def test_all_processes_write_and_another_number_reads(tmp_path, before, after, finding):
    codes, said = together(tmp_path, "save", before)
    assert codes == [0] * before, said
    written = tmp_path / "checkpoints" / "checkpoint-000000"
    names = {path.name for path in written.iterdir()}
    assert names == {"checkpoint.json"} | {f"arrays-{i}.safetensors" for i in range(before)}
    codes, said = together(tmp_path, "restore", after)
    assert codes == [0] * after and all("restored" in one for one in said), said
    # What one process wrote is missed by all.
    part = written / f"arrays-{before - 1}.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")  # its last piece is another one
    codes, said = together(tmp_path, "restore", finding)
    assert all(codes) and all("DamagedFileError" in one for one in said), said


@pytest.mark.soak
@pytest.mark.slow
def test_a_process_killed_in_a_save_leaves_nothing_that_looks_whole(tmp_path):
    codes, said = together(tmp_path, "save", 2)
    assert codes == [0, 0], said
    codes, said = together(tmp_path, "die", 2)
    assert codes[1] == -signal.SIGKILL and codes[0] != 0, said
    store = solstice.saving.checkpoints.Checkpoints(tmp_path / "checkpoints")
    assert store.names() == ["checkpoint-000000"]
    codes, said = together(tmp_path, "save", 2)
    assert codes == [0, 0] and store.names()[-1] == "checkpoint-000002", said
    assert not list((tmp_path / "checkpoints").glob(".checkpoint*"))


@pytest.mark.slow
def test_data_that_ends_earlier_in_one_process_hangs_nobody(tmp_path):
    started = start(HERE / "uneven_processes.py", log=tmp_path)
    try:
        codes = [one.wait(timeout=120) for one in started]
    finally:
        for one in started:
            one.kill()
    said = [(tmp_path / f"{i}.log").read_text() for i in range(2)]
    assert codes == [0, 0], said
    assert all("took 6 steps, 78 examples" in one for one in said), said
    assert all("seeds: refused" in one for one in said), said
    differ = (
        "'w' is expected to be the same everywhere; on process 0 and on process 1 it differs in 1"
    )
    assert all(f"{differ} of 2 elements, by up to 0.25" in one for one in said), said
    assert all("read ahead" in one for one in said), said
    assert "stopped alone: Process 1 has left this pass after 2 batches" in said[0], said
    assert all(one.count("ended by 143, in step: True") == 2 for one in said), said


def test_what_is_no_sharding_is_refused(adding, unchecked):
    for function, arguments in ((solstice.train, (1, [1.0])), (solstice.test, ([1.0], [], True))):
        with pytest.raises(TypeError, match=r"DataParallel\(\), FullySharded\(\)"):
            function(adding, *arguments, sharding="data", progress=False)
    with pytest.raises(TypeError, match=r"jax\.sharding\.Mesh"):
        solstice.sharding.DataParallel(8)
    with pytest.raises(TypeError, match="DataParallel"):
        solstice.predict(adding, [1.0], sharding=8)


def test_one_device_is_the_same_run(adding):
    one = solstice.train(
        adding, 1, [1, 2], sharding=solstice.sharding.DataParallel(), progress=False
    )
    assert float(one.total) == 3 and one.total.sharding == adding.total.sharding
