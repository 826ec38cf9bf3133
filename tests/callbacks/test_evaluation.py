"""EvaluationCallback with real networks: what, when, and that training goes on as it would."""

import logging

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from resuming import VAL, X, Y, bits, experiment, shuffled

import solstice
from solstice import EvaluationCallback
from solstice.loggers import JSONLines, read_json_lines
from solstice.metrics import Sample
from solstice.saving.checkpoints import Checkpoints
from solstice.triggers import At, Every

SETS = {"first": VAL[:1], "both": VAL}


def noisy(exp, batch, key):
    """One step on disturbed inputs, with the experiment's own evaluation."""
    x, y = batch
    return exp.eval_step((x + 0.5 * jax.random.normal(key, x.shape), y))[1]


def plain(exp, batch, key):
    return exp.eval_step(batch)[1]


def train(callbacks=(), num_epochs=3, exp=None, **options):
    exp = experiment() if exp is None else exp
    options = {"train_ds": shuffled, "progress": False} | options
    return solstice.train(exp, num_epochs, callbacks=list(callbacks), **options)


class Log:
    """Keeps what a logging_fn gets."""

    def __init__(self):
        self.calls = []

    def __call__(self, metrics, step, mode):
        self.calls.append((mode, step, metrics))


def test_results_are_those_of_a_test_of_the_same_experiment():
    seen = {}

    class Test(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            seen[global_step] = [exp.test(ds) for ds in SETS.values()]

    log = Log()
    evaluation = EvaluationCallback(plain, SETS, when=Every(steps=4) | At(1), logging_fn=log)
    train([Test(), evaluation], num_epochs=2)
    assert [call[:2] for call in log.calls] == [
        (name, step) for step in (0, 3, 7) for name in ("first", "both")
    ]
    for mode, step, metrics in log.calls:
        assert metrics == pytest.approx(seen[step][list(SETS).index(mode)], nan_ok=True)
    assert evaluation.results == {mode: metrics for mode, _, metrics in log.calls[-2:]}
    assert evaluation.evaluations == 3


@pytest.mark.parametrize("network", ["linen", "nnx"])
@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_training_is_bit_identical_with_and_without_it(network, steps_per_call):
    def adapting(exp, batch, key):
        exp, _ = exp.train_step(batch)
        return exp, noisy(exp, batch, key)

    def run(*callbacks):
        history = solstice.HistoryCallback(2)
        exp = train(
            [history, *callbacks],
            exp=experiment(network),
            val_ds=VAL,
            steps_per_call=steps_per_call,
        )
        records = [{**record, "time": 0} for record in history.records]
        return bits(exp), records

    every = Every(steps=3) | Every(epochs=1)
    callbacks = [EvaluationCallback(f, SETS, when=every) for f in (noisy, adapting)]
    assert run(*callbacks) == run()
    assert callbacks[0].evaluations == callbacks[1].evaluations > 3


def test_the_step_that_trains_is_not_compiled_anew():
    step = type(experiment()).train_step
    train()
    before = step.traces
    train([EvaluationCallback(noisy, SETS, when=Every(steps=2))])
    assert step.traces - before <= 2  # a run with another first batch, the last one's shape


@pytest.mark.parametrize("threaded", [False, True])
def test_it_is_traced_once_however_often_it_runs(threaded):
    traces = []

    def counted(exp, batch, key):
        traces.append(None)
        metrics = noisy(exp, batch, key)
        return (exp, metrics) if threaded else metrics

    evaluation = EvaluationCallback(counted, SETS, when=Every(steps=2))
    train([evaluation])
    assert len(traces) == 1 and evaluation.evaluations == 7


def test_an_experiment_is_threaded_through_a_dataset_and_dropped(adding, mean):
    def count(exp, batch, key):
        assert not isinstance(batch, str)
        new = solstice.replace(exp, total=exp.total + 1)
        return new, mean([exp.total])

    log = Log()
    datasets = {"a": [0, 0, 0], "b": [0]}
    evaluation = EvaluationCallback(count, datasets, when=Every(steps=1), logging_fn=log)
    exp = solstice.train(adding, 1, [10, 20], callbacks=[evaluation], progress=False)
    assert [(mode, metrics["mean"]) for mode, _, metrics in log.calls] == [
        ("a", 11),
        ("b", 10),
        ("a", 31),
        ("b", 30),
    ]
    assert exp.total == 30


class Keys(solstice.Metrics):
    """Every batch's key: grows when merged."""

    keys: jax.Array

    def merge(self, other):
        return Keys(jnp.concatenate([self.keys, other.keys]))

    def compute(self):
        return {"keys": self.keys}


def keys(exp, batch, key):
    return Keys(jax.random.key_data(key)[None])


def test_keys_differ_by_evaluation_dataset_and_batch_and_not_by_training(adding):
    def run(train_ds, datasets, **options):
        log = Log()
        evaluation = EvaluationCallback(
            keys, datasets, when=Every(steps=1), logging_fn=log, **options
        )
        solstice.train(adding, 1, train_ds, callbacks=[evaluation], progress=False)
        return {(mode, step): metrics["keys"].tolist() for mode, step, metrics in log.calls}

    once = run([1, 2], {"a": [0, 0], "b": [0]})
    flat = [tuple(key) for some in once.values() for key in some]
    assert len(flat) == len(set(flat)) == 6
    assert run([7, 8], {"z": [0], "b": [0], "a": [0, 0]}) | once == run(
        [7, 8], {"z": [0], "b": [0], "a": [0, 0]}
    )
    assert run([1, 2], {"a": [0, 0], "b": [0]}, key=jax.random.PRNGKey(0)) == once
    other = run([1, 2], {"a": [0, 0], "b": [0]}, key=1)
    assert all(other[name] != once[name] for name in once)


@pytest.mark.parametrize("on_host", [None, True])
@pytest.mark.parametrize("jit", [True, False])
def test_what_grows_is_joined_in_order_with_one_compilation(adding, on_host, jit):
    merges = []

    class Values(Keys):
        def merge(self, other):
            merges.append(self.keys.shape)
            return Values(jnp.concatenate([self.keys, other.keys]))

    evaluation = EvaluationCallback(
        lambda exp, batch, key: Values(jnp.asarray(batch)[None]),
        {"all": list(range(37))},
        when=At(1),
        on_host=on_host,
        jit=jit,
    )
    solstice.train(adding, 1, [1], callbacks=[evaluation], progress=False)
    assert evaluation.results["all"]["keys"].tolist() == list(range(37))
    assert isinstance(evaluation.results["all"]["keys"], np.ndarray)
    assert len(merges) == 36 + (on_host is None)  # once for the shapes, then two by two


def test_a_merge_on_the_host_works(adding):
    class Words(solstice.Metrics):
        words: tuple

        def merge(self, other):
            return Words(self.words + other.words)

        def compute(self):
            return {"text": " ".join(self.words)}

    def words(exp, batch, key):
        return Words((f"{float(exp.total):g}/{batch}",))

    evaluation = EvaluationCallback(words, {"words": ["a", "b"]}, when=At(2), jit=False)
    solstice.train(adding, 1, [1, 2], callbacks=[evaluation], progress=False)
    assert evaluation.results == {"words": {"text": "3/a 3/b"}}


def test_batches_are_prepared_results_finalized_and_hooks_called(adding, mean):
    events = []
    evaluation = EvaluationCallback(
        lambda exp, batch, key: mean(batch["x"]),
        {"a": ["1", "3"], "b": ["5"]},
        when=Every(steps=2),
        logging_fn=lambda *log: events.append(("log", *log)),
        prepare_batch=lambda batch: {"x": np.float32(batch)},
        finalize=lambda metrics: {"twice": 2 * metrics["mean"]},
        on_start=lambda exp, step, name: events.append(("start", int(exp.total), step, name)),
        on_end=lambda results, exp, step, name: events.append(("end", results, step, name)),
    )
    solstice.train(adding, 1, [1, 2, 3], callbacks=[evaluation], progress=False)
    assert events == [
        ("start", 3, 1, "a"),
        ("log", {"twice": 4.0}, 1, "a"),
        ("end", {"twice": 4.0}, 1, "a"),
        ("start", 3, 1, "b"),
        ("log", {"twice": 10.0}, 1, "b"),
        ("end", {"twice": 10.0}, 1, "b"),
    ]


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_epochs_are_seen_after_their_validation_and_steps_once_a_call(
    adding, mean, recorder, steps_per_call
):
    events = []
    exp = solstice.replace(adding, total=jnp.asarray(0.0))
    evaluation = EvaluationCallback(
        lambda exp, batch, key: mean(batch),
        {"a": [0]},
        when=Every(steps=4) | Every(epochs=2),
        logging_fn=lambda _, step, mode: events.append((mode, step)),
    )

    class Epochs(solstice.Callback):
        def on_epoch_end(self, exp, epoch, mode):
            events.append((mode, "end", epoch))

    solstice.train(
        exp,
        3,
        [jnp.ones(1)] * 5,
        [jnp.ones(1)],
        [evaluation, Epochs()],
        steps_per_call=steps_per_call,
        progress=False,
    )
    ends = [[("train", "end", i), ("val", "end", i)] for i in range(3)]
    steps = [[3], [7], [11]] if steps_per_call == 1 else [[4], [7], [12]]
    expected = []
    for i in range(3):
        expected += [*[("a", step) for step in steps[i]], *ends[i]]
        expected += [("a", 9)] if i == 1 else []
    assert events == expected


def test_an_early_stop_from_its_end_is_heeded_after_all_datasets(adding, mean, tmp_path):
    def stop(results, exp, step, name):
        raise solstice.EarlyStoppingException(name)

    def run(when, **options):
        evaluation = EvaluationCallback(
            lambda exp, batch, key: mean(batch), {"a": [1], "b": [2]}, when=when, on_end=stop
        )
        exp = solstice.train(adding, 3, [1, 2], callbacks=[evaluation], progress=False, **options)
        assert evaluation.results["b"]["mean"] == 2 and evaluation.evaluations == 1
        return int(exp.total)

    assert run(Every(steps=1)) == 1
    assert run(Every(epochs=1)) == 3


def test_a_stop_after_an_epoch_is_saved_as_one_epoch(tmp_path):
    def stop(exp, step):
        raise solstice.EarlyStoppingException("enough")

    saving = solstice.CheckpointingCallback(tmp_path)
    train([solstice.ScheduledCallback(stop, Every(epochs=1)), saving])
    store = Checkpoints(tmp_path)
    _, state = store.read(store.names()[-1], like=experiment())
    assert state["position"]["epoch"] == 1 and state["position"]["ended"] == "stopped"


def test_sinks_get_whole_records_beside_the_logs(tmp_path):
    sink = JSONLines(tmp_path / "log")
    evaluation = EvaluationCallback(plain, SETS, when=Every(epochs=1), logging_fn=sink)
    train([solstice.LoggingCallback(logging_fn=sink), evaluation], num_epochs=2, val_ds=VAL)
    read = read_json_lines(tmp_path / "log")
    assert [(r["mode"], r["epoch"], r["step"]) for r in read] == [
        (mode, epoch, 5 * (epoch + 1))
        for epoch in (0, 1)
        for mode in ("train", "val", "first", "both")
    ]
    val, both = read[-3], read[-1]
    assert val["accuracy"] == both["accuracy"] and val["time"] <= both["time"]


def test_without_a_logging_fn_the_logger_gets_a_line(adding, mean, caplog):
    evaluation = EvaluationCallback(
        lambda exp, batch, key: mean(batch), {"a": [4]}, when=Every(steps=1)
    )
    with caplog.at_level(logging.INFO, logger="solstice"):
        solstice.train(adding, 1, [1], callbacks=[evaluation], progress=False)
    assert caplog.messages == ["a 0: mean=4, count=1"]


class BangError(Exception):
    """A crash."""


class Crash(solstice.Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if mode == "train" and global_step == self.step:
            raise BangError


@pytest.mark.slow
def test_a_resumed_run_evaluates_as_one_that_never_stopped(tmp_path):
    def run(directory, *more):
        evaluation = EvaluationCallback(
            noisy,
            SETS,
            when=Every(steps=3) | Every(epochs=1),
            logging_fn=JSONLines(directory / "log"),
        )
        saving = solstice.CheckpointingCallback(directory / "saved", every=Every(steps=2))
        callbacks = [evaluation, saving, *more]
        exp = train(callbacks, resume_from=saving)
        return bits(exp), evaluation.results, evaluation.evaluations

    def log(directory):
        return [{**record, "time": 0} for record in read_json_lines(directory / "log")]

    whole = run(tmp_path / "whole")
    assert whole[2] == 8 and len(log(tmp_path / "whole")) == 16
    for crash in (2, 5, 9, 11):
        directory = tmp_path / str(crash)
        with pytest.raises(BangError):
            run(directory, Crash(crash))
        assert run(directory) == whole, crash
        assert log(directory) == log(tmp_path / "whole"), crash
    assert run(directory) == whole  # a run that is over


def test_the_best_checkpoint_is_that_of_the_evaluation(tmp_path):
    def run(directory, *limits):
        for n in limits:
            log = Log()
            evaluation = EvaluationCallback(plain, SETS, when=Every(steps=2), logging_fn=log)
            saving = solstice.CheckpointingCallback(
                directory, every=Every(epochs=2), keep=1, best=("average_loss", "min", "both")
            )
            # Its place in the list does not matter.
            train([saving, evaluation], num_epochs=n, resume_from=saving)
        return Checkpoints(directory).best(), log.calls

    best, calls = run(tmp_path / "a", 3)
    losses = {step: m["average_loss"] for mode, step, m in calls if mode == "both"}
    step = min(losses, key=losses.__getitem__)
    assert best["value"] == losses[step] and best["steps"] == step + 1
    exp = solstice.restore(tmp_path / "a", experiment(), which="best")
    assert exp.test(VAL)["average_loss"] == pytest.approx(losses[step])
    again, _ = run(tmp_path / "b", 1, 2, 3)
    assert (again["value"], again["steps"]) == (best["value"], best["steps"])


def test_the_best_of_validations_within_an_epoch_is_of_the_experiment_validated(tmp_path):
    values = []
    history = solstice.LoggingCallback(logging_fn=lambda m, _, mode: values.append((mode, m)))
    saving = solstice.CheckpointingCallback(tmp_path, best=("average_loss", "min"))
    train([history, saving], val_ds=VAL, validate_every=Every(steps=2))
    best = Checkpoints(tmp_path).best()
    assert best["value"] == min(m["average_loss"] for mode, m in values if mode == "val")
    exp = solstice.restore(tmp_path, experiment(), which="best")
    assert exp.test(VAL)["average_loss"] == pytest.approx(best["value"])


def test_a_best_that_cannot_be_found_is_named(tmp_path):
    evaluation = EvaluationCallback(plain, SETS, when=At(1))
    for best, message in (
        (("accuracy", "max", "third"), "an evaluation of 'third', and the run has no"),
        (
            ("acc", "max", "both"),
            "looks for 'acc'; the evaluation of 'both' gives average_loss, accuracy",
        ),
    ):
        saving = solstice.CheckpointingCallback(tmp_path, best=best)
        with pytest.raises(solstice.UsageError, match=message):
            train([evaluation, saving], num_epochs=1)


def test_errors_say_where(adding, mean):
    def run(eval_fn, datasets):
        evaluation = EvaluationCallback(eval_fn, datasets, when=At(1))
        solstice.train(adding, 1, [1], callbacks=[evaluation], progress=False)

    with pytest.raises(solstice.UsageError, match="expected to return Metrics") as raised:
        run(lambda exp, batch, key: jnp.ones(1), {"hard": [1]})
    assert raised.value.__notes__[-2:] == [
        "This is batch 0 of the evaluation 'hard'.",
        "Raised by EvaluationCallback.on_step_end.",
    ]
    with pytest.raises(ValueError, match="hard gave no batch in epoch 0"):
        run(lambda exp, batch, key: mean(batch), {"hard": lambda: iter([])})


def test_an_empty_dataset_is_a_warning_and_left_out(adding, mean, caplog, tmp_path):
    seen, message = [], "The dataset 'none' of an EvaluationCallback is empty: it is left out."
    evaluation = EvaluationCallback(
        lambda exp, batch, key: mean(batch),
        {"none": [], "some": [4.0]},
        when=Every(steps=1),
        logging_fn=lambda metrics, step, mode: seen.append((mode, step)),
        on_start=lambda exp, step, name: seen.append(name),
    )
    assert caplog.messages == [message]
    saving = solstice.CheckpointingCallback(tmp_path, best=("mean", "max", "none"))
    for _ in range(2):  # once a run
        caplog.clear()
        solstice.train(adding, 1, [1, 2], callbacks=[evaluation], progress=False)
        assert caplog.messages == [message]
    assert seen == ["some", ("some", 0), "some", ("some", 1)] * 2
    assert list(evaluation.results) == ["some"] and evaluation.evaluations == 2
    solstice.train(adding, 1, [1], callbacks=[evaluation, saving], progress=False)
    assert Checkpoints(tmp_path).best() is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"eval_fn": 3}, TypeError, r"eval_fn is expected to be a function of \(exp, batch, key"),
        ({"datasets": []}, TypeError, "a mapping of names to datasets"),
        ({"datasets": {}}, TypeError, "a mapping of names to datasets"),
        ({"datasets": {"a": 3}}, TypeError, r"datasets\[.a.\] is expected to be a re-iterable"),
        ({"when": 3}, TypeError, "when is expected to be a trigger"),
        ({"logging_fn": 3}, TypeError, "logging_fn is expected to be a function"),
        ({"key": "a"}, TypeError, "key is expected to be an int seed"),
    ],
)
def test_bad_arguments_are_refused(changes, error, message):
    arguments = {"eval_fn": plain, "datasets": SETS, "when": At(1)} | changes
    with pytest.raises(error, match=message):
        EvaluationCallback(**arguments)


def test_an_equinox_network_is_evaluated():
    network = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    exp = solstice.ClassificationExperiment(network, optax.sgd(0.1), example_input=X, key=0)
    evaluation = EvaluationCallback(plain, {"all": [(X, Y)]}, when=Every(epochs=1))
    exp = train([evaluation], exp=exp)
    assert evaluation.results["all"] == pytest.approx(exp.test([(X, Y)]), nan_ok=True)


def test_sampled_texts_are_logged_and_come_back_with_a_checkpoint(tmp_path):
    def answers(exp, batch, key):
        said = [f"answer {int(label)}" for label in exp.predict(batch[0])]
        return Sample({"said": said}, key=key, max_size=2)

    path = tmp_path / "log"
    saving = solstice.CheckpointingCallback(tmp_path / "run")

    def evaluation():
        sink = JSONLines(path)
        return EvaluationCallback(
            answers, {"v": VAL}, when=Every(epochs=1), logging_fn=sink, jit=False
        )

    first = evaluation()
    train([first, saving], 1)
    (logged,) = read_json_lines(path)
    assert len(logged["said"]) == 2 and logged["said"][0].startswith("answer ")
    assert first.results["v"] == {"said": logged["said"]}
    again = evaluation()
    train([again, saving], 1, resume_from=saving)
    assert again.results == first.results
