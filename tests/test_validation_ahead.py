"""Errors in the first batch of the validation are raised before the first training step."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from resuming import VAL, X, Y, experiment, shuffled
from test_resume import BangError, Crash, run

import solstice
from solstice.data import live
from solstice.triggers import Every


def reader(read, batches, name="val"):
    """A function that notes each batch that is asked of it."""

    def dataset(epoch):
        for i, batch in enumerate(batches):
            read.append((name, epoch, i))
            yield batch

    return dataset


class Steps(solstice.Callback):
    def __init__(self, events):
        self.events = events

    def on_step_end(self, outs, exp, global_step, mode, batch):
        self.events.append((mode, global_step))


class Reset:
    """A dataset with one place to read at."""

    def __init__(self, batches):
        self.batches, self.place = batches, 0

    def __iter__(self):
        self.place = 0
        return self

    def __next__(self):
        if self.place == len(self.batches):
            raise StopIteration
        self.place += 1
        return self.batches[self.place - 1]


class Narrow(solstice.Experiment):
    """Takes batches of any length to train on, and of three to evaluate."""

    total: jax.Array

    @solstice.jit
    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch.sum()), None

    def _evaluated(self, batch):
        if batch.shape != (3,):
            raise KeyError("three are expected")
        return self, batch.sum()


class WithJit(Narrow):
    @solstice.jit
    def eval_step(self, batch):
        return self._evaluated(batch)


class WithJaxJit(Narrow):
    @jax.jit
    def eval_step(self, batch):
        return self._evaluated(batch)


class WithFilterJit(Narrow):
    name: str = "filtered"

    @eqx.filter_jit
    def eval_step(self, batch):
        return self._evaluated(batch)


class WithoutPair(Narrow):
    @jax.jit
    def eval_step(self, batch):
        return batch


GOOD, BAD = np.ones(3, "float32"), np.ones(2, "float32")
DATASETS = {
    "list": lambda batches: list(batches),
    "function": lambda batches: lambda: iter(batches),
    "function of the epoch": lambda batches: lambda epoch: iter(batches),
    "iterator": lambda batches: iter(batches),
    "object": Reset,
}


READING = [{}, {"steps_per_call": 2}, {"prefetch": 2}]


@pytest.mark.parametrize(
    ("step", "kind", "options"),
    # Each kind of data read in each way, and each kind of step on two of them.
    [
        *((WithJit, kind, options) for kind in DATASETS for options in READING),
        *(
            (step, kind, options)
            for step in (WithJaxJit, WithFilterJit)
            for kind, options in (("list", {}), ("iterator", {"prefetch": 2}))
        ),
    ],
    ids=str,
)
def test_an_evaluation_that_fails_is_refused_before_training(step, kind, options):
    events, exp = [], step(jnp.zeros(()))
    make = DATASETS[kind]
    options = {"callbacks": [Steps(events)], "progress": False} | options
    with pytest.raises(KeyError, match="three are expected") as raised:
        solstice.train(exp, 1, [GOOD, GOOD], make([BAD]), **options)
    assert events == []
    assert "This is from the first batch of val_ds, before the first" in raised.value.__notes__[-1]
    solstice.train(exp, 1, [GOOD, GOOD], make([GOOD]), **options)
    assert {mode for mode, _ in events} == {"train", "val"}


def test_outs_that_are_no_pair_are_refused_before_training():
    events = []
    with pytest.raises(TypeError, match="is expected to return a pair"):
        solstice.train(WithoutPair(jnp.zeros(())), 1, [GOOD], [GOOD], [Steps(events)])
    assert events == []


def test_random_evaluation_is_refused_before_training():
    net = nn.Sequential([nn.Dropout(0.2, deterministic=False), nn.Dense(3)])
    exp = solstice.ClassificationExperiment(net, optax.sgd(0.1), example_input=X[:1], key=0)
    read = []
    for val_ds in (VAL, reader([], VAL), iter(VAL)):
        with pytest.raises(ValueError, match="evaluation is expected to be deterministic"):
            exp.train(1, reader(read, [(X, Y)]), val_ds, progress=False)
    dataset = Reset([(X, Y)])
    with pytest.raises(ValueError, match="evaluation is expected to be deterministic"):
        exp.train(1, dataset, dataset, [Steps(read)], progress=False)
    assert read == []


def test_labels_of_the_validation_are_checked_before_training():
    events = []
    wrong = [(X[:7], Y[:7] + 3), VAL[1]]
    for val_ds in (wrong, reader([], wrong), iter(wrong), live(lambda exp: wrong[0], 1)):
        with pytest.raises(ValueError, match="Labels are expected to be classes from 0 to 2"):
            experiment().train(1, shuffled, val_ds, [Steps(events)], progress=False)
        if isinstance(val_ds, type(live(len, 1))):  # it cannot be known before
            assert ("train", 4) in events
        else:
            assert events == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_no_batch_of_a_validation_is_read_twice(prefetch):
    events = []
    solstice.train(
        WithJit(jnp.zeros(())),
        2,
        reader(events, [GOOD, GOOD], "train"),
        reader(events, [GOOD, GOOD]),
        [Steps(events)],
        prefetch=prefetch,
        progress=False,
    )
    reads = [event for event in events if len(event) == 3]
    assert reads[0] == ("val", 0, 0)
    assert [one for one in reads if one[0] == "val"] == [
        ("val", epoch, i) for epoch in range(2) for i in range(2)
    ]


def test_an_iterator_gives_the_validation_all_it_has():
    seen = []

    class Seen(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            if mode == "val":
                seen.append(float(batch.sum()))

    batches = [np.full(3, i, "float32") for i in range(4)]
    solstice.train(
        WithJit(jnp.zeros(())), 1, [GOOD], iter(batches), [Seen()], steps_per_call=1, progress=False
    )
    assert seen == [0, 3, 6, 9]


def test_an_object_that_is_both_datasets_is_read_in_turn():
    seen = []

    class Seen(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            seen.append((mode, float(batch.sum())))

    dataset = Reset([np.full(3, i, "float32") for i in range(2)])
    solstice.train(WithJit(jnp.zeros(())), 2, dataset, dataset, [Seen()], progress=False)
    assert seen == [("train", 0), ("train", 3), ("val", 0), ("val", 3)] * 2


def test_a_validation_of_another_epoch_is_of_that_epoch():
    read = []
    solstice.train(
        WithJit(jnp.zeros(())),
        4,
        [GOOD],
        reader(read, [GOOD, GOOD]),
        validate_every=Every(epochs=2),
        progress=False,
    )
    assert read == [("val", 0, 0), *[("val", epoch, i) for epoch in (1, 3) for i in range(2)]]


def test_the_look_compiles_and_traces_nothing_more():
    traces = []

    class Traced(Narrow):
        @solstice.jit
        def eval_step(self, batch):
            traces.append(batch.shape)
            return self, batch.sum()

    for k in (1, 2):
        solstice.train(
            Traced(jnp.zeros(())), 1, [GOOD], [GOOD] * 4, steps_per_call=k, progress=False
        )
    assert len(traces) == 1
    assert Traced.eval_step._pure._cache_size() == 2  # of one and of two batches


def test_steps_that_are_not_compiled_are_not_called_for_a_look(adding, recorder):
    class Impure(type(adding)):
        def eval_step(self, batch):
            called.append(batch)
            return super().eval_step(batch)

    called, exp = [], Impure(adding.total, adding.evaluated)
    solstice.train(exp, 1, [1], [5, 6], progress=False)
    assert called == [5, 6]


def test_a_run_that_ends_before_its_validation_lets_go_of_it():
    let_go = []

    def dataset():
        try:
            yield GOOD
        finally:
            let_go.append(True)

    solstice.train(
        WithJit(jnp.zeros(())),
        None,
        [GOOD],
        dataset,
        num_steps=3,
        validate_every=Every(steps=10),
        progress=False,
    )
    assert let_go == [True]


def test_a_resumed_run_looks_too(tmp_path):
    with pytest.raises(BangError):
        run(tmp_path, [Crash("train", 3)])
    events = []
    wrong = [(X[:7], Y[:7] + 3)]
    with pytest.raises(ValueError, match="Labels are expected to be classes from 0 to 2"):
        run(tmp_path, [Steps(events)], val_ds=reader([], wrong))
    assert events == []
    read = []
    run(tmp_path, [Steps(read)], val_ds=reader(read, VAL), num_epochs=1)
    assert read[0] == ("val", 0, 0) and read.count(("val", 0, 0)) == 1
