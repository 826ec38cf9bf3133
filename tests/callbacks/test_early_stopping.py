"""EarlyStoppingCallback: by a criterion on outs, or once a metric has stopped improving."""

import logging
import math
import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import EarlyStoppingCallback
from solstice.triggers import Every

no_improvement = EarlyStoppingCallback.no_improvement


def steps_taken(events, mode="train"):
    return sum(event[:2] == ("step_end", mode) for event in events)


def sums(passes, answer=lambda totals: False):
    """A criterion that notes the totals of each pass, and stops when `answer` says so of them."""

    def criterion(outs):
        passes.append([float(out.total) for out in outs])
        return answer(passes[-1])

    return criterion


def test_the_criterion_sees_each_validations_outs_once(train):
    passes = []
    ds = iter([[5, 6, 7], [8, 9]])
    train(2, [1, 2], lambda: iter(next(ds)), [EarlyStoppingCallback(sums(passes))])
    assert passes == [[5.0, 6.0, 7.0], [8.0, 9.0]]


def test_a_lucky_training_batch_ends_no_run(train):
    callback = EarlyStoppingCallback(lambda outs: any(float(out.total) == 1 for out in outs))
    assert int(train(3, [1, 2, 3], [5], [callback]).total) == 18


@pytest.mark.parametrize("watch", ["val", "train"])
@pytest.mark.parametrize(
    ("every", "steps_per_call", "kept"),
    [
        (1, 1, [[1, 2, 3, 4, 5]]),
        (2, 1, [[1, 3, 5]]),
        (3, 1, [[1, 4]]),
        (9, 1, [[1]]),
        # A call's outs are one: those of steps 0 and 1, 2 and 3, and the last.
        (1, 2, [[3, 7, 5]]),
        (3, 2, [[3, 7]]),
        (4, 2, [[3, 5]]),
    ],
)
def test_every_nth_outs_of_a_pass_is_kept(adding, watch, every, steps_per_call, kept):
    class Compiled(type(adding)):
        train_step = solstice.jit(type(adding).train_step)
        eval_step = solstice.jit(type(adding).eval_step)

    passes = []
    ds = {"train": [jnp.zeros(())], "val": [jnp.zeros(())]}
    ds[watch] = [jnp.asarray(float(i)) for i in (1, 2, 3, 4, 5)]
    solstice.train(
        Compiled(jnp.asarray(0.0), jnp.asarray(0)),
        2,
        ds["train"],
        ds["val"],
        [EarlyStoppingCallback(sums(passes), every, watch=watch)],
        steps_per_call=steps_per_call,
        progress=False,
    )
    assert passes == kept * 2  # counted from each pass's start


@pytest.mark.parametrize("watch", ["val", "train"])
def test_it_stops_at_the_end_of_the_pass_that_met_the_criterion(train, recorder, caplog, watch):
    events, passes = [], []
    criterion = sums(passes, lambda totals: len(passes) == 2)
    callback = EarlyStoppingCallback(criterion, watch=watch)
    with caplog.at_level(logging.INFO, logger="solstice"):
        train(9, [1, 2, 3], [5], [callback, recorder(events)])
    assert len(passes) == 2
    assert events[-2:] == [("epoch_end", watch, 1), ("run_end", None)]
    which = "validation" if watch == "val" else "training pass"
    assert caplog.messages == [
        f"The run stopped early: the stopping criterion was met by the {which} after 6 training "
        f"steps."
    ]


def test_validations_within_an_epoch_are_passes_too(train):
    passes = []
    criterion = sums(passes, lambda totals: len(passes) == 2)
    exp = train(
        9, [1] * 6, [5, 6], [EarlyStoppingCallback(criterion)], validate_every=Every(steps=2)
    )
    assert passes == [[5, 6]] * 2 and int(exp.total) == 4


def test_a_second_run_starts_with_an_empty_pass(train, recorder):
    passes = []
    callback = EarlyStoppingCallback(sums(passes), 2)
    failing = recorder([], errors={("step_end", "val", 0): ValueError("broken")})
    with pytest.raises(ValueError, match="broken"):
        train(1, [1], [4, 5, 6], [callback, failing])
    train(1, [1], [7, 8, 9], [callback])
    assert passes == [[7.0, 9.0]]


def test_watching_a_validation_that_is_not_there_is_an_error_before_the_first_step(train, recorder):
    events = []
    with pytest.raises(solstice.UsageError, match="EarlyStoppingCallback watches the validation"):
        train(1, [1], callbacks=[EarlyStoppingCallback(bool), recorder(events)])
    assert not events
    train(1, [1], callbacks=[EarlyStoppingCallback(lambda outs: False, watch="train")])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (np.array([True, False]), r"bool\[2\]"),
        ("no", "the str 'no'"),
        (float("nan"), "the float nan"),
        (np.float32("nan"), r"float32\[\]"),
    ],
)
def test_an_answer_that_is_no_truth_is_refused(train, answer, told):
    callback = EarlyStoppingCallback(lambda outs: answer)
    with pytest.raises(ValueError, match=rf"one bool; it returned {told}"):
        train(1, [1], [2], [callback])


@pytest.mark.parametrize("steps_per_call", [1, 2])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("watch", ["val", "train"])
@pytest.mark.parametrize("cut", range(1, 21))
def test_a_run_cut_anywhere_sees_the_same_passes(adding, mean, watch, every, steps_per_call, cut):
    events, steps = [], {"train": 0, "val": 0}
    for epoch in range(2):
        for mode in ("train", "val"):
            events.append(("on_epoch_start", epoch, mode))
            for size in [2, 2, 1] if steps_per_call == 2 else [1] * 5:
                steps[mode] += size
                events.append(("on_step_end", mean([steps[mode]]), steps[mode] - 1, mode))
            events.append(("on_epoch_end", epoch, mode))

    def run(callback, events):
        for hook, *arguments in events:
            if hook == "on_step_end":
                outs, step, mode = arguments
                callback.on_step_end(outs, adding, step, mode, None)
            else:
                try:
                    getattr(callback, hook)(adding, *arguments)
                except solstice.EarlyStoppingException as stop:
                    return str(stop)
        return None

    def stopping():
        passes = []
        criterion = sums(passes, lambda totals: totals[0] > 5)  # in the second epoch
        callback = EarlyStoppingCallback(criterion, every, watch=watch)
        callback.on_run_start(adding)
        return callback, passes

    (whole, seen), (first, before), (second, _) = stopping(), stopping(), stopping()
    said = run(whole, events)
    assert said is not None and len(seen) == 2
    if run(first, events[:cut]) is None:
        second.set_state(solstice.tree.from_json(solstice.tree.to_json(first.get_state())))
        assert run(second, events[cut:]) == said
        # In the process that saved, nothing is asked twice of the same outs.
        assert run(first, events[cut:]) == said
        assert [one for i, one in enumerate(before) if one != before[i - 1] or not i][-1] == seen[1]
        assert before.count(seen[1]) == 1


@pytest.mark.usefixtures("unchecked")
def test_bad_criteria_are_refused(unchecked):
    with pytest.raises(TypeError, match=r"a function of \(outs\); it is the str 'accuracy'"):
        EarlyStoppingCallback("accuracy")
    with pytest.raises(ValueError, match="watch is expected to be 'train' or 'val'; it is 'test'"):
        EarlyStoppingCallback(bool, watch="test")
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
    events, options = [], {"mode": "min"} | options
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
    callbacks = [no_improvement("mean", mode="min", patience=2), recorder(events)]
    train(9, [0], lambda epoch: iter(passes[epoch]), callbacks)
    assert steps_taken(events, "val") == 10


def test_it_says_why_it_stopped(train, caplog):
    values = [3.0, 1.25, 2.0, 2.0]
    with caplog.at_level(logging.INFO, logger="solstice"):
        train(
            9,
            [0],
            lambda epoch: iter([values[epoch]]),
            [no_improvement("mean", mode="min", patience=2)],
        )
    (message,) = caplog.messages
    assert message == "The run stopped early: mean has not improved on 1.25 in 2 val passes."


def test_a_second_run_starts_anew(train, recorder):
    callback = no_improvement("mean", mode="min", patience=2)
    for _ in range(2):
        events = []
        train(9, [0], [1.0], [callback, recorder(events)])
        assert steps_taken(events) == 3


class Reporting(solstice.Metrics):
    """Computes what it is told to, of the last value."""

    value: jax.Array
    name: str = eqx.field(static=True)
    directions: tuple = eqx.field(static=True, default=())

    def merge(self, other):
        return other

    def compute(self):
        return {self.name: self.value} if self.name else self.value

    def better(self, name):
        return dict(self.directions).get(name) or super().better(name)


class Judged(solstice.Experiment):
    """Its validation reports the batch under a name."""

    name: str = eqx.field(static=True)
    directions: tuple = eqx.field(static=True, default=())

    def train_step(self, batch):
        return self, None

    def eval_step(self, batch):
        return self, Reporting(jnp.asarray(batch), self.name, self.directions)


@pytest.mark.parametrize(
    ("exp", "metric", "larger"),
    [
        (Judged("accuracy"), "accuracy", True),
        (Judged("average_loss"), "average_loss", False),
        (Judged("average_loss"), "loss", False),
        (Judged(""), "reporting", None),  # a number alone, named after its class
        (Judged("mine"), "mine", None),
        (Judged("mine", (("mine", "max"),)), "mine", True),
        (Judged("accuracy", (("accuracy", "min"),)), "accuracy", False),  # the metric knows better
    ],
)
def test_the_metric_knows_which_values_are_better(recorder, exp, metric, larger):
    def passes(values, **options):
        steps = []
        counting = solstice.Callback()
        counting.on_epoch_end = lambda exp, epoch, mode: steps.append(mode)
        callback = no_improvement(metric, patience=1, **options)
        ds = [[value] for value in values]
        val_ds = lambda epoch: iter(ds[epoch])  # noqa: E731
        solstice.train(exp, len(ds), [0], val_ds, [callback, counting], progress=False)
        return steps.count("val")

    rising, falling = [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]
    for mode in ("min", "max"):  # a user's word counts most
        assert passes(rising, mode=mode) == (3 if mode == "max" else 2)
        assert passes(falling, mode=mode) == (3 if mode == "min" else 2)
    if larger is None:
        with pytest.raises(solstice.UsageError, match=f"larger '{metric}' is better .*mode='min'"):
            passes(rising)
    else:
        assert passes(rising) == (3 if larger else 2)
        assert passes(falling) == (2 if larger else 3)


def test_an_array_is_no_number_to_watch():
    ds = [np.ones(2)]
    with pytest.raises(solstice.UsageError, match=r"'accuracy' is float32\[2\]\. Name another"):
        solstice.train(Judged("accuracy"), 1, ds, ds, [no_improvement("accuracy")], progress=False)


def test_a_metric_that_is_never_finite_is_named_so(caplog):
    with caplog.at_level(logging.INFO, logger="solstice"):
        solstice.train(
            Judged("loss"), 9, [0], [math.nan], [no_improvement("loss", patience=2)], progress=False
        )
    assert caplog.messages == ["The run stopped early: loss was finite in none of 2 val passes."]


class Signal(solstice.Callback):
    """Sends Ctrl-C at the end of a step, after which the run is saved and ends."""

    def __init__(self, at):
        self.at = at

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if (mode, global_step) == self.at:
            signal.raise_signal(signal.SIGINT)


BY_OUTS = lambda: EarlyStoppingCallback(lambda outs: float(outs[-1].value) > 4)  # noqa: E731
BY_METRIC = lambda: no_improvement("mine", patience=1)  # noqa: E731


@pytest.mark.parametrize(
    ("make", "at", "last"),
    [
        *[(BY_OUTS, at, 2) for at in [("train", 1), ("val", 0), ("val", 1), ("val", 2)]],
        *[(BY_METRIC, at, 5) for at in [("val", 1), ("val", 2), ("val", 4), ("val", 5)]],
    ],
)
def test_a_run_stopped_in_a_validation_ends_where_it_would_have(tmp_path, make, at, last):
    def run(directory, *more):
        seen = []
        noting = solstice.Callback()
        noting.on_step_end = lambda outs, exp, step, mode, batch: seen.append((mode, step))
        saving = solstice.CheckpointingCallback(directory)
        exp = Judged("mine", (("mine", "min"),))
        solstice.train(
            exp,
            4,
            [0, 0],
            [3, 4, 5],
            [make(), saving, noting, *more],
            resume_from=saving,
            progress=False,
        )
        return seen

    whole = run(tmp_path / "whole")
    assert whole[-1] == ("val", last)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Signal(at))
    rest = run(tmp_path / "cut")
    assert rest == whole[whole.index(at) + 1 :]


def test_an_unknown_metric_is_a_usage_error_that_lists_the_known(train):
    with pytest.raises(
        solstice.UsageError, match=r"watches 'acuracy', which is not among .*: mean, count\."
    ):
        train(2, [0], [1.0], [no_improvement("acuracy")])


def test_a_run_without_the_passes_it_watches_is_a_usage_error(train, recorder):
    events = []
    with pytest.raises(solstice.UsageError, match=r"watches the validation, .* pass val_ds"):
        train(3, [0], callbacks=[no_improvement("mean", mode="min"), recorder(events)])
    assert not events


def test_outs_that_are_no_metrics_are_a_usage_error():
    class Outs(solstice.Experiment):
        def train_step(self, batch):
            return self, None

        def eval_step(self, batch):
            return self, {"mean": 0.5}

    with pytest.raises(solstice.UsageError, match=r"needs Metrics as the val step's outs; it got"):
        solstice.train(Outs(), 1, [0], [0], [no_improvement("mean", mode="min")], progress=False)


def test_only_the_watched_mode_needs_metrics(adding):
    class Silent(type(adding)):
        def train_step(self, batch):
            return self, None

    exp = Silent(adding.total, adding.evaluated)
    solstice.train(exp, 2, [0], [0], [no_improvement("mean", mode="min")], progress=False)


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
        (dict(patience=0), "patience is expected to be at least 1; it is 0"),
        (dict(min_delta=-0.1), r"to be a finite number of at least 0; it is -0\.1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        no_improvement("mean", **options)


@pytest.mark.parametrize("name", ["metric", "monitor", "mode", "patience", "min_delta"])
def test_what_other_libraries_take_leads_to_no_improvement(name, unchecked):
    with pytest.raises(TypeError, match=rf"no argument '{name}'; did you mean .*no_improvement"):
        solstice.EarlyStoppingCallback("accuracy", **{name: 3})
    with pytest.raises(TypeError, match=r"no_improvement\('accuracy'\)"):
        solstice.EarlyStoppingCallback("accuracy")


@pytest.mark.parametrize(("name", "meant"), [("val_mean", "'mean'"), ("coun", "'count'")])
def test_a_name_that_is_none_tells_which_is_meant(name, meant, adding, train, tmp_path):
    stop = solstice.EarlyStoppingCallback.no_improvement(name, mode="min")
    best = solstice.CheckpointingCallback(tmp_path, best=(name, "min"))
    for callback in (stop, best):
        with pytest.raises(solstice.errors.UsageError, match=f"Did you mean {meant}"):
            train(1, [1.0], [1.0], callbacks=[callback])


@pytest.mark.parametrize("compiled", [solstice.jit, eqx.filter_jit])
def test_a_misspelt_name_costs_no_step_where_evaluation_is_compiled(adding, compiled, tmp_path):
    class Compiled(type(adding)):
        eval_step = compiled(type(adding).eval_step)

    taken = []
    step = solstice.callbacks.ScheduledCallback(
        lambda exp, step: taken.append(step), solstice.triggers.Every(steps=1)
    )
    exp, batches = Compiled(adding.total, adding.evaluated), [jnp.asarray(1.0)]
    for callback in (
        solstice.EarlyStoppingCallback.no_improvement("val_mean", mode="min"),
        solstice.CheckpointingCallback(tmp_path, best=("val_mean", "min")),
    ):
        with pytest.raises(solstice.UsageError, match="Did you mean 'mean'") as raised:
            solstice.train(exp, 1, batches, batches[:], [callback, step], progress=False)
        assert "before the first training step" in raised.value.__notes__[-1] and not taken


def test_an_unknown_direction_costs_no_step_where_evaluation_is_compiled(adding, tmp_path):
    class Compiled(type(adding)):
        eval_step = solstice.jit(type(adding).eval_step)

    taken = []
    step = solstice.callbacks.ScheduledCallback(
        lambda exp, step: taken.append(step), solstice.triggers.Every(steps=1)
    )
    exp, batches = Compiled(adding.total, adding.evaluated), [jnp.asarray(1.0)]
    for callback in (
        solstice.EarlyStoppingCallback.no_improvement("mean"),
        solstice.CheckpointingCallback(tmp_path, best="mean"),
    ):
        with pytest.raises(solstice.UsageError, match="larger 'mean' is better") as raised:
            solstice.train(exp, 1, batches, batches[:], [callback, step], progress=False)
        assert "before the first training step" in raised.value.__notes__[-1] and not taken
