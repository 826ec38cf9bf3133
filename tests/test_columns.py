"""What a compiled step cannot take of a batch: column and remedy are named, before the first."""

import datetime

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import solstice
from solstice.data.columns import check_columns
from solstice.triggers import Every

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
Y = np.arange(6, dtype="int32") % 3

TX = optax.sgd(0.1)


def experiment():
    return solstice.ClassificationExperiment(nn.Dense(3), TX, example_input=X[:1], key=0)


COLUMNS = {
    "text": (
        np.array(["a"] * 6),
        r"its column 'id' is text, <U1\[6\]\. Encode it as numbers, or l",
    ),
    "bytes": (np.array([b"a"] * 6), r"its column 'id' is text, \|S1\[6\]"),
    "objects of text": (np.array([b"a"] * 6, object), r"its column 'id' is text, object\[6\]"),
    "a list of texts": (["a"] * 6, "its column 'id' is text, the str 'a'"),
    "one text": ("a", "its column 'id' is text, the str 'a'"),
    "masked": (np.ma.masked_greater(np.arange(6), 3), r"its column 'id' is a masked array .*Fill"),
    "arrays": (
        np.array([np.ones(2), np.ones(3)], object),
        r"its column 'id' is Python objects, object\[2\]\. Make it one array, np\.stack\(list",
    ),
    "dates": (np.zeros(6, "M8[s]"), r"is dates, datetime64\[s\]\[6\]\. .*astype\('int64'\)"),
    "spans": (np.zeros(6, "m8[s]"), "is spans of time"),
    "records": (np.zeros(6, [("a", "i4")]), "is records, .*Give their fields as separate arrays"),
    "objects": ([datetime.date(2020, 1, 1)], "its column 'id' is no array, the date datetime"),
    "big-endian": (
        X.astype(">f4"),
        r"in this machine's byte order; column 'id' is >f4\[6,4\].*newbyteorder\('='\)",
    ),
}
ORDERS = {"list": list, "function": lambda batches: lambda: iter(batches), "iterator": iter}


@pytest.mark.parametrize(
    ("kind", "order", "prefetch"),
    # Each column once, and one of them in each order, read ahead or not.
    [
        *((kind, "list", 0) for kind in COLUMNS),
        *[("text", order, prefetch) for order in ORDERS for prefetch in (0, 2)][1:],
    ],
)
def test_the_column_is_named_before_the_first_step(kind, order, prefetch, recorder):
    column, message = COLUMNS[kind]
    good, bad = {"image": X, "label": Y}, {"image": X, "label": Y, "id": column}
    make, events = ORDERS[order], []
    options = {"callbacks": [recorder(events)], "prefetch": prefetch, "progress": False}
    with pytest.raises(TypeError, match="train_ds is expected to give arrays .*" + message):
        experiment().train(1, make([bad]), **options)
    with pytest.raises(TypeError, match="val_ds is expected to give arrays .*" + message):
        experiment().train(1, [good], make([bad]), **options)
    with pytest.raises(TypeError, match="test_ds is expected to give arrays .*" + message):
        experiment().test(make([bad]), progress=False)
    assert not [event for event in events if event[0] == "step_start"]


def test_an_evaluation_names_its_dataset_and_the_column():
    evaluation = solstice.EvaluationCallback(
        lambda exp, batch, key: exp.eval_step(batch),
        {"hard": [{"image": X, "label": Y, "id": np.array(["a"] * 6)}]},
        when=Every(epochs=1),
    )
    with pytest.raises(TypeError, match=r"hard is expected to give arrays .*'id' is text"):
        experiment().train(1, [(X, Y)], callbacks=[evaluation], progress=False)


@pytest.mark.parametrize(
    ("batch", "named"),
    [
        ((X, np.array(["a"])), "column '1'"),
        ((X, ["a", "b"]), "column '1'"),
        ({"image": X, "about": {"names": ["a"]}}, "column 'about/names'"),
        ("a", "its batch itself is text"),
    ],
)
def test_a_column_is_named_by_its_place(batch, named):
    with pytest.raises(TypeError, match=named):
        check_columns(batch, "train_ds")


@pytest.mark.parametrize(
    "leaf",
    [
        1,
        2.5,
        True,
        1j,
        None,
        np.float32(1),
        np.ones(2, bool),
        np.ones(2, ml_dtypes.bfloat16),
        np.ones(2, ml_dtypes.float8_e4m3fn),
        np.ones(2, ml_dtypes.int4),
        np.ones(2, "complex64"),
        jnp.ones(2),
        jax.random.key(0),
    ],
    ids=str,
)
def test_what_jax_takes_is_let_through(leaf):
    check_columns({"leaf": leaf, "list": [leaf]}, "train_ds")


class Said(solstice.Experiment):
    """What a step is given; it may be compiled in any way, or not at all."""

    total: jax.Array

    def eval_step(self, batch):
        return self, None


def step(self, batch):
    return solstice.replace(self, total=self.total + batch["x"].sum()), None


@pytest.mark.parametrize("decorate", [eqx.filter_jit, lambda step: step])
def test_a_step_that_takes_text_gets_it(decorate):
    class Free(Said):
        train_step = decorate(step)

    batch = {"x": np.ones(2, "float32"), "id": "a text"}
    assert float(solstice.train(Free(jnp.zeros(())), 1, [batch], progress=False).total) == 2


@pytest.mark.parametrize("decorate", [eqx.filter_jit, jax.jit, solstice.jit])
def test_no_compiled_step_takes_arrays_of_text(decorate):
    class Compiled(Said):
        train_step = decorate(step)

    batch = {"x": np.ones(2, "float32"), "id": np.array(["a", "b"])}
    with pytest.raises(TypeError, match="its column 'id' is text"):
        solstice.train(Compiled(jnp.zeros(())), 1, [batch], progress=False)


LISTS = r"'image' holds Python's lists of numbers\. .*with_format\('numpy'\).*\.batch\(32\)"


@pytest.mark.parametrize(
    "batch",
    [
        {"image": X.tolist(), "label": Y.tolist()},
        {"image": X[0].tolist(), "label": int(Y[0])},
        {"image": [X.tolist()], "label": Y},
    ],
)
def test_lists_of_numbers_are_no_inputs(batch):
    for exp in (
        experiment(),
        solstice.ClassificationExperiment(
            solstice.compat.as_model(nn.Dense(3), X, key=0), optax.sgd(0.1)
        ),
    ):
        with pytest.raises(TypeError, match=LISTS):
            exp.train(1, [batch], progress=False)


def test_numbers_and_lists_of_arrays_are_inputs_as_before():
    def apply(params, x, scale):
        return sum(x) @ params * scale

    model = solstice.compat.FunctionModel(
        lambda key, *inputs: jnp.ones((4, 3)), apply, ([X, X], 0.5), key=0
    )
    exp = solstice.ClassificationExperiment(model, optax.sgd(0.1))
    exp.train(1, [(([X, X], 0.5), Y)], progress=False)


@pytest.mark.slow
def test_hugging_face_datasets_say_what_they_lack_and_train_with_it():
    datasets = pytest.importorskip("datasets", reason="datasets")
    plain = datasets.Dataset.from_dict({"image": X, "label": Y, "id": ["a"] * 6})
    with pytest.raises(TypeError, match="its column 'id' is text"):
        experiment().train(1, plain, progress=False)
    plain = plain.remove_columns("id")
    for unformatted in (plain, plain.batch(3), lambda epoch: plain.iter(3)):
        with pytest.raises(TypeError, match=LISTS):
            experiment().train(1, unformatted, progress=False)
    formatted = plain.with_format("numpy")
    with pytest.raises(ValueError, match="several examples"):
        experiment().train(1, formatted, progress=False)
    expected = experiment().train(2, [(X[:3], Y[:3]), (X[3:], Y[3:])], progress=False)
    for dataset in (formatted.batch(3), lambda epoch: formatted.iter(3)):
        trained = experiment().train(2, dataset, progress=False)
        assert solstice.tree.digest(trained.model) == solstice.tree.digest(expected.model)
