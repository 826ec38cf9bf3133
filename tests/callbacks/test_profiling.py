"""ProfilingCallback: real traces of jax's profiler, always closed, and where the time went."""

import logging
import os
import signal

import jax
import pytest
from resuming import X, Y, experiment

import solstice
from solstice import EarlyStoppingException, ProfilingCallback
from solstice.callbacks import TimeReport
from solstice.callbacks.stopwatch import Stopwatch
from solstice.triggers import Every


def traces(directory):
    """How many traces were written."""
    return len(list(directory.rglob("*.xplane.pb")))


@pytest.fixture(autouse=True)
def no_trace_is_left_open():
    yield
    with pytest.raises(RuntimeError, match="No profile started"):
        jax.profiler.stop_trace()


@pytest.fixture
def recorded(monkeypatch):
    """The steps between each start and stop of the profiler, which does run."""
    events = []

    def noting(name):
        real = getattr(jax.profiler, name)

        def note(*arguments):
            events.append(name)
            return real(*arguments)

        monkeypatch.setattr(jax.profiler, name, note)

    noting("start_trace")
    noting("stop_trace")
    return events


class Steps(solstice.Callback):
    def __init__(self, events):
        self.events = events

    def on_step_start(self, exp, global_step, mode, batch):
        self.events.append((mode, global_step))


def test_chosen_steps_are_traced(train, tmp_path, recorded):
    callback = ProfilingCallback(tmp_path / "new" / "profile", [3, 1, 2])
    train(3, [1, 2], callbacks=[callback, Steps(recorded)])
    assert recorded == [
        ("train", 0),
        "start_trace",
        ("train", 1),
        ("train", 2),
        ("train", 3),
        "stop_trace",
        ("train", 4),
        ("train", 5),
    ]
    assert traces(tmp_path / "new" / "profile") == 1


def test_steps_apart_are_traces_apart(train, tmp_path, recorded):
    callback = ProfilingCallback(tmp_path, (step for step in (0, 3)))
    train(2, [1, 2], [5], callbacks=[callback, Steps(recorded)])
    traced = ["start_trace", ("train", 0), "stop_trace", ("train", 1)]
    traced += ["start_trace", ("val", 0), "stop_trace", ("train", 2)]
    traced += ["start_trace", ("train", 3), "stop_trace", ("val", 1)]
    assert recorded == traced
    assert traces(tmp_path) == 3  # within one second, after which jax names them
    assert sorted(os.listdir(tmp_path)) == ["train_0", "train_3", "val_0"]


def test_steps_of_each_mode_are_traced(train, adding, tmp_path, recorded):
    callback = ProfilingCallback(tmp_path / "train", [0, 1])
    train(2, [1, 2, 3], [4], callbacks=[callback, Steps(recorded)])
    traced = ["start_trace", ("train", 0), ("train", 1), "stop_trace", ("train", 2)]
    # Step 1 of validation is after the training of another epoch.
    traced += ["start_trace", ("val", 0), "stop_trace", ("train", 3), ("train", 4), ("train", 5)]
    traced += ["start_trace", ("val", 1), "stop_trace"]
    assert recorded == traced and callback.report.steps == 2
    recorded.clear()
    callback = ProfilingCallback(tmp_path / "test", [0, 1])
    for _ in range(2):
        solstice.test(adding, [1, 2, 3], [callback, Steps(recorded)], progress=False)
        assert callback.report.steps == 2
    traced = ["start_trace", ("test", 0), ("test", 1), "stop_trace", ("test", 2)]
    assert recorded == traced * 2
    assert os.listdir(tmp_path / "test") == ["test_0"]


def test_a_validation_within_an_epoch_ends_the_trace_of_training(train, tmp_path, recorded):
    callback = ProfilingCallback(tmp_path, [1, 2])
    train(
        1, [1, 2, 3, 4], [5], callbacks=[callback, Steps(recorded)], validate_every=Every(steps=2)
    )
    assert recorded == [
        *[("train", 0), "start_trace", ("train", 1), "stop_trace", ("val", 0)],
        *["start_trace", ("train", 2), "stop_trace", ("train", 3)],
        *["start_trace", ("val", 1), "stop_trace"],
    ]


def test_a_whole_run_is_one_trace(train, tmp_path, recorded):
    train(1, [1, 2], [5], [ProfilingCallback(str(tmp_path)), Steps(recorded)])
    steps = [("train", 0), ("train", 1), ("val", 0)]
    assert recorded == ["start_trace", *steps, "stop_trace"]
    assert traces(tmp_path) == 1


def test_a_whole_test_is_one_trace(adding, tmp_path):
    solstice.test(adding, [1], [ProfilingCallback(tmp_path)], progress=False)
    assert traces(tmp_path) == 1


PLACES = [("step_start", "train", 1), ("step_end", "train", 1), ("epoch_end", "train", 0)]
ERRORS = [ValueError, KeyboardInterrupt, EarlyStoppingException]


# Each error at each place, and each of them with all steps and with some.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "error", "steps"),
    [
        (at, error, [None, [0, 1, 2]][(i + j) % 2])
        for i, at in enumerate(PLACES)
        for j, error in enumerate(ERRORS)
    ],
)
def test_a_trace_is_closed_however_the_run_ends(
    train, recorder, tmp_path, recorded, steps, at, error
):
    callback = ProfilingCallback(tmp_path, steps)
    raiser = recorder([], errors={at: error("broken")})
    if error is EarlyStoppingException:
        train(1, [1, 2], callbacks=[callback, raiser])
    else:
        with pytest.raises(error):
            train(1, [1, 2], callbacks=[callback, raiser])
    train(1, [1, 2], callbacks=[callback])
    assert recorded == ["start_trace", "stop_trace"] * 2


@pytest.mark.parametrize("steps", [None, [0, 1]])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_trace_is_closed_when_a_step_or_the_data_fails(tmp_path, adding, recorded, steps, error):
    class Failing(type(adding)):
        def train_step(self, batch):
            if batch == 2:
                raise error("broken")
            return super().train_step(batch)

    def data():
        yield 1
        raise error("broken")

    exp = Failing(adding.total, adding.evaluated)
    for dataset in ([1, 2, 3], data):
        callback = ProfilingCallback(tmp_path, steps)
        with pytest.raises(error):
            solstice.train(exp, 1, dataset, callbacks=[callback], progress=False)
    assert recorded == ["start_trace", "stop_trace"] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_trace_is_closed_after_a_real_signal(train, tmp_path, number):
    class Kill(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            os.kill(os.getpid(), number)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(1, [1, 2], callbacks=[Kill(), ProfilingCallback(tmp_path, [0, 1])])
    assert traces(tmp_path) == 1


def test_a_trace_is_closed_when_another_callback_fails_at_the_end(train, tmp_path, recorded):
    class Failing(solstice.Callback):
        def on_run_end(self, exp, error):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        train(1, [1], callbacks=[Failing(), ProfilingCallback(tmp_path)])
    assert recorded == ["start_trace", "stop_trace"]


def test_a_call_of_several_steps_is_traced_if_one_of_them_is_chosen(train, tmp_path, recorded):
    callback = ProfilingCallback(tmp_path, [4])
    train(1, [1] * 9, callbacks=[callback, Steps(recorded)], steps_per_call=3)
    assert recorded == [("train", 2), "start_trace", ("train", 5), "stop_trace", ("train", 8)]
    assert callback.report.steps == 3


def test_steps_are_counted_over_the_whole_run_after_a_resume(train, tmp_path, recorded):
    for epochs in (1, 2):
        saving = solstice.CheckpointingCallback(tmp_path / "saved")
        callback = ProfilingCallback(tmp_path / "trace", [4])
        callbacks = [callback, saving, Steps(recorded)]
        train(epochs, [1] * 6, callbacks=callbacks, steps_per_call=3, resume_from=saving)
    assert recorded == [
        *[("train", 2), "start_trace", ("train", 5), "stop_trace"],
        *[("train", 8), ("train", 11)],
    ]


@pytest.mark.parametrize(
    ("steps", "report"),
    [
        # Three training steps and one of validation, each 5 s of input, 20 of step, 100 of hooks.
        (None, TimeReport(steps=3, total=500, input=20, step=80, callbacks=400, other=0)),
        # The hooks after the callback's own are not waited for after the last step.
        ([1, 2], TimeReport(steps=2, total=210, input=10, step=40, callbacks=160, other=0)),
    ],
)
def test_the_report_tells_input_steps_and_callbacks_apart(adding, tmp_path, caplog, steps, report):
    now = [0.0]

    class Slow(type(adding)):
        def train_step(self, batch):
            now[0] += 20
            return self, None

        eval_step = train_step

    class SlowHooks(solstice.Callback):
        def on_step_start(self, exp, global_step, mode, batch):
            now[0] += 60

        def on_step_end(self, outs, exp, global_step, mode, batch):
            now[0] += 40

    def data(n):
        for _ in range(n):
            now[0] += 5
            yield 0

    callback = ProfilingCallback(tmp_path, steps)
    callback.stopwatch = Stopwatch(lambda: now[0])
    exp = Slow(adding.total, adding.evaluated)
    for _ in range(2):  # each run has a report of its own
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="solstice"):
            solstice.train(
                exp,
                1,
                lambda: data(3),
                lambda: data(1),
                callbacks=[callback, SlowHooks()],
                progress=False,
            )
        assert callback.report == report
        assert f"ProfilingCallback: {report}." in caplog.messages


def test_the_parts_of_a_real_run_add_up(tmp_path):
    callback = ProfilingCallback(tmp_path, range(2, 9))
    batch = (X[:8], Y[:8])
    solstice.train(experiment(), 1, [batch] * 12, callbacks=[callback], progress=False)
    report = callback.report
    assert report.steps == 7 and min(report) >= 0
    assert report.total == pytest.approx(sum(report[2:]))
    assert report.step > report.input


def test_a_profiler_in_use_is_left_to_its_user(train, tmp_path):
    with jax.profiler.trace(tmp_path / "users"):
        with pytest.raises(RuntimeError, match="Only one profile may be run") as raised:
            train(1, [1, 2], callbacks=[ProfilingCallback(tmp_path / "ours", [1])])
        assert "Raised by ProfilingCallback.on_step_start." in raised.value.__notes__
    assert traces(tmp_path / "users") == 1


def test_a_run_that_never_gets_to_the_steps_is_warned_about(train, adding, tmp_path, caplog):
    callback = ProfilingCallback(tmp_path, range(10, 13))
    with caplog.at_level(logging.WARNING, logger="solstice"):
        train(1, [1, 2], callbacks=[callback])
    message = "ProfilingCallback recorded nothing: the run ended before training step 10."
    assert caplog.messages == [message]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="solstice"):
        solstice.test(adding, [1], [callback], progress=False)
    assert caplog.messages == ["ProfilingCallback recorded nothing: the run ended before step 10."]
    assert traces(tmp_path) == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        ([], ValueError, r"to name at least one step, from 0 on; it is \[\]"),
        (range(5, 2), ValueError, "to name at least one step"),
        ([1, -1], ValueError, "to be at least 0; it is -1"),
        ([0.5], TypeError, r"to be an int; it is the float 0\.5"),
        (["first"], TypeError, "it is the str 'first'"),
        (10, TypeError, r"such as range\(10, 13\); it is the int 10"),
    ],
)
def test_bad_steps_are_refused(tmp_path, steps, error, message):
    with pytest.raises(error, match=message):
        ProfilingCallback(tmp_path, steps)


@pytest.mark.usefixtures("unchecked")
def test_a_directory_is_a_path():
    with pytest.raises(
        TypeError, match="log_dir is expected to be a path; it is the NoneType None"
    ):
        ProfilingCallback(None)
