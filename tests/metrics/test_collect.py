"""Collect: everything, in order, in host memory; for scikit-learn, and beside other metrics."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, median_absolute_error, roc_auc_score

import solstice
from solstice.metrics import Accumulator, Collect, Mean, MetricsDict


def accumulate(metrics):
    seen = Accumulator()
    for one in metrics:
        seen.add(one)
    return seen.pop()


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8))
def test_all_real_values_in_order(masks):
    values = np.arange(3 * len(masks)).reshape(-1, 3)
    parts = [
        Collect(jnp.asarray(v), mask=jnp.asarray(m)) for v, m in zip(values, masks, strict=True)
    ]
    expected = values.ravel()[np.ravel(masks)]
    for merged in (solstice.reduce(parts), accumulate(parts)):
        np.testing.assert_array_equal(merged.compute()["values"], expected)


def test_batches_of_any_size_and_trees_of_arrays():
    parts = [
        Collect({"x": np.full((n, 2), n), "rest": (np.arange(n), np.ones(n, "float16"))})
        for n in (3, 1, 4)
    ]
    computed = solstice.reduce(parts).compute()
    assert computed["x"].shape == (8, 2) and computed["rest"][1].dtype == np.float16
    assert computed["rest"][0].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_a_log_likelihood_and_a_count_for_each_sequence():
    def per_token(log_likelihood, tokens):
        return log_likelihood.sum() / tokens.sum()

    parts = [
        Collect(
            {"log_likelihood": -jnp.arange(4.0), "tokens": jnp.full(4, 2)},
            mask=jnp.arange(4) < n,
            functions={"per_token": per_token},
        )
        for n in (4, 2)
    ]
    assert accumulate(parts).compute() == {"per_token": -7 / 12}


def test_masked_positions_of_a_sequence():
    values, mask = np.arange(6).reshape(2, 3), np.array([[1, 1, 0], [0, 1, 0]])
    assert Collect(values, mask=mask).compute()["values"].tolist() == [0, 1, 4]


def test_scikit_learns_functions():
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, 200), rng.random(200)
    functions = {"roc_auc": roc_auc_score, "median_error": median_absolute_error}

    @jax.jit
    def step(targets, scores):
        return Collect((targets, scores), functions=functions)

    parts = [step(targets[i : i + 20], scores[i : i + 20]) for i in range(0, 200, 20)]
    computed = accumulate(parts).compute()
    scores = scores.astype("float32")
    assert computed == {name: function(targets, scores) for name, function in functions.items()}
    named = Collect({"y1": targets, "y2": targets}, functions={"kappa": cohen_kappa_score})
    assert named.compute() == {"kappa": 1}


class Scores(solstice.Metrics):
    """A user's own metric, with one that is collected somewhere inside."""

    parts: dict
    mean: Mean

    def merge(self, other):
        parts = {name: one.merge(other.parts[name]) for name, one in self.parts.items()}
        return Scores(parts, self.mean.merge(other.mean))

    def compute(self):
        return self.parts["kept"].compute() | self.mean.compute()


MAKERS = {
    "alone": Collect,
    "in a dict": lambda values: MetricsDict(Collect(values), mean=Mean(values)),
    "twice": lambda values: MetricsDict(Collect(values), MetricsDict(again=Collect(-values))),
    "in one's own": lambda values: Scores({"kept": Collect(values)}, Mean(values)),
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("count", [2, 33, 34, 100])
def test_accumulating_equals_reducing(make, count):
    parts = [MAKERS[make](jnp.arange(3.0) + i) for i in range(count)]
    seen, expected = accumulate(parts).compute(), solstice.reduce(parts).compute()
    assert list(seen) == list(expected)
    for name, value in seen.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)
    assert seen["values"].shape == (3 * count,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", ["in one's own", *(pytest.param(m, marks=pytest.mark.soak) for m in [*MAKERS][:3])]
)
def test_device_memory_does_not_grow_with_the_steps(make):
    step = jax.jit(MAKERS[make])
    seen, live = Accumulator(), []
    for i in range(200):
        seen.add(step(jnp.full(64, float(i))))
        if i in (39, 199):
            gc.collect()
            live.append(sum(array.nbytes for array in jax.live_arrays()))
    assert max(live) <= min(live) + 40 * 3 * 64 * 4
    assert seen.pop().compute()["values"].shape == (200 * 64,)


def test_merging_holds_no_device_array():
    before = len(jax.live_arrays())
    merged = solstice.reduce([Collect(jnp.arange(5.0) + i) for i in range(10)])
    gc.collect()
    assert len(jax.live_arrays()) == before
    assert merged.compute()["values"].shape == (50,)


def test_folding_compiles_once_for_batches_of_any_size():
    traces = []

    class Counted(Mean):
        def merge(self, other):
            traces.append(1)
            return super().merge(other)

    sizes = [5] * 32 + [3] + [2] * 32
    accumulate(MetricsDict(Collect(jnp.ones(n)), mean=Counted(jnp.ones(n))) for n in sizes)
    assert len(traces) == 2


def test_very_many_merges_and_copies():
    merged = solstice.reduce(Collect(np.array([i])) for i in range(5000))
    for copied in (merged, copy.deepcopy(merged), pickle.loads(pickle.dumps(merged))):
        np.testing.assert_array_equal(copied.compute()["values"], np.arange(5000))


def test_values_may_be_changed_after_a_merge():
    values = np.arange(3)
    merged = Collect(values).merge(Collect(values))
    values[:] = 7
    assert merged.compute()["values"].tolist() == [0, 1, 2, 0, 1, 2]


def test_under_jit_it_joins_on_the_device():
    one, other = Collect(jnp.arange(3)), Collect(jnp.arange(2), mask=jnp.array([False, True]))
    merged = jax.jit(Collect.merge)(one, other)
    assert merged.compute()["values"].tolist() == [0, 1, 2, 1]
    joined = jax.jit(lambda a, b: a.merge(b).compute())(one, one)
    assert joined["values"].tolist() == [0, 1, 2, 0, 1, 2]
    for wrong in (other, Collect(jnp.arange(3), functions={"mean": np.mean})):
        with pytest.raises(solstice.UsageError, match="computes in host memory: call compute"):
            jax.jit(Collect.compute)(wrong)


def test_vmap_is_each():
    rows = jnp.arange(6.0).reshape(2, 3)
    stacked = jax.vmap(lambda row: Collect(row).merge(Collect(-row)))(rows)
    computed = jax.vmap(Collect.compute)(stacked)["values"]
    np.testing.assert_array_equal(computed, np.concatenate([rows, -rows], 1))


def test_unlike_ones_do_not_merge():
    one = Collect((np.ones(2), np.ones(2)))
    for other in (
        Collect(np.ones(2)),
        Collect((np.ones(2), np.ones(2)), functions={"auc": roc_auc_score}),
        Mean(1.0),
    ):
        with pytest.raises(solstice.UsageError, match="merges with one of the same arrays and fun"):
            one.merge(other)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            dict(values=1.0),
            ValueError,
            r"the same examples along their first axis; they are the float 1",
        ),
        (
            dict(values=(np.ones(2), np.ones(3))),
            ValueError,
            r"they are \(float64\[2\], float64\[3\]",
        ),
        (dict(values={}), ValueError, r"the same examples along their first axis; they are \{\}"),
        (
            dict(values=np.ones(2), functions={"a": 1}),
            TypeError,
            r"functions\['a'\] is expected to",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Collect(**arguments)


class Evaluation(solstice.Experiment):
    weight: jax.Array

    @solstice.jit
    def train_step(self, batch):
        return self, None

    @solstice.jit
    def eval_step(self, batch):
        x, y, mask = batch
        scores = x * self.weight
        return self, MetricsDict(
            Collect((y, scores), mask=mask, functions={"roc_auc": roc_auc_score}),
            error=Mean(jnp.abs(scores - y), mask=mask),
        )


def test_a_whole_test_with_padding_and_a_log():
    rng = np.random.default_rng(0)
    x, y = rng.random(103).astype("float32"), rng.integers(0, 2, 103)
    dataset = solstice.pad_last([(x[i : i + 10], y[i : i + 10]) for i in range(0, 103, 10)], 10)
    logged = []
    callback = solstice.LoggingCallback(
        logging_fn=lambda metrics, step, mode: logged.append(metrics)
    )
    solstice.test(Evaluation(jnp.float32(2)), dataset, [callback], progress=False)
    (metrics,) = logged
    assert metrics["roc_auc"] == roc_auc_score(y, 2 * x)
    assert metrics["error"] == pytest.approx(np.abs(2 * x - y).mean(), rel=1e-6)


ACROSS_DEVICES = """
    import jax, numpy as np, solstice
    from jax.sharding import NamedSharding, PartitionSpec
    from solstice.metrics import Accumulator, Collect, Mean, MetricsDict, Sample

    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    @jax.jit
    def step(values, mask, key):
        return MetricsDict(
            Collect(values, mask=mask),
            mean=Mean(values, mask=mask),
            sample=Sample(values, key=key, max_size=6, mask=mask),
        )

    def globally(array):
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    seen = Accumulator()
    for i in range(40):
        values = np.arange(8.0, dtype="float32") + 8 * i
        mask = np.arange(8) < 7
        seen.add(step(globally(values), globally(mask), jax.random.key(i)))
    computed = seen.pop().compute()
    expected = np.arange(320.0).reshape(40, 8)[:, :7].ravel()
    np.testing.assert_array_equal(computed["values"], expected)
    assert abs(float(computed["mean"]) - expected.mean()) < 1e-3
    sample = computed["sample"]
    assert len(set(sample.tolist())) == 6 and set(sample.tolist()) <= set(expected.tolist())
    print("sample", sample.tolist())
"""


def run(code, *arguments, **environment):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def flags(devices):
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"


@pytest.mark.slow  # starts processes
def test_across_devices(tmp_path, monkeypatch):
    environment = {**os.environ, "XLA_FLAGS": flags(4)}
    process = run(ACROSS_DEVICES, **environment)
    assert process.communicate(timeout=120)[0].startswith("sample")
    assert process.returncode == 0


@pytest.mark.slow  # starts processes
def test_across_processes():
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    start = """
    import sys, jax
    jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
    """
    environment = {**os.environ, "XLA_FLAGS": flags(2)}
    processes = [run(start + ACROSS_DEVICES, port, i, **environment) for i in range(2)]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    one, other = (lines.splitlines()[-1] for lines in printed)
    assert one == other and one.startswith("sample")
