"""What a checkpoint holds of callbacks and logs: that of its step and whole, or it is told."""

import threading
import time

import numpy as np
import pytest

import solstice
from solstice.loggers import CSV, JSONLines, TensorBoard, read_json_lines
from solstice.loggers.files import FileSink
from solstice.saving.checkpoints import Checkpoints
from solstice.tree.growing import Growing
from solstice.triggers import Every


class Odd(solstice.Callback):
    """Has something in its state, from a step on, that no file holds."""

    def __init__(self, since, odd):
        self.since, self.odd, self.steps = since, odd, 0

    def on_step_end(self, outs, exp, global_step, mode, batch):
        self.steps = global_step + 1

    def get_state(self):
        return {"seen": [0, {"x": self.odd if self.steps >= self.since else 0}]}


ODD = [{7}, print, object(), np.array(["text"]), np.array([None]), Odd]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
def test_a_state_that_no_file_holds_is_refused_before_the_first_step(adding, tmp_path, odd):
    callback = Odd(0, odd)
    saving = solstice.CheckpointingCallback(tmp_path)
    with pytest.raises(TypeError, match=r"Odd\.get_state\(\) is expected .* 'seen/1/x' is"):
        solstice.train(adding, 1, [1, 2], callbacks=[callback, saving], progress=False)
    assert callback.steps == 0 and not Checkpoints(tmp_path).names()


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_one_that_comes_later_costs_its_checkpoints_and_says_so(adding, tmp_path, caplog, on_error):
    saving = solstice.CheckpointingCallback(tmp_path, every=Every(steps=2), on_error=on_error)
    callbacks = [Odd(3, {7}), saving]

    def run():
        solstice.train(adding, 1, [1, 2, 3, 4, 5], callbacks=callbacks, progress=False)

    if on_error == "raise":
        with pytest.raises(TypeError, match="'seen/1/x' is the set"):
            run()
    else:
        run()
    assert Checkpoints(tmp_path).names() == ["checkpoint-000000"]
    assert "could not be saved: InvalidTypeError: Odd.get_state()" in caplog.text


def test_an_entry_that_no_file_holds_costs_its_checkpoint(adding, tmp_path, caplog):
    class Log(solstice.Callback):
        def __init__(self):
            self.records = []

        def on_step_end(self, outs, exp, global_step, mode, batch):
            self.records.append({"step": global_step, "odd": {7} if global_step else 0})

        def get_state(self):
            return Growing(self.records, dict)

    saving = solstice.CheckpointingCallback(tmp_path, every=Every(steps=1))
    solstice.train(adding, 1, [1, 2], callbacks=[Log(), saving], progress=False)
    assert Checkpoints(tmp_path).names() == ["checkpoint-000000"]
    assert "An entry of a callback's state is expected to be what" in caplog.text


def test_a_state_is_that_of_its_step_though_it_changes_while_it_is_written(
    adding, tmp_path, monkeypatch
):
    class Live(solstice.Callback):
        def __init__(self):
            self.seen, self.count = [], np.zeros(1)

        def on_step_end(self, outs, exp, global_step, mode, batch):
            self.seen.append(global_step)
            self.count += 1

        def get_state(self):
            return {"seen": self.seen, "count": self.count}

    begin = Checkpoints.begin
    monkeypatch.setattr(Checkpoints, "begin", lambda self: (time.sleep(0.1), begin(self))[1])
    saving = solstice.CheckpointingCallback(tmp_path, every=Every(steps=2), keep=None)
    solstice.train(adding, 1, [1, 2, 3, 4, 5], callbacks=[Live(), saving], progress=False)
    there = Checkpoints(tmp_path)
    for name in there.names():
        run = there.read_run(name)
        state = dict(run["callbacks"])["Live"]
        assert state["seen"] == list(range(run["steps"])) and state["count"] == run["steps"]


class Part(solstice.Metrics):
    """Says nothing of fewer than 5 steps."""

    total: int
    count: int = 1

    def merge(self, other):
        return Part(self.total + other.total, self.count + other.count)

    def compute(self):
        if int(self.count) < 5:
            raise ZeroDivisionError("too few")
        return {"total": self.total}


class Parts(solstice.Experiment):
    def train_step(self, batch):
        return self, Part(batch)

    def eval_step(self, batch):
        return self, Part(batch)


def test_saves_within_a_pass_change_nothing_and_ask_for_nothing_that_is_not_there(tmp_path):
    def run(*saving):
        logged, asked = [], []

        def criterion(outs):
            asked.append(int(outs[4].total))
            outs.clear()
            return False

        logs = solstice.LoggingCallback(
            None, lambda metrics, step, mode: logged.append((mode, metrics))
        )
        stop = solstice.EarlyStoppingCallback(criterion, watch="train")
        plateau = solstice.EarlyStoppingCallback.no_improvement("total", mode="min", watch="train")
        callbacks = [logs, stop, plateau, *saving]
        solstice.train(Parts(), 2, [1, 2, 3, 4, 5], [1] * 5, callbacks, progress=False)
        return logged, asked[-1]

    saving = solstice.CheckpointingCallback(tmp_path, every=Every(steps=1), best=("total", "max"))
    assert run(saving) == run()


class Slow:
    """A file system that stalls, for a sink's threads, until `end` is called."""

    def __init__(self, monkeypatch):
        self._over = threading.Event()
        for kind in (FileSink, TensorBoard):
            flush = kind.on_flush
            monkeypatch.setattr(kind, "on_flush", lambda sink, flush=flush: self._wait(sink, flush))

    def _wait(self, sink, flush):
        self._over.wait(30)
        flush(sink)

    def end(self):
        self._over.set()


@pytest.mark.parametrize("kind", [JSONLines, CSV, TensorBoard])
def test_a_sink_waits_for_an_earlier_one_that_still_writes_there(tmp_path, monkeypatch, kind):
    slow = Slow(monkeypatch)
    monkeypatch.setattr(solstice.loggers.base, "_PATIENCE", 0.1)

    def sink(timeout):
        made = kind(tmp_path / "log")
        made._timeout = timeout
        return made

    first = sink(0.1)
    first.write({"mode": "train", "step": 1, "loss": 0.5})
    state = {"offset": 0, "rows": 0, "columns": 0, "run": "", "names": [], "sizes": [], "step": -1}
    first.close()  # in vain
    with pytest.raises(solstice.errors.SlowWriteError, match="is still writing its records to"):
        sink(0.1).set_state(state)
    monkeypatch.setattr(solstice.loggers.base, "_PATIENCE", 30)
    threading.Timer(0.3, slow.end).start()
    second = sink(30)
    second.set_state(state)
    second.write({"mode": "train", "step": 7, "loss": 0.5})
    second.close()
    if kind is JSONLines:
        assert [record["step"] for record in read_json_lines(tmp_path / "log")] == [7]


def test_of_two_sinks_of_one_file_each_writes_all_its_records(tmp_path):
    one, two = (JSONLines(tmp_path / "log", append=True) for _ in range(2))
    for step in range(4):
        (one if step % 2 else two).write({"mode": "train", "step": step})
    one.close()
    two.close()
    assert [record["step"] for record in read_json_lines(tmp_path / "log")] == [0, 1, 2, 3]
