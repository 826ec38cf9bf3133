"""LoggingCallback: which steps a log tells of, what it says, and where it goes."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import EarlyStoppingException, LoggingCallback
from solstice.loggers.lines import log_line
from solstice.loggers.values import to_host
from solstice.triggers import At, Every


@pytest.fixture
def logs():
    return []


@pytest.fixture
def callback(logs):
    """Makes a LoggingCallback that notes (mode, step, mean, count) in `logs`."""

    def make(every=None, when=None):
        def note(metrics, step, mode):
            logs.append((mode, step, metrics["mean"], metrics["count"]))

        return LoggingCallback(every, note, when=when)

    return make


def test_it_logs_once_an_epoch(train, callback, logs):
    train(2, [1, 2, 3], [5, 7], [callback()])
    assert logs == [
        ("train", 0, 2.0, 3),
        ("val", 0, 6.0, 2),
        ("train", 1, 2.0, 3),
        ("val", 1, 6.0, 2),
    ]


def test_it_logs_every_step(train, callback, logs):
    train(2, [1, 2], [5], [callback(1)])
    assert logs == [
        ("train", 0, 1.0, 1),
        ("train", 1, 2.0, 1),
        ("val", 1, 5.0, 1),
        ("train", 2, 1.0, 1),
        ("train", 3, 2.0, 1),
        ("val", 3, 5.0, 1),
    ]


def test_windows_end_at_multiples_over_the_run_and_the_rest_at_the_epochs_end(
    train, callback, logs
):
    # Of 5 steps an epoch, steps 2, 5, 8, ... complete a window.
    train(3, [1, 2, 3, 4, 5], callbacks=[callback(3)])
    assert logs == [
        ("train", 2, 2.0, 3),
        ("train", 4, 4.5, 2),
        ("train", 5, 1.0, 1),
        ("train", 8, 3.0, 3),
        ("train", 9, 5.0, 1),
        ("train", 11, 1.5, 2),
        ("train", 14, 4.0, 3),
    ]


@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_a_validation_is_one_record_at_the_training_step_just_completed(
    train, callback, logs, every
):
    train(2, [1, 2, 3], [5, 7, 9, 11], [callback(every)])
    assert [log for log in logs if log[0] == "val"] == [("val", 2, 8.0, 4), ("val", 5, 8.0, 4)]
    logs.clear()
    train(1, [1, 2, 3, 4], [5, 7], [callback(every)], validate_every=Every(steps=2))
    assert [log for log in logs if log[0] == "val"] == [("val", 1, 6.0, 2), ("val", 3, 6.0, 2)]


def test_a_validation_in_a_window_leaves_it_whole(train, callback, logs):
    train(1, [1, 2, 3, 4], [9], [callback(3)], validate_every=Every(steps=2))
    assert logs == [("val", 1, 9, 1), ("train", 2, 2.0, 3), ("val", 3, 9, 1), ("train", 3, 4.0, 1)]


def test_a_trigger_that_counts_epochs_merges_them(train, callback, logs):
    train(4, [1, 3], lambda epoch: iter([epoch]), [callback(when=Every(epochs=2))])
    assert logs == [
        ("val", 0, 0, 1),
        ("val", 1, 1, 1),
        ("train", 1, 2.0, 4),  # after the validation of the second epoch
        ("val", 2, 2, 1),
        ("val", 3, 3, 1),
        ("train", 3, 2.0, 4),
    ]


@pytest.mark.parametrize(
    ("when", "records"),
    [
        (Every(steps=3), [(2, 3), (3, 1), (5, 2), (7, 2)]),
        (Every(epochs=1), [(0, 4), (1, 4)]),
        (Every(epochs=9), [(1, 8)]),  # the rest, at the run's end
        (Every(steps=3) | Every(epochs=2), [(2, 3), (5, 3), (7, 2)]),
        (Every(steps=3) | Every(epochs=1), [(2, 3), (3, 1), (5, 2), (7, 2)]),
        (At([1, 6]), [(0, 1), (3, 3), (5, 2), (7, 2)]),
        (At([1, 6]) | Every(epochs=2), [(0, 1), (5, 5), (7, 2)]),
        (Every(seconds=1e9), [(3, 4), (7, 4)]),
    ],
)
def test_windows_end_when_the_trigger_fires_and_with_the_epoch_unless_it_counts_those(
    train, callback, logs, when, records
):
    train(2, [1, 2, 3, 4], [9], callbacks=[callback(when=when)])
    assert [(step, count) for mode, step, _, count in logs if mode == "train"] == records
    history = solstice.HistoryCallback(when=when)
    train(2, [1, 2, 3, 4], [9], callbacks=[history])
    assert [one["count"] for one in history.records if one["mode"] == "train"] == [
        count for _, count in records
    ]


def test_what_is_left_of_several_epochs_is_logged_when_the_run_ends(
    train, callback, logs, recorder
):
    train(3, [1, 2], callbacks=[callback(when=Every(epochs=2))])
    assert logs == [("train", 1, 1.5, 4), ("train", 2, 1.5, 2)]
    logs.clear()
    stop = {("step_end", "train", 4): EarlyStoppingException("enough")}
    train(9, [1, 2], callbacks=[recorder([], errors=stop), callback(when=Every(epochs=2))])
    assert logs == [("train", 1, 1.5, 4), ("train", 2, 1.0, 1)]
    logs.clear()
    failing = recorder([], errors={("step_end", "train", 0): ValueError("broken")})
    with pytest.raises(ValueError, match="broken"):
        train(9, [1, 2], callbacks=[callback(when=Every(epochs=2)), failing])
    assert logs == []


def test_a_window_longer_than_an_epoch_is_that_epoch(train, callback, logs):
    train(2, [1, 2, 3], callbacks=[callback(100)])
    assert logs == [("train", 2, 2.0, 3), ("train", 5, 2.0, 3)]


def test_a_complete_window_is_not_logged_again_at_the_epochs_end(train, callback, logs):
    train(1, [1, 2, 3, 4], callbacks=[callback(2)])
    assert logs == [("train", 1, 1.5, 2), ("train", 3, 3.5, 2)]


def test_long_windows_merge_all_their_steps(train, callback, logs):
    train(1, range(100), callbacks=[callback()])
    assert logs == [("train", 0, 49.5, 100)]


def test_examples_weigh_alike_however_they_are_batched(train, callback, logs):
    train(1, [np.array([1.0, 1.0, 1.0]), np.array([5.0])], callbacks=[callback()])
    assert logs == [("train", 0, 2.0, 4)]


@pytest.mark.parametrize("every", [None, 2, 5])
def test_an_early_stop_flushes_the_window(train, callback, recorder, logs, every):
    stop = {("step_end", "train", 4): EarlyStoppingException("enough")}
    train(2, [1, 2, 3], [7], [recorder([], errors=stop), callback(every)])
    whole = [("train", 0, 2.0, 3), ("val", 0, 7.0, 1), ("train", 1, 1.5, 2)]
    if every is None:
        assert logs == whole
    elif every == 2:
        assert logs == [
            ("train", 1, 1.5, 2),
            ("train", 2, 3.0, 1),
            ("val", 2, 7.0, 1),
            ("train", 3, 1.0, 1),
            ("train", 4, 2.0, 1),
        ]
    else:
        assert logs == [("train", 2, 2.0, 3), ("val", 2, 7.0, 1), ("train", 4, 1.5, 2)]


def test_an_early_stop_before_any_step_logs_nothing(train, callback, recorder, logs):
    stop = {("step_start", "train", 0): EarlyStoppingException("enough")}
    train(2, [1, 2], callbacks=[recorder([], errors=stop), callback(1), callback()])
    assert logs == []


def test_one_callback_serves_several_runs(train, adding, callback, recorder, logs):
    shared = callback(2)
    failing = recorder([], errors={("step_end", "train", 0): ValueError("broken")})
    with pytest.raises(ValueError, match="broken"):
        train(1, [100, 100], callbacks=[shared, failing])
    train(1, [1, 2, 3], callbacks=[shared])
    solstice.test(adding, [5, 7, 9], [shared], progress=False)
    assert logs == [
        ("train", 1, 1.5, 2),
        ("train", 2, 3.0, 1),
        ("test", 2, 7.0, 3),
    ]


def test_the_logged_values_are_pythons_numbers_and_numpys_arrays(train):
    seen = []
    train(1, [1, 2], callbacks=[LoggingCallback(logging_fn=lambda *log: seen.append(log))])
    ((metrics, step, mode),) = seen
    assert metrics == {"mean": 1.5, "count": 2}
    assert [type(metrics[name]) for name in ("mean", "count")] == [float, int]
    assert (type(step), type(mode)) == (int, str)

    given = {"a": jnp.ones(2), "b": np.float32(2), "c": jnp.asarray(True), "d": "name", "e": None}
    host = to_host(given)
    assert host.pop("a").tolist() == [1.0, 1.0]
    assert host == {"b": 2.0, "c": True, "d": "name", "e": None}
    assert [type(value) for value in host.values()] == [float, bool, str, type(None)]


def test_classification_metrics_are_logged_by_name():
    seen = []

    class Guessing(solstice.Experiment):
        def train_step(self, batch):
            preds, targets = batch
            return self, solstice.ClassificationMetrics(preds, targets, 0.5, num_classes=2)

        def eval_step(self, batch):
            return self.train_step(batch)

    callback = LoggingCallback(logging_fn=lambda metrics, step, mode: seen.append(metrics))
    ds = [([0, 1, 1], [0, 1, 0]), ([1], [1])]
    ds = [(np.array(preds), np.array(targets)) for preds, targets in ds]
    solstice.train(Guessing(), 1, ds, callbacks=[callback], progress=False)
    (metrics,) = seen
    assert metrics["accuracy"] == 0.75
    assert all(type(value) is float for value in metrics.values())


def test_without_a_function_the_logger_gets_a_line(train, caplog):
    with caplog.at_level(logging.INFO, logger="solstice"):
        train(2, [1, 2], [5], [LoggingCallback()])
    assert {record.name for record in caplog.records} == {"solstice"}
    assert caplog.messages == [
        "train 0: mean=1.5, count=2",
        "val 0: mean=5, count=1",
        "train 1: mean=1.5, count=2",
        "val 1: mean=5, count=1",
    ]


class Outs(solstice.Experiment):
    """Its steps return no metrics."""

    def train_step(self, batch):
        return self, {"loss": 0.5}

    def eval_step(self, batch):
        return self, 0.5


def test_outs_that_are_no_metrics_are_a_usage_error(callback):
    message = r"the {} step returned {} as its outs\. Return a Metrics from the step, or lo"
    with pytest.raises(
        solstice.UsageError, match=message.format("train", r"\{'loss': the float 0\.5\}")
    ):
        solstice.train(Outs(), 1, [1], callbacks=[callback()], progress=False)
    with pytest.raises(AssertionError, match=message.format("test", r"the float 0\.5")):
        solstice.test(Outs(), [1], [callback(1)], progress=False)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused():
    for every in (0, -3):
        with pytest.raises(ValueError, match=rf"at least 1; it is {every}\."):
            LoggingCallback(every)
    with pytest.raises(TypeError, match=r"a list of these; it is the str 'outputs/logs'"):
        LoggingCallback(logging_fn="outputs/logs")


def test_a_line_has_the_first_ten_metrics_and_the_rates(caplog):
    metrics = {"loss": 0.5, "count": 3} | {f"f1_class_{i}": 1.0 for i in range(20)}
    caplog.set_level(logging.INFO, logger="solstice")
    log_line(dict(list(metrics.items())[:10]), 7, "val")
    log_line(metrics | {"learning_rate/head": 0.001}, 8, "train")
    classes = ", ".join(f"f1_class_{i}=1" for i in range(8))
    assert caplog.messages == [
        f"val 7: loss=0.5, count=3, {classes}",
        f"train 8: loss=0.5, count=3, {classes}, learning_rate/head=0.001, and 12 more",
    ]
