"""Mean, Sum, Min, Max, Std and Last against numpy; MetricsDict and the names it gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import solstice
from solstice.metrics import Last, Max, Mean, MetricsDict, Min, Std, Sum, sums

REFERENCES = {Mean: np.mean, Sum: np.sum, Min: np.min, Max: np.max, Std: np.std}
BATCHES = st.lists(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=5), min_size=1, max_size=5
)


@pytest.mark.parametrize("kind", REFERENCES)
@given(batches=BATCHES)
def test_they_equal_numpy(kind, batches):
    parts = [
        kind(np.array([*batch, *[np.nan] * (5 - len(batch))]), mask=np.arange(5) < len(batch))
        for batch in batches
    ]
    ((name, value),) = solstice.reduce(parts).compute().items()
    assert name == kind.__name__.lower()
    values = np.concatenate([np.float64(batch) for batch in batches])
    scale = np.abs(values).max()
    assert float(value) == pytest.approx(REFERENCES[kind](values), rel=1e-5, abs=1e-5 * scale)


@pytest.mark.parametrize("kind", [*REFERENCES, Last])
def test_of_none(kind):
    for empty in (kind(jnp.zeros(0)), kind([1.0, 2.0], mask=[0, 0])):
        (value,) = empty.compute().values()
        assert value == 0 if kind is Sum else np.isnan(value)
        (value,) = empty.merge(kind(3.0)).compute().values()
        assert value == (0 if kind is Std else 3)


@pytest.mark.parametrize("kind", [*REFERENCES, Last])
def test_nan_and_infinity_are_told(kind):
    (value,) = kind([1.0, np.nan]).merge(kind([np.nan])).compute().values()
    assert np.isnan(value)
    (value,) = kind([np.inf]).merge(kind([np.inf])).compute().values()
    assert np.isnan(value) if kind is Std else value == np.inf


def test_sums_lose_no_digits():
    tenth = jnp.float32(0.1)

    def add(total, _):
        return total.merge(Sum(tenth)), None

    total, _ = jax.lax.scan(add, Sum(tenth), length=10**6 - 1)
    assert float(total.compute()["sum"]) == pytest.approx(float(tenth) * 10**6, rel=1e-7)
    naive, _ = jax.lax.scan(lambda total, _: (total + tenth, None), tenth, length=10**6 - 1)
    assert float(naive) != pytest.approx(1e5, rel=1e-3)


def test_a_pair_is_exact_in_every_transform():
    rng = np.random.default_rng(0)
    big, small = rng.normal(size=(2, 50)).astype("float32") * np.float32([[1e6], [1e-3]])
    for add in (sums.add, jax.jit(sums.add), jax.vmap(sums.add)):
        pair = np.float64(add(sums.exact(jnp.asarray(big)), sums.exact(jnp.asarray(small))))
        np.testing.assert_array_equal(pair.sum(-1), np.float64(big) + np.float64(small))


def test_whole_numbers_are_summed_exactly():
    total = solstice.reduce([Sum(np.full(3, 2**24 + 1))] * 3)
    assert int(total.compute()["sum"]) == 9 * (2**24 + 1)
    assert int(Sum(np.array([200, 100], "uint8")).compute()["sum"]) == 300
    assert int(Sum(np.array([True, True, False])).compute()["sum"]) == 2


def test_last_follows_the_order_or_the_time():
    in_order = [Last(0.1), Last(0.2), Last([0.5, 0.3, 9.0], mask=[1, 1, 0]), Last(1.0, mask=0)]
    assert solstice.reduce(in_order).compute()["last"] == np.float32(0.3)
    in_time = [Last([1.0, 2.0], at=[7, 6]), Last(3.0, at=2), Last(4.0, at=9, mask=False)]
    for parts in (in_time, in_time[::-1]):
        assert solstice.reduce(parts).compute()["last"] == 1
    with pytest.raises(ValueError, match=r"at is expected to be whole numbers.*it is float32\[\]"):
        Last(1.0, at=0.5)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_number_is_refused():
    with pytest.raises(
        TypeError, match=r"values are expected to be real numbers; they are complex"
    ):
        Mean(np.ones(2, complex))


def test_a_dict_names_what_is_computed():
    values = np.arange(4.0)
    metrics = MetricsDict(
        solstice.RegressionMetrics(values, values + 1),
        loss=Mean(values),
        teacher=solstice.RegressionMetrics(values, values + 2),
        inner=MetricsDict(a=Max(values), b=Min(values)),
    )
    names = ["mse", "mae", "r2", "pearson"]
    computed = metrics.merge(metrics).compute()
    assert list(computed) == [
        *names,
        "loss",
        *[f"teacher/{name}" for name in names],
        "inner/a",
        "inner/b",
    ]
    assert computed["mse"] == 1 and computed["teacher/mse"] == 4 and computed["loss"] == 1.5
    jitted = jax.jit(lambda metrics: metrics.merge(metrics))(metrics)
    assert list(jitted.compute()) == list(computed)


def test_a_dict_refuses_what_does_not_fit():
    with pytest.raises(
        TypeError, match=r"objects with `merge` and `compute`\); it got the float 0"
    ):
        MetricsDict(loss=0.5)
    one = MetricsDict(Max(1.0), loss=Mean(1.0))
    with pytest.raises(
        solstice.UsageError, match=r"of the same names, None, 'loss'; it got 'loss'"
    ):
        one.merge(MetricsDict(loss=Mean(1.0)))
    with pytest.raises(
        solstice.UsageError,
        match=r"Mean\(.*merges only with metrics of the same kind; it got .*Min",
    ):
        MetricsDict(loss=Mean(1.0)).merge(MetricsDict(loss=Min(1.0)))
    with pytest.raises(
        solstice.UsageError, match=r"Two metrics compute 'max'\. Give one of them a"
    ):
        MetricsDict(Max(1.0), Max(2.0)).compute()
    assert one["loss"].compute()["mean"] == 1
    with pytest.raises(KeyError, match="'accuracy' is not one of the metrics"):
        one["accuracy"]


def test_a_dict_checks_its_metrics():
    bad = solstice.ClassificationMetrics([5], [0], 0.5, 2)
    with pytest.raises(ValueError, match="1 of 1 examples had a label or a prediction"):
        MetricsDict(loss=Mean(0.5), rest=bad).check()
