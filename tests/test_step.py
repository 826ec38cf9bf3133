"""solstice.jit: a pure call by itself, a fused one in the trainer, the same numbers in both."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import LIBRARIES

import solstice
from solstice.testing.compare import values
from solstice.tree import replace
from solstice.tree.flat import Flat

TRACES = []
BATCHES = [jnp.full(3, float(i)) for i in range(4)]


class Walk(solstice.Experiment):
    """Moves by the batch and by noise; keeps a function, a name and a table beside it."""

    place: jax.Array
    key: jax.Array
    table: np.ndarray
    activation: object
    name: str = "walk"

    def __init__(self, seed=0):
        self.place = jnp.zeros(3)
        self.key = jax.random.key(seed)
        self.table = np.arange(3.0, dtype="float32")
        self.activation = jnp.tanh

    @solstice.jit
    def train_step(self, batch):
        TRACES.append(self.name)
        key, noise = jax.random.split(self.key)
        move = self.activation(batch + self.table) + jax.random.normal(noise, (3,))
        return replace(self, place=self.place + move, key=key), {"moved": move, "name": self.name}

    @solstice.jit
    def eval_step(self, batch):
        return self, self.place * batch


class Plain(Walk):
    """The same, compiled by equinox."""

    train_step = eqx.filter_jit(Walk.train_step.__wrapped__)


def bits(tree):
    return {name: array.tobytes() for name, array in values(tree).items()}


def train(exp, *callbacks, **options):
    return solstice.train(exp, 2, BATCHES, callbacks=callbacks, progress=False, **options)


def test_a_direct_call_is_pure():
    exp = Walk()
    before = bits(exp)
    one, outs = exp.train_step(BATCHES[0])
    two, _ = exp.train_step(BATCHES[0])
    assert bits(exp) == before != bits(one) == bits(two)
    assert outs["name"] == "walk" and one.activation is jnp.tanh
    assert one.table is exp.table, "what a step leaves alone is not copied"


def test_an_evaluation_that_changes_nothing_returns_the_very_experiment():
    exp = Walk()
    same, outs = exp.eval_step(BATCHES[1])
    assert same is exp and outs.shape == (3,)


def test_the_fused_run_gives_the_bits_of_the_unfused_one():
    fused, unfused = train(Walk()), train(Plain())
    assert bits(fused) == bits(unfused) != bits(Walk())
    loop = Walk()
    for batch in BATCHES * 2:
        loop, _ = loop.train_step(batch)
    assert bits(loop) == bits(fused)


def test_the_callers_experiment_survives():
    exp = Walk()
    before = bits(exp)
    train(exp)
    assert bits(exp) == before


def test_it_compiles_once_whatever_watches():
    class Watch(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            float(exp.place.sum())

    class Named(Walk):
        name: str = "compiled once"

    exp = Named()
    train(exp)
    train(exp, Watch(), val_ds=BATCHES)
    train(Named(seed=1), Watch(), solstice.Callback())
    assert TRACES.count("compiled once") == 1


def test_a_python_number_is_static():
    class Counts(solstice.Experiment):
        steps: int

        @solstice.jit
        def train_step(self, batch):
            TRACES.append("counts")
            return replace(self, steps=self.steps + 1), None

        def eval_step(self, batch):
            return self, None

    assert train(Counts(0)).steps == 8
    assert TRACES.count("counts") == 8


def test_hooks_get_a_live_experiment_and_a_kept_one_is_stale():
    class Keep(solstice.Callback):
        def __init__(self):
            self.live, self.kept, self.snapshots = [], [], []

        def on_step_end(self, outs, exp, global_step, mode, batch):
            self.live.append(np.array(exp.place))
            self.kept.append(exp)
            self.snapshots.append(solstice.snapshot(exp))

    keep = Keep()
    end = train(Walk(), keep)
    places = [np.asarray(one.place) for one in keep.snapshots]
    assert np.array_equal(places, keep.live) and len({p.tobytes() for p in places}) == 8
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        keep.kept[0].train_step(BATCHES[0])
    assert bits(keep.kept[-1]) == bits(end) == bits(keep.snapshots[-1])


def test_an_experiment_that_evaluation_advances_is_kept():
    class Counts(solstice.Experiment):
        trained: jax.Array
        evaluated: jax.Array

        @solstice.jit
        def train_step(self, batch):
            return replace(self, trained=self.trained + 1), None

        @solstice.jit
        def eval_step(self, batch):
            return replace(self, evaluated=self.evaluated + 1), None

    zero = jnp.zeros((), int)
    # Both fields share one buffer, which must not be donated twice.
    end = train(Counts(zero, zero), val_ds=BATCHES[:3])
    assert (int(end.trained), int(end.evaluated)) == (8, 6)
    assert int(zero) == 0


def test_a_step_may_be_mixed_with_others():
    class Mixed(Walk):
        def eval_step(self, batch):
            return replace(self, table=self.table + 1), None

    end = train(Mixed(), val_ds=BATCHES[:1])
    assert end.table.tolist() == [2.0, 3.0, 4.0]


def test_a_stopped_or_failed_run_leaves_a_live_experiment():
    ends = []

    class Stop(solstice.Callback):
        def __init__(self, error):
            self.error = error

        def on_step_end(self, outs, exp, global_step, mode, batch):
            if global_step == 2:
                raise self.error

        def on_run_end(self, exp, error):
            ends.append(bits(exp))

    stopped = train(Walk(), Stop(solstice.EarlyStoppingException("enough")))
    with pytest.raises(OSError, match="disk"):
        train(Walk(), Stop(OSError("disk")))
    loop = Walk()
    for batch in BATCHES[:3]:
        loop, _ = loop.train_step(batch)
    assert bits(stopped) == ends[0] == ends[1] == bits(loop)


def test_a_step_can_be_transformed():
    exp, batch = Walk(), BATCHES[1]
    one, _ = exp.train_step(batch)
    jitted = eqx.filter_jit(lambda exp, batch: exp.train_step(batch)[0])(exp, batch)
    assert np.allclose(jitted.place, one.place, rtol=1e-6)
    slope = jax.grad(lambda batch: exp.train_step(batch)[0].place.sum())(batch)
    assert np.allclose(slope, 1 - np.tanh(batch + exp.table) ** 2, rtol=1e-5)
    many = jax.vmap(lambda batch: exp.train_step(batch)[0].place)(jnp.stack(BATCHES))
    assert np.allclose(many[1], one.place, rtol=1e-6)


def test_a_subclass_may_call_its_parents_step():
    class Twice(Walk):
        @solstice.jit
        def train_step(self, batch):
            exp, _ = super().train_step(batch)
            return super(Twice, exp).train_step(batch)

    loop = Walk()
    for _ in range(2):
        loop, _ = loop.train_step(BATCHES[2])
    assert np.allclose(Twice().train_step(BATCHES[2])[0].place, loop.place, rtol=1e-6)


@pytest.mark.parametrize("library", ["linen", "equinox"])
def test_a_classification_trains_fused_as_in_a_loop(library):
    subject = LIBRARIES[library]["cnn"]
    (x,) = subject.inputs
    ds = [(x + i, jnp.array([0, 1, 2, 0])) for i in range(3)]
    exp = solstice.ClassificationExperiment(
        subject.make_model(jax.random.key(0)), optax.adam(1e-2), example_input=x, key=0
    )
    loop = exp
    for batch in ds:
        loop, _ = loop.train_step(batch)
    assert bits(exp.train(1, ds, val_ds=ds, progress=False)) == bits(loop)


@pytest.mark.parametrize("wrong", [lambda self: None, print, eqx.filter_jit(lambda a, b: a)])
def test_what_is_no_step_is_refused(wrong):
    with pytest.raises(
        TypeError, match=r"solstice\.jit decorates is expected to be a method.*jax\.jit"
    ):
        solstice.jit(wrong)


def test_a_step_that_returns_no_pair_is_named():
    class Forgets(Walk):
        @solstice.jit
        def train_step(self, batch):
            return self

    with pytest.raises(TypeError, match=r"Forgets\.train_step is expected to return a pair"):
        train(Forgets())


def test_a_flat_tree_is_whole_again():
    tree = {"a": jnp.ones(2), "b": (None, "name", np.zeros(1)), "c": 3}
    flat = Flat.of(tree)
    assert [leaf.shape for leaf in jax.tree.leaves(flat)] == [(2,), (1,)]
    whole = flat.whole()
    assert whole["a"] is tree["a"] and whole["b"][1:2] == ("name",) and whole["c"] == 3
    again = Flat.of(tree, like=flat.structure)
    assert again.structure is flat.structure
    assert Flat.of({"a": jnp.ones(2), "b": 1}).structure != flat.structure


def test_on_a_cpu_calls_are_made_in_bursts():
    """With 32 of them in line, jax makes each next one wait: the costliest way to go on."""

    class Slow(Walk):
        @solstice.jit
        def train_step(self, batch):
            product = jnp.full((300, 300), self.place[0])
            for _ in range(6):
                product = product @ product
            return replace(self, place=product[0, :3]), {"product": product[0]}

    class Ahead(solstice.Callback):
        needs_experiment = False

        def __init__(self):
            self.outs, self.waiting = [], []

        def on_step_end(self, outs, exp, global_step, mode, batch):
            self.outs.append(outs["product"])
            self.waiting.append(sum(not out.is_ready() for out in self.outs))

    ahead = Ahead()
    solstice.train(Slow(), 1, [0.0] * 80, callbacks=[ahead], progress=False)
    assert 2 < max(ahead.waiting) <= 24


def test_a_callback_may_delete_what_a_step_returned():
    class Delete(solstice.Callback):
        needs_experiment = False

        def on_step_end(self, outs, exp, global_step, mode, batch):
            outs["moved"].delete()

    batches = BATCHES * 10
    left = solstice.train(Walk(), 1, batches, callbacks=[Delete()], progress=False)
    assert bits(left) == bits(solstice.train(Walk(), 1, batches, progress=False))
