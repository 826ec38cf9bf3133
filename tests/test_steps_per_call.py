"""Several steps in one call: the same results, one call of the hooks, and the right remainder."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax

import solstice
from solstice.step import Step

RNG = np.random.default_rng(0)


class Counting(solstice.Experiment):
    """Adds up the batches; its outs are what it is asked for."""

    total: jax.Array
    outs: str

    @solstice.jit
    def train_step(self, batch):
        total = self.total + batch.sum()
        outs = {"array": total, "none": None}.get(self.outs, batch)
        return solstice.replace(self, total=total), outs

    @solstice.jit
    def eval_step(self, batch):
        return self, batch


class Named(solstice.Metrics):
    """A metric whose merge cannot be traced: it joins names on the host."""

    value: jax.Array

    def merge(self, other):
        return Named(jnp.asarray(float(self.value) + float(other.value)))

    def compute(self):
        return {"value": self.value}


class Naming(Counting):
    @solstice.jit
    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch.sum()), Named(batch.sum())


class Plain(Counting):
    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch.sum()), batch


class Hooks(solstice.Callback):
    def __init__(self):
        self.events = []

    def on_step_start(self, exp, global_step, mode, batch):
        self.events.append((mode, global_step, [np.asarray(one).tolist() for one in batch]))

    def on_step_end(self, outs, exp, global_step, mode, batch):
        shown = None if outs is None else jax.tree.map(np.asarray, outs)
        self.events.append((mode, global_step, shown, float(exp.total)))


def values(*numbers):
    return [np.full(2, number, "float32") for number in numbers]


def run(exp, ds, k, callbacks=(), **options):
    options = {"num_epochs": 1, "progress": False, "steps_per_call": k} | options
    return solstice.train(exp, train_ds=ds, callbacks=callbacks, **options)


def test_hooks_are_called_once_a_call():
    hooks = Hooks()
    run(Counting(jnp.zeros(()), "array"), values(1, 2, 3, 4, 5), 2, [hooks], val_ds=values(6, 7, 8))
    starts = [event for event in hooks.events if len(event) == 3]
    assert starts == [
        ("train", 1, [[1, 1], [2, 2]]),
        ("train", 3, [[3, 3], [4, 4]]),
        ("train", 4, [[5, 5]]),
        ("val", 1, [[6, 6], [7, 7]]),
        ("val", 2, [[8, 8]]),
    ]
    ends = [event[1:] for event in hooks.events if len(event) == 4 and event[0] == "train"]
    assert [(step, outs.tolist(), total) for step, outs, total in ends] == [
        (1, [2, 6], 6),
        (3, [12, 20], 20),
        (4, 30, 30),
    ]


def test_outs_of_none_stay_none():
    hooks = Hooks()
    run(Counting(jnp.zeros(()), "none"), values(1, 2), 2, [hooks])
    assert hooks.events[1][2] is None


@pytest.mark.parametrize("kind", [Naming, Plain], ids=["a merge on the host", "no solstice.jit"])
def test_what_cannot_go_into_one_call_gives_the_same(kind):
    hooks = Hooks()
    exp = run(kind(jnp.zeros(()), ""), values(1, 2, 3), 2, [hooks])
    assert float(exp.total) == 12
    outs = [event[2] for event in hooks.events if len(event) == 4]
    if kind is Naming:
        assert [float(one.value) for one in outs] == [6, 6]
    else:
        assert [one.tolist() for one in outs] == [[[1, 1], [2, 2]], [3, 3]]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("num_steps", [None, 1, 4, 7, 9, 13])
def test_the_end_of_a_run_is_where_it_was(k, num_steps):
    hooks = Hooks()
    uneven = [*values(1, 2, 3, 4), np.ones(3, "float32"), *values(5, 6)]
    exp = run(Counting(jnp.zeros(()), ""), uneven, k, [hooks], num_epochs=2, num_steps=num_steps)
    wanted = (uneven * 2)[: num_steps or 14]
    assert float(exp.total) == sum(one.sum() for one in wanted)
    assert hooks.events[-1][1] == len(wanted) - 1
    seen = [len(batch) for mode, _, batch in hooks.events[::2]] if k > 1 else []
    assert not seen or (sum(seen) == len(wanted) and max(seen) <= k)


def test_an_early_stop_ends_after_the_call():
    class Stop(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            if global_step >= 2:
                raise solstice.EarlyStoppingException("enough")

    exp = run(Counting(jnp.zeros(()), ""), values(*range(10)), 4, [Stop()])
    assert float(exp.total) == 2 * (0 + 1 + 2 + 3)


def dropping(x, train):
    x = hk.dropout(hk.next_rng_key(), 0.2 * train, hk.Linear(16)(x))
    return hk.Linear(3)(x)


@pytest.mark.parametrize("dropout", [False, True])
def test_a_classification_learns_the_same(dropout):
    network = stax.serial(stax.Dense(16), stax.Relu, stax.Dense(3))
    if dropout:
        network = hk.transform(dropping)
    x = RNG.normal(size=(70, 4)).astype("float32")
    y = x[:, :3].argmax(-1).astype("int32")
    ds = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 70, 8)]  # 8 full batches and one of 6
    exp = solstice.ClassificationExperiment(network, optax.adam(0.01), example_input=x, key=0)
    logged = {k: [] for k in (1, 3)}
    trained = {}
    for k, records in logged.items():
        logging = solstice.LoggingCallback(logging_fn=lambda m, *_, to=records: to.append(m))
        trained[k] = run(exp, ds, k, [logging], num_epochs=3, val_ds=ds)
    for one, other in zip(*map(jax.tree.leaves, (trained[1].model, trained[3].model)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert len(logged[1]) == 6
    for one, other in zip(logged[1], logged[3], strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4, atol=1e-5)


def test_a_remainder_compiles_no_program_of_its_own():
    class Fresh(Counting):
        @solstice.jit
        def train_step(self, batch):
            return solstice.replace(self, total=self.total + batch.sum()), None

    run(Fresh(jnp.zeros(()), ""), values(*range(11)), 4)
    assert isinstance(Fresh.train_step, Step)
    assert Fresh.train_step._fused._cache_size() == 1
    assert Fresh.train_step._rolled._cache_size() == 1


def test_donating_takes_the_callers_buffers():
    exp = Counting(jnp.zeros(100), "")
    trained = run(exp, values(1, 2), 1, donate=True)
    assert exp.total.is_deleted() and float(trained.total[0]) == 6
    exp = Counting(jnp.zeros(100), "")
    run(exp, values(1, 2), 1)
    assert not exp.total.is_deleted()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, None])
def test_it_is_a_positive_number(wrong):
    with pytest.raises((TypeError, ValueError), match="steps_per_call is expected to be"):
        run(Counting(jnp.zeros(()), ""), values(1), wrong)
