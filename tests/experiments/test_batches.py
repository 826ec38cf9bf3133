"""What a run's first batch must look like: a batch, with a mask that is one, and single classes."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax
from networks import LIBRARIES
from networks.common import TX

import solstice

KEY = jax.random.key(0)
X = np.ones((6, 4), "float32")
NET = stax.serial(stax.Dense(3))


def classify(**options):
    options = {"example_input": X[:1], "key": 0} | options
    return solstice.ClassificationExperiment(NET, TX, **options)


def adapted(task=solstice.ClassificationExperiment):
    return task(solstice.compat.StaxModel(NET, X, key=0), TX)


def unbatched_hugging_face():
    datasets = pytest.importorskip("datasets")
    columns = {"image": X, "label": np.arange(6) % 3}
    return datasets.Dataset.from_dict(columns).with_format("numpy")


class Singles:
    """As a torch TensorDataset: an example an index."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        if i >= 6:
            raise IndexError
        return X[i], np.int64(i % 3)

    def __iter__(self):
        return map(self.__getitem__, range(6))


SINGLES = {
    "list": lambda: list(zip(X, np.arange(6) % 3, strict=True)),
    "Python's labels": lambda: [(x, 1) for x in X],
    "one an index": Singles,
    "hugging face": unbatched_hugging_face,
    "mapping": lambda: [{"image": x, "label": jnp.array(1)} for x in X],
}


@pytest.mark.parametrize("form", SINGLES)
@pytest.mark.parametrize(
    "make",
    [
        classify,
        adapted,
        lambda: solstice.ClassificationExperiment(eqx.nn.Linear(4, 3, key=KEY), TX, 3),
        lambda: solstice.Ensemble.init(lambda key: classify(key=key), [0, 1]),
    ],
    ids=["example", "adapter's example", "no example", "ensemble"],
)
def test_single_examples_are_no_batches(form, make):
    exp, ds = make(), SINGLES[form]()
    with pytest.raises(
        ValueError, match=r"to hold several examples.* Batch the examples: whole arrays by solstice"
    ):
        exp.train(1, ds, progress=False)
    with pytest.raises(ValueError, match=r"a single one\. Batch the examples"):
        exp.test(ds, progress=False)


@pytest.mark.parametrize(
    "make",
    [
        adapted,
        lambda task: task(
            eqx.nn.Linear(4, 3, key=KEY), TX, example_input=jax.ShapeDtypeStruct((2, 4), "float32")
        ),
    ],
)
def test_a_batch_has_the_axes_of_the_example(make):
    singles = [(x, x[:3]) for x in X]
    exp = make(solstice.RegressionExperiment)
    with pytest.raises(ValueError, match=r"float32\[[26],4\].*they are float32\[4\], which looks"):
        exp.train(1, singles, progress=False)
    deep = [(X[None], np.zeros((1, 6), int))]
    with pytest.raises(ValueError, match=r"float32\[1,6,4\]\. If these are batches, give one as"):
        make(solstice.ClassificationExperiment).train(1, deep, progress=False)
    two = [((X, X), np.zeros(6, int))]
    with pytest.raises(ValueError, match=r"as many inputs as the network's example.*it has \(fl"):
        make(solstice.ClassificationExperiment).train(1, two, progress=False)


@pytest.mark.parametrize("library", LIBRARIES)
def test_single_examples_are_seen_by_whoever_knows_an_example(library):
    subject = LIBRARIES[library]["shared"]
    x, model = subject.inputs[0], subject.make_model(KEY)
    singles = list(zip(x, x, strict=True))
    if model.example is not None:
        with pytest.raises(ValueError, match=r"float32\[4\], which looks like a single example"):
            solstice.RegressionExperiment(model, TX).train(1, singles, progress=False)
    with pytest.raises(ValueError, match=r"float32\[4\], which looks like a single example"):
        solstice.RegressionExperiment(model, TX, example_input=x).train(1, singles, progress=False)


def test_a_network_that_fails_on_a_single_example_says_what_it_was_called_on():
    exp = solstice.RegressionExperiment(eqx.nn.Linear(4, 3, key=KEY), TX)
    with pytest.raises(ValueError, match=r"\w") as raised:
        exp.train(1, [(x, x[:3]) for x in X], progress=False)
    notes = "\n".join(raised.value.__notes__)
    assert "on the inputs of this batch, (float32[4]); it must be a batch such as x" in notes


WEIGHTS = np.array([1, 0.5, 0, 1, 1, 2], "float32")


@pytest.mark.parametrize(
    "mask",
    [
        WEIGHTS,
        jnp.asarray(WEIGHTS),
        np.array([1, np.nan, 0, 1, 1, 1]),
        np.array([1, -1, 0, 1, 1, 1]),
        np.array([255, 0, 0, 255, 0, 255], "uint8"),
        np.array([2, 0, 1, 1, 0, 1]),
        np.full(6, np.inf, "float32"),
    ],
)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_weights_are_no_mask(mask, task):
    exp = classify() if task == "classification" else adapted(solstice.RegressionExperiment)
    y = np.arange(6) % 3 if task == "classification" else X[:, :3]
    names = ("image", "label") if task == "classification" else ("x", "y")
    remedy = rf"If these are weights.*\{{'{names[0]}': x, '{names[1]}': y, 'weight': .*batch_keys="
    for mode in (exp.train, lambda epochs, ds, **options: exp.test(ds, **options)):
        with pytest.raises(ValueError, match=rf"mask is expected to be True.* {remedy}"):
            mode(1, [(X, y, mask)], progress=False)
    named = dict(zip((*names, "mask"), (X, y, mask), strict=True))
    with pytest.raises(ValueError, match="If these are weights"):
        exp.train(1, [named], progress=False)
    weights = dict(zip((*names, "weight"), (X, y, WEIGHTS), strict=True))
    assert exp.train(1, [weights], progress=False) is not None


def test_weights_get_a_name_where_they_had_none():
    exp = classify(batch_keys=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"'weight': weights\}, with batch_keys=\('a', 'b', 'c', "):
        exp.train(1, [(X, np.zeros(6, int), WEIGHTS)], progress=False)


@pytest.mark.parametrize("dtype", [bool, "int32", "uint8", "float32", "float64"])
def test_a_mask_of_zeros_and_ones_is_one_whatever_its_type(dtype):
    y, mask = np.arange(6) % 3, np.array([1, 0, 0, 1, 1, 1], dtype)
    _, metrics = classify().train_step((X, y, mask))
    assert int(metrics.count) == 4 and int(metrics.invalid) == 0
    classify().train(1, [(X, y, mask)], progress=False)


def test_odd_values_of_a_later_mask_count_nowhere_and_are_told(caplog):
    y, ones = np.arange(6) % 3, np.ones(6, "float32")
    exp = classify().train(1, [(X, y, ones), (X, y, WEIGHTS)], progress=False)
    only_ones = classify().train(1, [(X, y, ones), (X, y, WEIGHTS == 1)], progress=False)
    for a, b in zip(*map(jax.tree.leaves, (exp.model, only_ones.model)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert [text[:23] for text in caplog.messages] == ["epoch 0: 2 examples had"]
    assert "or a mask that is neither 0 nor 1" in caplog.text


def test_several_inputs_go_by_several_names():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, a, b):
            return nn.Dense(3)(a) + nn.Dense(3)(b)

    exp = solstice.ClassificationExperiment(
        Two(),
        TX,
        example_input=(X, X[:, :2]),
        key=0,
        batch_keys=(["wide", "narrow"], "label", "mask"),
    )
    y = np.arange(6) % 3
    named = {"wide": X, "narrow": X[:, :2], "label": y, "mask": np.arange(6) < 4}
    step, _ = exp.train_step(named)
    pair, _ = exp.train_step(((X, X[:, :2]), y, np.arange(6) < 4))
    assert eqx.tree_equal(jax.tree.leaves(step), jax.tree.leaves(pair))
    assert exp.test([named], progress=False)["accuracy"] <= 1
    assert solstice.predict(exp, [named], progress=False).shape == (6,)
    assert exp.with_mask(named, np.arange(6) < 2)["mask"].tolist() == [True] * 2 + [False] * 4
    with pytest.raises(ValueError, match=r"expected to have 'narrow'; it has 'wide', 'label'"):
        exp.train(1, [{"wide": X, "label": y}], progress=False)


@pytest.mark.parametrize(
    "keys", [("x",), ("x", "mask"), "xym", (("x",), ("y",), "m"), ((), "y", "m"), ("x", 1, "m"), 3]
)
def test_batch_keys_that_name_nothing_are_refused(keys):
    with pytest.raises(ValueError, match="batch_keys are expected to name inputs, targets and m"):
        classify(batch_keys=keys)


def test_two_batch_keys_leave_the_mask_its_usual_name():
    x, y = np.ones((4, 4), "float32"), np.zeros(4, "int32")
    exp = classify(batch_keys=("x", "y"))
    results = [
        exp.eval_step(batch)[1].compute()
        for batch in (
            {"x": x, "y": y},
            {"x": x, "y": np.array([0, 0, 1, 1]), "mask": np.array([1, 1, 0, 0], bool)},
        )
    ]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert exp.with_mask({"x": x, "y": y}, y == 0)["mask"].all()


def test_a_mapping_of_other_names_is_told_how_to_name_them():
    named = r"batch_keys=\('x', 'y', 'mask', 'weight'\)"
    with pytest.raises(ValueError, match=rf"it has 'x', 'y'.*{named}"):
        classify().eval_step({"x": 0, "y": 0})


class Named(eqx.Module):
    """An array with a name, as of e3nn or haliax: it has a shape and a type, and is none."""

    array: jax.Array

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    @property
    def ndim(self):
        return self.array.ndim

    def __sub__(self, other):
        return Named(self.array - other)

    def __pow__(self, power):
        return Named(self.array**power)


class Naming(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        return Named(self.linear(x))


@pytest.mark.parametrize("example", [X, None])
@pytest.mark.parametrize(
    ("task", "y"),
    [
        (solstice.ClassificationExperiment, np.arange(6) % 3),
        (solstice.RegressionExperiment, X[:, :3]),
    ],
)
def test_outputs_with_a_shape_that_are_no_array_are_refused(task, y, example):
    net = Naming(eqx.nn.Linear(4, 3, key=KEY))
    with pytest.raises(TypeError, match=r"it returned a \S+Named, which is none\. Return the plai"):
        task(net, TX, example_input=example).train(1, [(X, y)], progress=False)
    plain = solstice.compat.EquinoxModel(
        net, call=lambda net, x: jax.vmap(lambda one: net(one).array)(x)
    )
    task(plain, TX, example_input=example).train(1, [(X, y)], progress=False)


class OneLogit(eqx.Module):
    linear: eqx.nn.Linear
    squeeze: bool

    def __call__(self, x):
        return self.linear(x)[0] if self.squeeze else self.linear(x)


@pytest.mark.parametrize("example", [X[:1], X, None])
@pytest.mark.parametrize("number", [None, 1, 2, 6])
@pytest.mark.parametrize("squeeze", [True, False])
def test_a_network_with_one_logit_is_told_what_to_do(squeeze, number, example):
    net = OneLogit(eqx.nn.Linear(4, 1, key=KEY), squeeze)
    with pytest.raises(
        ValueError, match=r"one number per example\. .* give the network two outputs"
    ) as told:
        solstice.ClassificationExperiment(
            net, TX, number, example_input=example, loss=optax.sigmoid_binary_cross_entropy
        ).train(1, [(X, np.arange(6) % 2)], progress=False)
    assert "use BinaryClassificationExperiment" in str(told.value)


HOT = {
    "several": np.array([[1, 1, 0], [0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0]]),
    "none": np.eye(3, dtype=int)[[0, 1, 2, 0, 1, 2]] * np.array([1, 1, 1, 1, 1, 0])[:, None],
    "probabilities": np.full((6, 3), 0.25, "float32"),
}


@pytest.mark.parametrize("example", [X, None])
@pytest.mark.parametrize("labels", HOT)
def test_an_argmax_of_multi_hot_labels_is_never_proposed(labels, example):
    net = eqx.nn.Linear(4, 3, key=KEY)
    exp = solstice.ClassificationExperiment(net, TX, example_input=example)
    for dtype in (HOT[labels].dtype, "float32"):
        batch = X, HOT[labels].astype(dtype)
        for attempt in (
            lambda batch=batch: exp.train(1, [batch], progress=False),
            lambda batch=batch: exp.test([batch], progress=False),
            lambda batch=batch: exp.train_step(batch),
        ):
            with pytest.raises(ValueError, match="use MultiLabelExperiment") as told:
                attempt()
            assert "argmax" not in str(told.value)
    with pytest.raises(ValueError, match=r"multi-hot.*MultiLabelMetrics"):
        solstice.ClassificationMetrics(np.zeros(6, int), HOT[labels], 0.5, 3)


def test_one_hot_labels_are_told_from_multi_hot_ones():
    exp = classify()
    with pytest.raises(ValueError, match=r"They look one-hot: pass labels\.argmax\(-1\)"):
        exp.train(1, [(X, np.eye(3)[[0, 1, 2, 0, 1, 2]])], progress=False)
    # Three tokens, each of class 0 or 1: nothing of that is hot.
    tokens = solstice.ClassificationExperiment(
        stax.serial(stax.Dense(3)), TX, example_input=np.ones((6, 3, 4), "float32"), key=0
    )
    tokens.train(1, [(np.ones((6, 3, 4), "float32"), HOT["several"])], progress=False)


# Which would be spread over the losses, or count backwards.
NO_WEIGHTS = {
    "a matrix": np.ones((6, 6), "float32"),
    "a column": np.ones((6, 1), "float32"),
    "one for all": np.ones(1, "float32"),
    "a scalar": np.float32(2),
    "too few": np.ones(4, "float32"),
    "complex": np.ones(6, "complex64"),
    "negative": np.array([1, -1, 1, 1, 1, 1]),
    "NaN": np.array([1, np.nan, 1, 1, 1, 1]),
    "infinite": np.full(6, np.inf, "float32"),
    "words": {"high": 1},
}


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("form", NO_WEIGHTS)
def test_weights_are_one_number_an_example(form, accumulate_steps):
    exp = classify(accumulate_steps=accumulate_steps)
    batch = {"image": X, "label": np.arange(6) % 3, "weight": NO_WEIGHTS[form]}
    for run in (exp.train, lambda epochs, ds, **options: exp.test(ds, **options)):
        with pytest.raises(solstice.SolsticeError, match="weights are expected to be"):
            run(1, [batch], progress=False)


def test_later_weights_are_one_number_an_example_too():
    first = {"image": X, "label": np.arange(6) % 3, "weight": WEIGHTS}
    with pytest.raises(ValueError, match=r"shape of the targets, int32\[6\].* float32\[6,6\]"):
        classify().train(1, [first, first | {"weight": NO_WEIGHTS["a matrix"]}], progress=False)


def test_weights_of_masked_examples_may_be_anything():
    mask = np.array([1, 1, 1, 0, 0, 0], bool)
    named = {"image": X, "label": np.arange(6) % 3, "mask": mask}
    garbage = np.where(mask, WEIGHTS, [np.nan, -1, np.inf] * 2)
    tested = [
        classify().test([named | {"weight": weight}], progress=False)
        for weight in (WEIGHTS, garbage)
    ]
    assert tested[0] == tested[1]


def test_lists_of_labels_masks_and_weights_are_arrays():
    y, mask = np.arange(6) % 3, np.array([1, 0, 0, 1, 1, 1], bool)
    named = {"image": X, "label": y, "mask": mask, "weight": WEIGHTS}
    listed = {"image": X} | {name: part.tolist() for name, part in named.items() if name != "image"}
    tested = [classify().test([batch], progress=False) for batch in (named, listed)]
    assert tested[0] == tested[1]


@pytest.mark.parametrize("part", ["label", "mask", "weight"])
@pytest.mark.parametrize("odd", [{"a": 1}, [[1, 2], [3]], [None]], ids=["dict", "ragged", "None"])
def test_what_is_no_array_is_named(part, odd):
    batch = {"image": X, "label": np.arange(6) % 3} | {part: odd}
    name = {"label": "targets", "weight": "weights"}.get(part, part)
    with pytest.raises(TypeError, match=f"{name} are expected to be") as caught:
        classify().train(1, [batch], progress=False)
    assert isinstance(caught.value, solstice.SolsticeError)


def test_an_empty_batch_is_refused():
    for exp, y in ((classify(), np.zeros(0, int)), (adapted(solstice.RegressionExperiment), X[:0])):
        with pytest.raises(ValueError, match=r"hold at least one example.*Leave empty batches out"):
            exp.train(1, [(X[:0], y)], progress=False)


def test_complex_targets_are_refused_before_they_lose_a_part():
    exp = adapted(solstice.RegressionExperiment)
    with pytest.raises(TypeError, match=r"real numbers; they are complex64\[6,3\]"):
        exp.train(1, [(X, X[:, :3].astype("complex64"))], progress=False)


@pytest.mark.parametrize("call", ["exp", "predict", "solstice.predict"])
def test_predictions_of_single_examples_are_refused(call):
    exp = adapted(solstice.RegressionExperiment)
    calls = {
        "exp": lambda: exp(X[0]),
        "predict": lambda: exp.predict(X[0]),
        "solstice.predict": lambda: solstice.predict(exp, list(X), progress=False),
    }
    with pytest.raises(ValueError, match=r"float32\[4\], which looks like a single example"):
        calls[call]()
    assert exp.predict(X[:1]).shape == (1, 3)
