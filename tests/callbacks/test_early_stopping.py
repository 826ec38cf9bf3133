"""EarlyStoppingCallback: by a criterion on outs, or once a metric has stopped improving."""

import logging
import math

import pytest

import solstice
from solstice import EarlyStoppingCallback

no_improvement = EarlyStoppingCallback.no_improvement


def steps_taken(events, mode="train"):
    return sum(event[:2] == ("step_end", mode) for event in events)


def sums(windows):
    """A criterion that never stops and notes the totals of each window."""
    return lambda outs: windows.append([float(out.total) for out in outs])


def test_the_criterion_sees_each_steps_outs(train):
    windows = []
    train(2, [1, 2], [5], [EarlyStoppingCallback(sums(windows))])
    assert windows == [[1.0], [2.0], [1.0], [2.0]]


def test_windows_are_training_steps_across_epochs(train):
    windows = []
    train(4, [1, 2], [5], [EarlyStoppingCallback(sums(windows), 3)])
    assert windows == [[1.0, 2.0, 1.0], [2.0, 1.0, 2.0]]  # the last two fill no window


def test_it_stops_after_the_step_that_met_the_criterion(train, recorder, caplog):
    events = []
    callback = EarlyStoppingCallback(lambda outs: sum(float(out.total) for out in outs) > 4, 2)
    with caplog.at_level(logging.INFO, logger="solstice"):
        trained = train(9, [1, 2, 3], [5], [callback, recorder(events)])
    assert int(trained.total) == 1 + 2 + 3 + 1 + 2 + 3
    assert events[-3:] == [
        ("step_end", "train", 5, 3, 12, 3.0),
        ("epoch_end", "train", 1),
        ("run_end", None),
    ]
    message = "The run stopped early: the stopping criterion was met after 6 training steps."
    assert caplog.messages == [message]


def test_a_second_run_starts_with_an_empty_window(train):
    windows = []
    callback = EarlyStoppingCallback(sums(windows), 2)
    train(1, [1, 2, 3], callbacks=[callback])
    train(1, [4, 5, 6], callbacks=[callback])
    assert windows == [[1.0, 2.0], [4.0, 5.0]]


@pytest.mark.usefixtures("unchecked")
def test_bad_criteria_are_refused():
    with pytest.raises(TypeError, match="a function of a list of outs; it is the str 'accuracy'"):
        EarlyStoppingCallback("accuracy")
    with pytest.raises(ValueError, match="accumulate_every_n_steps is expected to be at least 1"):
        EarlyStoppingCallback(bool, 0)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("options", "values", "passes"),
    [
        (dict(patience=2), [3, 2, 1, 1, 1, 0], 5),
        (dict(patience=2), [3, 2, 2, 1, 1, 0, 0], 7),  # an improvement starts the count anew
        (dict(patience=1), [3, 2, 2, 1], 3),
        (dict(patience=2), [3, 4, 3, 1], 3),  # as good as the best is no improvement
        (dict(), [1] * 9, 6),  # patience is 5
        (dict(patience=2, mode="max"), [1, 2, 3, 3, 3, 4], 5),
        (dict(patience=2, mode="max"), [-3, -2, -4, -5, 0], 4),
        (dict(patience=2, min_delta=0.5), [3, 2.6, 2.5, 1], 3),  # 0.5 better is not enough
        (dict(patience=2, min_delta=0.5), [3, 2.6, 2.25, 2, 1.5, 1.5, 1.5, 0], 7),
        (dict(patience=2, mode="max", min_delta=0.5), [1, 1.5, 1.75, 2, 2.5], 5),
        (dict(patience=2), [1, NAN, NAN, 0], 3),
        (dict(patience=2), [NAN, NAN, 0], 2),
        (dict(patience=2), [NAN, 1, NAN, 0, NAN, NAN, -1], 6),
        (dict(patience=2, mode="max"), [1, NAN, NAN, 2], 3),
        (dict(patience=2), [INF, INF, 0], 2),
        (dict(patience=9), [1] * 5, 5),  # the run ends first
    ],
)
@pytest.mark.parametrize("watch", ["val", "train"])
def test_it_stops_once_a_metric_has_not_improved(train, recorder, watch, options, values, passes):
    events = []
    ds = {"train": [0], "val": [0]} | {watch: lambda epoch: iter([float(values[epoch])])}
    callbacks = [no_improvement("mean", watch=watch, **options), recorder(events)]
    train(len(values), ds["train"], ds["val"], callbacks)
    assert steps_taken(events, watch) == passes
    # A stop at the end of a training pass leaves out its validation.
    cut = watch == "train" and passes < len(values)
    assert steps_taken(events, "val") == passes - cut
    assert steps_taken(events, "train") == passes
    assert events[-1] == ("run_end", None)


def test_it_watches_a_pass_as_a_whole(train, recorder):
    events = []
    passes = [[4, 0], [3, 0], [0, 2], [9, 0], [9, 0]]  # means 2, 1.5, 1, 4.5, 4.5
    callbacks = [no_improvement("mean", patience=2), recorder(events)]
    train(9, [0], lambda epoch: iter(passes[epoch]), callbacks)
    assert steps_taken(events, "val") == 10


def test_it_says_why_it_stopped(train, caplog):
    values = [3.0, 1.25, 2.0, 2.0]
    with caplog.at_level(logging.INFO, logger="solstice"):
        train(9, [0], lambda epoch: iter([values[epoch]]), [no_improvement("mean", patience=2)])
    (message,) = caplog.messages
    assert message == "The run stopped early: mean has not improved on 1.25 in 2 val passes."


def test_a_second_run_starts_anew(train, recorder):
    callback = no_improvement("mean", patience=2)
    for _ in range(2):
        events = []
        train(9, [0], [1.0], [callback, recorder(events)])
        assert steps_taken(events) == 3


def test_an_unknown_metric_is_a_usage_error_that_lists_the_known(train):
    with pytest.raises(
        solstice.UsageError, match=r"watches 'acuracy', which is none of .*: mean, count\."
    ):
        train(2, [0], [1.0], [no_improvement("acuracy")])


def test_a_run_without_the_passes_it_watches_is_a_usage_error(train, recorder):
    events = []
    with pytest.raises(solstice.UsageError, match=r"watches the validation, .* give it a val_ds"):
        train(3, [0], callbacks=[no_improvement("mean"), recorder(events)])
    assert not events


def test_outs_that_are_no_metrics_are_a_usage_error():
    class Outs(solstice.Experiment):
        def train_step(self, batch):
            return self, None

        def eval_step(self, batch):
            return self, {"mean": 0.5}

    with pytest.raises(solstice.UsageError, match=r"needs Metrics as the val step's outs; it got"):
        solstice.train(Outs(), 1, [0], [0], [no_improvement("mean")], progress=False)


def test_only_the_watched_mode_needs_metrics(adding):
    class Silent(type(adding)):
        def train_step(self, batch):
            return self, None

    exp = Silent(adding.total, adding.evaluated)
    solstice.train(exp, 2, [0], [0], [no_improvement("mean")], progress=False)


class Handover(solstice.Callback):
    """Gives another callback its state back at the start of a run, as a resume does."""

    def __init__(self, to, state):
        self.to, self.state = to, state

    def on_run_start(self, exp):
        self.to.set_state(self.state)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_its_state_survives_a_resume(train, recorder, mode):
    def stopping():
        return no_improvement("mean", mode=mode, patience=3)

    sign = 1.0 if mode == "min" else -1.0
    values = [3 * sign, 1 * sign, 2 * sign, 2 * sign, 2 * sign, 0.0]
    whole = []
    train(6, [0], lambda epoch: iter([values[epoch]]), [stopping(), recorder(whole)])
    assert steps_taken(whole) == 5
    for first in (1, 2, 3, 4):
        before, after, events = stopping(), stopping(), []
        train(first, [0], lambda epoch: iter([values[epoch]]), [before])
        callbacks = [after, Handover(after, before.get_state()), recorder(events)]
        rest = values[first:]
        train(len(rest), [0], lambda epoch, rest=rest: iter([rest[epoch]]), callbacks)
        assert steps_taken(events) == 5 - first
        assert after.get_state() == {"best": -1.0, "waited": 3, "pass": None}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="lowest"), "mode is expected to be 'min' or 'max'; it is 'lowest'"),
        (dict(watch="test"), "watch is expected to be 'train' or 'val'; it is 'test'"),
        (dict(patience=0), "patience is expected to be at least 1 pass; it is 0"),
        (dict(min_delta=-0.1), r"min_delta is expected to be at least 0; it is -0\.1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        no_improvement("mean", **options)
