"""Exports compute what was exported, bit for bit, and need no network library."""

import os
import subprocess
import sys
import textwrap
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exports import SIX, X, exported, leaves_of, linear, make, sized
from jax.example_libraries import stax
from networks import LIBRARIES
from networks.common import TX, assert_same_bits

import solstice
from solstice import compat

LOADING = """
    import sys
    import numpy as np
    import solstice

    for folder in sys.argv[1:]:
        exported = solstice.load_exported(folder)
        for size in (1, 6):
            x = np.load(f"{folder}/../x{size}.npy")
            np.save(f"{folder}/../y{size}.npy", exported(x))
            np.save(f"{folder}/../c{size}.npy", exported.predict(x))
    networks = ["flax", "haiku", "keras", "optax", "equinox.nn", "jax.example_libraries.stax"]
    print([name for name in networks if name in sys.modules and not name.startswith("equinox")])
"""


@pytest.mark.slow
def test_an_export_of_each_library_gives_the_experiments_bits_without_any_of_them(tmp_path):
    experiments = {library: make(library) for library in SIX}
    inputs = LIBRARIES["linen"]["cnn"].inputs[0]
    for library, exp in experiments.items():
        classes = ["cat", "dog", "owl"]
        solstice.export(exp, tmp_path / library / "export", example=inputs, classes=classes)
        for size in (1, 6):
            np.save(tmp_path / library / f"x{size}.npy", sized(inputs, size))
    folders = [str(tmp_path / library / "export") for library in SIX]
    command = [sys.executable, "-c", textwrap.dedent(LOADING), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]"]
    for library, exp in experiments.items():
        for size in (1, 6):
            x = np.load(tmp_path / library / f"x{size}.npy")
            found = np.load(tmp_path / library / f"y{size}.npy")
            assert_same_bits([exp(x)], [found])
            assert_same_bits(
                [np.array(["cat", "dog", "owl"])[exp.predict(x)]],
                [np.load(tmp_path / library / f"c{size}.npy")],
            )
            # The average is what is exported, and the network's own parameters give other numbers.
            other = solstice.replace(exp, ema=exp.model.params)(x)
            assert not np.array_equal(other, found)


@pytest.mark.parametrize("library", SIX)
@pytest.mark.parametrize("kind", ["attention", "embedding"])
def test_models_of_several_and_of_integer_inputs(library, kind, tmp_path):
    if kind not in LIBRARIES[library]:
        pytest.skip(f"{library} has no network of the kind {kind}")
    subject = LIBRARIES[library][kind]
    model = subject.make_model(jax.random.key(0))
    found = exported(model, tmp_path, example=subject.inputs)
    inputs = sized(subject.inputs, 3)
    outputs = jax.jit(lambda model, inputs: model(*inputs)[0])(model, inputs)
    for given in (inputs, (inputs,)):
        again = found(*given)
        assert jax.tree.structure(again) == jax.tree.structure(outputs)
        assert_same_bits(leaves_of(outputs), leaves_of(again))


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(x)


class Named(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x["numbers"]) + nn.Embed(5, 3)(x["token"])


def test_a_network_of_a_mapping(tmp_path):
    x = {"token": np.array([0, 1, 2, 3, 4]), "numbers": X}
    exp = solstice.ClassificationExperiment(Named(), TX, example_input=x, key=0)
    found = exported(exp, tmp_path)
    assert repr(found.inputs) == "{'numbers': float32[batch,4], 'token': int32[batch]}"
    assert_same_bits([exp(sized(x, 2))], [found(sized(x, 2))])
    with pytest.raises(solstice.errors.InvalidTypeError, match=r"they lack 'token'"):
        found({"numbers": X})
    with pytest.raises(solstice.errors.InvalidTypeError, match=r"have 'tokens' besides"):
        found({"numbers": X, "tokens": x["token"]})


class Graph(NamedTuple):
    """What a user's class may be: a tuple with parts in an order that is not their names'."""

    nodes: jax.Array
    edges: jax.Array


def test_a_named_tuple_comes_back_as_a_dict_and_may_be_given_as_one(tmp_path):
    graph = Graph(X, X[:, :2] + 1)
    model = compat.FunctionModel(
        lambda key, graph: jnp.ones(4),
        lambda scale, graph: Graph(scale * graph.nodes, 2 * graph.edges),
        graph._replace(),
        key=jax.random.key(0),
    )
    found = exported(model, tmp_path, example=(graph,))
    for given in (graph, graph._asdict()):
        again = found(given)
        assert_same_bits([graph.nodes, 2 * graph.edges], [again["nodes"], again["edges"]])


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, numbers, tokens):
        return nn.Dense(3)(numbers) + nn.Embed(5, 3)(tokens)


def test_inputs_with_names(tmp_path):
    x = {"x": X, "tokens": np.array([0, 1, 2, 3, 4])}
    keys = (("x", "tokens"), "label")
    exp = solstice.ClassificationExperiment(
        TwoInputs(), TX, example_input=x, key=0, batch_keys=keys
    )
    found = exported(exp, tmp_path)
    assert list(found.inputs) == ["x", "tokens"]
    two = sized(x, 2)
    for given in (two | {"label": 0}, (two["x"], two["tokens"])):
        assert_same_bits([exp(two)], [found(given)])
    assert_same_bits([exp(two)], [found(**two)])
    with pytest.raises(solstice.errors.InvalidTypeError, match="they lack 'tokens'"):
        found({"x": X})


def test_preprocessing_is_part_of_the_program(tmp_path):
    exp = linear()

    def scaled(pixels):
        return pixels.reshape(pixels.shape[0], 4).astype("float32") / 255

    pixels = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    found = exported(exp, tmp_path, preprocess=scaled, example=pixels)
    assert repr(found.inputs) == "uint8[batch,2,2]"
    assert_same_bits([jax.jit(lambda x: exp(scaled(x)))(pixels[:3])], [found(pixels[:3])])
    with pytest.raises(
        solstice.errors.InvalidTypeError, match=r"uint8\[batch,2,2\]; it is float32"
    ):
        found(pixels.astype(np.float32))


def test_preprocessing_of_several_inputs_into_one(tmp_path):
    exp = linear()
    found = exported(
        exp,
        tmp_path,
        preprocess=lambda left, right: jnp.concatenate([left, right], -1),
        example=(X[:, :1], X[:, 1:]),
    )
    assert_same_bits([exp(X)], [found(X[:, :1], X[:, 1:])])


def ensemble():
    def member(key):
        return solstice.ClassificationExperiment(eqx.nn.Linear(4, 3, key=key), TX, example_input=X)

    return solstice.Ensemble.init(member, [0, 1, 2])


def two_sided(cls, network, **options):
    return cls(network, TX, example_input=X, key=0, **options)


OF_A_KIND = {
    "classes": (linear, ["a", "b", "c"], "logits, one for each class along the last axis"),
    "binary": (
        lambda: two_sided(solstice.BinaryClassificationExperiment, stax.serial(stax.Dense(1))),
        ["no", "yes"],
        "logits of yes-or-no questions",
    ),
    "labels": (
        lambda: two_sided(solstice.MultiLabelExperiment, stax.serial(stax.Dense(3))),
        ["red", "round", "ripe"],
        "logits, one for each label along the last axis",
    ),
    "numbers": (
        lambda: two_sided(solstice.RegressionExperiment, stax.serial(stax.Dense(2))),
        None,
        "numbers",
    ),
    "ensemble": (ensemble, ["a", "b", "c"], "logits, one for each class along the last axis"),
    "half": (lambda: linear(compute_dtype="bfloat16"), ["a", "b", "c"], None),
}


@pytest.mark.parametrize("kind", OF_A_KIND)
def test_predictions_are_the_experiments_by_the_names_of_classes(kind, tmp_path):
    make, classes, outputs_are = OF_A_KIND[kind]
    exp = make()
    found = exported(exp, tmp_path, classes=classes)
    assert_same_bits([exp(X[:3])], [found(X[:3])])
    assert outputs_are in (None, found.outputs_are)
    predicted = np.asarray(exp.predict(X[:3]))
    if classes is not None and kind != "labels":
        predicted = np.array(classes)[predicted]
        assert found.classes == tuple(classes)
    assert_same_bits([predicted], [np.asarray(found.predict(X[:3]))])


@pytest.mark.parametrize("of", ["lora", "quantize"])
def test_a_wrapped_network_is_exported_as_it_computes(of, tmp_path):
    model = compat.as_model(Dense(), X, key=0)
    if of == "lora":
        model = compat.lora(model, rank=2, key=1)
        model = solstice.replace(model, params=jax.tree.map(jnp.ones_like, model.params))
    else:
        model = compat.quantize(model, bits=8)
    exp = solstice.ClassificationExperiment(model, TX)
    assert_same_bits([exp(X[:3])], [exported(exp, tmp_path)(X[:3])])


@pytest.mark.parametrize(
    ("kind", "classes", "message"),
    [
        ("classes", ["a", "b"], "3 names, as many as there are classes; they are 2: a, b"),
        ("binary", ["a", "b", "c"], "2 names"),
        ("labels", ["a"], "3 names"),
        ("numbers", ["a", "b"], r"predictions are float32\[batch,2\], not class indices"),
    ],
)
def test_names_that_do_not_fit_are_refused(kind, classes, message, tmp_path):
    with pytest.raises(solstice.errors.InvalidValueError, match=message):
        exported(OF_A_KIND[kind][0](), tmp_path, classes=classes)
    assert not os.listdir(tmp_path)


def test_evaluation_parameters_of_the_optimizer_are_exported(tmp_path):
    tx = optax.contrib.schedule_free_sgd(0.5)
    exp = solstice.ClassificationExperiment(stax.serial(stax.Dense(3)), tx, example_input=X, key=0)
    exp, _ = exp.train_step((X, np.array([0, 1, 2, 0, 1])))
    exp, _ = exp.train_step((X, np.array([0, 1, 2, 0, 1])))
    assert_same_bits([exp(X)], [exported(exp, tmp_path)(X)])
    assert not np.array_equal(exp.model(X)[0], exp(X))


def test_a_model_alone_has_outputs_and_with_names_predictions(tmp_path):
    model = linear().model
    outputs = exported(model, tmp_path / "outputs")
    assert outputs.outputs_are == "outputs"
    with pytest.raises(solstice.errors.InvalidTypeError, match="from a model without `classes`"):
        outputs.predict(X)
    named = exported(model, tmp_path / "named", classes=list("xyz"))
    assert named.predict(X).tolist() == ["xyz"[i] for i in model(X)[0].argmax(-1)]


class Own(solstice.Experiment):
    weight: jax.Array
    key: jax.Array
    words: tuple = eqx.field(static=True, default=("down", "up"))

    @solstice.jit
    def train_step(self, batch):
        return self, None

    def __call__(self, x):
        return {"sum": (x * self.weight).sum(-1), "noise": jax.random.normal(self.key, x.shape)}

    def predict(self, x):
        return (self(x)["sum"] > 0).astype(int)


class Speaking(Own):
    def predict(self, x):
        return [self.words[i] for i in np.asarray(super().predict(x))]


class Mute(solstice.Experiment):
    weight: jax.Array

    def train_step(self, batch):
        return self, None


def test_an_experiment_that_a_user_wrote(tmp_path):
    exp = Own(jnp.arange(4.0), jax.random.key(3))
    found = exported(exp, tmp_path, example=X, classes=exp.words)
    again, outputs = found(X[:2]), jax.jit(lambda x: exp(x))(X[:2])
    assert_same_bits(leaves_of(outputs), leaves_of(again))
    assert found.predict(X).tolist() == [exp.words[i] for i in exp.predict(X)]


def test_an_experiment_whose_predictions_jax_cannot_trace_has_outputs(tmp_path):
    exp = Speaking(jnp.arange(4.0), jax.random.key(3))
    found = exported(exp, tmp_path / "without", example=X)
    assert found(X)["sum"].shape == (5,)
    with pytest.raises(solstice.errors.InvalidTypeError, match="jax cannot trace"):
        found.predict(X)
    with pytest.raises(jax.errors.JAXTypeError):
        exported(exp, tmp_path / "with", example=X, classes=exp.words)
    with pytest.raises(solstice.errors.InvalidTypeError, match="Define `__call__"):
        exported(Mute(jnp.arange(4.0)), tmp_path / "mute", example=X)


ODD_INPUTS = {
    "another dtype": (X.astype(int), TypeError, r"x is expected to be float32\[batch,4\].*int"),
    "another size": (X[:, :3], ValueError, r"float32\[batch,4\]; it is float32\[5,3\]"),
    "one example": (X[0], ValueError, r"it is float32\[4\]"),
    "no example": (X[:0], ValueError, r"it is float32\[0,4\]"),
    "a list": (X.tolist(), TypeError, "holds the float -1.0.*np.asarray"),
    "two inputs": ((X, X), TypeError, "inputs are expected"),
    "a mapping": ({"x": X}, TypeError, "they have 'x' besides|expected to be"),
    "none": (None, TypeError, "expected to be"),
}


@pytest.mark.parametrize("odd", ODD_INPUTS)
def test_odd_inputs_are_told(odd, loaded):
    x, kind, message = ODD_INPUTS[odd]
    for call in (loaded, loaded.predict):
        with pytest.raises(kind, match=message) as raised:
            call(x)
        assert isinstance(raised.value, solstice.SolsticeError)


def test_float64_of_numpy_is_taken_as_jax_takes_it(loaded):
    assert_same_bits([loaded(X)], [loaded(X.astype(np.float64))])


def test_what_an_export_prints(loaded):
    assert repr(loaded).split("(")[0] == "Exported"
    for part in ("of='ClassificationExperiment'", "inputs=float32[batch,4]", "platforms=('cpu',)"):
        assert part in repr(loaded)


def test_platforms(tmp_path):
    exp = linear()
    solstice.export(exp, tmp_path / "several")
    assert solstice.load_exported(tmp_path / "several").platforms == ("cpu", "cuda", "tpu")
    solstice.export(exp, tmp_path / "tpu", platforms=["tpu"])
    with pytest.raises(solstice.errors.InvalidValueError, match="is for tpu, and this process"):
        solstice.load_exported(tmp_path / "tpu")
    with pytest.raises(solstice.errors.InvalidValueError, match="'cuda' or 'rocm' or 'tpu'"):
        solstice.export(exp, tmp_path / "gpu", platforms="gpu")


class Printing(nn.Module):
    @nn.compact
    def __call__(self, x):
        def on_host(x):
            return np.asarray(x)

        x = nn.Dense(2)(x)
        return jax.pure_callback(on_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def test_what_no_program_can_hold_is_told(tmp_path):
    model = compat.as_model(Printing(), X, key=0)
    with pytest.raises(solstice.errors.InvalidValueError, match="callback"):
        exported(model, tmp_path, batch=5)
    assert not os.listdir(tmp_path)


def test_an_example_is_needed_and_told(tmp_path):
    exp = solstice.ClassificationExperiment(eqx.nn.Linear(4, 3, key=jax.random.key(0)), TX)
    with pytest.raises(solstice.errors.InvalidValueError, match="it is None"):
        exported(exp, tmp_path)
    with pytest.raises(solstice.errors.InvalidValueError, match="inputs of preprocess; it is None"):
        exported(linear(), tmp_path, preprocess=lambda x: x)
    assert_same_bits([exp(X)], [exported(exp, tmp_path, example=X[:1])(X)])


def test_types_that_are_turned_off_are_told(tmp_path):
    with jax.enable_x64(True):
        model = compat.as_model(stax.serial(stax.Dense(2)), X.astype(np.float64), key=0)
        exported(model, tmp_path)
    with pytest.raises(solstice.errors.InvalidValueError, match="jax_enable_x64"):
        solstice.load_exported(tmp_path / "export")


def test_what_cannot_be_transformed_is_told(tmp_path):
    with pytest.raises(solstice.errors.InvalidTypeError, match=r"preprocess.*jax\.numpy"):
        exported(linear(), tmp_path, example=X, preprocess=lambda x: np.asarray(x) / 2)
    found = exported(linear(), tmp_path, classes=["a", "b", "c"])
    with pytest.raises(solstice.errors.InvalidTypeError, match=r"class names.*outside"):
        jax.jit(found.predict)(X)
    with pytest.raises(solstice.errors.InvalidTypeError, match=r"jax\.vmap"):
        jax.vmap(found)(X[None])


def test_an_export_has_no_gradient(loaded):
    with pytest.raises(solstice.errors.InvalidTypeError, match=r"no gradient.*stop_gradient"):
        jax.grad(lambda x: loaded(x).sum())(X)
    stopped = jax.grad(lambda x: (x + jax.lax.stop_gradient(loaded(x)).sum()).sum())(X)
    np.testing.assert_array_equal(stopped, np.ones_like(X))


def test_keywords_are_names(loaded, tmp_path):
    for mistake in (
        lambda: loaded(x=X),
        lambda: loaded(X, train=False),
        lambda: loaded.predict(x=X),
    ):
        with pytest.raises(
            solstice.errors.InvalidTypeError, match=r"without keywords.*exported\(x\)"
        ):
            mistake()


@pytest.mark.parametrize("x", [None, {"x": X}])
def test_a_message_names_no_empty_part(x, loaded):
    with pytest.raises(solstice.errors.InvalidTypeError, match=r"float32\[batch,4\]") as raised:
        loaded(x)
    assert "''" not in str(raised.value)
