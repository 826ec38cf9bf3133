"""The loops: the whole list of what the hooks see, however a run goes and however it ends."""

import logging

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import solstice
from solstice import EarlyStoppingException
from solstice.compat import FunctionModel

WHOLE_RUN = [  # two epochs over [1, 2], validated on [5]
    ("run_start",),
    ("epoch_start", "train", 0),
    ("step_start", "train", 0, 1, 0),
    ("step_end", "train", 0, 1, 1, 1.0),
    ("step_start", "train", 1, 2, 1),
    ("step_end", "train", 1, 2, 3, 2.0),
    ("epoch_end", "train", 0),
    ("epoch_start", "val", 0),
    ("step_start", "val", 0, 5, 3),
    ("step_end", "val", 0, 5, 3, 5.0),
    ("epoch_end", "val", 0),
    ("epoch_start", "train", 1),
    ("step_start", "train", 2, 1, 3),
    ("step_end", "train", 2, 1, 4, 1.0),
    ("step_start", "train", 3, 2, 4),
    ("step_end", "train", 3, 2, 6, 2.0),
    ("epoch_end", "train", 1),
    ("epoch_start", "val", 1),
    ("step_start", "val", 1, 5, 6),
    ("step_end", "val", 1, 5, 6, 5.0),
    ("epoch_end", "val", 1),
    ("run_end", None),
]


def steps(events, mode="train"):
    """The (step, batch) of each finished step."""
    return [event[2:4] for event in events if event[:2] == ("step_end", mode)]


def heard_by(names, events):
    """The events as several recorders, called in this order, note them."""
    return [(name, *event) for event in events for name in names]


def test_a_run_with_validation(train, recorder):
    events = []
    trained = train(2, [1, 2], [5], [recorder(events)])
    assert events == WHOLE_RUN
    assert (int(trained.total), int(trained.evaluated)) == (6, 2)


def test_a_run_without_validation(train, recorder):
    events = []
    trained = train(2, [1, 2], callbacks=[recorder(events)])
    assert events == [event for event in WHOLE_RUN if "val" not in event]
    assert (int(trained.total), int(trained.evaluated)) == (6, 0)


def test_callbacks_are_called_in_order(train, recorder):
    events = []
    train(2, [1, 2], [5], [recorder(events, "a"), recorder(events, "b")])
    assert events == heard_by("ab", WHOLE_RUN)


def test_callbacks_may_be_any_iterable_or_none(train, recorder):
    events = []
    train(2, [1, 2], [5], (recorder(events, name) for name in "ab"))
    assert events == heard_by("ab", WHOLE_RUN)
    assert int(train(2, [1, 2], [5]).total) == 6


def test_no_epochs_take_no_step(train, recorder):
    events = []
    assert int(train(0, [1, 2], [5], [recorder(events)]).total) == 0
    assert events == [("run_start",), ("run_end", None)]


def test_num_steps_ends_the_run_within_an_epoch(train, recorder):
    events = []
    trained = train(2, [1, 2], [5], [recorder(events)], num_steps=3)
    cut = WHOLE_RUN.index(("step_start", "train", 3, 2, 4))
    assert events == [
        *WHOLE_RUN[:cut],
        ("epoch_end", "train", 1),
        ("epoch_start", "val", 1),
        ("step_start", "val", 1, 5, 4),
        ("step_end", "val", 1, 5, 4, 5.0),
        ("epoch_end", "val", 1),
        ("run_end", None),
    ]
    assert int(trained.total) == 4


def test_num_steps_at_an_epochs_end_starts_no_other_epoch(train, recorder):
    events = []
    train(None, [1, 2], [5], [recorder(events)], num_steps=4)
    assert events == WHOLE_RUN


@pytest.mark.parametrize(
    ("num_epochs", "num_steps", "expected"),
    [
        (None, 1, [(0, 1)]),
        (None, 5, [(0, 1), (1, 2), (2, 1), (3, 2), (4, 1)]),
        (1, 5, [(0, 1), (1, 2)]),  # whichever comes first
        (1, 1, [(0, 1)]),
        (np.int64(2), np.int32(3), [(0, 1), (1, 2), (2, 1)]),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_num_steps_counts_over_epochs(train, recorder, num_epochs, num_steps, expected):
    events = []
    train(num_epochs, [1, 2], callbacks=[recorder(events)], num_steps=num_steps)
    assert steps(events) == expected


def test_num_steps_may_end_an_endless_dataset(train, recorder):
    def endless():
        while True:
            yield 1

    assert int(train(None, endless, num_steps=7).total) == 7
    assert int(train(3, endless(), num_steps=7).total) == 7


# An early stop is raised at any of these events, and leaves what comes after it out, but for
# the end of the epoch and of the run.
STOPS = [event[:3] for event in WHOLE_RUN[:-1]]


@pytest.mark.parametrize("stop", STOPS, ids=lambda event: "-".join(map(str, event)))
def test_an_early_stop_from_any_hook_ends_the_epoch_for_all(train, recorder, stop):
    events = []
    raiser = recorder(events, "raiser", {stop: EarlyStoppingException("enough")})
    trained = train(2, [1, 2], [5], [recorder(events, "a"), raiser, recorder(events, "b")])

    done = next(i for i, event in enumerate(WHOLE_RUN) if event[:3] == stop) + 1
    expected = WHOLE_RUN[:done]
    if stop[0] not in ("run_start", "epoch_end"):
        expected = [*expected, ("epoch_end", *stop_epoch(expected))]
    assert events == heard_by(["a", "raiser", "b"], [*expected, ("run_end", None)])
    taken = [event for event in expected if event[0] == "step_end"]
    assert int(trained.total) == sum(event[3] for event in taken if event[1] == "train")
    assert int(trained.evaluated) == sum(event[1] == "val" for event in taken)


def stop_epoch(events):
    return [event for event in events if event[0] == "epoch_start"][-1][1:]


def test_several_may_stop_at_once(train, recorder, caplog):
    events = []
    at = ("step_end", "train", 0)
    callbacks = [
        recorder(events, name, {at: EarlyStoppingException(f"{name} said so")}) for name in "ab"
    ]
    late = {("epoch_end", "train", 0): EarlyStoppingException("too late")}
    with caplog.at_level(logging.INFO, logger="solstice"):
        train(2, [1, 2], [5], [*callbacks, recorder(events, "c", late)])
    assert events == heard_by("abc", [*WHOLE_RUN[:4], ("epoch_end", "train", 0), ("run_end", None)])
    assert caplog.messages == ["The run stopped early: a said so."]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "a callback asked for it."),
        (("",), "a callback asked for it."),
        (("it is enough",), "it is enough."),
        (("It is enough.",), "It is enough."),
    ],
)
def test_the_log_says_why_a_run_stopped_early(train, recorder, caplog, arguments, said):
    stop = {("epoch_end", "train", 0): EarlyStoppingException(*arguments)}
    with caplog.at_level(logging.INFO, logger="solstice"):
        train(1, [1], callbacks=[recorder([], errors=stop)])
    assert caplog.messages == [f"The run stopped early: {said}"]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("at", STOPS, ids=lambda event: "-".join(map(str, event)))
def test_an_error_from_any_hook_ends_the_run_at_once(train, recorder, at, error):
    events = []
    raiser = recorder(events, "raiser", {at: error})
    with pytest.raises(type(error)) as raised:
        train(2, [1, 2], [5], [recorder(events, "a"), raiser, recorder(events, "b")])
    assert raised.value is error
    done = next(i for i, event in enumerate(WHOLE_RUN) if event[:3] == at)
    assert events == [
        *heard_by(["a", "raiser", "b"], WHOLE_RUN[:done]),
        *heard_by(["a", "raiser"], [WHOLE_RUN[done]]),
        *heard_by(["a", "raiser", "b"], [("run_end", error)]),
    ]


@pytest.mark.parametrize("at", STOPS, ids=lambda event: "-".join(map(str, event)))
def test_an_error_says_which_callback_raised_it(train, recorder, at):
    with pytest.raises(ValueError, match="broken") as raised:
        train(2, [1, 2], [5], [recorder([], errors={at: ValueError("broken")})])
    assert f"Raised by Recorder.on_{at[0]}." in raised.value.__notes__


def test_all_are_told_of_the_end_though_one_fails(train, recorder):
    events = []
    failing = recorder(events, "failing", {("run_end", None): ValueError("broken")})
    with pytest.raises(ValueError, match="broken") as raised:
        train(2, [1, 2], [5], [recorder(events, "a"), failing, recorder(events, "b")])
    assert events == heard_by(["a", "failing", "b"], WHOLE_RUN)
    assert "Raised by Recorder.on_run_end." in raised.value.__notes__


def test_an_early_stop_after_the_end_is_none(train, recorder):
    events = []
    late = recorder(events, errors={("run_end", None): EarlyStoppingException("late")})
    assert int(train(2, [1, 2], [5], [late]).total) == 6
    assert events == WHOLE_RUN


def test_the_end_is_told_of_errors_in_steps_and_data(adding, recorder):
    class Broken(type(adding)):
        def eval_step(self, batch):
            raise OSError("no more memory")

    events = []
    with pytest.raises(OSError, match="no more memory") as raised:
        solstice.train(
            Broken(adding.total, adding.evaluated),
            2,
            [1, 2],
            [5],
            [recorder(events)],
            progress=False,
        )
    assert events == [*WHOLE_RUN[:9], ("run_end", raised.value)]

    def torn():
        yield 1
        raise OSError("no such file")

    events = []
    with pytest.raises(OSError, match="no such file") as raised:
        solstice.train(adding, 2, torn, callbacks=[recorder(events)], progress=False)
    assert events == [*WHOLE_RUN[:4], ("run_end", raised.value)]


def test_a_callback_needs_only_the_hooks_it_wants(train):
    seen = []

    class Watch(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            seen.append((mode, global_step))

    assigned = solstice.Callback()
    assigned.on_epoch_end = lambda exp, epoch, mode: seen.append((mode, "epoch", epoch))
    train(1, [1, 2], [5], [Watch(), assigned])
    assert seen == [
        ("train", 0),
        ("train", 1),
        ("train", "epoch", 0),
        ("val", 0),
        ("val", "epoch", 0),
    ]


def test_what_a_hook_returns_means_nothing(train):
    class Chatty(solstice.Callback):
        def on_run_start(self, exp):
            return True

        def on_step_end(self, *arguments):
            return "stop"

    assert int(train(2, [1, 2], [5], [Chatty()]).total) == 6


def test_the_callers_experiment_survives(adding):
    one, two = (solstice.train(adding, 2, [1, 2], [5], progress=False) for _ in range(2))
    assert (int(adding.total), int(adding.evaluated)) == (0, 0)
    assert int(one.total) == int(two.total) == 6
    further = solstice.train(one, 1, [1, 2], progress=False)
    assert (int(further.total), int(one.total)) == (9, 6)


@pytest.mark.parametrize("decorate", [jax.jit, eqx.filter_jit, lambda step: step])
def test_steps_may_be_compiled_or_not(adding, recorder, decorate):
    class Decorated(type(adding)):
        train_step = decorate(type(adding).train_step)
        eval_step = decorate(type(adding).eval_step)

    events = []
    exp = Decorated(adding.total, adding.evaluated)
    solstice.train(exp, 2, [1, 2], [5], [recorder(events)], progress=False)
    assert events == WHOLE_RUN


def drawing_experiment():
    """Dropout, a running mean and a key: all that validation might disturb."""

    def init(key, x):
        return {"w": jax.random.normal(key, (x.shape[-1], 3))}, jnp.zeros(x.shape[-1])

    def apply(params, x, *, state, key, train):
        if train:
            state = 0.9 * state + 0.1 * x.mean(0)
            x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)
        return (x - state) @ params["w"], state

    model = FunctionModel(init, apply, jnp.ones((1, 4)), key=0)
    return solstice.ClassificationExperiment(model, optax.adam(0.1), num_classes=3, key=1)


def test_validation_does_not_disturb_training():
    rng = np.random.default_rng(0)
    ds = [(rng.normal(size=(n, 4)).astype("f4"), rng.integers(0, 3, n)) for n in (8, 8, 3)]
    exp = drawing_experiment()
    alone = exp.train(2, ds, progress=False)
    validated = exp.train(2, ds, ds[1:], progress=False)
    assert jax.tree.structure(alone) == jax.tree.structure(validated)
    before = jax.tree.leaves(exp)
    for old, one, other in zip(
        before, jax.tree.leaves(alone), jax.tree.leaves(validated), strict=True
    ):
        assert bits(one) == bits(other) != bits(old)


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def test_the_experiment_of_an_eval_step_is_kept(train, adding):
    seen = []

    class Watch(solstice.Callback):
        def on_step_start(self, exp, global_step, mode, batch):
            seen.append((mode, int(exp.total), int(exp.evaluated)))

    train(2, [1], [5, 5], [Watch()])
    solstice.test(adding, [5, 5], [Watch()], progress=False)
    assert seen == [
        ("train", 0, 0),
        ("val", 1, 0),
        ("val", 1, 1),
        ("train", 1, 2),
        ("val", 2, 2),
        ("val", 2, 3),
        ("test", 0, 0),
        ("test", 0, 1),
    ]


class Checking(solstice.Experiment):
    """Refuses batches that are not positive, and outs of 13."""

    seen: list = eqx.field(static=True)

    def check_batch(self, batch):
        self.seen.append(("check", batch))
        if batch <= 0:
            raise ValueError("a batch is expected to be positive")

    def train_step(self, batch):
        self.seen.append(("train", batch))
        return self, Checked(batch)

    def eval_step(self, batch):
        self.seen.append(("eval", batch))
        return self, Checked(batch)


class Checked(solstice.Metrics):
    value: int

    def merge(self, other):
        return Checked(self.value + other.value)

    def compute(self):
        return {"value": self.value}

    def check(self):
        if self.value == 13:
            raise ValueError("13 brings bad luck")


def test_the_first_batch_of_each_mode_is_checked():
    seen = []
    solstice.train(Checking(seen), 2, [1, 2], lambda: iter([3, 4]), progress=False)
    steps = [("train", 1), ("train", 2), ("eval", 3), ("eval", 4)]
    assert seen == [("check", 1), ("check", 3), *steps, *steps]


@pytest.mark.parametrize("datasets", [([0, 1], [1]), ([1, 0], [-1])], ids=["train", "val"])
def test_a_bad_list_is_refused_before_the_run(datasets, recorder):
    seen, events = [], []
    with pytest.raises(ValueError, match="expected to be positive") as raised:
        solstice.train(Checking(seen), 2, *datasets, [recorder(events)], progress=False)
    assert events == [] and {event[0] for event in seen} == {"check"}
    assert raised.value.__notes__ == [
        f"This is the first batch of {'train' if datasets[0][0] == 0 else 'val'}_ds."
    ]


def test_other_bad_datasets_are_refused_before_their_first_step():
    seen = []
    with pytest.raises(ValueError, match="expected to be positive"):
        solstice.train(Checking(seen), 1, iter([0, 1]), progress=False)
    with pytest.raises(ValueError, match="expected to be positive"):
        solstice.test(Checking(seen), iter([0, 1]), return_outs=True, progress=False)
    assert seen == [("check", 0), ("check", 0)]


def test_the_outs_of_the_first_step_of_each_mode_are_checked():
    with pytest.raises(ValueError, match="bad luck"):
        solstice.train(Checking([]), 1, [13], progress=False)
    with pytest.raises(ValueError, match="bad luck"):
        solstice.train(Checking([]), 1, [1], [13], progress=False)
    solstice.train(Checking([]), 2, [1, 13], [2, 13], progress=False)


def test_testing_is_one_pass_of_eval_steps(adding, recorder):
    events = []
    assert solstice.test(adding, [5, 7], [recorder(events)], progress=False) is None
    assert events == [
        ("run_start",),
        ("epoch_start", "test", 0),
        ("step_start", "test", 0, 5, 0),
        ("step_end", "test", 0, 5, 0, 5.0),
        ("step_start", "test", 1, 7, 0),
        ("step_end", "test", 1, 7, 0, 7.0),
        ("epoch_end", "test", 0),
        ("run_end", None),
    ]
    assert int(adding.evaluated) == 0


def test_testing_returns_the_outs_in_order(adding, recorder):
    outs = solstice.test(adding, iter([5, 7, 9]), return_outs=True, progress=False)
    assert [float(out.total) for out in outs] == [5.0, 7.0, 9.0]
    stop = {("step_end", "test", 1): EarlyStoppingException("enough")}
    outs = solstice.test(adding, [5, 7, 9], [recorder([], errors=stop)], True, progress=False)
    assert [float(out.total) for out in outs] == [5.0, 7.0]


@pytest.mark.parametrize("callbacks", [None, [], ()])
def test_a_test_without_any_result_is_a_usage_error(adding, callbacks):
    with pytest.raises(solstice.UsageError, match=r"callbacks=\[LoggingCallback.*return_outs=True"):
        solstice.test(adding, [5], callbacks)
    with pytest.raises(AssertionError):
        solstice.test(adding, [5], callbacks)


def test_pytest_does_not_collect_the_function_test():
    assert solstice.test.__test__ is False


def test_predictions_of_uneven_batches_are_joined(adding):
    parts = [np.arange(3.0), np.arange(4.0), np.arange(1.0)]
    whole = np.concatenate(parts)
    exp = solstice.replace(adding, total=jnp.asarray(10))
    for ds in (parts, [(part, "label") for part in parts], ([part] for part in parts)):
        joined = solstice.predict(exp, ds, progress=False)
        assert jax.tree.structure(joined) == jax.tree.structure({"sum": 0, "pair": (0, 0)})
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(joined))
        np.testing.assert_array_equal(joined["sum"], whole + 10)
        np.testing.assert_array_equal(joined["pair"], (whole * 2, -whole))


def test_predict_asks_the_experiment_what_the_inputs_are(adding):
    class Named(type(adding)):
        def batch_inputs(self, batch):
            return batch["x"]

    exp = Named(adding.total, adding.evaluated)
    ds = [{"x": np.ones(2), "y": None}, {"x": np.zeros(1)}]
    assert solstice.predict(exp, ds, progress=False)["sum"].tolist() == [1.0, 1.0, 0.0]


def test_predict_needs_a_predict_method():
    with pytest.raises(TypeError, match=r"Checking has none\. Define `predict\(self, inputs\)`"):
        solstice.predict(Checking([]), [1])


def test_progress_is_shown_unless_told_otherwise(adding, capfd):
    def run(**options):
        solstice.train(adding, 2, [1, 2], [5], **options)
        solstice.test(adding, [5], return_outs=True, **options)
        solstice.predict(adding, [np.ones(2)], **options)
        return capfd.readouterr()

    out, err = run()
    assert out == ""
    for title in (
        "epoch 0/1: 2 steps",
        "epoch 1/1: 2 steps",
        ", val: ",
        "test: 1 step",
        "predict: ",
    ):
        assert title in err
    assert run(progress=False) == ("", "")


class Returning(solstice.Experiment):
    result: object = eqx.field(static=True)

    def train_step(self, batch):
        return self.result

    def eval_step(self, batch):
        return self.result


@pytest.mark.parametrize(
    ("result", "described"),
    [
        (None, "the NoneType None"),
        (0.5, r"the float 0\.5"),
        ((0.5, 0.5), r"\(the float 0\.5, the float 0\.5\)"),
    ],
)
def test_a_step_returns_a_pair(result, described):
    message = (
        r"Returning\.{} is expected to return a pair, \(new experiment, outs\); it returned {}"
    )
    with pytest.raises(TypeError, match=message.format("train_step", described)):
        solstice.train(Returning(result), 1, [1], progress=False)
    with pytest.raises(TypeError, match=message.format("eval_step", described)):
        solstice.test(Returning(result), [1], return_outs=True, progress=False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(num_epochs=None), ValueError, "Nothing ends this run: give num_epochs, num_steps"),
        (dict(num_epochs=-1), ValueError, "num_epochs is expected to be at least 0; it is -1"),
        (dict(num_epochs=1.5), TypeError, r"num_epochs is expected to be an int.*the float 1\.5"),
        (dict(num_epochs=True), TypeError, "num_epochs is expected to be an int.*the bool True"),
        (dict(num_steps=0), ValueError, "num_steps is expected to be at least 1; it is 0"),
        (dict(num_steps="7"), TypeError, "num_steps is expected to be an int.*the str '7'"),
        (dict(callbacks=[print]), TypeError, r"instances of solstice\.Callback; one is the built"),
        (dict(callbacks=[solstice.Callback]), TypeError, "one is the class 'Callback'"),
    ],
)
def test_bad_arguments_are_refused_before_training(train, recorder, arguments, error, message):
    events = []
    arguments = {"num_epochs": 1, "callbacks": [recorder(events)]} | arguments
    with pytest.raises(error, match=message):
        train(train_ds=[1, 2], **arguments)
    assert events == []


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_experiment_is_refused(adding):
    runs = {
        "train": lambda exp: solstice.train(exp, 1, [1]),
        "test": lambda exp: solstice.test(exp, [1], return_outs=True),
        "predict": lambda exp: solstice.predict(exp, [1]),
    }
    for run in runs.values():
        with pytest.raises(TypeError, match="the class 'Adding': pass an instance"):
            run(type(adding))
        with pytest.raises(
            TypeError, match=r"an instance of solstice\.Experiment; it is the str 'm'"
        ):
            run("m")


def test_a_failing_run_end_does_not_hide_the_runs_own_error(train, caplog):
    class Failing(solstice.Callback):
        def on_run_end(self, exp, error):
            raise OSError("the disk is full")

    def broken():
        yield 1
        raise KeyError("no such record")

    with pytest.raises(KeyError, match="no such record") as raised:
        train(1, broken, None, [Failing()])
    assert raised.value.__notes__ == ["After that, OSError: the disk is full"]
    assert "A callback failed at the end of a failed run." in caplog.text


@pytest.mark.parametrize("run", ["train", "test"])
@pytest.mark.parametrize("wrong", [solstice.LoggingCallback(), np.zeros(3)], ids=["one", "array"])
@pytest.mark.usefixtures("unchecked")
def test_callbacks_that_are_no_list_are_refused(adding, run, wrong):
    arguments = (1, [1]) if run == "train" else ([1],)
    with pytest.raises(TypeError, match=r"callbacks are expected to be a list.*\[callback\]"):
        getattr(solstice, run)(adding, *arguments, callbacks=wrong, progress=False)


class OnlyTrained(solstice.Experiment):
    """What is never evaluated, and predicts nothing."""

    total: jax.Array

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch), None


def test_an_experiment_without_an_eval_step_is_trained():
    exp = solstice.train(OnlyTrained(jnp.zeros(())), 2, [1.0, 2.0], progress=False)
    assert float(exp.total) == 6


def test_what_an_experiment_does_not_define_is_told_before_it_is_needed():
    exp, reads = OnlyTrained(jnp.zeros(())), []

    def data():
        reads.append(1)
        return iter([1.0])

    lacks = (
        r"needs an experiment with a method `{}`; OnlyTrained has none\. Define `{}\(self, {}\)`"
    )
    eval_step = lacks.format("eval_step", "eval_step", "batch")
    with pytest.raises(TypeError, match=f"val_ds is given, which {eval_step}"):
        solstice.train(exp, 1, data, data, progress=False)
    with pytest.raises(TypeError, match=eval_step):
        solstice.test(exp, data, return_outs=True, progress=False)
    with pytest.raises(TypeError, match=lacks.format("predict", "predict", "inputs")):
        solstice.predict(exp, data, progress=False)
    with pytest.raises(TypeError, match=eval_step):
        exp.eval_step(1.0)
    assert not reads


def test_an_experiment_that_is_only_trained_keeps_the_laws():
    report = solstice.testing.check_experiment(
        lambda key: OnlyTrained(jnp.zeros(())), jnp.ones(()), examples=1
    )
    left_out = [one.law.name for one in report.outcomes if one.skipped]
    assert left_out == ["eval_leaves_it_unchanged"] and len(report.outcomes) == 4


def test_a_field_that_is_no_method_defines_nothing():
    class Undecided(OnlyTrained):
        predict: object = None

    with pytest.raises(TypeError, match=r"Undecided has none\. Define `predict"):
        solstice.predict(Undecided(jnp.zeros(())), [1.0], progress=False)


def test_a_method_that_is_no_hook_is_told(train, caplog):
    class Misnamed(solstice.Callback):
        def on_training_step_end(self, outs):
            raise AssertionError("nobody calls it")

        def on_epoch_end(self, exp, epoch, mode):
            pass

    train(1, [1], callbacks=[Misnamed(), solstice.HistoryCallback()])
    (told,) = [one for one in caplog.messages if "is not a hook" in one]
    assert told.startswith(
        "Misnamed.on_training_step_end is not a hook and is never called. Did you mean on_step_end?"
    )
