"""BinaryMetrics: scikit-learn's numbers, exact on the bins, within the stated bounds off them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

import solstice
from solstice.metrics import BinaryMetrics

ROOM = 16
count = jax.jit(BinaryMetrics, static_argnames=("bins", "calibration_bins"))


def expected_ece(probabilities, targets, bins):
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [
        abs(probabilities[which == i].mean() - targets[which == i].mean()) * np.mean(which == i)
        for i in np.unique(which)
    ]
    return sum(gaps)


def both_kinds(pairs):
    return {target for _, target in pairs} == {0, 1}


def padded(values, filler):
    return np.array([*values, *[filler] * (ROOM - len(values))])


PAIRS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1)), min_size=2, max_size=ROOM)


@given(PAIRS.filter(both_kinds))
def test_probabilities_on_the_bins_equal_scikit_learn(pairs):
    steps, targets = np.array(pairs).T
    probabilities = (steps / 8).astype("float32")
    mask = np.arange(ROOM) < len(pairs)
    metrics = count(
        padded(probabilities, np.nan).astype("float32"), padded(targets, -1), mask=mask, bins=8 * 3
    )
    computed = metrics.compute()
    assert computed["roc_auc"] == pytest.approx(roc_auc_score(targets, probabilities), abs=1e-6)
    precision = average_precision_score(targets, probabilities)
    assert computed["pr_auc"] == pytest.approx(precision, rel=1e-5)
    brier = brier_score_loss(targets, probabilities)
    assert computed["brier_score"] == pytest.approx(brier, rel=1e-5, abs=1e-7)
    assert computed["ece"] == pytest.approx(expected_ece(probabilities, targets, 15), abs=1e-6)


@pytest.mark.parametrize("bins", [1, 7, 64, 4096])
@pytest.mark.parametrize("rare", [0.5, 0.02])
@given(seed=st.integers(0, 999))
def test_the_error_is_within_its_bound(bins, rare, seed):
    rng = np.random.default_rng(seed)
    targets = (rng.random(200) < rare).astype(int)
    targets[:2] = 0, 1
    probabilities = jax.nn.sigmoid(rng.normal(size=200) * 3 + targets - 1)
    metrics = count(probabilities, targets, bins=bins)
    computed, bounds = metrics.compute(), metrics.error_bounds()
    for name, reference in (("roc_auc", roc_auc_score), ("pr_auc", average_precision_score)):
        error = abs(computed[name] - reference(targets, np.asarray(probabilities)))
        assert error <= bounds[name] + 1e-6
    assert float(bounds["roc_auc"]) <= 0.5


def test_the_bound_for_smooth_probabilities():
    # Of densities at most k times the uniform one, the bound is k / (2 * bins).
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 10**5)
    probabilities = rng.random(10**5).astype("float32")
    bounds = count(probabilities, targets, bins=100).error_bounds()
    assert float(bounds["roc_auc"]) == pytest.approx(1 / 200, rel=0.02)


def test_merging_equals_all_at_once():
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 2, 3000)
    probabilities = rng.beta(1 + targets, 2 - targets).astype("float32")
    parts = [
        count(probabilities[i : i + 100], targets[i : i + 100], 0.1 * i)
        for i in range(0, 3000, 100)
    ]
    computed = solstice.reduce(parts).compute()
    assert list(computed) == ["average_loss", "roc_auc", "pr_auc", "brier_score", "ece"]
    assert computed["average_loss"] == pytest.approx(0.1 * 1450, rel=1e-6)
    assert computed["roc_auc"] == pytest.approx(roc_auc_score(targets, probabilities), abs=1e-4)
    wide = probabilities.astype("float64")
    assert computed["ece"] == pytest.approx(expected_ece(wide, targets, 15), rel=1e-4)


@pytest.mark.parametrize("dtype", [bool, "int32", "uint8", "float32"])
def test_targets_of_any_type(dtype):
    targets = np.array([0, 1, 1, 0], dtype)
    computed = BinaryMetrics([0.1, 0.9, 0.4, 0.6], targets).compute()
    assert computed["roc_auc"] == 0.75


@pytest.mark.parametrize(("target", "precision"), [(0, 0.0), (1, 1.0)])
def test_one_kind_alone(target, precision):
    computed = BinaryMetrics([0.2, 0.7], [target, target]).compute()
    assert np.isnan(computed["roc_auc"]) and computed["pr_auc"] == precision


def test_nothing_of_no_examples_is_known():
    computed = BinaryMetrics([0.5], [1], 1.0, mask=[False]).compute()
    assert all(np.isnan(list(computed.values())))


@pytest.mark.parametrize(
    ("probability", "target"), [(1.5, 1), (-0.1, 0), (np.nan, 1), (0.5, 2), (0.5, -1)]
)
def test_what_is_out_of_range_is_told(probability, target, caplog):
    arguments = np.array([0.2, 0.8, probability], "float32"), np.array([0, 1, target])
    message = r"in \[0, 1\] and targets to be 0 or 1; 1 of 3 examples are not\. "
    nan = np.isnan(probability)
    message += "1 are NaN: the network diverged" if nan else "Pass logits through"
    with pytest.raises(ValueError, match=message):
        BinaryMetrics(*arguments)
    metrics = count(*arguments)
    assert int(metrics.invalid) == 1
    with pytest.raises(ValueError, match=message):
        metrics.check()
    computed = metrics.compute()
    wrong = "no probability" if target in (0, 1) else "a target, or a mask, that is neither 0 nor 1"
    assert [text[: len(wrong) + 14] for text in caplog.messages] == [f"1 example had {wrong}"]
    assert computed["roc_auc"] == 1 and computed["brier_score"] == pytest.approx(0.04)
    lossy = count(*arguments, 1.5).merge(count(*arguments[:2], 0.0, mask=np.array([1, 0, 0])))
    parts = 3 if target in (0, 1) else 2
    assert lossy.compute()["average_loss"] == pytest.approx(1.5 * parts / (parts + 1))
    masked = BinaryMetrics(*arguments, mask=[1, 1, 0])
    assert int(masked.invalid) == 0 and int(masked.count) == 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            dict(probabilities=np.ones((2, 2))),
            ValueError,
            r"pass the second: probabilities\[\.\.\.",
        ),
        (dict(probabilities=np.ones(2, complex)), TypeError, "probabilities are expected to be re"),
        (dict(targets=np.ones(2, complex)), TypeError, "targets are expected to be real numbers"),
        (dict(bins=0), ValueError, r"bins is expected to be at least 1; it is 0"),
        (dict(calibration_bins=2.5), TypeError, r"calibration_bins is expected to be an int"),
    ],
)
def test_bad_arguments_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        BinaryMetrics(**{"probabilities": np.ones(2), "targets": np.ones(2)} | changes)


def test_a_trainer_checks_the_first_step():
    class Probabilities(solstice.Experiment):
        bias: jax.Array

        def train_step(self, batch):
            return self, None

        @solstice.jit
        def eval_step(self, batch):
            x, y = batch
            return self, BinaryMetrics(x + self.bias, y)

    exp = Probabilities(jnp.float32(5))
    with pytest.raises(ValueError, match="2 of 2 examples are not"):
        solstice.test(exp, [(np.ones(2), np.ones(2))], return_outs=True, progress=False)
