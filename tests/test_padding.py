"""pad_last: one shape for all batches, and in evaluation the answer without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import solstice
from solstice.compat import FunctionModel

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(23, 4)).astype("float32"), RNG.integers(0, 3, 23)


def pairs(size=8, count=23):
    return [
        (X[i : min(i + size, count)], Y[i : min(i + size, count)]) for i in range(0, count, size)
    ]


def mappings():
    return [{"image": x, "label": y} for x, y in pairs()]


TX = optax.sgd(0.1)


def classifier(traces=None):
    def init(key, x):
        return {"w": jax.random.normal(key, (4, 3)), "scale": jnp.ones(())}

    def apply(params, x):
        if traces is not None:
            traces.append(x.shape)
        # At a row of zeros, this has no gradient.
        return params["scale"] * (x / jnp.linalg.norm(x, axis=-1, keepdims=True)) @ params["w"]

    model = FunctionModel(init, apply, X[:1], key=0)
    return solstice.ClassificationExperiment(model, TX, 3)


@pytest.mark.parametrize("make", [pairs, mappings])
@pytest.mark.parametrize("size", [8, 9, 64])
def test_evaluation_gives_the_unpadded_answer_and_compiles_once(make, size):
    traces = []
    exp = classifier(traces)
    traces.clear()  # of the example, for the number of classes
    padded = exp.test(solstice.pad_last(make(), size), progress=False)
    assert len(traces) == 1 and traces[0] == (size, 4)
    plain = classifier().test(make(), progress=False)
    assert padded == pytest.approx(plain, rel=1e-6)


def test_training_on_padded_batches_is_finite_and_ignores_them():
    padded = classifier().train(2, solstice.pad_last(pairs(), 8), progress=False)
    plain = classifier().train(2, pairs(), progress=False)
    for one, other in zip(
        *map(jax.tree.leaves, (padded.model.params, plain.model.params)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_labels_with_more_axes_than_the_mask():
    """A label a pixel, a mask an example."""

    def init(key, x):
        return {"w": jnp.ones((1, 3)) * jnp.arange(3.0)}

    def apply(params, x):
        return x[..., None] @ params["w"]

    model = FunctionModel(init, apply, X[:1], key=0)
    exp = solstice.ClassificationExperiment(model, optax.sgd(0.1), 3)
    labels = RNG.integers(0, 3, X.shape)
    batches = [(X[:15], labels[:15]), (X[15:], labels[15:])]
    padded = exp.test(solstice.pad_last(batches, 15), progress=False)
    assert padded == pytest.approx(exp.test(batches, progress=False), rel=1e-6)


@given(size=st.integers(1, 6), batch_size=st.integers(1, 6), masked=st.booleans())
def test_the_last_example_fills_up(size, batch_size, masked):
    x, y = X[:size], (Y[:size], np.arange(size))
    mask = (np.arange(size) % 2 == 0,) * masked
    if size > batch_size:
        with pytest.raises(ValueError, match=rf"batch_size={batch_size}; one has {size} examples"):
            list(solstice.pad_last([(x, y, *mask)], batch_size))
        return
    ((padded_x, padded_y, padded_mask),) = solstice.pad_last([(x, y, *mask)], batch_size)
    absent = batch_size - size
    np.testing.assert_array_equal(padded_x, np.concatenate([x, x[-1:].repeat(absent, 0)]))
    np.testing.assert_array_equal(padded_y[1], [*range(size), *[size - 1] * absent])
    real = mask[0] if masked else np.ones(size, bool)
    np.testing.assert_array_equal(padded_mask, [*real, *[False] * absent])
    assert padded_mask.dtype == bool


def test_forms_of_batches():
    x, y = np.ones((2, 3)), jnp.arange(2)
    for batch in ((x, y), [x, y], (x, y, None)):
        ((*_, mask),) = solstice.pad_last([batch], 3)
        assert mask.tolist() == [True, True, False]
    ((_, labels, mask),) = solstice.pad_last([(x, y, jnp.ones((2, 5)))], 3)
    assert isinstance(labels, jax.Array) and labels.tolist() == [0, 1, 1]
    assert isinstance(mask, jax.Array) and mask.sum(1).tolist() == [5, 5, 0]
    batch = {"tokens": x, "extra": {"ids": y}, "mask": np.array([1.0, 0.0])}
    (padded,) = solstice.pad_last([batch], 4)
    assert padded["mask"].tolist() == [1, 0, 0, 0] and padded["extra"]["ids"].shape == (4,)
    assert batch["mask"].shape == (2,)
    (named,) = solstice.pad_last([{"x": x}], 3, mask_key="real")
    assert named["real"].tolist() == [True, True, False] and "mask" not in named


class Loader:
    """Re-iterable, tells its length, and is told the epoch."""

    epoch = None

    def __iter__(self):
        return iter(pairs())

    def __len__(self):
        return 3

    def set_epoch(self, epoch):
        self.epoch = epoch


class Watch(solstice.Callback):
    def __init__(self):
        self.shapes = []

    def on_step_start(self, exp, global_step, mode, batch):
        self.shapes.append(batch[0].shape)


@pytest.mark.parametrize(
    "make",
    [
        pairs,
        lambda: tuple(pairs()),
        Loader,
        lambda: pairs,
        lambda: lambda epoch: iter(pairs(8 - epoch)),
        lambda: lambda: (batch for batch in pairs()),
    ],
    ids=["list", "tuple", "loader", "function", "of the epoch", "generator function"],
)
def test_any_dataset_trains_for_epochs(make):
    watch = Watch()
    classifier().train(2, solstice.pad_last(make(), 8), callbacks=[watch], progress=False)
    assert set(watch.shapes) == {(8, 4)} and len(watch.shapes) >= 6


def test_length_and_epoch_are_passed_on():
    loader = Loader()
    padded = solstice.pad_last(loader, 8)
    assert len(padded) == 3 and padded
    classifier().train(3, padded, progress=False)
    assert loader.epoch == 2
    for endless in (lambda: iter(pairs()), (pair for pair in pairs())):
        padded = solstice.pad_last(endless, 8)
        assert padded
        with pytest.raises(TypeError):
            len(padded)
    epochs = []
    padded = solstice.pad_last(lambda epoch: epochs.append(epoch) or iter(pairs()), 8)
    classifier().train(2, padded, progress=False)
    assert epochs == [0, 1]


def test_what_can_be_read_once_can_be_padded_once():
    padded = solstice.pad_last(iter(pairs()), 8)
    with pytest.raises(
        ValueError, match=r"which can be read only once, but 2 epochs are asked for"
    ):
        classifier().train(2, padded, progress=False)
    classifier().train(1, padded, progress=False)


@pytest.mark.slow  # imports TensorFlow
def test_tf_data_is_padded():
    tf = pytest.importorskip("tensorflow", reason="tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices({"image": X, "label": Y}).batch(8)
    exp = classifier()
    padded = exp.test(solstice.pad_last(dataset, 8), progress=False)
    assert padded == pytest.approx(exp.test(pairs(), progress=False), rel=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("dataset", "batch_size", "error", "message"),
    [
        (X, 8, TypeError, r"ds is expected to be a re-iterable of batches"),
        ([], 8, ValueError, "ds is empty"),
        (pairs(), 0, ValueError, "batch_size is expected to be at least 1; it is 0"),
        (pairs(), 2.5, TypeError, "batch_size is expected to be an int; it is the float 2.5"),
        (pairs(), True, TypeError, "batch_size is expected to be an int; it is the bool True"),
        (
            pairs(),
            7,
            ValueError,
            "to batch_size=7; one has 8 examples. Pass the size of the larg",
        ),
        ([X], 30, TypeError, r"\(x, y\), \(x, y, mask\) or a mapping; it is float32\[23,4\]"),
        (
            [(X,)],
            30,
            TypeError,
            r"\(x, y\), \(x, y, mask\) or a mapping; it is \(float32\[23,4\]\)",
        ),
        ([(X, Y[:4])], 30, ValueError, r"it has \{'0': 23, '1': 4\}"),
        ([(X, Y, np.ones(3))], 30, ValueError, r"it has \{'0': 23, '1': 23, '2': 3\}"),
        ([{}], 30, ValueError, "it has no array"),
        ([{"x": X, "name": "a"}], 30, TypeError, r"'name' is the str 'a'\. Leave it out"),
        ([(X[:0], Y[:0])], 30, ValueError, r"one has 0 examples\. Leave empty batches out"),
    ],
)
def test_bad_input_is_refused(dataset, batch_size, error, message):
    with pytest.raises(error, match=message):
        list(solstice.pad_last(dataset, batch_size))
