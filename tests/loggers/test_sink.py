"""What every sink promises: order, no waiting, no stopping, one warning, one process."""

import io
import itertools
import logging
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Pillow

import solstice
from solstice import LoggingCallback, loggers
from solstice.loggers import worker


class Lines(loggers.Sink):
    """Keeps records; `errors` raises at a step, `gate` blocks writing while it is clear."""

    def __init__(self, *, errors=(), gate=None, timeout=10.0):
        super().__init__("Lines()", timeout=timeout)
        self.records = []
        self.events = []
        self.threads = set()
        self._errors = dict(errors)
        self._gate = gate

    def on_open(self):
        self.events.append("open")

    def on_write(self, record):
        if self._gate is not None:
            self._gate.wait()
        if record["step"] in self._errors:
            raise self._errors[record["step"]]
        self.threads.add(threading.current_thread())
        self.records.append(record)

    def on_flush(self):
        self.events.append("flush")

    def on_close(self):
        self.events.append("close")

    def on_get_state(self):
        return {"written": len(self.records)}

    def on_set_state(self, state):
        del self.records[state["written"] :]


@pytest.fixture
def gate():
    gate = threading.Event()
    yield gate
    gate.set()


def steps_of(sink):
    return [record["step"] for record in sink.records]


def record(step, **metrics):
    return {"mode": "train", "epoch": 0, "step": step, "time": 0.0, **metrics}


def test_records_are_written_in_order_by_one_other_thread():
    sink = Lines()
    for step in range(1000):
        sink.write(record(step))
    sink.flush()
    assert steps_of(sink) == list(range(1000))
    assert len(sink.threads) == 1 and threading.current_thread() not in sink.threads
    sink.close()


def test_closing_ends_the_thread_and_writing_opens_again():
    sink = Lines()
    for step in range(3):
        sink.write(record(step))
        sink.close()
        sink.close()
    assert sink.events == ["open", "flush", "close"] * 3
    assert steps_of(sink) == [0, 1, 2]
    for thread in sink.threads:
        thread.join(10)
        assert not thread.is_alive()


def test_values_come_to_the_host_on_the_writing_thread():
    sink = Lines()
    sink.write(record(1, loss=jnp.ones(()), counts=jnp.arange(3), flag=np.bool_(True), note="a"))
    sink.close()
    (written,) = sink.records
    assert written.pop("counts").tolist() == [0, 1, 2]
    assert written == record(1, loss=1.0, flag=True, note="a")
    assert [type(written[name]) for name in ("loss", "flag")] == [float, bool]


def test_a_sink_is_a_logging_fn():
    sink = Lines()
    sink({"loss": 0.5}, 3, "val")
    sink.close()
    (written,) = sink.records
    assert written.pop("time") > 1e9
    assert written == {"mode": "val", "step": 3, "loss": 0.5}


def test_a_failing_write_loses_that_record_and_is_told_once_a_run(train, caplog):
    sink = Lines(errors={2: OSError("no space"), 3: ValueError("other")})
    for _ in range(2):
        trained = train(1, [1, 2, 3, 4], callbacks=[LoggingCallback(1, sink)])
        assert int(trained.total) == 10
    assert steps_of(sink) == [1, 4, 1, 4]
    message = (
        "The sink Lines() failed to write a record, which is lost: OSError: no space. "
        "Training continues; this is logged only once."
    )
    assert caplog.messages == [message] * 2
    assert {(r.name, r.levelno) for r in caplog.records} == {("solstice", logging.WARNING)}


def test_a_blocked_sink_stops_neither_training_nor_other_sinks(train, caplog, gate):
    blocked, free = Lines(gate=gate, timeout=0.05), Lines()
    trained = train(2, [1, 2, 3], callbacks=[LoggingCallback(1, [blocked, free])])
    assert int(trained.total) == 12
    assert steps_of(free) == [1, 2, 3, 4, 5, 6]
    assert caplog.messages == [
        "The sink Lines() is not done with its records after 0.05 s. Training continues; this is "
        "logged only once."
    ]
    assert steps_of(blocked) == []
    blocked.write(record(7))  # as another callback's on_run_end may: lost, and no error
    with pytest.raises(TimeoutError, match="still writing a record of an earlier run"):
        blocked.open()
    assert len(caplog.messages) == 1
    gate.set()
    blocked._worker.call(lambda: None)  # waits for what is queued
    assert steps_of(blocked) == [1, 2, 3, 4, 5, 6]
    assert blocked.events == ["open", "flush", "close"]


def test_a_slow_write_is_told_once(caplog, monkeypatch):
    monkeypatch.setattr(loggers.base, "_LONG", 0.0)
    sink = Lines()
    sink.write(record(1))
    sink.write(record(2))
    sink.close()
    assert steps_of(sink) == [1, 2]
    ((message),) = caplog.messages
    assert message.startswith("The sink Lines() took over 0 s to write one record.")


@pytest.mark.parametrize("room", ["_ROOM", "_ROOM_BYTES"])
def test_a_full_queue_loses_records_and_waits_for_nobody(caplog, gate, monkeypatch, room):
    monkeypatch.setattr(worker, room, 3 if room == "_ROOM" else 30)
    sink = Lines(gate=gate)
    sink.write(record(0))
    while sink._writing_since is None:
        time.sleep(0.001)
    for step in range(1, 10):
        sink.write(record(step, loss=np.zeros(10, np.uint8)))
    assert [m.split(". ")[0] for m in caplog.messages] == [
        "The sink Lines() does not keep up; its queue is full, so a record is lost"
    ]
    gate.set()
    sink.flush()
    gate.clear()
    for step in (10, 11, 12):  # there is room again
        sink.write(record(step, loss=np.zeros(10, np.uint8)))
    gate.set()
    sink.close()
    assert steps_of(sink) == [0, 1, 2, 3, 10, 11, 12]


def test_the_state_covers_what_was_handed_over_and_a_stuck_thread_gives_none(gate):
    sink = Lines(gate=gate, timeout=0.05)
    gate.set()
    sink.write(record(1))
    assert sink.get_state() == {"written": 1}
    gate.clear()
    sink.write(record(2))
    with pytest.raises(TimeoutError, match=r"has not written its records within 0\.05 s"):
        sink.get_state()
    gate.set()
    sink._worker.call(lambda: None)  # waits for what is queued
    sink.close()
    assert sink.get_state() == {"written": 2}
    sink.set_state({"written": 1})
    assert steps_of(sink) == [1]


def test_only_process_0_writes(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    sink = Lines()
    sink.open()
    sink.write(record(1))
    sink.flush()
    sink.set_state({"written": 0})
    sink.close()
    sink._worker.call(lambda: None)  # waits for what is queued
    sink._worker.stop()
    assert (sink.events, sink.records, sink.get_state()) == ([], [], None)


@pytest.mark.slow  # starts processes
def test_what_was_written_before_a_process_ends_is_there(tmp_path):
    code = """
        import sys
        from solstice import loggers

        sink = loggers.JSONLines(sys.argv[1])
        for step in range(100):
            sink.write({"mode": "train", "epoch": 0, "step": step, "time": 0.0})
        if sys.argv[2] == "error":
            raise ValueError
    """
    for how in ("end", "error"):
        path = tmp_path / how
        command = [sys.executable, "-c", textwrap.dedent(code), path, how]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == (how == "error"), done.stderr
        assert [r["step"] for r in loggers.read_json_lines(path)] == list(range(100))


@pytest.mark.parametrize(
    ("sink", "package", "extra"),
    [
        (lambda: loggers.TensorBoard("runs"), "tensorboardX", "tensorboard"),
        (lambda: loggers.WandB(), "wandb", "wandb"),
        (lambda: loggers.MLflow(), "mlflow", "mlflow"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, sink, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    message = (
        rf"needs the package '{package}', which is not .*pip install 'jax-solstice\[{extra}\]'"
    )
    with pytest.raises(ImportError, match=message):
        sink()


def test_urls_are_refused():
    for make in (loggers.JSONLines, loggers.CSV, loggers.TensorBoard):
        for url in ("s3://bucket/log", Path("s3://bucket/log")):  # a Path loses a slash
            with pytest.raises(ValueError, match=r"expected to be local; 's3:/+bucket/log' is a"):
                make(url)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (5, 2, 2, 3)])
def test_images_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"of shape \(height, width\) or"):
        loggers.Image(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"of uint8 or floats; it is int32\[2,2\]"):
        loggers.Image(np.zeros((2, 2), np.int32))


@pytest.mark.parametrize(
    ("channels", "dtype"), list(itertools.product((None, 1, 3, 4), (np.uint8, np.float32)))
)
def test_a_png_is_what_pillow_reads(channels, dtype):
    shape = (5, 7) if channels is None else (5, 7, channels)
    ints = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    array = ints if dtype == np.uint8 else ints.astype(np.float32) / 255
    read = np.asarray(Pillow.open(io.BytesIO(loggers.Image(jnp.asarray(array)).png())))
    assert np.array_equal(read, ints[:, :, 0] if channels == 1 else ints)


def test_floats_beyond_an_images_range_are_cut_off():
    pixels = loggers.Image(np.array([[-1.0, 0.5, 2.0, np.nan, np.inf]])).pixels()
    assert pixels[:, :, 0].tolist() == [[0, 128, 255, 0, 255]]


def test_a_metric_may_not_have_the_name_of_a_records_field(adding):
    class Named(solstice.Metrics):
        def merge(self, other):
            return self

        def compute(self):
            return {"time": 1.0}

    callback = LoggingCallback(1, Lines())
    with pytest.raises(ValueError, match=r"a metric named 'time'\. Rename it"):
        callback.on_step_end(Named(), adding, 0, "train", None)
