"""Arrays on the device, and calls of a whole pass or of as many steps as are quickest."""

import logging
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax

import solstice
from solstice.data import Arrays
from solstice.data.gathered import Gathered
from solstice.saving.checkpoints import Checkpoints
from solstice.training.calls import Calls
from solstice.training.feed import Feed, check_on_one_device
from solstice.triggers import Every

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(133, 4)).astype("float32"), RNG.integers(0, 3, 133)


def noisy(batch, key):
    x, y = batch
    return x + 0.1 * jax.random.normal(key, x.shape), y


DATA = Arrays(X, Y, batch_size=8, shuffle=0)
EXP = solstice.ClassificationExperiment(
    stax.serial(stax.Dense(3)), optax.adam(0.1), 3, example_input=X[:1], key=0
)


def train(exp, data, epochs=2, **options):
    return solstice.train(exp, epochs, data, progress=False, **options)


def same(one, other):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


class Seen(solstice.Callback):
    """Notes what hooks get of the training."""

    def __init__(self):
        self.steps, self.batches, self.outs = [], [], []

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if mode == "train":
            self.steps.append(global_step)
            self.batches.append(batch)
            self.outs.append(outs)


# Data on the device.


KINDS = {
    "padded": DATA,
    "mapped": DATA.map(noisy),
    "part": DATA.split(0.6)[0],
    "asked to pad": Arrays(X, Y, batch_size=8, shuffle=3, last="pad"),
}


@pytest.mark.parametrize(
    ("kind", "steps_per_call"),
    # One kind in every way, and each kind in steps and in whole epochs.
    [("padded", 4), ("padded", "auto"), *((kind, many) for kind in KINDS for many in (1, "epoch"))],
)
def test_the_run_is_that_of_data_on_the_host(kind, steps_per_call):
    data = KINDS[kind]
    host = train(EXP, data)
    device = train(EXP, data.on_device(), steps_per_call=steps_per_call)
    for one, other in zip(*map(jax.tree.leaves, (host, device)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    if data is DATA:
        assert same(host, device)


def test_hooks_get_the_batches_themselves():
    host, device, several = Seen(), Seen(), Seen()
    train(EXP, DATA, callbacks=[host])
    train(EXP, DATA.on_device(), callbacks=[device])
    train(EXP, DATA.on_device(), callbacks=[several], steps_per_call=4)
    assert same(host.batches, device.batches) and len(host.batches) == 34
    assert same(host.batches, [batch for call in several.batches for batch in call])
    assert [len(call) for call in several.batches] == [4, 4, 4, 4, 1] * 2


class Blind(Seen):
    needs_batch = False


def test_a_batch_that_no_hook_looks_at_stays_where_it_is():
    blind = Blind()
    train(EXP, DATA.on_device(), callbacks=[blind])
    assert blind.batches == [None] * 34
    looking = Seen()
    train(EXP, DATA.on_device(), callbacks=[Blind(), looking])
    assert None not in looking.batches


def test_only_indices_go_to_the_device():
    feed = Feed(DATA.on_device(), "train", 0)
    with feed.groups() as groups:
        for (batch,) in groups:
            assert type(batch) is Gathered
            leaves = jax.tree.leaves(batch)
            assert sum(leaf.nbytes for leaf in leaves if isinstance(leaf, np.ndarray)) <= 8 * 4 + 12


def test_a_second_run_compiles_nothing():
    data = DATA.map(noisy).on_device()
    train(EXP, data, steps_per_call=4)
    traces = type(EXP).train_step.traces
    train(EXP, data, steps_per_call=4)
    assert type(EXP).train_step.traces == traces


def test_evaluation_and_predictions_are_those_of_the_host():
    device = DATA.on_device()
    assert EXP.test(device, progress=False) == EXP.test(DATA, progress=False)
    predicted = solstice.predict(EXP, device, progress=False)
    np.testing.assert_array_equal(predicted, solstice.predict(EXP, DATA, progress=False))


def plain(decorate):
    class Plain(solstice.Experiment):
        rows: jax.Array

        @decorate
        def train_step(self, batch):
            x, y = batch
            return solstice.replace(self, rows=self.rows + len(y)), x.sum()

        eval_step = train_step

    return Plain(jnp.zeros((), int))


@pytest.mark.parametrize("decorate", [lambda step: step, jax.jit, solstice.jit])
@pytest.mark.parametrize("steps_per_call", [1, 4, "epoch"])
def test_any_step_gets_the_batch_itself(decorate, steps_per_call):
    exp = train(plain(decorate), DATA.on_device(), val_ds=DATA, steps_per_call=steps_per_call)
    assert int(exp.rows) == 4 * 133


@pytest.mark.parametrize("stop", [1, 6, 17, 20])
@pytest.mark.parametrize("first", [DATA, DATA.on_device()], ids=["host", "device"])
def test_a_run_resumed_anywhere_is_the_same_to_the_bit(tmp_path, stop, first):
    saving = solstice.CheckpointingCallback(tmp_path, every=Every(steps=1))
    train(EXP, first, num_steps=stop, callbacks=[saving])
    resumed = train(EXP, DATA.on_device(), resume_from=tmp_path, callbacks=[saving])
    assert same(resumed, train(EXP, DATA))


@pytest.mark.parametrize("steps_per_call", [1, 4])
@pytest.mark.parametrize("to_device", [True, False])
def test_a_run_on_mapped_data_moves_between_host_and_device(tmp_path, to_device, steps_per_call):
    host = DATA.map(noisy).map(lambda batch: (jnp.tanh(batch[0]) * 3 + 1, batch[1]))
    first, then = (host, host.on_device()) if to_device else (host.on_device(), host)
    saving = solstice.CheckpointingCallback(tmp_path, every=Every(steps=4))
    options = {"callbacks": [saving], "steps_per_call": steps_per_call}
    train(EXP, first, num_steps=8, **options)
    resumed = train(EXP, then, resume_from=tmp_path, **options)
    for one, other in zip(*map(jax.tree.leaves, (resumed, train(EXP, host))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_batches_to_which_a_map_adds_keys_have_one_digest():
    host = DATA.map(lambda batch, key: (*batch, key))
    feeds = [Feed(data, "train", epoch) for data in (host, host.on_device()) for epoch in (0, 1)]
    one, next_epoch, *others = [feed.digest(feed.first()) for feed in feeds]
    assert others == [one, next_epoch] and one != next_epoch and one is not None


def test_other_data_on_the_device_are_refused_on_resuming(tmp_path):
    saving = solstice.CheckpointingCallback(tmp_path, every=Every(steps=1))
    train(EXP, DATA.on_device(), num_steps=3, callbacks=[saving])
    other = Arrays(X + 1, Y, batch_size=8, shuffle=0).on_device()
    with pytest.raises(solstice.errors.InvalidValueError, match="has a different one"):
        train(EXP, other, resume_from=tmp_path, callbacks=[saving])


@pytest.mark.parametrize("steps_per_call", [1, 4, "epoch"])
def test_reading_ahead_changes_nothing(steps_per_call):
    options = {"prefetch": 2, "steps_per_call": steps_per_call}
    for data in (DATA, DATA.map(noisy)):
        wanted = train(EXP, data)
        for ahead in (data, data.on_device()):
            found = train(EXP, ahead, **options)
            for one, other in zip(*map(jax.tree.leaves, (wanted, found)), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [4, 4096])
def test_what_is_written_into_the_arrays_later_is_not_read(rows):
    memory = np.zeros(rows * 16 + 16, "float32")
    start = -memory.ctypes.data % 64 // 4  # where jax can take it as its own
    mine = memory[start : start + rows * 16].reshape(rows, 16)
    data = Arrays(mine, batch_size=4).on_device()
    mine[:] = 1
    assert float(next(data(0)).sum()) == 0


def test_a_part_takes_the_room_of_its_rows():
    whole = Arrays(X, Y, batch_size=8, shuffle=0).weighted(np.arange(len(X)) % 3)
    parts = [part.on_device() for part in whole.split(0.6, stratify=Y)]
    for part, host in zip(parts, whole.split(0.6, stratify=Y), strict=True):
        assert [len(leaf) for leaf in part._placed] == [host.rows] * 2
        smaller, same_of_host = (one.split(0.5, stratify=True)[1] for one in (part, host))
        for one, other in ((part, host), (smaller, same_of_host), (smaller.on_device(), smaller)):
            assert all(same(*pair) for pair in zip(one(3), other(3), strict=True))


def test_data_that_do_not_fit_are_refused(monkeypatch):
    full = types.SimpleNamespace(
        memory_stats=lambda: {"bytes_limit": 2**20, "bytes_in_use": 2**20 - 100}
    )
    monkeypatch.setattr("solstice.data.arrays._default_device", lambda: full)
    with pytest.raises(solstice.errors.InvalidValueError, match="0 MiB free"):
        DATA.on_device()


def test_a_run_on_other_devices_is_refused(unchecked):
    mesh = types.SimpleNamespace(devices=np.array(["gpu:0", "gpu:1"]))
    with pytest.raises(
        solstice.errors.InvalidValueError, match=r"train_ds is on the device .*gpu:1"
    ):
        check_on_one_device(DATA.on_device(), types.SimpleNamespace(mesh=mesh), "train_ds")
    train(EXP, DATA.on_device(), 1, sharding=solstice.sharding.DataParallel())


# A pass as one call.


class Outs(solstice.Experiment):
    """Its outs are what it is asked for."""

    total: jax.Array
    outs: str
    rolls: bool = True

    @solstice.jit
    def train_step(self, batch):
        new = solstice.replace(self, total=self.total + batch.sum())
        if not self.rolls:
            new = solstice.replace(new, total=new.total + 0.0 * batch.sum(0))
        mean = solstice.metrics.Mean(batch)
        return new, {"metrics": mean, "array": batch.sum(), "none": None}[self.outs]


@pytest.mark.parametrize("where", ["list", "device"])
@pytest.mark.parametrize(
    ("count", "outs"),
    # Each length of a pass, and each kind of outs of a long one.
    [(3, "metrics"), (64, "metrics"), (65, "metrics"), (130, "metrics"), (130, "array"),
     (65, "none")],
)  # fmt: skip
def test_a_pass_is_one_call_whose_outs_are_joined(count, outs, where):
    numbers = RNG.normal(size=(count, 2)).astype("float32")
    data = list(numbers) if where == "list" else Arrays(numbers.ravel(), batch_size=2).on_device()
    one, all_at_once = Seen(), Seen()
    by_one = train(Outs(jnp.zeros(()), outs), data, 1, callbacks=[one])
    exp = train(Outs(jnp.zeros(()), outs), data, 1, callbacks=[all_at_once], steps_per_call="epoch")
    assert same(exp, by_one)
    assert all_at_once.steps == [count - 1] and len(all_at_once.batches[0]) == count
    (found,) = all_at_once.outs
    if outs == "metrics":
        wanted = solstice.reduce(one.outs).compute()
        assert float(found.compute()["mean"]) == pytest.approx(float(wanted["mean"]), rel=1e-5)
    elif outs == "array":
        np.testing.assert_array_equal(found, np.stack(one.outs))


def test_what_is_left_or_of_another_shape_is_a_call_of_its_own():
    seen = Seen()
    data = Arrays(X, batch_size=8, last="short").on_device()
    train(Outs(jnp.zeros(()), "array"), data, callbacks=[seen], steps_per_call="epoch")
    assert seen.steps == [15, 16, 32, 33]


def test_num_steps_ends_a_pass_of_one_call():
    exp = train(EXP, DATA.on_device(), None, num_steps=20, steps_per_call="epoch")
    assert same(exp, train(EXP, DATA, None, num_steps=20))


# As many steps a call as are quickest.


class Clock:
    """Time that passes as the steps of a size take, and as they compile."""

    def __init__(self, seconds, compiling=0.1):
        self.now, self.seconds, self.compiling, self.known = 0.0, seconds, compiling, set()

    def time(self):
        return self.now

    def run(self, calls, total, passes=1):
        for _ in range(passes):
            calls.begin(total)
            left = total
            while left:
                size = calls.size if calls.size <= left else 1
                self.now += size * self.seconds[size]
                self.now += 0.0 if size in self.known else self.compiling * size
                self.known.add(size)
                calls.taken(size, None)
                left -= size
        return calls


@pytest.mark.parametrize(
    ("seconds", "options", "found"),
    [
        ({1: 1.0, 4: 0.4, 16: 0.2, 64: 0.1}, {}, 64),
        ({1: 1.0, 4: 0.4, 16: 0.39, 64: 0.39}, {}, 4),  # no clear gain
        ({1: 1.0, 4: 1.05, 16: 0.7, 64: 0.9}, {}, 16),  # which a loss that is small does not hide
        ({1: 1.0, 4: 0.99, 16: 0.98, 64: 0.98}, {}, 1),
        ({1: 1.0, 4: 1.5}, {}, 1),
        ({1: 1.0, 4: 0.4, 16: 0.2}, {"total": 60}, 16),  # more than a pass has
        ({1: 1.0, 4: 0.4, 16: 0.2, 64: 0.19}, {"total": 127}, 16),  # 63 would be left over
        ({1: 1.0, 4: 0.4}, {"compiling": 3e3}, 4),  # 16 would compile too long
        ({1: 1.0}, {"compiling": 6e3}, 1),
        ({1: 30.0}, {}, 1),  # a step takes long
    ],
)
def test_auto_finds_the_quickest(seconds, options, found):
    clock = Clock({k: 1e-3 * s for k, s in seconds.items()}, 1e-3 * options.get("compiling", 100))
    calls = Calls("auto", clock=lambda: clock.now)
    clock.run(calls, options.get("total", 1024), passes=20)
    assert calls.found == calls.size == found


def test_auto_times_short_steps_for_as_long_as_tells_something():
    clock = Clock({1: 1e-4})
    calls = Calls("auto", clock=lambda: clock.now)
    calls.begin(100_000)
    taken = 0
    while calls.size == 1:
        clock.now += 1e-4
        calls.taken(1, None)
        taken += 1
    # One compiles, 32 tell how long a step is, and 100 take the 10 ms of a window.
    assert taken == pytest.approx(1 + 32 + 3 * 100, abs=3)


def test_auto_is_found_apart_for_data_on_the_device():
    trials = {}
    clock = Clock({1: 1e-3, 4: 4e-4, 16: 2e-4, 64: 1e-4})
    clock.run(Calls("auto", trials, lambda: clock.now), 1024)
    for gathers, found in ((False, 64), (True, None)):
        calls = Calls("auto", trials)
        calls.begin(1024, gathers=gathers)
        assert calls.found == found


def test_short_runs_go_on_with_the_trial_of_those_before():
    trials = {}
    clock = Clock({1: 1e-3, 4: 4e-4, 16: 2e-4, 64: 1e-4})
    runs = 0
    while clock.run(Calls("auto", trials, lambda: clock.now), 200).found is None:
        runs += 1
        assert runs < 10


@pytest.mark.parametrize("steps", [2, 10, 144, 1000])
def test_auto_ends_its_trial_where_passes_are_short_and_do_not_say_how_long(steps):
    calls = Calls("auto", clock=(clock := Clock(dict.fromkeys((1, 4, 16, 64), 1e-5))).time)
    for _ in range(12):
        calls.begin(None)
        left = steps
        while left:
            size = calls.size if calls.size <= left else 1
            clock.now += size * clock.seconds[size]
            calls.taken(size, None)
            left -= size
    assert calls.found is not None


def test_auto_tries_what_comes_after_a_number_that_was_judged_within_a_pass(caplog):
    clock = Clock({1: 1e-3, 4: 4e-4, 16: 2e-4, 64: 1e-4})
    with caplog.at_level(logging.INFO, "solstice"):
        calls = clock.run(Calls("auto", clock=clock.time), 144, passes=20)
    assert calls.found == 16 and "1: 1000, 4: 400, 16: 200, 64: 100" in caplog.text


def test_auto_settles_where_no_pass_has_as_many_steps():
    clock = Clock({1: 1e-3})
    calls = Calls("auto", clock=lambda: clock.now)
    calls.begin(None)
    for _ in range(200):
        clock.now += 1e-3
        calls.taken(1, None)
    assert calls.size == 4 and calls.found is None
    for _ in range(3):
        calls.begin(None)
        calls.taken(1, None)
    assert calls.found == 1


def test_auto_is_saved_told_and_reused(tmp_path, caplog, monkeypatch):
    for limit in ("_GAIN", "_LOSS"):  # each is quicker
        monkeypatch.setattr(f"solstice.training.trial.{limit}", math.inf)
    monkeypatch.setattr(type(EXP).train_step, "trials", {})
    saving = solstice.CheckpointingCallback(tmp_path)
    with caplog.at_level(logging.INFO, "solstice"):
        train(EXP, DATA, 20, callbacks=[saving], steps_per_call="auto")
    (told,) = (r for r in caplog.records if "auto" in r.getMessage())
    assert "a call takes 16 steps from now on" in told.getMessage()  # 64 are more than a pass has
    run = Checkpoints(tmp_path).read_run(Checkpoints(tmp_path).names()[-1])
    assert run["position"]["steps_per_call"] == 16
    seen = Seen()
    monkeypatch.setattr("solstice.training.trial._GAIN", 0.0)  # nothing would be
    train(EXP, DATA, 22, callbacks=[saving, seen], steps_per_call="auto", resume_from=tmp_path)
    assert [len(batches) for batches in seen.batches] == [16, 1] * 2


def test_auto_is_found_once_a_process(caplog, monkeypatch):
    for limit in ("_GAIN", "_LOSS"):
        monkeypatch.setattr(f"solstice.training.trial.{limit}", math.inf)
    monkeypatch.setattr(type(EXP).train_step, "trials", {})
    seen = Seen()
    with caplog.at_level(logging.INFO, "solstice"):
        trained = train(EXP, DATA, 20, steps_per_call="auto")
        train(trained, DATA, 1, callbacks=[seen], steps_per_call="auto")
    assert [len(batches) for batches in seen.batches] == [16, 1]
    assert "16 steps, as an earlier run found" in caplog.records[-1].getMessage()


def test_auto_is_a_run_like_any():
    seen = Seen()
    exp = train(EXP, DATA, 6, callbacks=[seen], steps_per_call="auto")
    assert same(exp, train(EXP, DATA, 6))
    assert all(isinstance(batches, list) for batches in seen.batches)


@pytest.mark.parametrize("wrong", ["automatic", 0, 1.5, True, None])
def test_what_a_call_cannot_take_is_told(wrong, unchecked):
    with pytest.raises(solstice.SolsticeError, match="steps_per_call is expected to be"):
        train(EXP, DATA, steps_per_call=wrong)
