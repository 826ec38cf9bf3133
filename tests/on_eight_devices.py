"""Tests that need eight devices: `test_sharding.py` runs them in a process that simulates them."""

import collections
import contextlib
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import solstice
from solstice import compat
from solstice.sharding import DataParallel, FullySharded, Rules, assert_replicated, gather

CLASSES = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 32)).astype("float32")
Y = (X @ RNG.normal(size=(32, CLASSES))).argmax(-1).astype("int32")
DS = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]
UNEVEN = [(X[:13], Y[:13]), (X[13:32], Y[13:32]), (X[32:39], Y[32:39])]
MESH = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
TWO = [("Dense_0/kernel", P(None, "model")), ("Dense_1/kernel", P("model"))]


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(CLASSES)(x)


TX = optax.adam(1e-2)  # one, so that each program is compiled once


def experiment(key=0):
    return solstice.ClassificationExperiment(MLP(), TX, example_input=X[:2], key=key)


@functools.cache
def on_one_device():
    """What three epochs end with, and what is measured then."""
    alone = experiment().train(3, DS, DS, progress=False)
    return alone, alone.test(DS, progress=False)


def assert_close(one, two, rtol=1e-5):
    one, two = (solstice.tree.leaves_by_path(gather(tree)) for tree in (one, two))
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        if isinstance(leaf, np.ndarray):
            np.testing.assert_allclose(leaf, two[name], rtol=rtol, atol=rtol, err_msg=name)


PLACEMENTS = {
    "data parallel": DataParallel(),
    "two axes": DataParallel(MESH),
    "fully sharded": FullySharded(min_size=128),
    "hybrid": FullySharded(MESH, min_size=128),
    "rules": Rules(TWO, MESH),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_any_placement_trains_as_one_device_does(name):
    sharding = PLACEMENTS[name]
    alone, wanted = on_one_device()
    options = {"sharding": sharding, "progress": False}
    placed = experiment().train(3, DS, DS, recompile="error", **options)
    assert_close(alone, placed)
    assert placed.test(DS, **options) == pytest.approx(wanted, rel=1e-5)
    uneven = [(x, y) for x, y in UNEVEN]
    assert (solstice.predict(placed, uneven, **options) == placed.predict(X[:39])).all()


def test_a_network_with_factors_beside_small_weights_is_placed():
    model = solstice.compat.quantize(experiment().model, bits=4)
    exp = solstice.ClassificationExperiment(solstice.compat.lora(model, rank=2, key=1), TX)
    alone = exp.train(2, DS, progress=False)
    for name in ("data parallel", "fully sharded"):
        placed = exp.train(2, DS, sharding=PLACEMENTS[name], recompile="error", progress=False)
        assert_close(alone, placed)


@pytest.fixture(scope="module")
def placed():
    """A trained experiment on eight devices, and the same on one."""
    options = {"sharding": PLACEMENTS["fully sharded"], "progress": False}
    found = experiment().train(1, DS, **options)
    return found, gather(found)


def outputs(model):
    return np.asarray(model(X)[0])


CHANGES = {
    "lora": lambda model: compat.lora(model, rank=2, key=1),
    "merge": lambda model: compat.merge(compat.lora(model, rank=2, key=1)),
    "quantize": lambda model: compat.quantize(model, bits=4),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_weights_of_a_placed_network_are_changed_where_they_lie(name, placed):
    there, here = (CHANGES[name](exp.model) for exp in placed)
    np.testing.assert_allclose(outputs(there), outputs(here), rtol=1e-5, atol=1e-5)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(there))


def test_a_placed_network_is_looked_into_and_exported_as_one_on_one_device(placed, tmp_path):
    there, here = (exp.model for exp in placed)
    found, wanted = (compat.capture(model, X) for model in (there, here))
    assert list(found) == list(wanted)
    for path, value in found.items():
        np.testing.assert_allclose(value, wanted[path], rtol=1e-5, atol=1e-5)
    solstice.export(placed[0], tmp_path / "export", platforms="cpu")
    exported = solstice.load_exported(tmp_path / "export")
    np.testing.assert_array_equal(exported(X), placed[1](X))  # the bits of one device


def test_weights_go_into_a_placed_network_and_out_of_it(placed, tmp_path):
    there, here = (exp.model for exp in placed)
    emptied = jax.tree.map(jnp.zeros_like, there)
    path = tmp_path / "weights.safetensors"
    compat.save(there, path)
    loaded, _ = compat.load(emptied, path)
    other = compat.as_model(eqx.nn.MLP(32, CLASSES, 64, 1, key=jax.random.key(1)))
    alone = compat.convert(there, like=other, example=X)
    back = compat.convert(alone, like=emptied, example=X)
    for model in (loaded, alone, back):
        np.testing.assert_allclose(outputs(model), outputs(here), rtol=1e-5, atol=1e-5)
    for model in (loaded, back):
        for one, two in zip(*map(jax.tree.leaves, (model, there)), strict=True):
            assert one.sharding == two.sharding


@pytest.mark.parametrize("name", ["data parallel", "fully sharded"])
def test_the_experiment_passed_in_stays_alive_as_it_was(name):
    start, options = experiment(), {"sharding": PLACEMENTS[name], "progress": False}
    before = solstice.tree.digest(gather(start))
    placed = start.train(1, DS, **options)
    after = solstice.tree.digest(gather(placed))
    again = placed.train(1, DS, **options)
    assert solstice.tree.digest(gather(start)) == before
    assert solstice.tree.digest(gather(placed)) == after
    placed.train(1, DS, sharding=DataParallel(Mesh(jax.devices()[:1], ("data",))), progress=False)
    assert solstice.tree.digest(gather(placed)) == after
    assert solstice.tree.digest(gather(start.train(2, DS, **options))) == solstice.tree.digest(
        gather(again)
    )


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_the_axes_of_a_mesh_may_be_of_either_type(kind):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    alone = experiment().train(2, DS, progress=False)
    split, whole = (jax.sharding.NamedSharding(mesh, spec) for spec in (P("data"), P()))
    ds = [jax.device_put(batch, split) for batch in DS]  # what a user has put there
    arrays, others = eqx.partition(experiment(), eqx.is_array)
    start = eqx.combine(jax.device_put(arrays, whole), others)
    every = (FullySharded(mesh, min_size=128), Rules(TWO, mesh), DataParallel(mesh))
    for sharding in every if kind == AxisType.Explicit else every[:1]:
        options = {"sharding": sharding, "progress": False}
        placed = start.train(2, ds, recompile="error", **options)
        assert_close(alone, placed)
        assert (solstice.predict(placed, ds, **options) == placed.predict(X)).all()
        with jax.set_mesh(mesh):
            if kind == AxisType.Explicit:
                with pytest.raises(ValueError, match=r"outside of `with jax\.set_mesh"):
                    start.train(2, ds, **options)
            else:
                assert_close(alone, start.train(2, ds, **options))


@contextlib.contextmanager
def compilations():
    """Count what jax itself says that it compiled, by the name of the function."""
    counts = collections.Counter()

    def note(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            counts[about["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield counts
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize("name", ["data parallel", "fully sharded", "rules"])
def test_each_step_is_compiled_once_for_all_epochs(name):
    class Own(solstice.ClassificationExperiment):  # steps that nothing else has compiled
        train_step = solstice.jit(solstice.ClassificationExperiment.train_step._function)
        eval_step = solstice.jit(solstice.ClassificationExperiment.eval_step._function)

    options = {"sharding": PLACEMENTS[name], "progress": False, "recompile": "error"}
    exp = Own(MLP(), optax.adam(1e-2), example_input=X[:2], key=0)
    with compilations() as counts:
        exp = exp.train(3, DS, DS, **options)
        exp.train(2, DS, DS, prefetch=2, **options)
    assert (counts["jit(_flat_steps)"], counts["jit(_changes)"]) == (1, 1)


def test_a_change_of_placement_is_named():
    exp = experiment()
    split = jax.sharding.NamedSharding(MESH, P("data"))
    whole = jax.sharding.NamedSharding(MESH, P())
    changing = [jax.device_put(DS[i], at) for i, at in enumerate((split, split, whole, whole))]
    on_all = jax.tree.map(
        lambda leaf: jax.device_put(leaf, whole) if eqx.is_array(leaf) else leaf, exp
    )
    message = r"batch/0 was split as P.*'data',\) on 8 devices and is whole on 8 devices"
    with pytest.raises(solstice.RecompileError, match=message):
        on_all.train(1, changing, progress=False, recompile="error")

    class Moving(solstice.Experiment):
        weight: jax.Array

        @solstice.jit
        def train_step(self, batch):
            moved = jax.lax.with_sharding_constraint(self.weight + batch, split)
            return solstice.replace(self, weight=moved), None

        eval_step = train_step

    start = Moving(jax.device_put(jnp.zeros(8), whole))
    with pytest.raises(solstice.RecompileError, match="weight was whole on 8 devices and is split"):
        solstice.train(start, 1, [1.0] * 3, progress=False, recompile="error")
    placed = solstice.train(
        start, 1, [1.0] * 3, sharding=DataParallel(), progress=False, recompile="error"
    )
    assert placed.weight.tolist() == [3.0] * 8


@pytest.mark.parametrize(
    ("form", "prefetch"),
    [(tuple, 0), (list, 2), (lambda pair: dict(zip(("image", "label"), pair, strict=True)), 0)],
)
def test_what_does_not_divide_is_padded_and_masked(form, prefetch):
    ds = list(map(form, UNEVEN))
    alone = experiment().train(4, ds, progress=False)
    placed = experiment().train(4, ds, sharding=DataParallel(), prefetch=prefetch, progress=False)
    assert_close(alone, placed)
    found = placed.test(ds, sharding=FullySharded(), progress=False)
    assert found == pytest.approx(alone.test(ds, progress=False), rel=1e-5)


def test_a_mask_of_ones_own_is_kept():
    mask = np.arange(13) % 3 > 0
    ds = [(X[:13], Y[:13], mask)]
    found = experiment().test(ds, sharding=DataParallel(), progress=False)
    assert found == pytest.approx(experiment().test(ds, progress=False), rel=1e-5)


def test_what_does_not_divide_is_refused_without_masks(adding):
    with pytest.raises(ValueError, match=r"13 examples.*8 devices.*with_mask"):
        solstice.train(adding, 1, [np.arange(13.0)], sharding=DataParallel(), progress=False)


def test_undecorated_steps_are_placed_too(adding):
    ds = [np.arange(8.0), np.arange(16.0)]
    placed = solstice.train(adding, 2, ds, sharding=DataParallel(), progress=False)
    assert float(placed.total) == 2 * (28 + 120)
    assert placed.total.sharding.device_set == set(jax.devices())


def test_large_arrays_take_their_part_of_the_memory():
    placed = experiment().train(1, DS, sharding=FullySharded(min_size=256), progress=False)
    for leaf in jax.tree.leaves((placed.model.params, placed.optimizer.state)):
        (size,) = {shard.data.nbytes for shard in leaf.addressable_shards}
        assert size == (leaf.nbytes // 8 if leaf.size >= 256 else leaf.nbytes)
    again = placed.train(1, DS, sharding=FullySharded(min_size=256), progress=False)
    assert_close(experiment().train(2, DS, progress=False), again)


def test_several_steps_in_one_call_stay_placed():
    options = {"steps_per_call": 2, "progress": False}
    alone = experiment().train(3, DS, **options)
    placed = experiment().train(3, DS, sharding=FullySharded(min_size=128), **options)
    assert_close(alone, placed)


def test_an_axis_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"Dense_1/bias.*\(4,\).*8"):
        experiment().train(1, DS, sharding=Rules([("Dense_1/bias", P("data"))]), progress=False)
    with pytest.raises(ValueError, match=r"'Dense_7' matches none.*model/params"):
        experiment().train(1, DS, sharding=Rules([("Dense_7", P("data"))]), progress=False)


def test_a_saved_run_goes_on_in_its_placement(tmp_path):
    options = {"sharding": FullySharded(min_size=128), "progress": False}
    whole = experiment().train(4, UNEVEN, **options)
    saving = solstice.CheckpointingCallback(tmp_path, every=solstice.triggers.Every(steps=1))
    stop = solstice.Callback()

    def on_step_end(outs, exp, global_step, mode, batch):
        if global_step == 6:
            raise KeyError

    stop.on_step_end = on_step_end
    with pytest.raises(KeyError):
        experiment().train(4, UNEVEN, callbacks=[saving, stop], **options)
    resumed = experiment().train(4, UNEVEN, callbacks=[saving], resume_from=saving, **options)
    assert_close(whole, resumed, rtol=0)
    on_one = solstice.restore(tmp_path, experiment())
    assert_close(on_one, whole, rtol=0)
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(on_one.model)} == {1}


def test_an_ensemble_can_be_spread_over_a_mesh():
    keys = jax.random.split(jax.random.key(0), 8)
    start = solstice.Ensemble.init(experiment, keys)
    alone = start.train(5, DS, progress=False)
    members = Rules([("members/", P("data"))], batch=P())
    spread = start.train(5, DS, sharding=members, recompile="error", progress=False)
    assert_close(alone, spread)
    for leaf in jax.tree.leaves(spread.members):
        assert leaf.addressable_shards[0].data.shape[0] == 1
    by_batch = start.train(5, DS, sharding=DataParallel(), recompile="error", progress=False)
    assert_close(alone, by_batch)


def copies(*values):
    """One array whose copies on the devices are these."""
    devices = jax.devices()[: len(values)]
    sharding = jax.sharding.NamedSharding(Mesh(np.array(devices), ("data",)), P())
    each = [jax.device_put(value, device) for value, device in zip(values, devices, strict=True)]
    return jax.make_array_from_single_device_arrays(each[0].shape, sharding, each)


def test_copies_that_differ_are_named():
    good = jnp.array([1.0, jnp.nan])
    assert_replicated({"w": copies(good, good), "n": copies(jnp.zeros(2), -jnp.zeros(2))})
    placed = experiment().train(1, DS, sharding=FullySharded(min_size=128), progress=False)
    assert_replicated(placed)
    bad = {"fine": copies(good, good), "net": {"w": copies(good, good, good.at[0].add(0.25))}}
    with pytest.raises(AssertionError, match=r"'net/w'.*\b0 and .*\b2\b.*1 of 2 elements.*0\.25"):
        assert_replicated(bad)
    with pytest.raises(AssertionError, match="1 of 2"):
        assert_replicated({"w": copies(good, good.at[0].set(jnp.nan))})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_floats_may_be_as_far_apart_as_is_said(dtype):
    one = jnp.array([1.0, -8.0, jnp.nan, jnp.inf], dtype)
    near = {"w": copies(one, one.at[1].add(0.0625))}
    assert_replicated(near, atol=0.07)
    assert_replicated(near, rtol=0.008)
    for tolerances in ({}, {"atol": 0.06}, {"rtol": 0.007}):
        with pytest.raises(AssertionError, match=r"1 of 4 elements, by up to 0\.0625"):
            assert_replicated(near, **tolerances)
    for place in (2, 3):  # no tolerance takes what is not finite for a number
        with pytest.raises(AssertionError, match="1 of 4"):
            assert_replicated({"w": copies(one, one.at[place].set(1))}, atol=1e9, rtol=1e9)


def test_integers_and_keys_are_to_be_the_same_whatever_the_tolerance():
    count, key = jnp.array([2**31 - 1, 5]), jax.random.key(0)
    for one, other in [
        (count, count.at[0].add(-1)),
        (key, jax.random.key(1)),
        (jax.random.PRNGKey(0), jax.random.PRNGKey(1)),
        (count > 6, count > 4),
    ]:
        with pytest.raises(AssertionError, match=r"1 of [12]"):
            assert_replicated({"x": copies(one, other)}, atol=10.0, rtol=1.0)


@pytest.mark.parametrize("bad", [-1e-3, float("nan"), float("inf"), "1e-5", True, None])
@pytest.mark.parametrize("name", ["atol", "rtol"])
def test_a_tolerance_is_a_number_from_zero_on(name, bad):
    with pytest.raises(solstice.SolsticeError, match=f"{name} is expected to be a .*number"):
        assert_replicated({}, **{name: bad})


def test_the_check_runs_when_a_trigger_says():
    class Drifting(solstice.Experiment):
        weight: jax.Array

        def train_step(self, batch):
            drifted = copies(*[jnp.full(2, float(batch + i * (batch > 3))) for i in range(8)])
            return solstice.replace(self, weight=drifted), None

        eval_step = train_step

    check = solstice.callbacks.ReplicationCallback(solstice.triggers.Every(steps=2))
    exp = Drifting(copies(*[jnp.zeros(2)] * 8))
    solstice.train(exp, 1, [1, 2, 3], callbacks=[check], progress=False)
    with pytest.raises(AssertionError, match="'weight'"):
        solstice.train(exp, 1, [1, 2, 3, 1, 3, 4], callbacks=[check], progress=False)


def test_gather_gives_the_whole():
    placed = experiment().train(1, DS, sharding=FullySharded(min_size=128), progress=False)
    whole = gather({"params": placed.model.params, "key": jax.random.key(0), "name": "a"})
    assert type(whole["params"]["Dense_0"]["kernel"]) is np.ndarray
    assert whole["key"] == jax.random.key(0) and whole["name"] == "a"
