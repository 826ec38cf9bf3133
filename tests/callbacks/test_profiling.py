"""ProfilingCallback: real traces of jax's profiler, always closed."""

import logging

import jax
import pytest

import solstice
from solstice import EarlyStoppingException, ProfilingCallback


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
    assert recorded == [
        "start_trace",
        ("train", 0),
        "stop_trace",
        ("train", 1),
        ("val", 0),
        ("train", 2),
        "start_trace",
        ("train", 3),
        "stop_trace",
        ("val", 1),
    ]


def test_a_whole_run_is_one_trace(train, tmp_path, recorded):
    train(1, [1, 2], [5], [ProfilingCallback(str(tmp_path)), Steps(recorded)])
    steps = [("train", 0), ("train", 1), ("val", 0)]
    assert recorded == ["start_trace", *steps, "stop_trace"]
    assert traces(tmp_path) == 1


def test_a_whole_test_is_one_trace(adding, tmp_path):
    solstice.test(adding, [1], [ProfilingCallback(tmp_path)], progress=False)
    assert traces(tmp_path) == 1


@pytest.mark.parametrize("steps", [None, [0, 1, 2]])
@pytest.mark.parametrize(
    "at", [("step_start", "train", 1), ("step_end", "train", 1), ("epoch_end", "train", 0)]
)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, EarlyStoppingException])
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
    assert traces(tmp_path) == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        ([], ValueError, r"to name at least one step, from 0 on; it is \[\]"),
        (range(5, 2), ValueError, "to name at least one step"),
        ([1, -1], ValueError, r"from 0 on; it is \[-1, 1\]"),
        ([0.5], TypeError, r"such as range\(10, 13\); it is \[the float 0\.5\]"),
        (["first"], TypeError, r"it is \[the str 'first'\]"),
        (10, TypeError, "it is the int 10"),
    ],
)
def test_bad_steps_are_refused(tmp_path, steps, error, message):
    with pytest.raises(error, match=message):
        ProfilingCallback(tmp_path, steps)


@pytest.mark.usefixtures("unchecked")
def test_a_directory_is_a_path():
    with pytest.raises(TypeError, match="PathLike"):
        ProfilingCallback(None)
