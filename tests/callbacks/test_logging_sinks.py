"""LoggingCallback with sinks: whole records, several at once, triggers, and resumes at any step."""

import itertools
import json
import os
import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import solstice
from solstice import LoggingCallback
from solstice.loggers import (
    CSV,
    Image,
    JSONLines,
    Sink,
    TensorBoard,
    Text,
    read_json_lines,
    records,
)
from solstice.triggers import At, Every


def logged(path, *names):
    """A file's records without their time, or some of their fields."""
    read = read_json_lines(path)
    for record in read:
        record.pop("time")
    return [tuple(record[name] for name in names) for record in read] if names else read


def test_a_sink_gets_whole_records_on_the_axis_of_training_steps(train, tmp_path):
    path = tmp_path / "log"
    train(2, [1, 2, 3], [5, 7], [LoggingCallback(2, JSONLines(path))])
    assert logged(path) == [
        {"mode": mode, "epoch": epoch, "step": step, "mean": mean, "count": count}
        for mode, epoch, step, mean, count in [
            ("train", 0, 2, 1.5, 2),
            ("train", 0, 3, 3.0, 1),
            ("val", 0, 3, 6.0, 2),
            ("train", 1, 4, 1.0, 1),
            ("train", 1, 6, 2.5, 2),
            ("val", 1, 6, 6.0, 2),
        ]
    ]


def test_once_an_epoch_and_in_a_test_after_training(train, adding, tmp_path):
    path = tmp_path / "log"
    callback = LoggingCallback(logging_fn=JSONLines(path))
    train(2, [1, 2], [5], [callback])
    solstice.test(adding, [9], [callback], progress=False)
    modes = [("train", 0, 2), ("val", 0, 2), ("train", 1, 4), ("val", 1, 4), ("test", 0, 4)]
    assert logged(path, "mode", "epoch", "step") == modes


def test_functions_and_sinks_take_turns(train, tmp_path):
    seen = []
    sinks = [JSONLines(tmp_path / "a"), JSONLines(tmp_path / "b")]
    callback = LoggingCallback(1, [sinks[0], lambda *log: seen.append(log), sinks[1]])
    train(1, [1, 2], callbacks=[callback])
    assert seen == [
        ({"mean": 1.0, "count": 1}, 0, "train"),
        ({"mean": 2.0, "count": 1}, 1, "train"),
    ]
    assert logged(tmp_path / "a", "step", "mean") == [(1, 1.0), (2, 2.0)]
    assert read_json_lines(tmp_path / "a") == read_json_lines(tmp_path / "b")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, solstice.EarlyStoppingException])
def test_sinks_are_flushed_and_closed_however_the_run_ends(train, recorder, tmp_path, error):
    sink = JSONLines(tmp_path / "log")
    raiser = recorder([], errors={("step_end", "train", 1): error("broken")})
    callbacks = [LoggingCallback(1, sink), raiser]
    if error is solstice.EarlyStoppingException:
        train(1, [1, 2, 3], callbacks=callbacks)
    else:
        with pytest.raises(error):
            train(1, [1, 2, 3], callbacks=callbacks)
    assert logged(tmp_path / "log", "step") == [(1,), (2,)]
    assert sink._file is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_whole_files(train, tmp_path, number):
    class Send(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            if global_step == 1:
                os.kill(os.getpid(), number)

    sinks = [JSONLines(tmp_path / "log"), CSV(tmp_path / "csv"), TensorBoard(tmp_path / "board")]
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        train(1, [1, 2, 3], callbacks=[LoggingCallback(1, sinks), Send()])
    assert logged(tmp_path / "log", "step") == [(1,), (2,)]
    assert len((tmp_path / "csv").read_text().splitlines()) == 3
    events = EventAccumulator(str(tmp_path / "board" / "train")).Reload()
    assert [event.step for event in events.Scalars("mean")] == [1, 2]


def test_when_ends_windows_of_training_and_other_modes_log_once_a_pass(train, tmp_path):
    path = tmp_path / "log"
    when = Every(steps=4) | At(1)
    train(2, [1, 2, 3], [5, 7], [LoggingCallback(logging_fn=JSONLines(path), when=when)])
    assert logged(path, "mode", "step", "count") == [
        ("train", 1, 1),
        ("train", 3, 2),
        ("val", 3, 2),
        ("train", 4, 1),
        ("train", 6, 2),
        ("val", 6, 2),
    ]


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="Windows end every log_every_n_steps=5 steps or as"):
        LoggingCallback(5, when=Every(steps=5))
    with pytest.raises(TypeError, match="when is expected to be a trigger"):
        LoggingCallback(when=5)
    with pytest.raises(TypeError, match="a list of these; it is the int 3"):
        LoggingCallback(5, [print, 3])


def test_a_sink_does_not_wait_for_the_device_and_shares_one_copy(adding, mean, monkeypatch):
    fetched = []
    real = jax.device_get
    monkeypatch.setattr(records.jax, "device_get", lambda x: fetched.append(1) or real(x))

    class Keeping(Sink):
        def on_write(self, record):
            self.kept = record

    sinks = [Keeping("a"), Keeping("b")]
    callback = LoggingCallback(1, sinks)
    callback.on_epoch_start(adding, 0, "train")
    callback.on_step_end(mean([1.0, 2.0]), adding, 0, "train", None)
    callback.on_run_end(adding, None)
    assert len(fetched) == 1
    assert sinks[0].kept == sinks[1].kept
    assert sinks[0].kept["mean"] == 1.5 and type(sinks[0].kept["mean"]) is float


class Everything(solstice.Metrics):
    """Values of every kind; `host` reads them in a way that no compiler follows."""

    total: jax.Array
    host: bool = eqx.field(static=True, default=False)

    def merge(self, other):
        return solstice.replace(self, total=self.total + other.total)

    def compute(self):
        values = {
            "z": self.total,
            "a": self.total.astype(jnp.int32),
            "half": self.total.astype(jnp.bfloat16),
            "array": jnp.stack([self.total, self.total]),
            "picture": Image(jnp.full((2, 2), self.total)),
            "fixed": 1.5,
        }
        text = {"text": Text(f"sum {float(self.total):g}")} if self.host else {}
        return values | text


class Kept(Sink):
    def __init__(self):
        super().__init__("Kept()")
        self.records = []

    def on_write(self, record):
        self.records.append(record)


@pytest.mark.parametrize("host", [False, True])
def test_values_of_every_kind_reach_a_sink_in_their_order(adding, host):
    sink = Kept()
    callback = LoggingCallback(2, sink)
    for step in range(4):
        callback.on_step_end(Everything(jnp.asarray(step / 8), host), adding, step, "train", None)
    callback.on_run_end(adding, None)
    first, second = sink.records
    names = ["z", "a", "half", "array", "picture", "fixed", *["text"] * host]
    assert list(second) == ["mode", "epoch", "step", "time", *names]
    assert (second["z"], second["a"], second["half"], second["fixed"]) == (0.625, 0, 0.625, 1.5)
    assert [type(second[name]) for name in ("z", "a", "half")] == [float, int, float]
    assert second["array"].tolist() == [0.625, 0.625] and first["z"] == 0.125
    assert isinstance(second["picture"], Image)
    assert second["picture"].pixels()[0, 0, 0] == round(0.625 * 255)
    assert second.get("text") == ("sum 0.625" if host else None)


def hooks(epochs, train_steps, val_steps, per_call):
    """The hooks of a run, as (name, arguments without the experiment)."""
    done = {"train": 0, "val": 0}
    for epoch in range(epochs):
        for mode, steps in (("train", train_steps), ("val", val_steps)):
            yield "epoch_start", epoch, mode
            left = steps
            while left:
                taken = min(per_call, left)
                done[mode], left = done[mode] + taken, left - taken
                yield "step_end", done[mode], mode
            yield "epoch_end", epoch, mode


def run(callback, adding, mean, events):
    for name, index, mode in events:
        if name == "step_end":
            outs = mean([index / 7, 1.0])
            callback.on_step_end(outs, adding, index - 1, mode, None)
        else:
            getattr(callback, f"on_{name}")(adding, index, mode)


def as_saved(state):
    """A state as a checkpoint gives it back."""
    return solstice.tree.from_json(solstice.tree.to_json(state))


@pytest.mark.parametrize(
    "options", [{"log_every_n_steps": 3}, {}, {"when": Every(steps=4) | At(2)}], ids=str
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    per_call=st.integers(1, 4),
    resumes=st.sets(st.integers(0, 40), min_size=1, max_size=3),
    lost=st.integers(0, 6),
)
def test_a_run_resumed_anywhere_logs_what_a_whole_one_does(
    adding, mean, tmp_path_factory, options, per_call, resumes, lost
):
    directory = tmp_path_factory.mktemp("logs")
    events = list(hooks(2, 5, 3, per_call))
    whole = LoggingCallback(logging_fn=JSONLines(directory / "whole"), **options)
    run(whole, adding, mean, events)
    whole.on_run_end(adding, None)

    points = sorted(point for point in resumes if point < len(events))
    state = None
    for start, stop in itertools.pairwise([0, *points, len(events)]):
        sink = JSONLines(directory / "resumed")
        callback = LoggingCallback(logging_fn=sink, **options)
        callback.on_run_start(adding)
        if state is not None:
            callback.set_state(state)
        run(callback, adding, mean, events[start:stop])
        state = as_saved(callback.get_state())
        if stop < len(events):  # what was logged between the checkpoint and the crash
            run(callback, adding, mean, events[stop : stop + lost])
        sink.close()
    assert logged(directory / "resumed") == logged(directory / "whole")


@pytest.mark.parametrize("host", [False, True])
def test_a_window_saved_after_its_last_step_is_logged_with_all_its_values(adding, host):
    def outs(step):
        return Everything(jnp.asarray(step / 8), host)

    sink = Kept()
    callback = LoggingCallback(logging_fn=sink)
    callback.on_epoch_start(adding, 3, "train")
    for step in range(3):
        callback.on_step_end(outs(step), adding, step, "train", None)
    state = callback.get_state()
    again = LoggingCallback(logging_fn=Kept())
    again.set_state(as_saved(state))
    for one in (callback, again):
        one.on_epoch_end(adding, 3, "train")
        one.on_run_end(adding, None)
    ((whole,), (resumed,)) = sink.records, again._outlets.sinks[0].records
    for record in (whole, resumed):
        del record["time"]
        record["picture"] = record["picture"].pixels().tolist()
        record["array"] = record["array"].tolist()
    assert list(resumed) == list(whole) and resumed == whole
    assert json.dumps(resumed) == json.dumps(whole)


def test_a_window_of_other_metrics_is_refused_at_a_resume(adding, mean):
    callback = LoggingCallback(5, print)
    callback.on_step_end(mean([1.0]), adding, 0, "train", None)
    again = LoggingCallback(5, print)
    again.set_state(callback.get_state())
    with pytest.raises(ValueError, match=r"metrics of 2 arrays.*a Everything of 1\. Resume"):
        again.on_step_end(Everything(jnp.ones(())), adding, 1, "train", None)
