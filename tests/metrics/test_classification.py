"""ClassificationMetrics: scikit-learn's numbers for any batching, mask, dtype and transform."""

import functools
import itertools
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    classification_report,
    confusion_matrix,
    top_k_accuracy_score,
)

import solstice
from solstice import ClassificationMetrics

ROOM = 12  # batches are padded to this, so that few shapes are compiled

count_batch = jax.jit(ClassificationMetrics, static_argnums=3)
merge = jax.jit(ClassificationMetrics.merge)


def scikit_learns(preds, targets, num_classes):
    """All that `compute` gives but the loss, as scikit-learn says it."""
    preds, targets = np.ravel(preds).astype(int), np.ravel(targets).astype(int)
    report = classification_report(targets, preds, output_dict=True, zero_division=0)
    # Not balanced_accuracy_score, which warns of classes that occur in predictions alone.
    occurring = [report[str(i)]["recall"] for i in np.unique(targets)]
    expected = {
        "accuracy": accuracy_score(targets, preds),
        "balanced_accuracy": np.mean(occurring),
    }
    names = {"f1": "f1-score", "tpr": "recall", "ppv": "precision"}
    for ours, theirs in names.items():
        for average in ("macro", "weighted"):
            expected[f"{ours}_{average}"] = report[f"{average} avg"][theirs]
        for i in range(num_classes):
            expected[f"{ours}_class_{i}"] = report.get(str(i), {}).get(theirs, 0)
    for i in range(num_classes):
        support = report.get(str(i), {}).get("support", 0)
        expected[f"prevalence_class_{i}"] = support / targets.size
    return expected


def assert_equals_scikit_learn(metrics, preds, targets, loss=None):
    computed = {name: float(value) for name, value in metrics.compute().items()}
    average_loss = computed.pop("average_loss")
    if loss is not None:
        assert average_loss == pytest.approx(loss, rel=1e-5)
    expected = scikit_learns(preds, targets, metrics.num_classes)
    assert computed == pytest.approx(expected, rel=1e-5, abs=1e-7)
    matrix = confusion_matrix(
        np.ravel(targets).astype(int),
        np.ravel(preds).astype(int),
        labels=range(metrics.num_classes),
    )
    assert metrics.confusion_matrix.tolist() == matrix.tolist()
    assert int(metrics.invalid) == 0


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(left, right, rtol=1e-6)


def pad(values, filler=0):
    return np.array([*values, *[filler] * (ROOM - len(values))])


def examples(num_classes, min_size=1, max_size=ROOM):
    """Lists of (prediction, target)."""
    label = st.integers(0, num_classes - 1)
    return st.lists(st.tuples(label, label), min_size=min_size, max_size=max_size)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@given(data=st.data())
def test_it_equals_scikit_learn(num_classes, data):
    preds, targets = np.array(data.draw(examples(num_classes))).T
    mask = pad(np.ones(len(preds), bool), False)
    metrics = count_batch(pad(preds), pad(targets), 0.25, num_classes, mask=mask)
    assert int(metrics.count) == len(preds)
    assert_equals_scikit_learn(metrics, preds, targets, loss=0.25)


@pytest.mark.parametrize(
    ("preds", "targets"),
    [
        ([0, 1, 2, 1, 0], [0, 1, 1, 1, 0]),  # class 2 is no target
        ([0, 1, 1, 1, 0], [0, 1, 2, 1, 2]),  # class 2 is never predicted
        ([0, 1, 1, 3, 0], [0, 3, 1, 1, 0]),  # class 2 is neither
        ([3, 3, 3], [0, 1, 2]),  # nothing is right
        ([1, 1, 1], [1, 1, 1]),  # one class alone
    ],
)
@pytest.mark.parametrize("num_classes", [4, 10])
def test_absent_classes(preds, targets, num_classes):
    metrics = ClassificationMetrics(preds, targets, 0.5, num_classes)
    assert_equals_scikit_learn(metrics, preds, targets, loss=0.5)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("pred", [0, 1])
def test_one_example(num_classes, pred):
    metrics = ClassificationMetrics([pred], [1], 0.5, num_classes)
    assert_equals_scikit_learn(metrics, [pred], [1], loss=0.5)


def test_accuracy_is_correct_over_total():
    preds, targets = [0] * 10, [0] * 8 + [1, 2]
    computed = ClassificationMetrics(preds, targets, 0.5, 3).compute()
    one_against_the_rest = [np.equal(preds, i) == np.equal(targets, i) for i in range(3)]
    assert np.mean(one_against_the_rest) == pytest.approx(0.867, abs=1e-3)
    assert computed["tpr_macro"] == pytest.approx(1 / 3)
    assert computed["accuracy"] == pytest.approx(0.8)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@given(data=st.data())
def test_any_split_merged_in_any_order_is_the_same(num_classes, data):
    pairs = np.array(data.draw(examples(num_classes, min_size=1, max_size=3 * ROOM)))
    losses = np.linspace(0, 1, len(pairs))
    batch_of = data.draw(st.lists(st.integers(0, 4), min_size=len(pairs), max_size=len(pairs)))
    parts = []
    for batch in range(5):  # those without any example are wholly padding
        chosen = np.flatnonzero(np.equal(batch_of, batch))
        for some in np.array_split(chosen, max(1, -(-len(chosen) // ROOM))):
            preds, targets = pairs[some].T if len(some) else ([], [])
            loss = losses[some].mean() if len(some) else np.nan
            mask = pad(np.ones(len(some), bool), False)
            parts.append(count_batch(pad(preds), pad(targets), loss, num_classes, mask=mask))
    while len(parts) > 1:
        left = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        right = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(merge(left, right))
    assert int(parts[0].count) == len(pairs)
    assert_equals_scikit_learn(parts[0], *pairs.T, loss=losses.mean())


def test_batches_of_other_shapes_merge():
    rng = np.random.default_rng(0)
    preds, targets = rng.integers(0, 3, (2, 10))
    parts = [
        ClassificationMetrics(preds[0], targets[0], 0.4, 3),
        ClassificationMetrics(preds[1:7].reshape(2, 1, 3), targets[1:7].reshape(2, 1, 3), 0.4, 3),
        ClassificationMetrics(preds[7:], targets[7:], 0.4, 3),
    ]
    for order in itertools.permutations(parts):
        assert_equals_scikit_learn(solstice.reduce(order), preds, targets, loss=0.4)


@given(data=st.data())
def test_masked_positions_may_hold_anything(data):
    position = st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans())
    drawn = data.draw(st.lists(position, min_size=ROOM, max_size=ROOM).filter(any_real))
    garbage = data.draw(st.sampled_from([-100, 255, -1, 3]))
    preds, targets, mask = (np.array(column) for column in zip(*drawn, strict=True))
    metrics = count_batch(
        np.where(mask, preds, garbage), np.where(mask, targets, garbage), 0.5, 3, mask=mask
    )
    assert int(metrics.count) == mask.sum()
    assert_equals_scikit_learn(metrics, preds[mask], targets[mask], loss=0.5)


def any_real(positions):
    return any(real for _, _, real in positions)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, np.float32])
def test_a_mask_of_any_dtype(dtype):
    mask = np.array([1, 0, 1], dtype)
    metrics = ClassificationMetrics([0, 1, 1], [0, -100, 0], 0.5, 2, mask=mask)
    assert_equals_scikit_learn(metrics, [0, 1], [0, 0], loss=0.5)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 1, 3), (1, 6, 1, 1)])
def test_any_leading_axes(shape):
    rng = np.random.default_rng(1)
    preds, targets = rng.integers(0, 3, (2, *shape))
    metrics = ClassificationMetrics(preds, targets, 0.5, 3, mask=np.ones(shape))
    assert int(metrics.count) == preds.size
    assert_equals_scikit_learn(metrics, preds, targets, loss=0.5)


RNG = np.random.default_rng(2)
PREDS, TARGETS = RNG.integers(0, 3, (2, 4, 8))
LOSSES = RNG.random(4).astype("float32")


def test_jit_equals_eager():
    def whole(preds, targets, loss):
        metrics = ClassificationMetrics(preds, targets, loss, 3, mask=targets != 2)
        return metrics, metrics.merge(metrics), metrics.compute()

    arguments = PREDS[0], TARGETS[0], LOSSES[0]
    eager, jitted = whole(*arguments), jax.jit(whole)(*arguments)
    assert_same(eager[:2], jitted[:2])
    assert jitted[2] == pytest.approx(eager[2], rel=1e-6)


def test_vmap_is_each():
    def whole(preds, targets, loss):
        metrics = ClassificationMetrics(preds, targets, loss, 3)
        return metrics, metrics.compute()

    stacked, computed = jax.vmap(whole)(PREDS, TARGETS, LOSSES)
    for i in range(4):
        alone = ClassificationMetrics(PREDS[i], TARGETS[i], LOSSES[i], 3)
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], stacked), alone)
        assert {name: float(values[i]) for name, values in computed.items()} == pytest.approx(
            {name: float(value) for name, value in alone.compute().items()}
        )
    assert stacked.num_classes == 3
    assert_same(jax.vmap(ClassificationMetrics.merge)(stacked, stacked), stacked.merge(stacked))


def test_scan_is_reduce():
    def add(total, batch):
        return total.merge(ClassificationMetrics(*batch, 3)), None

    parts = [ClassificationMetrics(PREDS[i], TARGETS[i], LOSSES[i], 3) for i in range(4)]
    scanned, _ = jax.lax.scan(add, parts[0], (PREDS[1:], TARGETS[1:], LOSSES[1:]))
    assert_same(scanned, solstice.reduce(parts))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32"])
def test_losses_are_summed_in_single_precision(dtype):
    # The sum of these losses is more than float16 holds.
    losses = jnp.asarray([30000, 60000, 3]).astype(dtype)
    parts = [ClassificationMetrics(np.zeros(30), np.zeros(30, int), loss, 2) for loss in losses]
    metrics = solstice.reduce(parts)
    assert metrics.loss_sum.dtype == jnp.float32
    assert float(metrics.compute()["average_loss"]) == pytest.approx(
        np.mean([float(loss) for loss in losses])
    )


def test_double_precision_is_kept(x64):
    loss = jnp.asarray(1 + 1e-12, jnp.float64)
    metrics = ClassificationMetrics(PREDS[0], TARGETS[0], loss, 3)
    assert float(metrics.compute()["average_loss"]) == 1 + 1e-12
    assert metrics.compute()["accuracy"] == np.mean(PREDS[0] == TARGETS[0])
    assert metrics.confusion_matrix.dtype == metrics.count.dtype == jnp.int64
    half = ClassificationMetrics(PREDS[0], TARGETS[0], jnp.float16(0.5), 3)
    assert half.loss_sum.dtype == jnp.float32


@pytest.mark.parametrize(
    ("dtype", "num_classes"),
    [(bool, 3), (np.uint8, 300), (np.int8, 200), (np.uint8, 2), (np.uint32, 3), (np.int64, 3)],
)
def test_labels_of_any_integer_type(dtype, num_classes):
    preds, targets = np.array([0, 1, 1, 0], dtype), np.array([1, 1, 0, 0], dtype)
    metrics = ClassificationMetrics(preds, targets, 0.5, num_classes)
    assert_equals_scikit_learn(metrics, preds, targets, loss=0.5)


def test_labels_past_the_range_of_int32_are_invalid(x64):
    # Cut to 32 bits, the first is class 1 and the other two are classes 0.
    targets = np.array([2**32 + 1, 2**40, -(2**32)])
    assert int(ClassificationMetrics([1, 0, 0], targets, 0.5, 3).invalid) == 3
    assert int(ClassificationMetrics(targets, [1, 0, 0], 0.5, 3).invalid) == 3
    assert int(ClassificationMetrics(targets.astype(float), [1, 0, 0], 0.5, 3).invalid) == 3


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_whole_float_predictions_are_classes(dtype):
    # 301 is no bfloat16.
    preds, targets = np.array([0, 300, 256, 3]), np.array([0, 300, 3, 256])
    metrics = ClassificationMetrics(jnp.asarray(preds, dtype), targets, 0.5, 301)
    assert_equals_scikit_learn(metrics, preds, targets, loss=0.5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_whole_float_targets_are_classes(dtype):
    preds, targets = np.array([0, 300, 256, 3, 1]), np.array([0, 300, 3, 256, 2])
    floats = jnp.asarray(targets, dtype)
    for make in (ClassificationMetrics, count_batch):
        assert_equals_scikit_learn(make(preds, floats, 0.5, 301), preds, targets, loss=0.5)
    totals = count_totals(preds, floats, 0.5, 301)
    assert totals.compute()["accuracy"] == pytest.approx(0.4) and int(totals.invalid) == 0


@pytest.mark.parametrize("odd", [0.5, np.nan])
def test_float_targets_that_are_not_whole_are_refused_where_they_are_known(odd):
    targets, mask = np.array([1, odd, 0], "float32"), np.array([True, False, True])
    with pytest.raises(ValueError, match=rf"be whole numbers\. 1 of 3 are not, .* {odd}\. "):
        ClassificationMetrics([1, 0, 0], targets, 0.5, 2)
    assert float(ClassificationMetrics([1, 0, 0], targets, 0.5, 2, mask=mask).invalid) == 0
    assert int(count_batch([1, 0, 0], targets, 0.5, 2).invalid) == 1


@pytest.mark.parametrize("odd", [0.5, -1.0, 2.0, np.nan])
def test_a_mask_of_anything_but_zeros_and_ones_is_refused_or_counted(odd, caplog):
    mask = np.array([1, odd, 0], "float32")
    with pytest.raises(ValueError, match=rf"1 of its values are others, such as {odd}\. A mask"):
        ClassificationMetrics([1, 0, 0], [1, 1, 0], 0.5, 2, mask=mask)
    metrics = count_batch([1, 0, 0], [1, 1, 0], 0.5, 2, mask=mask)
    assert (int(metrics.count), int(metrics.invalid), float(metrics.loss_sum)) == (2, 1, 0.5)
    assert metrics.compute()["accuracy"] == 1
    assert "or a mask that is neither 0 nor 1" in caplog.text
    totals = count_totals([1, 0, 0], [1, 1, 0], 0.5, 2, mask=mask)
    assert (int(totals.count), int(totals.invalid)) == (2, 1)


def test_a_nan_loss_is_accepted():
    metrics = ClassificationMetrics(np.array([0.0, 1.0]), np.array([0, 0]), jnp.nan, 2)
    assert_equals_scikit_learn(metrics, [0, 1], [0, 0], loss=None)
    assert np.isnan(metrics.compute()["average_loss"])


def test_the_loss_is_weighted_by_real_examples():
    one = ClassificationMetrics([0, 0, 0, 0], [0, 0, 0, 0], 1.0, 2, mask=[1, 0, 0, 0])
    three = ClassificationMetrics([0, 0, 0, 0], [0, 0, 0, 0], 5.0, 2, mask=[0, 1, 1, 1])
    assert float(one.merge(three).compute()["average_loss"]) == 4.0


@pytest.mark.parametrize("loss", [np.nan, np.inf, 3.0])
def test_a_wholly_masked_batch_adds_nothing(loss):
    some = ClassificationMetrics([0, 1], [1, 1], 0.5, 2)
    none = ClassificationMetrics([0, 1], [-100, 255], loss, 2, mask=[False, False])
    assert_same(some.merge(none), some)
    assert_same(none.merge(some), some)


def test_nothing_of_no_examples_is_known():
    none = ClassificationMetrics(np.zeros(0, int), np.zeros(0, int), jnp.nan, 2).compute()
    for name in ("accuracy", "balanced_accuracy", "average_loss"):
        assert np.isnan(none.pop(name))
    assert set(map(float, none.values())) == {0.0}


@pytest.mark.parametrize(
    ("preds", "targets"),
    [
        ([0, 1, 2, 1], [0, 1, 1, 1]),  # a prediction past the end
        ([0, 1, -1, 1], [0, 1, 1, 1]),
        ([0, 1, 1, 1], [0, 1, 255, 1]),
        ([0, 1, 1, 1], [0, 1, -100, 1]),
        ([0, 1, 0.5, 1], [0, 1, 0, 1]),  # between two classes
        ([0, 1, np.nan, 1], [0, 1, 0, 1]),
        ([0, 1, np.inf, 1], [0, 1, 0, 1]),
        ([0, 1, 9, 1], [0, 1, 9, 1]),  # both at once, one example
        ([0, 1, 0, 1], [0, 1, 7.0, 1]),
        ([0, 1, 0, 1], [0, 1, np.inf, 1]),
    ],
)
def test_what_is_no_class_is_counted_and_told(preds, targets, caplog):
    metrics = ClassificationMetrics(np.array(preds), np.array(targets), 0.5, 2)
    assert (int(metrics.invalid), int(metrics.count)) == (1, 4)
    assert metrics.confusion_matrix.tolist() == [[1, 0], [0, 2]]
    merged = metrics.merge(ClassificationMetrics([0], [1], 1.0, 2))
    with caplog.at_level(logging.WARNING, logger="solstice"):
        computed = merged.compute()
    wrong = "label" if targets[2] not in (0, 1) else "prediction"
    told = f"1 example had a {wrong} that is not a class from 0 to 1"
    assert [text[: len(told)] for text in caplog.messages] == [told]
    assert computed["accuracy"] == 0.75
    assert computed["average_loss"] == pytest.approx(0.625 if wrong == "label" else 0.6)
    with pytest.raises(ValueError, match=r"from 0 to 1; 1 of 4 examples had a label or a predic"):
        metrics.check()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), merged, metrics)
    with pytest.raises(ValueError, match=r"1 of 5 examples"):
        stacked.check()


def test_valid_classes_are_not_warned_about(caplog):
    metrics = ClassificationMetrics([0, 1], [1, -100], 0.5, 2, mask=[True, False])
    with caplog.at_level(logging.DEBUG, logger="solstice"):
        metrics.check()
        metrics.compute()
        jax.jit(ClassificationMetrics.compute)(ClassificationMetrics([9], [9], 0.5, 2))
    assert caplog.messages == []


@pytest.mark.parametrize("num_classes", [3, 10, 50])
@pytest.mark.parametrize("digits", [1, 6], ids=["many ties", "no ties"])
@given(seed=st.integers(0, 99))
def test_top_k_equals_scikit_learn(num_classes, digits, seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes, (2, ROOM))
    scores = rng.random((2, ROOM, num_classes)).round(digits).astype("float32")
    top_k = (1, num_classes // 2, num_classes - 1)
    parts = [count_scores(targets[i], scores[i], num_classes, top_k) for i in range(2)]
    computed = parts[0].merge(parts[1]).compute()
    for k in top_k:
        hits = top_k_accuracy_score(
            targets.ravel(), scores.reshape(-1, num_classes), k=k, labels=range(num_classes)
        )
        assert computed[f"top_{k}_accuracy"] == pytest.approx(hits, rel=1e-6)


@functools.partial(jax.jit, static_argnums=(2, 3))
def count_scores(targets, scores, num_classes, top_k, mask=None):
    preds = scores.argmax(-1)
    return ClassificationMetrics(
        preds, targets, 0.5, num_classes, mask=mask, scores=scores, top_k=top_k
    )


def test_top_k_of_what_is_real():
    scores = np.array([[0.1, 0.5, 0.2], [0.1, np.nan, 0.2], [np.nan, 0.1, 0.2], [0.5, 0.1, 0.2]])
    targets, mask = np.array([2, 1, 2, -100]), np.array([1, 1, 1, 0])
    computed = count_scores(targets, scores, 3, (1, 2, 3), mask).compute()
    # A NaN goes before every number, and the target with one after all.
    found = [computed[f"top_{k}_accuracy"] for k in (1, 2, 3)]
    assert found == pytest.approx([0, 2 / 3, 2 / 3])
    one = ClassificationMetrics([1], [2], 0.5, 3, scores=[[0.1, 0.5, 0.2]], top_k=2)
    assert one.compute()["top_2_accuracy"] == 1


@given(data=st.data())
def test_balanced_accuracy_equals_scikit_learn(data):
    preds, targets = np.array(data.draw(examples(4))).T
    mask = pad(np.ones(len(preds), bool), False)
    computed = count_batch(pad(preds), pad(targets), 0.5, 4, mask=mask).compute()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes that are only predicted
        expected = balanced_accuracy_score(targets, preds)
    assert computed["balanced_accuracy"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3, 50])
@given(seed=st.integers(0, 99))
def test_totals_say_what_the_matrix_does(num_classes, seed):
    rng = np.random.default_rng(seed)
    preds, targets = rng.integers(-1, num_classes + 1, (2, ROOM))
    mask = rng.random(ROOM) < 0.7
    matrix = count_batch(preds, targets, 0.5, num_classes, mask=mask)
    totals = count_totals(preds, targets, 0.5, num_classes, mask=mask)
    assert totals.confusion_matrix is None and totals.totals.shape == (3, num_classes)
    assert totals.num_classes == num_classes and int(totals.invalid) == int(matrix.invalid)
    expected, computed = matrix.merge(matrix).compute(), totals.merge(totals).compute()
    assert list(computed) == list(expected)
    np.testing.assert_array_equal([*computed.values()], [*expected.values()])


count_totals = jax.jit(functools.partial(ClassificationMetrics, track="totals"), static_argnums=3)


def test_very_many_classes():
    preds, targets = np.array([0, 99_999, 5]), np.array([0, 99_999, 7])
    with pytest.raises(ValueError, match=r"100000 classes has more than 2\^31 cells\. Pass track="):
        ClassificationMetrics(preds, targets, 0.5, 100_000)
    metrics = ClassificationMetrics(preds, targets, 0.5, 100_000, track="totals", per_class=False)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(metrics)) < 3 * 4 * 100_000 + 100
    computed = metrics.compute()
    assert computed["accuracy"] == pytest.approx(2 / 3) and len(computed) == 9


def test_the_perplexity_is_of_the_average_loss():
    parts = [ClassificationMetrics([0], [0], loss, 2, perplexity=True) for loss in (1.0, 2.0)]
    computed = solstice.reduce(parts).compute()
    assert computed["perplexity"] == pytest.approx(np.exp(1.5))


ONES = np.ones((4, 3), int)
BAD_ARGUMENTS = {
    "one-hot targets": (
        dict(preds=[0, 1, 2, 0], targets=ONES),
        ValueError,
        r"one shape, one class per example; they are int32\[4\] and int32\[4,3\]\..*\(multi-hot\)",
    ),
    "logits": (
        dict(preds=np.ones((4, 3), "float32"), targets=[0, 1, 2, 0]),
        ValueError,
        r"they are float32\[4,3\] and int32\[4\]\. For logits, pass logits\.argmax",
    ),
    "complex targets": (
        dict(preds=[0, 1], targets=np.ones(2, "complex64")),
        TypeError,
        r"targets are expected to be classes, whole numbers.*complex64\[2\]\. Number the classes",
    ),
    "complex predictions": (
        dict(preds=np.ones(2, "complex64"), targets=[0, 1]),
        TypeError,
        r"preds are expected to be classes; they are complex64\[2\]",
    ),
    "mask of another shape": (
        dict(preds=[0, 1], targets=[0, 1], mask=[True]),
        ValueError,
        r"mask is expected to have the shape of the targets, int32\[2\], True where an example is "
        r"real; it is bool\[1\]",
    ),
    "a loss for each example": (
        dict(preds=[0, 1], targets=[0, 1], loss=np.ones(2, "float32")),
        ValueError,
        r"loss is expected to be one real number, the mean over the batch's real examples; it is "
        r"float32\[2\]",
    ),
    "a complex loss": (
        dict(preds=[0, 1], targets=[0, 1], loss=1j),
        ValueError,
        r"loss is expected to be one real number.*complex64\[\]",
    ),
    "no classes": (
        dict(preds=[0], targets=[0], num_classes=0),
        ValueError,
        r"num_classes is expected to be at least 1; it is 0",
    ),
    "half a class": (
        dict(preds=[0], targets=[0], num_classes=2.5),
        TypeError,
        r"num_classes is expected to be an int; it is the float 2\.5",
    ),
    "no scores": (
        dict(preds=[0], targets=[0], options=dict(top_k=2)),
        ValueError,
        r"top_k needs the scores of all classes.*: pass scores=logits",
    ),
    "scores of another shape": (
        dict(preds=[0], targets=[0], options=dict(top_k=2, scores=np.ones(3))),
        ValueError,
        r"scores are expected to be of shape \(1, 3\).*; they are float64\[3\]|float32\[3\]",
    ),
    "more than all classes": (
        dict(preds=[0], targets=[0], options=dict(top_k=(1, 4), scores=np.ones((1, 3)))),
        ValueError,
        r"top_k is expected to be at most 3; it is 4",
    ),
    "another track": (
        dict(preds=[0], targets=[0], options=dict(track="counts")),
        ValueError,
        r"track is expected to be 'confusion' or 'totals'; it is 'counts'",
    ),
    "classes by name": (
        dict(preds=[0], targets=[0], num_classes=None),
        TypeError,
        r"num_classes is expected to be an int; it is the NoneType None",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
def test_bad_arguments_are_refused(case, jitted):
    changes, error, message = BAD_ARGUMENTS[case]
    arguments = {"loss": 0.5, "num_classes": 3} | changes
    num_classes, options = arguments.pop("num_classes"), arguments.pop("options", {})
    arguments = {name: jnp.asarray(value) for name, value in arguments.items()}

    def make(arguments):
        return ClassificationMetrics(num_classes=num_classes, **arguments, **options)

    with pytest.raises(error, match=message):
        (jax.jit(make) if jitted else make)(arguments)


@pytest.mark.usefixtures("unchecked")
def test_a_numpy_number_of_classes():
    assert ClassificationMetrics([0], [0], 0.5, np.int64(3)).num_classes == 3


@pytest.mark.parametrize(
    ("other", "described"),
    [
        (ClassificationMetrics([0], [0], 0.5, 3), "ClassificationMetrics over 3 classes"),
        ({"loss": 0.5}, r"\{'loss': the float 0\.5\}"),
        (None, "the NoneType None"),
    ],
)
def test_unlike_metrics_do_not_merge(other, described):
    metrics = ClassificationMetrics([0], [0], 0.5, 2)
    message = (
        rf"ClassificationMetrics over 2 classes merges only with the same kind; it got {described}"
    )
    with pytest.raises(solstice.UsageError, match=message):
        metrics.merge(other)
    with pytest.raises(AssertionError):
        metrics.merge(other)


def test_another_kind_with_the_same_fields_does_not_merge(mean):
    with pytest.raises(solstice.UsageError, match=r"merges only with .*the same kind; it got"):
        ClassificationMetrics([0], [0], 0.5, 2).merge(mean([1.0]))


def test_reduce_says_what_it_cannot_merge(mean):
    with pytest.raises(
        solstice.UsageError, match=r"needs a list of metrics, at least one; it got \[\]"
    ):
        solstice.reduce([])
    for first in ([], [mean([1.0])]):
        with pytest.raises(solstice.UsageError, match=r"one is the float 0\.5\. Return a Metrics"):
            solstice.reduce([*first, 0.5])
    with pytest.raises(solstice.UsageError, match=r"one is the class 'Mean'"):
        solstice.reduce([mean])


def test_reduce_merges_anything_with_merge_and_compute():
    class Joined(str):
        def merge(self, other):
            return Joined(self + other)

        def compute(self):
            return {"joined": str(self)}

    assert solstice.reduce(map(Joined, "abcd")).compute() == {"joined": "abcd"}
    assert solstice.reduce([Joined("a")]) == "a"
