"""RegressionMetrics: scikit-learn's numbers, and numpy's in float64 where float32 is short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

import solstice
from solstice import RegressionMetrics
from solstice.metrics import Std

NUMBERS = st.floats(-1e3, 1e3, width=32)

# Compiled once for each shape.
measure = jax.jit(RegressionMetrics, static_argnames="num_outputs")
merge = jax.jit(RegressionMetrics.merge)


def expected(preds, targets):
    preds, targets = np.asarray(preds, "float64"), np.asarray(targets, "float64")
    return {
        "mse": mean_squared_error(targets, preds),
        "mae": mean_absolute_error(targets, preds),
        "r2": r2_score(targets, preds),
        "pearson": np.corrcoef(preds.ravel(), targets.ravel())[0, 1],
    }


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=20))
def test_it_equals_scikit_learn(pairs):
    preds, targets = np.array(pairs, "float32").T
    padded = np.full((2, 20), np.nan, "float32")
    padded[:, : len(pairs)] = preds, targets
    computed = measure(*padded, mask=np.arange(20) < len(pairs)).compute()
    for name, value in (("mse", mean_squared_error), ("mae", mean_absolute_error)):
        assert computed[name] == pytest.approx(value(targets, preds), rel=1e-5)
    if np.std(targets, dtype="float64") > 1e-3 * np.abs(targets).max():  # where it is not noise
        r2 = r2_score(targets.astype("float64"), preds.astype("float64"))
        assert computed["r2"] == pytest.approx(r2, rel=1e-4, abs=1e-4)


def noisy(size, seed=0, mean=1e6):
    """Single-precision targets far from zero, and what predicts most of them."""
    rng = np.random.default_rng(seed)
    targets = rng.standard_normal(size, dtype="float32") + np.float32(mean)
    preds = targets + np.float32(0.5) * rng.standard_normal(size, dtype="float32")
    return preds, targets


@pytest.mark.slow
@pytest.mark.parametrize("batches", [1, 1000])
def test_ten_million_examples_about_a_million(batches):
    preds, targets = noisy(10**7)
    parts = zip(np.split(preds, batches), np.split(targets, batches), strict=True)
    total = solstice.metrics.Accumulator()
    for part in parts:
        total.add(measure(*part))
    computed = {name: float(value) for name, value in total.pop().compute().items()}
    wide = preds.astype("float64"), targets.astype("float64")
    error, deviations = wide[0] - wide[1], wide[1] - wide[1].mean()
    assert computed["mse"] == pytest.approx(np.mean(error**2), rel=1e-5)
    assert computed["mae"] == pytest.approx(np.mean(np.abs(error)), rel=1e-5)
    r2 = 1 - np.sum(error**2) / np.sum(deviations**2)
    assert computed["r2"] == pytest.approx(r2, rel=1e-5)
    assert computed["pearson"] == pytest.approx(np.corrcoef(*wide)[0, 1], rel=1e-5)


@pytest.mark.slow
def test_a_million_merges_lose_no_digits():
    preds, targets = noisy(10**6)
    parts = jax.vmap(lambda p, t: RegressionMetrics(p[None], t[None], 0.1))(preds, targets)
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    rest = jax.tree.map(lambda leaf: leaf[1:], parts)
    scanned, _ = jax.lax.scan(lambda total, one: (total.merge(one), None), first, rest)
    wide = expected(preds, targets) | {"average_loss": np.float32(0.1)}
    computed = {name: float(value) for name, value in scanned.compute().items()}
    assert computed == pytest.approx(wide, rel=1e-5)


def test_a_drifting_mean():
    targets = np.linspace(-1e5, 1e5, 40000).astype("float32")
    preds = targets * np.float32(0.9)
    parts = [measure(p, t) for p, t in zip(*np.reshape([preds, targets], (2, 40, -1)), strict=True)]
    computed = {name: float(v) for name, v in solstice.reduce(parts[::-1]).compute().items()}
    assert computed == pytest.approx(expected(preds, targets), rel=1e-5)


def test_std_far_from_zero():
    values = noisy(10**5)[1]
    merged = solstice.reduce(map(Std, np.split(values, 10)))
    deviation = np.std(values.astype("float64"))
    assert float(merged.compute()["std"]) == pytest.approx(deviation, rel=1e-5)


@pytest.mark.slow
def test_positions_count_alike_and_outputs_apart():
    rng = np.random.default_rng(1)
    targets = rng.normal(size=(6, 4, 3)).astype("float32") * [1, 10, 100]
    preds = targets + rng.normal(size=(6, 4, 3)).astype("float32")
    pooled = RegressionMetrics(preds, targets).compute()
    assert dict(pooled) == pytest.approx(expected(preds.ravel(), targets.ravel()), rel=1e-4)
    parts = [RegressionMetrics(preds[i], targets[i], num_outputs=3) for i in range(6)]
    computed = solstice.reduce(parts).compute()
    flat = preds.reshape(-1, 3), targets.reshape(-1, 3)
    assert computed["r2"] == pytest.approx(r2_score(flat[1], flat[0]), rel=1e-4)
    for i in range(3):
        one = expected(flat[0][:, i], flat[1][:, i])
        got = {name: computed[f"{name}_output_{i}"] for name in one}
        assert got == pytest.approx(one, rel=1e-4)
    assert len(computed) == 4 + 12


def test_nothing_of_too_few_examples_is_known():
    none = RegressionMetrics([], [], 1.0).compute()
    assert all(np.isnan(list(none.values()))) and len(none) == 5
    one = RegressionMetrics([1.0], [3.0]).compute()
    assert one.pop("mse") == 4 and one.pop("mae") == 2
    assert all(np.isnan(list(one.values())))


@pytest.mark.parametrize(("off", "r2"), [(0.0, 1.0), (0.25, 0.0)])
def test_equal_targets(off, r2):
    targets = np.full(1000, 0.1, "float32")
    parts = [RegressionMetrics(part + off, part) for part in np.split(targets, 4)]
    computed = solstice.reduce(parts).compute()
    assert computed["r2"] == r2 == r2_score([0.5, 0.5], [0.5 + off, 0.5 + off])
    assert np.isnan(computed["pearson"])


def test_the_smallest_spread_is_seen():
    targets = np.full(1000, 1e6, "float32")
    targets[:500] = np.nextafter(np.float32(1e6), np.float32(2e6))
    computed = RegressionMetrics(targets, targets).compute()
    assert computed["r2"] == computed["pearson"] == 1
    assert float(Std(targets).compute()["std"]) == 0.03125


def test_nan_is_told():
    for nan in ([1.0, np.nan], [1.0, 2.0]), ([1.0, 2.0], [1.0, np.nan]):
        computed = RegressionMetrics(*nan).merge(RegressionMetrics(*np.ones((2, 3)))).compute()
        assert np.isnan([computed["mse"], computed["mae"], computed["r2"]]).all()


def test_the_average_loss_is_weighted_by_real_positions():
    one = RegressionMetrics(np.ones(4), np.ones(4), 1.0, mask=[1, 0, 0, 0])
    three = RegressionMetrics(np.ones(4), np.ones(4), 5.0, mask=[0, 1, 1, 1])
    none = RegressionMetrics(np.ones(4), np.ones(4), jnp.nan, mask=np.zeros(4))
    assert solstice.reduce([none, one, three, none]).compute()["average_loss"] == 4


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            dict(preds=np.ones((4, 1)), targets=np.ones(4)),
            ValueError,
            r"one shape; they are float32\[4,1\] and float32\[4\]\. If one has an extra axis",
        ),
        (
            dict(preds=np.ones(2, "complex64"), targets=np.ones(2)),
            TypeError,
            r"preds are expected to be real numbers; they are complex64\[2\]",
        ),
        (
            dict(preds=np.ones((4, 2)), targets=np.ones((4, 2)), num_outputs=3),
            ValueError,
            r"an axis of num_outputs=3; they are float32\[4,2\]",
        ),
        (
            dict(preds=np.ones(4), targets=np.ones(4), loss=np.ones(4)),
            ValueError,
            r"loss is expected to be one real number",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        RegressionMetrics(**arguments)
