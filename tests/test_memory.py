"""Datasets that fill the same buffers again: each step has its own batch, however it is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.data.memory import own_arrays
from solstice.triggers import Every

STEPS = 7
WORK = jnp.eye(256) + 0.01


class Slow(solstice.Experiment):
    """Takes so long for a step that the next batches are read while it is on its way."""

    total: jax.Array

    def _added(self, batch):
        # A loop, since jax waits for what has none and so seems cheap.
        work = jax.lax.fori_loop(0, 5, lambda _, work: work @ work / 256, WORK)
        return 0.5 * self.total + batch["x"].sum() + batch["y"] + 0 * work[0, 0]

    @solstice.jit
    def train_step(self, batch):
        total = self._added(batch)
        return solstice.replace(self, total=total), solstice.metrics.Mean(total)

    @solstice.jit
    def eval_step(self, batch):
        return self, solstice.metrics.Mean(self._added(batch))

    def predict(self, batch):
        return self._added(batch)[None]


def buffer(shape, offset=0):
    """An array that begins so many bytes after a multiple of 64: jax aliases it if that is none."""
    size = 4 * int(np.prod(shape))
    memory = np.empty(size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + size].view(np.float32).reshape(shape)


def filled(i, x, y):
    x[...], y[...] = i, 10 * i
    return {"x": x, "y": y}


class Refilling:
    """Fills its buffers again and again; without any, each batch is new."""

    def __init__(self, *buffers):
        self.buffers = buffers

    def __iter__(self):
        for i in range(STEPS):
            new = [(np.empty(SHAPE, "float32"), np.empty((), "float32"))]
            buffers = self.buffers or new
            yield filled(i, *buffers[i % len(buffers)])


class RefillingAtItsStart(Refilling):
    """Fills all buffers before a pass; no code of its own runs between the batches."""

    def __init__(self, *buffers):
        super().__init__(*buffers)
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        pairs = [filled(self.passes + i, *pair) for i, pair in enumerate(self.buffers)]
        return iter(pairs)


SHAPE = (300, 100)  # more than jax copies at once
BUFFERS = {
    "aligned": lambda: [(buffer(SHAPE), buffer(()))],
    "not aligned": lambda: [(buffer(SHAPE, 16), buffer((), 16))],
    "three in turn": lambda: [(buffer(SHAPE), buffer(())) for _ in range(3)],
}
READING = [{}, {"prefetch": 2}, {"steps_per_call": 3}, {"steps_per_call": 3, "prefetch": 2}]


def run(make, **options):
    """Train, validate, evaluate, test and predict, and return what came of each.

    Training may be read ahead while another dataset is evaluated, so each has its own buffers.
    """
    dataset, other = make(), make()
    history = solstice.HistoryCallback(2)
    evaluation = solstice.EvaluationCallback(
        lambda exp, batch, key: exp.eval_step(batch), {"other": other}, when=Every(steps=3)
    )
    exp = solstice.train(
        Slow(jnp.zeros(())), 2, dataset, dataset, [history, evaluation], progress=False, **options
    )
    records = [{**record, "time": None} for record in history.records]
    outs = solstice.test(exp, dataset, return_outs=True, progress=False)
    tested = [float(one.compute()["mean"]) for one in outs]
    predicted = solstice.predict(exp, dataset, progress=False).tolist()
    return float(exp.total), records, evaluation.results, tested, predicted


@pytest.fixture(scope="module")
def expected():
    return {str(options): run(Refilling, **options) for options in READING}


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("options", READING, ids=str)
def test_each_step_has_its_own_batch(kind, options, expected):
    assert run(lambda: Refilling(*BUFFERS[kind]()), **options) == expected[str(options)]


@pytest.mark.parametrize("options", READING, ids=str)
def test_a_pass_does_not_write_into_the_one_before(options):
    def total(dataset):
        exp = solstice.train(Slow(jnp.zeros(())), 3, dataset, progress=False, **options)
        return float(exp.total)

    class Fresh(RefillingAtItsStart):
        def __iter__(self):
            return iter([{k: v.copy() for k, v in batch.items()} for batch in super().__iter__()])

    buffers = BUFFERS["three in turn"]()
    assert total(RefillingAtItsStart(*buffers)) == total(Fresh(*buffers))


def test_what_evaluations_prepare_may_be_a_buffer_too():
    def results(prepare):
        evaluation = solstice.EvaluationCallback(
            lambda exp, batch, key: exp.eval_step(batch),
            {"other": Refilling()},
            when=Every(epochs=1),
            prepare_batch=prepare,
        )
        solstice.train(Slow(jnp.zeros(())), 1, Refilling(), callbacks=[evaluation], progress=False)
        return evaluation.results

    x, y = buffer(SHAPE), buffer(())
    assert results(lambda batch: filled(batch["y"], x, y)) == results(
        lambda batch: filled(batch["y"], *map(np.empty_like, (x, y)))
    )


def test_the_arrays_of_a_list_are_not_copied(adding):
    seen = []

    class Watch(type(adding)):
        def train_step(self, batch):
            seen.append(batch)
            return self, None

    exp, batch = Watch(adding.total, adding.evaluated), np.ones(3)
    solstice.train(exp, 1, [batch], progress=False)
    solstice.train(exp, 1, lambda: iter([batch]), progress=False)
    assert seen[0] is batch and not np.shares_memory(seen[1], batch)


@pytest.mark.parametrize("size", [3, 30_000])
@pytest.mark.parametrize("dtype", ["float32", ">f8", "int8", "U3", "O", "M8[s]"])
def test_a_copy_has_all_that_an_array_has(size, dtype):
    array = np.arange(2 * size).reshape(2, size).astype(dtype)
    masked = np.ma.masked_array(np.arange(size), mask=np.arange(size) % 2)
    batch = {
        "c": array,
        "t": array.T,
        "strided": array[:, ::2],
        "masked": masked,
        "empty": array[:0],
    }
    mine = own_arrays(batch)
    for name, one in batch.items():
        copy = mine[name]
        assert type(copy) is type(one) and copy.dtype == one.dtype and copy.shape == one.shape
        assert (copy == one).all() and not np.shares_memory(copy, one)


def test_what_jax_has_and_what_is_no_array_stay_as_they_are():
    array, key, other = jnp.ones(2), jax.random.key(0), object()
    kept = own_arrays([array, key, other, "name", None, np.float32(1)])
    assert kept[:3] == [array, key, other] and kept[3:] == ["name", None, 1]
    assert kept[0] is array
