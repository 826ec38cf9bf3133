"""HistoryCallback: the records of a run, and that a resumed one has the same."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import HistoryCallback, UsageError
from solstice.loggers import Image, Text


def rows(history, *names):
    return [tuple(record[name] for name in names) for record in history.records]


def test_each_epoch_of_each_mode_is_one_record_on_the_axis_of_training_steps(train):
    history = HistoryCallback()
    train(2, [1, 2, 3], [4, 5], [history])
    assert rows(history, "mode", "epoch", "step", "mean", "count") == [
        ("train", 0, 3, 2.0, 3),
        ("val", 0, 3, 4.5, 2),
        ("train", 1, 6, 2.0, 3),
        ("val", 1, 6, 4.5, 2),
    ]
    times = [record["time"] for record in history.records]
    assert times == sorted(times)
    assert list(history.records[0]) == ["mode", "epoch", "step", "time", "mean", "count"]


def test_windows_run_across_epochs_and_the_rest_is_flushed(train):
    history = HistoryCallback(2)
    train(2, [1, 2, 3], [7], [history])
    assert rows(history, "mode", "epoch", "step", "mean") == [
        ("train", 0, 2, 1.5),
        ("train", 0, 3, 3.0),
        ("val", 0, 3, 7.0),
        ("train", 1, 4, 1.0),
        ("train", 1, 6, 2.5),
        ("val", 1, 6, 7.0),
    ]


def test_it_records_what_logging_logs(train):
    logged, history = [], HistoryCallback(3)
    logging = solstice.LoggingCallback(
        3, lambda metrics, step, mode: logged.append((mode, metrics))
    )
    train(3, [1, 2, 3, 4], [5, 6], [logging, history])
    about = {"mode", "epoch", "step", "time"}
    kept = [
        (record["mode"], {name: record[name] for name in record if name not in about})
        for record in history.records
    ]
    assert kept == logged


def test_a_test_is_recorded_after_the_training_it_follows(train, adding):
    history = HistoryCallback()
    train(1, [1, 2], callbacks=[history])
    solstice.test(adding, [3], [history], progress=False)
    assert rows(history, "mode", "step") == [("train", 2), ("test", 2)]


def test_a_call_of_several_steps_ends_a_window_that_it_crosses(adding, mean):
    history = HistoryCallback(4)
    history.on_run_start(adding)
    history.on_epoch_start(adding, 0, "train")
    for last in (2, 5, 8):  # three steps a call
        history.on_step_end(mean([last]), adding, last, "train", None)
    history.on_epoch_end(adding, 0, "train")
    assert rows(history, "step", "mean") == [(6, 3.5), (9, 8.0)]


@pytest.mark.parametrize("every", [None, 2, 3])
@pytest.mark.parametrize("cut", range(1, 12))
def test_a_run_cut_anywhere_and_gone_on_with_has_the_same_records(adding, mean, every, cut):
    events = []
    for epoch in range(2):
        events += [("on_epoch_start", epoch, "train")]
        events += [
            ("on_step_end", mean([0.1 * step]), step, "train")
            for step in range(3 * epoch, 3 * epoch + 3)
        ]
        events += [("on_epoch_end", epoch, "train"), ("on_epoch_start", epoch, "val")]
        events += [("on_step_end", mean([epoch]), epoch, "val"), ("on_epoch_end", epoch, "val")]

    def run(history, events):
        for hook, *arguments in events:
            if hook == "on_step_end":
                outs, step, mode = arguments
                history.on_step_end(outs, adding, step, mode, None)
            else:
                getattr(history, hook)(adding, *arguments)

    whole, first, second = (HistoryCallback(every) for _ in range(3))
    for history in (whole, first, second):
        history.on_run_start(adding)
    run(whole, events)
    run(first, events[:cut])
    state = first.get_state()
    run(first, events[cut:])  # taking the state changes nothing
    second.set_state(state)
    run(second, events[cut:])
    names = ("mode", "epoch", "step", "mean", "count")
    assert rows(second, *names) == rows(first, *names) == rows(whole, *names)


def test_arrays_and_non_finite_numbers_come_back_with_the_state(adding):
    class Odd(solstice.Metrics):
        values: jnp.ndarray

        def merge(self, other):
            return self

        def compute(self):
            picture, text = Image(jnp.ones((2, 2))), Text("text")
            return {"nan": jnp.nan, "values": self.values, "note": text, "picture": picture}

    history, other = HistoryCallback(), HistoryCallback()
    history.on_epoch_start(adding, 0, "val")
    history.on_step_end(Odd(jnp.arange(3, dtype=jnp.bfloat16)), adding, 0, "val", None)
    history.on_epoch_end(adding, 0, "val")
    text = solstice.tree.to_json(history.get_state())
    json.loads(text, parse_constant=pytest.fail)
    other.set_state(solstice.tree.from_json(text))
    (record,) = other.records
    assert np.isnan(record["nan"]) and record["note"] == "text"
    assert record["values"].dtype == jnp.bfloat16 and record["values"].tolist() == [0, 1, 2]
    assert record["picture"].pixels().tolist() == [[[255]] * 2] * 2


@pytest.mark.usefixtures("unchecked")
def test_misuse_is_refused(train, adding):
    with pytest.raises(ValueError, match="log_every_n_steps is expected to be at least 1"):
        HistoryCallback(0)
    with pytest.raises(UsageError, match="the train step returned the int 3"):
        HistoryCallback().on_step_end(3, adding, 0, "train", None)

    class Clashing(solstice.Metrics):
        def merge(self, other):
            return self

        def compute(self):
            return {"time": 1.0, "loss": 2.0}

    history = HistoryCallback(1)
    with pytest.raises(ValueError, match=r"a metric named 'time'\. Rename"):
        history.on_step_end(Clashing(), adding, 0, "train", None)
