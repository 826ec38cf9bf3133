"""Batches made from the experiment: of the step before, or of the pass's start, and never stale."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resuming import bits

import solstice
from solstice.data import live
from solstice.triggers import Every


class Policy(solstice.Experiment):
    """Counts its steps, and adds up what the batches say the policy was."""

    version: jax.Array
    said: jax.Array

    @solstice.jit
    def train_step(self, batch):
        mean = solstice.metrics.Mean(batch)
        return Policy(self.version + 1, 0.9 * self.said + batch.sum()), mean

    @solstice.jit
    def eval_step(self, batch):
        return solstice.replace(self, said=self.said + 1), solstice.metrics.Mean(batch)

    def predict(self, inputs):
        return inputs * self.version[0]


def policy():
    return Policy(jnp.zeros(3), jnp.zeros(()))


class Versions:
    """A function that notes the policy of each of its calls, and may keep it."""

    def __init__(self):
        self.seen, self.kept = [], []

    def __call__(self, exp):
        self.seen.append(int(exp.version[0]))
        self.kept.append(exp)
        return np.full(2, self.seen[-1], "float32")


READING = [
    {},
    {"prefetch": 3},
    {"steps_per_call": 4},
    {"steps_per_call": 2, "prefetch": 2},
    {"sharding": solstice.sharding.DataParallel(), "prefetch": 2},
]


@pytest.mark.parametrize("options", READING, ids=lambda options: " ".join(options) or "none")
def test_a_live_batch_is_of_the_policy_of_the_step_before(options):
    make = Versions()
    history = solstice.HistoryCallback(1)
    exp = solstice.train(
        policy(), 2, live(make, length=5), callbacks=[history], progress=False, **options
    )
    assert make.seen == list(range(10)) and float(exp.version[0]) == 10
    assert [record["mean"] for record in history.records] == make.seen
    # Kept ones are not donated to the next step.
    assert [int(one.version[0]) for one in make.kept] == make.seen


def test_the_hooks_of_a_live_dataset_get_what_they_always_get():
    seen = []

    class Look(solstice.Callback):
        def on_step_start(self, exp, global_step, mode, batch):
            seen.append((global_step, type(batch)))

    for k in (1, 2):
        solstice.train(
            policy(), 1, live(Versions(), 2), None, [Look()], progress=False, steps_per_call=k
        )
    assert seen == [(0, np.ndarray), (1, np.ndarray), (0, list), (1, list)]


def test_live_may_ask_for_the_step_and_have_no_end():
    def make(exp, step):
        assert int(exp.version[0]) == step
        return np.float32(step)

    exp = solstice.train(policy(), None, live(make), num_steps=7, progress=False)
    assert int(exp.version[0]) == 7
    exp = solstice.train(policy(), 3, live(make, length=2), progress=False)
    assert int(exp.version[0]) == 6


@pytest.mark.parametrize("options", READING, ids=lambda options: " ".join(options) or "none")
def test_a_function_of_two_arguments_gets_the_experiment_of_the_passs_start(options):
    seen = []

    def episodes(epoch, exp):
        for _ in range(4):  # lazily, while steps take the buffers of what the run has
            seen.append((epoch, int(exp.version[0])))
            yield np.ones(2, "float32")

    solstice.train(policy(), 3, episodes, progress=False, **options)
    assert seen == [(epoch, 4 * epoch) for epoch in range(3) for _ in range(4)]


def pairs(epoch, exp):
    return iter([np.full(2, float(exp.version[0]))])


class Maker:
    def __call__(self, epoch, exp):
        return pairs(epoch, exp)


DATASETS = {
    "live": live(lambda exp: np.full(2, float(exp.version[0])), length=1),
    "function": pairs,
    "object": Maker(),
    "partial": functools.partial(lambda other, epoch, exp: pairs(epoch, exp), None),
    "its own default": lambda epoch, exp, size=2: pairs(epoch, exp),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_whatever_reads_a_dataset_gives_it_the_experiment(kind):
    dataset, history = DATASETS[kind], solstice.HistoryCallback()
    evaluation = solstice.EvaluationCallback(
        lambda exp, batch, key: solstice.metrics.Mean(batch), {"it": dataset}, when=Every(epochs=1)
    )
    exp = solstice.train(policy(), 2, dataset, dataset, [history, evaluation], progress=False)
    assert [record["mean"] for record in history.records] == [0, 1, 1, 2]
    assert evaluation.results == {"it": {"mean": 2.0}}
    (outs,) = solstice.test(exp, dataset, return_outs=True, progress=False)
    assert float(outs.compute()["mean"]) == 2
    assert solstice.predict(exp, dataset, progress=False).tolist() == [4, 4]


@pytest.mark.parametrize(
    "make",
    [lambda dataset: live(dataset, 3), lambda dataset: lambda epoch, exp: [dataset(exp)] * 3],
)
def test_what_the_experiment_makes_may_be_padded(make):
    def batch(exp):
        return {"x": np.ones(2) * float(exp.version[0])}

    padded, seen = solstice.pad_last(make(batch), 3), []

    class Look(Policy):
        def train_step(self, batch):
            seen.append((batch["x"].tolist(), batch["mask"].tolist()))
            return solstice.replace(self, version=self.version + 1), None

    solstice.train(Look(jnp.zeros(3), jnp.zeros(())), 1, padded, progress=False)
    values = [0, 1, 2] if isinstance(padded, type(live(batch))) else [0, 0, 0]
    assert seen == [([value] * 3, [True, True, False]) for value in values]


class Crash(solstice.Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if (mode, global_step) == ("train", self.step):
            raise ConnectionError("the simulator is gone")


def run(directory, dataset, *callbacks):
    saving = solstice.CheckpointingCallback(directory, every=Every(steps=1))
    return solstice.train(
        policy(), 2, dataset, None, [*callbacks, saving], resume_from=saving, progress=False
    )


def test_a_live_run_resumes_to_the_same_bits_and_makes_no_batch_again(tmp_path):
    whole, before, after = Versions(), Versions(), Versions()
    expected = bits(run(tmp_path / "whole", live(whole, 4)))
    with pytest.raises(ConnectionError):
        run(tmp_path / "run", live(before, 4), Crash(5))
    assert bits(run(tmp_path / "run", live(after, 4))) == expected
    # The step that failed had not been saved.
    assert [*before.seen[:-1], *after.seen] == whole.seen == list(range(8))


def test_a_pass_made_from_its_start_is_not_the_same_after_a_resume_and_says_so(tmp_path, caplog):
    def episodes(epoch, exp):
        return iter([np.full(2, float(exp.version[0]))] * 4)

    whole = run(tmp_path / "whole", episodes)
    with pytest.raises(ConnectionError):
        run(tmp_path / "run", episodes, Crash(5))
    resumed = run(tmp_path / "run", episodes)
    assert float(resumed.version[0]) == 8 and bits(resumed) != bits(whole)
    assert "train_ds makes a pass's batches from the experiment at its start" in caplog.text


def test_a_live_dataset_without_an_end_needs_one(recorder):
    endless, events = live(Versions()), []
    message = r"_ds makes batches without end.*length=100"
    with pytest.raises(ValueError, match="train" + message):
        solstice.train(policy(), 2, endless, callbacks=[recorder(events)])
    with pytest.raises(ValueError, match="val" + message):
        solstice.train(policy(), None, [np.ones(2)], endless, [recorder(events)], num_steps=3)
    with pytest.raises(ValueError, match="test" + message):
        solstice.test(policy(), endless, return_outs=True)
    with pytest.raises(ValueError, match="makes batches without end"):
        solstice.predict(policy(), endless)
    assert events == []


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_make_batches_is_refused(recorder):
    for wrong, message in (
        ([1, 2], "make is expected to be a function; it is"),
        (lambda: 1, r"make is expected to be a function of \(exp\).*requires 0 arguments"),
        (lambda exp, step, key: 1, "requires 3 arguments"),
        (lambda exp, *, key: 1, "requires the argument 'key' by name"),
    ):
        with pytest.raises(TypeError, match=message):
            live(wrong)
    with pytest.raises(ValueError, match="length is expected to be at least 1; it is 0"):
        live(Versions(), 0)
    with pytest.raises(TypeError, match="length is expected to be an int"):
        live(Versions(), 2.5)
    events = []
    for wrong, message in (
        (lambda epoch, exp, key: 1, "train_ds is expected to be a function of nothing, of the ep"),
        (lambda epoch, *, exp: 1, "train_ds is a function that requires the argument 'exp' by na"),
    ):
        with pytest.raises(TypeError, match=message):
            solstice.train(policy(), 1, wrong, callbacks=[recorder(events)])
    assert events == []


class Keep(solstice.Callback):
    """A callback that keeps the experiment for a dataset."""

    exp = None

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if mode == "train":
            self.exp = solstice.snapshot(exp)

    def batch(self, seen):
        version = 0 if self.exp is None else int(self.exp.version[0])
        seen.append(version)
        return np.full(2, version, "float32")


KEEP = Keep()


class Reading:
    """A dataset that is an object, and holds the callback."""

    def __init__(self, keep, seen):
        self.keep, self.seen = {"callback": keep}, seen

    def __iter__(self):
        for _ in range(6):
            yield self.keep["callback"].batch(self.seen)


def closing_over(keep, seen):
    return lambda: (keep.batch(seen) for _ in range(6))


def of_the_module(keep, seen):
    def make(epoch):
        for _ in range(6):
            yield KEEP.batch(seen)

    return make


def bound(keep, seen):
    def make(keep, seen, epoch):
        return (keep.batch(seen) for _ in range(6))

    return functools.partial(make, keep, seen)


def generated(keep, seen):
    return (keep.batch(seen) for _ in range(6))


class Slotted(Reading):
    """One whose fields have no dict, beside an object that answers nothing."""

    __slots__ = ("keep", "odd", "seen")

    def __init__(self, keep, seen):
        super().__init__(keep, seen)
        self.odd = Odd()


class Odd:
    """What raises whatever it is asked."""

    @property
    def __dict__(self):
        raise RuntimeError("no fields")

    @property
    def __class__(self):
        raise RuntimeError("no class")


READERS = [closing_over, of_the_module, bound, generated, Reading, Slotted]


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_what_reads_a_callback_is_read_in_its_turn(make, prefetch):
    KEEP.exp, seen = None, []
    dataset = make(KEEP, seen)
    solstice.train(policy(), 1, dataset, callbacks=[KEEP], prefetch=prefetch, progress=False)
    assert seen == list(range(6))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_validation_that_reads_a_callback_is_read_after_training(prefetch):
    KEEP.exp, seen = None, []
    solstice.train(
        policy(),
        2,
        [np.ones(2, "float32")] * 3,
        closing_over(KEEP, seen),
        callbacks=[KEEP],
        prefetch=prefetch,
        progress=False,
    )
    assert seen == [3] * 6 + [6] * 6


def test_other_datasets_are_read_ahead():
    KEEP.exp, seen = None, []
    other = Keep()  # of no run
    dataset = closing_over(other, seen)
    threads = set()

    def noting():
        for batch in dataset():
            threads.add(threading.current_thread().name)
            yield batch

    solstice.train(policy(), 1, noting, callbacks=[KEEP], prefetch=2, progress=False)
    assert threads == {"solstice-prefetch"}
