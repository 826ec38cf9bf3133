"""Yes-or-no questions and labels, a user's own metrics, ignored targets, and tasks alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax
from networks import LIBRARIES
from networks.common import TX
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, roc_auc_score

import solstice
from solstice.experiments import (
    BinaryClassification,
    Classification,
    MultiLabel,
    Regression,
    SupervisedExperiment,
)
from solstice.metrics import Collect, Mean, MetricsDict
from solstice.testing import check_experiment

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
YES = np.arange(12) % 3 == 0
TAGS = RNG.integers(0, 2, (12, 3))
CLASSES = np.arange(12) % 3


SGD = optax.sgd(0.5)


@functools.cache
def net(outputs):
    return stax.serial(stax.Dense(outputs))


def binary(outputs=1, **options):
    options = {"example_input": X, "key": 0} | options
    return solstice.BinaryClassificationExperiment(net(outputs), SGD, **options)


def tagging(**options):
    options = {"example_input": X, "key": 0} | options
    return solstice.MultiLabelExperiment(net(3), SGD, **options)


def classify(**options):
    options = {"example_input": X, "key": 0} | options
    return solstice.ClassificationExperiment(net(3), SGD, **options)


def regress(**options):
    options = {"example_input": X, "key": 0} | options
    return solstice.RegressionExperiment(net(3), SGD, **options)


# How each is made, and targets for it.
KINDS = {
    "binary": (binary, YES.astype("int32")),
    "multi-label": (tagging, TAGS),
    "classification": (classify, CLASSES),
    "regression": (regress, X[:, :3]),
}
HOT = ("binary", "multi-label")


def close(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_any_network_answers_and_tags(library):
    subject = LIBRARIES[library]["shared"]
    x, model = subject.inputs[0], subject.make_model(jax.random.key(0))
    tags = np.asarray(model(x)[0]) > 0
    exp = solstice.MultiLabelExperiment(model, TX)
    found = exp.test([(x, tags)], progress=False)
    assert found["accuracy"] == 1 and found["exact_match"] == 1
    assert (np.asarray(exp.predict(x)) == tags).all()
    tokens = solstice.BinaryClassificationExperiment(model, TX).train(
        1, [(x, tags)], progress=False
    )
    assert tokens.predict(x).shape == tags.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", HOT)
def test_the_laws_hold(name):
    make, targets = KINDS[name]
    assert not check_experiment(lambda key: make(key=key), (X, targets), examples=3).failures


@pytest.mark.parametrize("column", [False, True])
def test_a_binary_test_says_what_scikit_learn_does(column):
    exp = binary().train(5, [(X, YES)], progress=False)
    targets = YES[:, None] if column else YES
    ds = [(X[:8], targets[:8]), (X[8:], targets[8:], np.ones(4))]
    found, chances = exp.test(ds, progress=False), np.asarray(jax.nn.sigmoid(exp(X)[:, 0]))
    preds = np.asarray(exp.predict(X))
    assert preds.shape == (12,) and (preds == (chances > 0.5)).all()
    assert found["accuracy"] == pytest.approx(accuracy_score(YES, preds))
    assert found["f1_class_1"] == pytest.approx(f1_score(YES, preds))
    assert found["roc_auc"] == pytest.approx(roc_auc_score(YES, chances), abs=1e-3)
    loss = optax.sigmoid_binary_cross_entropy(exp(X)[:, 0], YES).mean()
    assert found["average_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert (solstice.predict(exp, [(X, YES)], progress=False) == preds).all()


def test_a_multi_label_test_says_what_scikit_learn_does():
    exp = tagging().train(5, [(X, TAGS)], progress=False)
    found = exp.test([(X[:8], TAGS[:8]), (X[8:], TAGS[8:])], progress=False)
    chances, preds = np.asarray(jax.nn.sigmoid(exp(X))), np.asarray(exp.predict(X))
    expected = f1_score(TAGS, preds, average="macro", zero_division=0)
    assert found["f1_macro"] == pytest.approx(expected, rel=1e-5)
    assert found["exact_match"] == pytest.approx(accuracy_score(TAGS, preds))
    assert found["auroc_macro"] == pytest.approx(roc_auc_score(TAGS, chances), abs=1e-3)
    loss = optax.sigmoid_binary_cross_entropy(exp(X), TAGS).mean()
    assert found["average_loss"] == pytest.approx(float(loss), rel=1e-5)
    plain = tagging(ranking=False, per_class=False).test([(X, TAGS)], progress=False)
    assert "auroc_macro" not in plain and "f1_class_0" not in plain


@pytest.mark.parametrize("name", HOT)
def test_positives_are_weighed_as_by_torchs_pos_weight(name):
    make, targets = KINDS[name]
    weight = 3.0 if name == "binary" else np.array([3.0, 1.0, 0.5])
    exp = make(positive_weight=weight)
    logits = np.array(exp(X)).reshape(targets.shape)
    yes, no = np.logaddexp(0, -logits), np.logaddexp(0, logits)  # -log(p), -log(1 - p)
    expected = np.mean(weight * targets * yes + (1 - targets) * no)
    found = exp.test([(X, targets)], progress=False)["average_loss"]
    assert found == pytest.approx(float(expected), rel=1e-5)
    smooth = make(label_smoothing=0.2).test([(X, targets)], progress=False)["average_loss"]
    soft = optax.smooth_labels(jnp.stack([1 - targets, targets], -1).astype(float), 0.2)[..., 1]
    whole = optax.sigmoid_binary_cross_entropy(logits, soft).mean()
    assert smooth == pytest.approx(float(whole), rel=1e-5)


IGNORED = [
    ("binary", -1, "int32", 1),
    ("binary", 255, "uint8", 2),
    ("multi-label", -1, "float32", 2),
    ("classification", 255, "uint8", 1),
    ("classification", -100, "float32", 1),
    ("classification", -100, "int32", 2),
    ("classification", 0, "int32", 1),
]


@pytest.mark.parametrize(("name", "ignored", "dtype", "accumulate_steps"), IGNORED)
def test_ignored_targets_are_masked_ones(name, ignored, dtype, accumulate_steps, caplog):
    make, targets = KINDS[name]
    targets = targets.copy()
    mask = np.arange(targets.size).reshape(targets.shape) % 4 > 0
    if ignored == 0:
        mask &= targets != 0
    given = np.where(mask, targets, ignored).astype(dtype)
    exp = make(ignore_index=ignored, accumulate_steps=accumulate_steps)
    found, metrics = exp.train_step((X, given))
    expected, wanted = make(accumulate_steps=accumulate_steps).train_step((X, targets, mask))
    close(found.model, expected.model)
    close(metrics, wanted)
    rest = np.arange(12) < 7
    both = {"image": X, "label": given, "mask": rest}
    shown = mask & rest.reshape(-1, *[1] * (mask.ndim - 1))
    close(exp.eval_step(both)[1], make().eval_step((X, targets, shown))[1])
    exp.train(1, [(X, given)], [both], progress=False)
    assert caplog.messages == []


def test_a_type_too_narrow_for_the_ignored_target_has_none():
    close(
        classify(ignore_index=-100).eval_step((X, CLASSES.astype("uint8")))[1],
        classify().eval_step((X, CLASSES))[1],
    )


def test_ignored_pixels_train_a_network_with_batch_norm():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))

    x = RNG.normal(size=(2, 3, 4)).astype("float32")
    exp = solstice.ClassificationExperiment(
        Net(), optax.sgd(0.1), example_input=x, key=0, ignore_index=255, overlap=True
    )
    y = np.array([[0, 1, 255], [2, 255, 0]])
    exp = exp.train(1, [(x, y)], progress=False)
    found, real = exp.test([(x, y)], progress=False), y != 255
    iou = jaccard_score(y[real], np.asarray(exp.predict(x))[real], average="macro")
    assert found["iou_macro"] == pytest.approx(iou, rel=1e-5)


def area(outputs, targets, mask):
    scores = jax.nn.sigmoid(outputs[..., -1])
    right = (targets.reshape(len(targets), -1)[:, -1] > 0) * 1
    return Collect((right, scores), mask=mask, functions={"area": roc_auc_score})


@pytest.mark.parametrize("steps_per_call", [1, 2])
@pytest.mark.parametrize("name", KINDS)
def test_metrics_of_a_users_own_are_reported_beside_the_others(name, steps_per_call):
    make, targets = KINDS[name]
    exp, seen = make(metrics=area), []
    logging = solstice.LoggingCallback(logging_fn=lambda values, step, mode: seen.append(values))
    batches = [(X, targets), (X, targets, np.arange(12) < 9)]
    exp.train(1, batches, batches, [logging], steps_per_call=steps_per_call, progress=False)
    assert all("average_loss" in values and 0 <= values["area"] <= 1 for values in seen)
    found, plain = (one.test(batches, progress=False) for one in (exp, make()))
    assert found == pytest.approx({**plain, "area": found["area"]}, nan_ok=True)
    right = (targets.reshape(12, -1)[:, -1] > 0) * 1
    scores = np.asarray(jax.nn.sigmoid(exp(X)[..., -1]))
    whole = roc_auc_score(np.append(right, right[:9]), np.append(scores, scores[:9]))
    assert found["area"] == pytest.approx(whole, rel=1e-6)


def test_metrics_of_clu_are_reported_too():
    clu = pytest.importorskip("clu.metrics")
    exp = classify(metrics=lambda outputs, targets, mask: clu.Average.from_model_output(outputs))
    assert exp.test([(X, CLASSES)], progress=False)["average"] == pytest.approx(
        float(exp(X).mean()), abs=1e-6
    )


def test_an_ensemble_has_metrics_of_a_users_own():
    def spread(outputs, targets, mask):
        return Mean(outputs.max(-1) - outputs.min(-1), mask=mask)

    ensemble = solstice.Ensemble.init(lambda key: classify(key=key, metrics=spread), [0, 1])
    assert "mean_member_1" in ensemble.test([(X, CLASSES)], progress=False)


def test_metrics_of_the_same_name_are_told_before_training():
    exp = classify(metrics=lambda *_: MetricsDict(accuracy=Mean(1.0)))
    with pytest.raises(solstice.UsageError, match=r"MetricsDict computes accuracy too\. Put it"):
        exp.train(1, [(X, CLASSES)], progress=False)
    late = classify(metrics=lambda o, t, m: Collect(t, functions={"accuracy": np.mean}))
    with pytest.raises(solstice.UsageError, match="Two metrics compute 'accuracy'"):
        late.test([(X, CLASSES)], progress=False)


def test_metrics_that_are_none_are_refused():
    for wrong in (0.5, {"mean": Mean(1.0)}, None):
        exp = classify(metrics=lambda *_, wrong=wrong: wrong)
        with pytest.raises(TypeError, match=r"metrics\(outputs, targets, mask\) is expected to r"):
            exp.train(1, [(X, CLASSES)], progress=False)
    with pytest.raises(TypeError, match="metrics is expected to be a function"):
        classify(metrics=Mean(1.0))


def test_ranks_of_classes_come_by_one_word():
    exp = classify(ranking=True)
    found = exp.test([(X, CLASSES)], progress=False)
    chances = np.asarray(jax.nn.softmax(exp(X)), float)
    chances /= chances.sum(1, keepdims=True)
    expected = roc_auc_score(CLASSES, chances, multi_class="ovr")
    assert found["auroc_macro"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("number", [256, 257])
def test_very_many_classes_are_tracked_by_their_totals(number):
    def made(**options):
        exp = solstice.ClassificationExperiment(
            net(number), optax.sgd(0.5), example_input=X, key=0, **options
        )
        return exp.eval_step((X, np.arange(12) * 21))[1]

    metrics = made()
    assert (metrics.confusion_matrix is None) == (number > 256)
    assert metrics.compute() == pytest.approx(made(track="confusion").compute())


class Reader(nn.Module):
    """Embeds tokens and averages those that the attention mask leaves."""

    @nn.compact
    def __call__(self, tokens, attention):
        weight = attention[..., None].astype("float32")
        embedded = nn.Embed(50, 4)(tokens) * weight
        return nn.Dense(2)(embedded.sum(1) / jnp.maximum(weight.sum(1), 1))


def hugging_face(form):
    columns = {
        "input_ids": RNG.integers(0, 50, (12, 6)),
        "attention_mask": np.arange(6) < RNG.integers(1, 7, (12, 1)),
        "label": np.arange(12) % 2,
    }
    columns["attention_mask"] = columns["attention_mask"].astype("int64")
    if form == "dict":
        return [{name: array[i : i + 5] for name, array in columns.items()} for i in (0, 5, 10)]
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict(columns).with_format("numpy").batch(5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dict", "datasets"])
@pytest.mark.parametrize("example", [True, False])
def test_a_batch_of_hugging_face_goes_in_as_it_is(form, example):
    ds = hugging_face(form)
    tokens = jax.ShapeDtypeStruct((1, 6), "int32")
    model = solstice.compat.FlaxModel(Reader(), (np.ones((1, 6), int),) * 2, key=0)
    exp = solstice.ClassificationExperiment(
        model,
        optax.adam(0.1),
        example_input={"attention_mask": tokens, "input_ids": tokens} if example else None,
        batch_keys=(("input_ids", "attention_mask"), "label", "mask"),
    )
    exp = exp.train(2, ds, ds, progress=False)
    predicted = solstice.predict(exp, ds, progress=False)
    whole = {name: np.concatenate([batch[name] for batch in ds]) for name in ds[0]}
    right = (predicted == whole["label"]).mean()
    assert exp.test(ds, progress=False)["accuracy"] == pytest.approx(right)
    by_place = exp((whole["input_ids"], whole["attention_mask"]))
    np.testing.assert_array_equal(exp(whole), by_place)
    assert predicted.tolist() == by_place.argmax(-1).tolist() == exp.predict(whole).tolist()


WRONG = {
    "three logits": (lambda: binary(3), YES, "one logit for each target"),
    "two targets": (binary, np.stack([YES, YES], 1), "one logit for each target"),
    "a class": (binary, np.arange(12), r"expected to be 0 or 1; 10 of 12 are not, such as 2, 3"),
    "soft": (binary, np.full(12, 0.5), r"0 or 1; 12 of 12 are not, such as 0\.5"),
    "classes": (tagging, np.arange(12) % 3, "of the shape of the network's outputs"),
    "minus one": (tagging, TAGS - 1, r"-1 and 1 become \(y \+ 1\) // 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_targets_are_refused_before_training(name):
    make, targets, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make().train(1, [(X, targets)], progress=False)


def test_later_wrong_targets_count_nowhere_and_are_told_once(caplog):
    for name in HOT:
        make, targets = KINDS[name]
        caplog.clear()
        wrong = targets.copy()
        wrong[:2] = 9
        exp, known = make(), np.arange(12) >= 2
        close(exp.train_step((X, wrong))[0].model, exp.train_step((X, targets, known))[0].model)
        found = exp.test([(X, targets), (X, wrong)], progress=False)
        expected = exp.test([(X, targets), (X, targets, known)], progress=False)
        assert found == pytest.approx(expected, nan_ok=True)
        assert len(caplog.messages) == 1 and "had a label" in caplog.text


@pytest.mark.parametrize("name", HOT)
def test_an_ensemble_averages_their_probabilities(name):
    make, targets = KINDS[name]
    ensemble = solstice.Ensemble.init(lambda key: make(key=key), [0, 1, 2])
    chances = np.mean([jax.nn.sigmoid(ensemble.member(i)(X)) for i in range(3)], axis=0)
    np.testing.assert_allclose(jax.nn.sigmoid(ensemble(X)), chances, rtol=1e-5)
    assert (np.asarray(ensemble.predict(X)) == (chances > 0.5).reshape(targets.shape)).all()


def test_half_precision_and_parts_go_with_them():
    for name in HOT:
        make, targets = KINDS[name]
        close(
            make(accumulate_steps=3).train_step((X, targets))[0].model,
            make().train_step((X, targets))[0].model,
        )
        exp = make(compute_dtype="bfloat16", ema_decay=0.9)
        assert exp.train(1, [(X, targets)], progress=False)(X).dtype == jnp.float32


TASKS = {
    "binary": BinaryClassification(),
    "multi-label": MultiLabel(),
    "classification": Classification(),
    "regression": Regression(),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_makes_the_same_experiment(name):
    make, targets = KINDS[name]
    outputs = 1 if name == "binary" else 3
    exp = SupervisedExperiment(TASKS[name], net(outputs), optax.sgd(0.5), example_input=X, key=0)
    assert TASKS[name].for_outputs(exp(X)) == make().task
    close(exp.train_step((X, targets)), make().train_step((X, targets)))


def test_equal_tasks_are_equal_and_check_what_they_get():
    assert MultiLabel(positive_weight=np.ones(3)) == MultiLabel(positive_weight=(1, 1, 1))
    assert hash(Classification(3, class_weights=[1, 2, 3])) == hash(
        Classification(3, class_weights=(1.0, 2.0, 3.0))
    )
    with pytest.raises(ValueError, match="one for each label; there are 2 numbers, and the net"):
        tagging(positive_weight=[1, 2])
    with pytest.raises(ValueError, match="positive_weight is expected to be a finite number above"):
        BinaryClassification(positive_weight=0)
