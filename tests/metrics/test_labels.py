"""Multi-label metrics, one-vs-rest ranks and overlap: scikit-learn's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    classification_report,
    hamming_loss,
    jaccard_score,
    roc_auc_score,
)

import solstice
from solstice.metrics import MultiLabelMetrics, OneVsRestMetrics

SIZE, LABELS = 24, 4
rank = jax.jit(OneVsRestMetrics, static_argnames=("bins", "calibration_bins", "per_class"))
decide = jax.jit(MultiLabelMetrics)


def drawn(seed, real):
    """Return probabilities on eighths, classes, multi-hot labels and decisions, and a mask."""
    rng = np.random.default_rng(seed)
    chances = (rng.integers(0, 9, (SIZE, LABELS)) / 8).astype("float32")
    classes = rng.permutation([*range(LABELS), *rng.integers(0, LABELS, SIZE - LABELS)])
    hot, preds = rng.integers(0, 2, (2, SIZE, LABELS))
    return chances, classes, hot, preds, rng.permutation(np.arange(SIZE) < real)


DRAWN = st.builds(drawn, st.integers(0, 9999), st.integers(12, SIZE))


def both_kinds(hot):
    return ((hot.min(0) == 0) & (hot.max(0) == 1)).all()


@given(DRAWN)
def test_ranks_of_classes_are_scikit_learns(batch):
    chances, classes, _, _, mask = batch
    computed = rank(chances, np.where(mask, classes, -100), mask=mask, bins=24).compute()
    one_hot = np.eye(LABELS, dtype=int)[classes[mask]]
    compare(computed, one_hot, chances[mask])
    top, right = chances[mask].max(1), chances[mask].argmax(1) == classes[mask]
    which = np.minimum((top * np.float32(15)).astype(int), 14)
    gaps = [abs((top - right)[which == i].sum()) for i in range(15)]
    assert computed["ece"] == pytest.approx(sum(gaps) / mask.sum(), abs=1e-6)


@given(DRAWN)
def test_ranks_of_labels_are_scikit_learns(batch):
    chances, _, hot, _, mask = batch
    computed = rank(chances, np.where(mask[:, None], hot, 7), mask=mask, bins=24).compute()
    assert "ece" not in computed
    compare(computed, hot[mask], chances[mask])


def compare(computed, hot, chances):
    with np.errstate(all="ignore"):
        precision = [
            average_precision_score(y, p) if y.any() else 0
            for y, p in zip(hot.T, chances.T, strict=True)
        ]
    areas = [
        roc_auc_score(y, p) if 0 < y.mean() < 1 else np.nan
        for y, p in zip(hot.T, chances.T, strict=True)
    ]
    assert computed["average_precision_macro"] == pytest.approx(np.mean(precision), rel=1e-5)
    assert computed["auroc_macro"] == pytest.approx(np.nanmean(areas), rel=1e-5)
    if both_kinds(hot):
        whole = roc_auc_score(hot, chances, average="macro")
        assert computed["auroc_macro"] == pytest.approx(whole, rel=1e-5)
    for i in range(LABELS):
        area = computed[f"auroc_class_{i}"]
        assert area == pytest.approx(areas[i], rel=1e-5, nan_ok=True)
        assert computed[f"average_precision_class_{i}"] == pytest.approx(precision[i], rel=1e-5)


def test_the_area_of_classes_is_that_of_scikit_learns_one_vs_rest():
    rng = np.random.default_rng(0)
    chances, classes = rng.dirichlet(np.ones(4), 300), rng.integers(0, 4, 300)
    metrics = OneVsRestMetrics(chances.astype("float32"), classes)
    whole = roc_auc_score(classes, chances, multi_class="ovr", average="macro")
    bounds = [float(bound) for name, bound in metrics.error_bounds().items() if "auroc" in name]
    assert len(bounds) == 4 and max(bounds) < 1e-3
    assert abs(metrics.compute()["auroc_macro"] - whole) <= np.mean(bounds) + 1e-6


def test_ranks_of_no_examples_and_of_one_class_are_not_known():
    empty = OneVsRestMetrics(np.ones((2, 3)) / 3, [0, 1], mask=[0, 0]).compute()
    assert np.isnan(empty["auroc_macro"]) and np.isnan(empty["ece"])
    alone = OneVsRestMetrics([[0.5, 0.5], [0.25, 0.75]], [1, 1], per_class=False).compute()
    assert sorted(alone) == ["auroc_macro", "average_precision_macro", "ece", "ece_macro"]
    assert np.isnan(alone["auroc_macro"]) and alone["average_precision_macro"] == 0.5


@given(DRAWN, st.booleans())
def test_decisions_on_labels_are_scikit_learns(batch, of_labels):
    _, _, hot, preds, mask = batch
    if of_labels:  # an unknown label is no decision
        mask = np.random.default_rng(hot.sum()).random(hot.shape) < 0.8
    metrics = decide(preds, np.where(mask if of_labels else mask[:, None], hot, -1), 0.5, mask=mask)
    computed = metrics.compute()
    assert int(metrics.count) == (mask.sum() if of_labels else mask.sum() * LABELS)
    if of_labels:
        assert computed["accuracy"] == pytest.approx((hot == preds)[mask].mean(), rel=1e-6)
        match = ((hot == preds) | ~mask).all(1)[mask.any(1)].mean()
        assert computed["exact_match"] == pytest.approx(match, rel=1e-6)
        return
    hot, preds = hot[mask], preds[mask]
    report = classification_report(hot, preds, output_dict=True, zero_division=0)
    names = {"f1": "f1-score", "tpr": "recall", "ppv": "precision"}
    averages = {"macro": "macro avg", "micro": "micro avg", "weighted": "weighted avg"}
    averages |= {f"class_{i}": str(i) for i in range(LABELS)}
    for name, theirs in names.items():
        for average, row in averages.items():
            assert computed[f"{name}_{average}"] == pytest.approx(report[row][theirs], rel=1e-5)
    assert computed["accuracy"] == pytest.approx(1 - hamming_loss(hot, preds), rel=1e-6)
    assert computed["exact_match"] == pytest.approx((hot == preds).all(1).mean(), rel=1e-6)
    assert computed["average_loss"] == pytest.approx(0.5)


def test_a_label_that_occurs_nowhere_has_0_and_counts_in_the_mean():
    preds, targets = np.array([[1, 0], [1, 0]]), np.array([[1, 0], [1, 0]])
    computed = MultiLabelMetrics(preds, targets, 0.0).compute()
    assert computed["f1_macro"] == 0.5 and computed["f1_class_1"] == 0
    assert computed["exact_match"] == 1


def test_labels_that_are_neither_0_nor_1_are_told(caplog):
    metrics = MultiLabelMetrics([[1, 0], [1, 7]], [[1, 2], [1, 0]], 1.0)
    assert int(metrics.invalid) == 2 and int(metrics.count) == 4
    with pytest.raises(ValueError, match="expected to be 0 or 1; 2 of 4 decisions had another"):
        metrics.check()
    computed = metrics.compute()
    assert [text[:44] for text in caplog.messages] == [
        "1 example had a prediction of a label that i",
        "1 example had a label, or a mask of one, tha",
    ]
    assert computed["accuracy"] == 1 and computed["average_loss"] == 1
    odd = decide(np.ones((2, 2)), np.ones((2, 2)), 1.0, mask=np.array([0.5, 1]))
    assert int(odd.invalid) == 2 and int(odd.count) == 4


def test_wrong_probabilities_and_classes_are_told(caplog):
    chances = np.full((3, 2), 0.5, "float32")
    message = (
        r"targets to be classes from 0 to 1; 1 of 3 examples are not\. .*jax\.nn\.softmax first"
    )
    with pytest.raises(ValueError, match=message):
        OneVsRestMetrics(chances, [0, 1, 2])
    with pytest.raises(ValueError, match=message):
        OneVsRestMetrics(chances * np.array([[1], [1], [3]]), [0, 1, 1])
    metrics = rank(chances, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=message):
        metrics.check()
    chances = np.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], "float32")
    metrics = rank(chances, np.array([0, 1, 2]))
    without = rank(chances, np.array([0, 1, 2]), mask=np.array([1, 1, 0]))
    assert metrics.compute() == pytest.approx(without.compute(), nan_ok=True)
    told = (
        "1 example had a label that is not a class from 0 to 1, or a mask that is neither 0 nor 1, "
    )
    assert caplog.messages == [f"{told}which does not count."]


@pytest.mark.parametrize("targets", [np.array([0, 1]), np.eye(2, dtype=int)], ids=["class", "hot"])
def test_a_mask_of_ranks_that_is_none_is_told(targets, caplog):
    chances = np.array([[0.75, 0.25], [0.25, 0.75]], "float32")
    metrics = rank(chances, targets, mask=np.array([1, 0.5]))
    with pytest.raises(ValueError, match=r"1 of 2 examples are not"):
        metrics.check()
    without = rank(chances, targets, mask=np.array([1, 0]))
    assert metrics.compute() == pytest.approx(without.compute(), nan_ok=True)
    assert len(caplog.messages) == 1 and "or a mask that is neither 0 nor 1" in caplog.text


def test_labels_of_ranks_that_are_neither_0_nor_1_are_refused():
    with pytest.raises(ValueError, match=r"0 or 1 for each label; 1 of 1 .*jax\.nn\.sigmoid first"):
        OneVsRestMetrics([[0.5, 0.5]], [[1, 2]])


@given(DRAWN)
def test_overlap_is_scikit_learns(batch):
    _, classes, _, preds, mask = batch
    preds = preds.argmax(1)
    metrics = solstice.ClassificationMetrics(
        preds, classes, jnp.nan, LABELS + 1, mask=mask, overlap=True
    )
    computed = metrics.compute()
    for average in ("macro", "weighted"):
        iou = jaccard_score(classes[mask], preds[mask], average=average, zero_division=0)
        assert computed[f"iou_{average}"] == pytest.approx(iou, rel=1e-5)
        assert computed[f"dice_{average}"] == computed[f"f1_{average}"]
    assert (
        computed[f"iou_class_{LABELS}"] == 0
        and "iou_macro"
        not in solstice.reduce(
            [solstice.ClassificationMetrics(preds, classes, jnp.nan, LABELS)]
        ).compute()
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneVsRestMetrics(np.ones((3, 2)), np.ones(2)), "a class for each row of prob"),
        (lambda: OneVsRestMetrics(np.ones((3, 2)), np.ones((3, 2)), bins=0), "bins is expected"),
        (lambda: MultiLabelMetrics(np.ones(3), np.ones((3, 2)), 0.0), r"shape, \(..., labels\)"),
        (lambda: MultiLabelMetrics(np.ones((3, 0)), np.ones((3, 0)), 0.0), "for each label of"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
