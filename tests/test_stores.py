"""Checkpoints in object stores: memory, and a real S3 server on this machine."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
from resuming import VAL, bits, experiment, shuffled

import solstice
from solstice.saving import claims, stores
from solstice.saving.checkpoints import Checkpoints
from solstice.triggers import Every


@pytest.fixture(scope="module")
def s3():
    """The URL of a bucket of a real S3 server on the loopback address."""
    import boto3
    from moto.server import ThreadedMotoServer

    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
    before = {name: os.environ.get(name) for name in keys}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= dict(zip(keys, ("k", "s", "us-east-1", f"http://{host}:{port}"), strict=True))
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def place(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "run")
    if request.param == "memory":
        return f"memory://{tmp_path.name}/run"
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}/run"


def run(place, num_epochs, stop=None, **options):
    """Train with checkpoints, resuming; `stop` raises after that training step."""

    class Crash(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            if mode == "train" and global_step == stop:
                raise RuntimeError("crash")

    saving = solstice.CheckpointingCallback(place, best=("accuracy", "max"), **options)
    return solstice.train(
        experiment(),
        num_epochs,
        shuffled,
        VAL,
        [Crash(), saving],
        resume_from=saving,
        progress=False,
    )


def test_a_crashed_run_goes_on_to_the_same_bits_with_the_best_and_the_newest_kept(place):
    with pytest.raises(RuntimeError, match="crash"):
        run(place, 3, stop=8, every=Every(steps=3) | Every(epochs=1), keep=2)
    exp = run(place, 3, every=Every(steps=3) | Every(epochs=1), keep=2)
    assert bits(exp) == bits(solstice.train(experiment(), 3, shuffled, VAL, progress=False))
    assert bits(solstice.restore(place, experiment())) == bits(exp)
    there = Checkpoints(place)
    best = there.best()
    assert best["checkpoint"] in there.names() and len(there.names()) in (2, 3)
    assert solstice.restore(place, experiment(), which="best")


def test_an_unfinished_checkpoint_is_none_and_is_deleted(place):
    there, tree = Checkpoints(place), {"w": jnp.ones(3)}
    whole = there.write(tree, {})
    name = there.begin()
    there.write_arrays(name, 0, [])
    assert there.names() == [whole]
    assert there.write({"w": jnp.zeros(3)}, {}) not in (whole, name)
    there.prune(1)
    left = [one for one in there.store.names(whole=False) if "checkpoint" in one]
    assert left == ["checkpoint-000002"]


def test_a_damaged_file_is_noticed(place, caplog):
    there, tree = Checkpoints(place), {"w": jnp.arange(1000.0)}
    older, newer = there.write(tree, {"n": 0}), there.write(tree, {"n": 1})
    files, path = fsspec.core.url_to_fs(f"{place}/{newer}/arrays-0.safetensors")
    content = files.cat_file(path)
    for changed in (content[:-4], content[:-4] + b"\0\0\0\1", None):
        files.rm_file(path) if changed is None else files.pipe_file(path, changed)
        caplog.clear()
        found = solstice.saving.checkpoints.newest(there, tree)
        assert found is not None and found[0] == older and found[2] == {"n": 0}
        assert newer in caplog.text


def test_a_second_run_is_refused_and_told_who_has_the_directory(place):
    class Second(solstice.Callback):
        said = ""

        def on_step_end(self, outs, exp, global_step, mode, batch):
            if not self.said:
                with pytest.raises(solstice.errors.DirectoryInUseError) as refused:
                    run(place, 1)
                self.said = str(refused.value)
                assert not Checkpoints(place).names()  # readers are free

    second = Second()
    saving = solstice.CheckpointingCallback(place)
    solstice.train(experiment(), 1, shuffled, callbacks=[second, saving], progress=False)
    assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in second.said
    run(place, 2)  # and free again


def test_checkpoints_that_came_since_they_were_read_are_not_passed_over(tmp_path):
    """Two runs that start at once: the second reads, and the first ends before it claims."""
    run(str(tmp_path), 1)
    there = Checkpoints(tmp_path)
    assert solstice.saving.checkpoints.newest(there, experiment())
    run(str(tmp_path), 2)
    saving = solstice.CheckpointingCallback(tmp_path)
    with pytest.raises(solstice.errors.DirectoryInUseError, match="Another run has written check"):
        saving.begin(there)
    saving.on_run_end(experiment(), None)


def test_aliases_of_a_directory_are_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    aliases = ["real", "link", "./real/", "x/../real", str(tmp_path / "real")]
    assert {Checkpoints(alias).place for alias in aliases} == {str(tmp_path / "real")}
    for number, alias in enumerate(aliases):
        saving = solstice.CheckpointingCallback(alias)
        other = aliases[number - 1]
        solstice.train(
            experiment(),
            number + 1,
            shuffled,
            callbacks=[saving],
            resume_from=other,
            progress=False,
        )
    assert len({Checkpoints(f"memory://{name}/run").place for name in ("a", "a/", "/a")}) == 1


HOLDING = """
    import sys, time
    from solstice.saving.claims import Claim
    from solstice.saving.stores import store

    claim = Claim(store(sys.argv[1]))
    claim.take()
    print("taken", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_the_claim_of_a_killed_process_is_taken_over_at_once(kind, tmp_path, request):
    import textwrap

    place = str(tmp_path) if kind == "local" else f"{request.getfixturevalue('s3')}/claims"
    program = [sys.executable, "-c", textwrap.dedent(HOLDING), place]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"taken\n"
        claim = claims.Claim(stores.store(place))
        with pytest.raises(solstice.errors.DirectoryInUseError, match=f"process {process.pid} on"):
            claim.take()
        process.kill()
        process.wait()
    start = time.monotonic()
    claim.take()
    claim.release()
    assert time.monotonic() - start < 5


def card(**changes):
    about = {"host": "elsewhere", "pid": 1, "since": "then", "token": "t", "beat": time.time()}
    return json.dumps(about | changes).encode()


def test_a_claim_of_another_host_counts_until_it_has_been_silent_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.05)
    there = stores.store(f"memory://{tmp_path.name}/claims")
    there.write("claim.json", card())
    with pytest.raises(
        solstice.errors.DirectoryInUseError, match="process 1 on elsewhere, since t"
    ) as refused:
        claims.Claim(there).take()
    assert (refused.value.pid, refused.value.host) == (1, "elsewhere")
    assert refused.value.since == json.loads(card())["since"]
    there.write("claim.json", card(beat=time.time() - claims.GIVEN_UP - 1))
    claim = claims.Claim(there)
    claim.take()
    claim.release()
    assert there.read("claim.json") == b"{}"


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_claim_of_a_host_whose_clock_is_wrong_counts_while_it_is_renewed(
    tmp_path, monkeypatch, ahead
):
    monkeypatch.setattr(claims, "BEAT", 0.2)
    there = stores.store(f"memory://{tmp_path.name}/claims")
    there.write("claim.json", card(beat=time.time() + ahead))
    renewal = threading.Timer(0.1, there.write, ("claim.json", card(beat=time.time() + ahead + 1)))
    renewal.start()
    with pytest.raises(solstice.errors.DirectoryInUseError, match="on elsewhere"):
        claims.Claim(there).take()
    renewal.join()
    claim = claims.Claim(there)
    claim.take()  # since nobody renews it any more
    claim.release()


ODD_CLAIMS = [b"", b"{", b"[]", b'{"beat": "now"}', b"\xff", b"[" * 200_000]
ODD_CLAIMS += [card(beat=float("nan")), card(pid=10**30, host=socket.gethostname()), card(pid=None)]


@pytest.mark.parametrize("content", ODD_CLAIMS, ids=range(len(ODD_CLAIMS)))
def test_an_odd_claim_stops_nobody(tmp_path, monkeypatch, content):
    monkeypatch.setattr(claims, "BEAT", 0.05)
    there = stores.store(f"memory://{tmp_path.name}/claims")
    there.write("claim.json", content)
    claim = claims.Claim(there)
    claim.take()
    claim.release()


def test_a_run_whose_claim_was_taken_over_stops_saving(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    there = stores.store(f"memory://{tmp_path.name}/claims")
    claim = claims.Claim(there)
    claim.take()
    claim.check()
    there.write("claim.json", card())
    end = time.monotonic() + 10
    while not claim._lost:
        assert time.monotonic() < end
    with pytest.raises(solstice.errors.DirectoryInUseError, match="another one took over"):
        claim.check()
    claim.release()
    assert b"elsewhere" in there.read("claim.json")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/run", "URL of a store that fsspec supports"),
        ("ftp://127.0.0.1:9/run", "cannot be opened: ConnectionRefusedError.*Check"),
        ("", "directory is expected to be a path"),
        (7, "directory is expected to be a path"),
        (Path("s3://bucket/run"), "Give a URL as a string"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_directory_is_refused_when_the_callback_is_made(url, message):
    with pytest.raises(solstice.SolsticeError, match=message):
        solstice.CheckpointingCallback(url)
    with pytest.raises(solstice.SolsticeError, match=message):
        solstice.restore(url, experiment())


def test_a_missing_package_of_a_scheme_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        ImportError, match=r"gs://bucket/run needs .*pip install 'jax-solstice\[remote"
    ):
        solstice.CheckpointingCallback("gs://bucket/run")


@pytest.mark.slow
def test_a_missing_bucket_is_an_error_before_the_first_step(s3):
    start = time.monotonic()
    with pytest.raises(solstice.SolsticeError, match=r"s3://none/run cannot be \w+: .*Check"):
        run("s3://none/run", 1)
    assert time.monotonic() - start < 20


def test_a_store_that_does_not_answer_is_an_error_in_bounded_time(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "PATIENCE", 0.05)
    read = stores.Remote.read

    def slow(self, name):
        time.sleep(1 if name == "claim.json" else 0)
        return read(self, name)

    monkeypatch.setattr(stores.Remote, "read", slow)
    with pytest.raises(ValueError, match=r"memory://.*/run cannot be written: no answer in 0.05 s"):
        run(f"memory://{tmp_path.name}/run", 1)


def test_a_log_that_stalls_costs_a_checkpoint_and_no_record(tmp_path, monkeypatch, caplog):
    """The checkpoint would hold an old place in the log, from which a resume loses records."""
    fsync = os.fsync

    class Stall(solstice.Callback):
        def on_step_start(self, exp, global_step, mode, batch):
            if global_step == 5:
                monkeypatch.setattr(os, "fsync", lambda file: (time.sleep(0.5), fsync(file)))

        def on_step_end(self, outs, exp, global_step, mode, batch):
            if global_step == 8:
                monkeypatch.setattr(os, "fsync", fsync)
                raise RuntimeError("crash")

    def attempt(*others):
        sink = solstice.loggers.JSONLines(tmp_path / "log.jsonl")
        sink._timeout = 0.1
        saving = solstice.CheckpointingCallback(tmp_path / "run", every=Every(steps=3))
        callbacks = [solstice.LoggingCallback(1, sink), saving, *others]
        solstice.train(
            experiment(), 2, shuffled, callbacks=callbacks, resume_from=saving, progress=False
        )

    caplog.set_level(logging.WARNING)
    with pytest.raises(RuntimeError, match="crash"):
        attempt(Stall())
    assert "could not be saved: SlowWriteError: JSONLines" in caplog.text
    assert "has not written its records" in caplog.text
    time.sleep(1)
    attempt()
    records = solstice.loggers.read_json_lines(tmp_path / "log.jsonl")
    assert [record["step"] for record in records] == list(range(1, 11))


def test_a_checkpoint_names_no_file_for_a_sink_to_change(tmp_path):
    victim = tmp_path / "events.out.tfevents.thesis"
    victim.write_text("three years of work")
    (tmp_path / "tb").mkdir()
    (tmp_path / "tb" / "events.out.tfevents.1.link.00000000").symlink_to(victim)
    sink = solstice.loggers.TensorBoard(tmp_path / "tb")
    for run_name, name in (
        ("0" * 8, "../events.out.tfevents.thesis"),
        ("0" * 8, str(victim)),
        ("0" * 8, "events.out.tfevents.1.link.00000000"),
        ("0" * 8, "notes.txt"),
        ("*", ""),
    ):
        state = {
            "run": run_name,
            "names": [name] * bool(name),
            "sizes": [0] * bool(name),
            "step": 1,
        }
        with pytest.raises(solstice.DamagedFileError, match="cannot have written"):
            sink.set_state(state)
    assert victim.read_text() == "three years of work"


def test_a_state_of_a_callback_that_it_does_not_take_is_damage(tmp_path):
    class Odd(solstice.Callback):
        def get_state(self):
            return {"n": 1}

        def set_state(self, state):
            return state["m"]

    def go(num_epochs):
        saving = solstice.CheckpointingCallback(tmp_path)
        callbacks = [Odd(), saving]
        solstice.train(
            experiment(),
            num_epochs,
            shuffled,
            callbacks=callbacks,
            resume_from=saving,
            progress=False,
        )

    go(1)
    with pytest.raises(
        solstice.DamagedFileError, match=r"The state of Odd in the checkpoint is"
    ) as odd:
        go(2)
    assert odd.value.path is None


def test_values_and_arrays_of_every_kind_come_back_from_every_store(place):
    tree = {"a": jnp.ones((2, 3), "bfloat16"), "b": np.arange(3), "c": "text", "d": 1.5}
    state = {"window": [np.arange(3.0), None, {"n": 7}], "bytes": b"\0\1", "nan": float("nan")}
    there = Checkpoints(place)
    found, run = there.read(there.write(tree, state), tree)
    assert bits(found) == bits(tree)
    assert run["window"][0].tolist() == [0, 1, 2] and run["window"][1:] == [None, {"n": 7}]
    assert run["bytes"] == b"\0\1" and np.isnan(run["nan"])
