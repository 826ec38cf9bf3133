"""Exports compute what was exported, bit for bit, and need no network library."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax
from networks import LIBRARIES
from networks.common import TX, assert_same_bits

import solstice
from solstice import compat
from solstice.exporting import folder as folders
from solstice.exporting.folder import ABOUT, WEIGHTS, read, write
from solstice.tree.staging import tidy

SIX = "linen", "nnx", "haiku", "equinox", "stax", "keras"
X = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)


def leaves_of(tree):
    return jax.tree.leaves(tree)


def moved(tree, by):
    """A tree with other numbers, as training leaves them."""
    return jax.tree.map(
        lambda leaf: leaf + by * jnp.abs(leaf) if eqx.is_inexact_array(leaf) else leaf, tree
    )


def make(library, kind="cnn", **options):
    """An experiment whose average differs from its parameters, and whose state is no start."""
    model = LIBRARIES[library][kind].make_model(jax.random.key(0))
    exp = solstice.ClassificationExperiment(model, TX, key=1, ema_decay=0.9, **options)
    model = solstice.replace(exp.model, state=moved(exp.model.state, 0.2))
    return solstice.replace(exp, model=model, ema=moved(exp.ema, 0.1))


def sized(tree, size):
    """A batch of another size."""
    return jax.tree.map(lambda leaf: np.resize(np.asarray(leaf), (size, *leaf.shape[1:])), tree)


def exported(thing, tmp_path, **options):
    options = {"platforms": "cpu"} | options
    solstice.export(thing, tmp_path / "export", **options)
    return solstice.load_exported(tmp_path / "export")


def linear(num_classes=3, **options):
    return solstice.ClassificationExperiment(
        stax.serial(stax.Dense(num_classes)), TX, example_input=X, key=0, **options
    )


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


def test_several_unknown_sizes(tmp_path):
    batch, time = jax.export.symbolic_shape("batch, time")
    model = compat.as_model(nn.Embed(7, 2), np.zeros((1, 1), int), key=0)
    example = jax.ShapeDtypeStruct((batch, time), "int32")
    found = exported(model, tmp_path, example=example)
    assert repr(found.inputs) == "int32[batch,time]"
    for shape in ((2, 3), (3, 5)):
        assert found(np.ones(shape, int)).shape == (*shape, 2)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(len(x), -1))


def test_a_network_that_counts_by_len_is_told_what_to_write(tmp_path):
    model = compat.as_model(Counting(), X, key=0)
    with pytest.raises(
        solstice.errors.InvalidValueError, match=r"x.shape\[0\] or -1 instead of len\(x\)"
    ):
        exported(model, tmp_path)


class Pairs(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(2, -1, 4)).reshape(-1, 2)


def test_a_network_that_asks_for_the_number_of_examples_takes_a_fixed_one(tmp_path):
    model = compat.as_model(Pairs(), X[:4], key=0)
    with pytest.raises(
        solstice.errors.InvalidValueError, match=r"FlaxModel with \(float32\[batch,4\].*batch=32"
    ):
        exported(model, tmp_path)
    assert not os.listdir(tmp_path)
    for name, batch in ("four", 4), ("example", "example"):
        found = exported(model, tmp_path / name, batch=batch)
        assert_same_bits([jax.jit(lambda x: model(x)[0])(X[:4])], [found(X[:4])])
        with pytest.raises(solstice.errors.InvalidValueError, match=r"float32\[4,4\]; it is"):
            found(X)


def test_arrays_that_are_no_examples_keep_their_shapes(tmp_path):
    model = compat.FunctionModel(
        lambda key, nodes, edges: jnp.ones(()),
        lambda scale, nodes, edges: scale * nodes[edges].sum(1),
        (X, np.zeros((9, 2), int)),
        key=jax.random.key(0),
    )
    with pytest.raises(solstice.errors.InvalidValueError, match="batch='example'"):
        exported(model, tmp_path)
    edges = np.arange(18).reshape(9, 2) % 5
    found = exported(model, tmp_path, batch="example")
    assert_same_bits([jax.jit(lambda *x: model(*x)[0])(X, edges)], [found(X, edges)])


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


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return exported(linear(), tmp_path_factory.mktemp("loaded"))


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


def about_of(folder):
    return json.loads((folder / ABOUT).read_text())


def test_only_what_evaluation_needs_is_written(tmp_path):
    exp = make("linen", "mlp")
    exported(exp, tmp_path)
    held = solstice.tree.load(tmp_path / "export" / WEIGHTS)
    names = {name for name in held if name != "of export"}
    assert names == {f"ema/{path}" for path in solstice.tree.paths(exp.ema)}


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def reword(path):
    path.write_text(path.read_text().replace("ClassificationExperiment", "RegressionExperiment"))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def newer(path):
    path.write_text(path.read_text().replace("solstice export 1", "solstice export 2"))


DAMAGE = {
    f"{do.__name__} {name}": (name, do)
    for name in (ABOUT, WEIGHTS, "outputs.jax_export")
    for do in (Path.unlink, cut, flip, pipe)
} | {"changed": (ABOUT, reword)}


@pytest.fixture
def folder(loaded, tmp_path):
    """A copy of an export."""
    import shutil

    return Path(shutil.copytree(loaded.path, tmp_path / "copy"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_told(damage, folder):
    name, do = DAMAGE[damage]
    do(folder / name)
    with pytest.raises(solstice.DamagedFileError) as raised:
        solstice.load_exported(folder)
    assert str(folder) in str(raised.value)


def test_weights_of_another_export_are_told(folder, tmp_path):
    exported(linear(), tmp_path / "other")
    (tmp_path / "other" / "export" / WEIGHTS).replace(folder / WEIGHTS)
    with pytest.raises(solstice.DamagedFileError, match="belongs to another export"):
        solstice.load_exported(folder)


def test_a_newer_format_and_another_folder_are_told(folder, tmp_path):
    newer(folder / ABOUT)
    with pytest.raises(solstice.errors.InvalidValueError, match="'solstice export 2'"):
        solstice.load_exported(folder)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(solstice.DamagedFileError, match=r"a file export.json; it has notes.txt"):
        solstice.load_exported(tmp_path / "foreign")
    with pytest.raises(solstice.errors.MissingFileError, match="there is none at"):
        solstice.load_exported(tmp_path / "nowhere")


def test_nothing_of_somebody_elses_is_replaced(tmp_path):
    exp, place = linear(), tmp_path / "export"
    (tmp_path / "file").write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    for path in (tmp_path / "file", foreign):
        with pytest.raises(solstice.errors.ExistingFileError, match="did not write"):
            solstice.export(exp, path, platforms="cpu", overwrite=True)
    place.mkdir()  # an empty one will do
    first = exported(exp, tmp_path)
    with pytest.raises(solstice.errors.ExistingFileError, match="overwrite=True"):
        solstice.export(exp, place, platforms="cpu")
    (place / "notes.txt").write_text("mine")
    with pytest.raises(solstice.errors.ExistingFileError, match="did not write"):
        solstice.export(exp, place, platforms="cpu", overwrite=True)
    (place / "notes.txt").unlink()
    new = solstice.replace(
        exp, model=solstice.replace(exp.model, params=moved(exp.model.params, 1))
    )
    solstice.export(new, place, platforms="cpu", overwrite=True)
    assert_same_bits([new(X)], [solstice.load_exported(place)(X)])
    assert_same_bits([exp(X)], [first(X)])
    assert sorted(os.listdir(tmp_path)) == ["export", "file", "foreign"]
    with pytest.raises(solstice.errors.InvalidValueError, match="a folder on this machine"):
        solstice.export(exp, "s3://bucket/export")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    exp = linear()
    first = exported(exp, tmp_path)
    monkeypatch.setattr("solstice.exporting.folder.save", full)
    with pytest.raises(OSError, match="No space"):
        solstice.export(exp, tmp_path / "export", platforms="cpu", overwrite=True)
    assert os.listdir(tmp_path) == ["export"]
    assert_same_bits([first(X)], [solstice.load_exported(tmp_path / "export")(X)])


STOPPING = """
    import os, pathlib, sys, time
    import equinox as eqx, jax, numpy as np
    import solstice
    from solstice.exporting import folder

    path, where = sys.argv[1:]

    def stop(*arguments):
        print("here", flush=True)
        time.sleep(600)

    if where == "writing":
        folder._write = stop
    else:  # the older one is out of the way, and the new one has not got its name
        pathlib.Path.rename = lambda self, to: stop() if self.name == "new" else os.rename(self, to)
    model = solstice.compat.EquinoxModel(eqx.nn.Linear(4, 2, key=jax.random.key(0)))
    example = np.ones((1, 4), np.float32)
    solstice.export(model, path, example=example, platforms="cpu", overwrite=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["writing", "renaming"])
def test_what_a_killed_export_left_is_deleted_by_the_next_and_what_a_live_one_writes_is_not(
    where, tmp_path
):
    exp, path = linear(), tmp_path / "export"
    solstice.export(exp, path, platforms="cpu")
    program = [sys.executable, "-c", textwrap.dedent(STOPPING), str(path), where]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"here\n"
            (staging,) = tmp_path.glob(".export.*.tmp")
            whole = {*staging.rglob("*")}
            solstice.export(exp, tmp_path / "another", platforms="cpu")
            tidy(path)  # as the next export does, while the other one lives
            assert {*staging.rglob("*")} == whole
        finally:
            process.send_signal(signal.SIGKILL)
    assert path.exists() == (where == "writing") and staging.exists()
    with pytest.raises(solstice.errors.ExistingFileError, match="is an export"):
        solstice.export(exp, path, platforms="cpu")  # the older one, which has its name again
    assert sorted(os.listdir(tmp_path)) == ["another", "export"]
    assert_same_bits([exp(X)], [solstice.load_exported(path)(X)])


def test_what_has_come_into_an_export_since_is_not_replaced(tmp_path):
    place = tmp_path / "export"
    solstice.export(linear(), place, platforms="cpu")
    content = read(place)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(solstice.errors.ExistingFileError, match="did not write"):
        write(place, content)
    assert os.listdir(tmp_path) == ["export"]
    assert (place / "notes.txt").read_text() == "mine"


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


def function_model(function, x=X):
    return compat.FunctionModel(lambda key, x: jnp.ones((4, 3)), function, x, key=0)


BRANCHES = {
    "another value": lambda w, x: x @ w * (2 if x.shape[0] == 1 else 1),
    "another operation": lambda w, x: jnp.tanh(x @ w) if x.shape[0] == 1 else x @ w,
}


@pytest.mark.parametrize("kind", BRANCHES)
def test_a_network_that_treats_one_example_otherwise_is_refused(kind, tmp_path):
    model = function_model(BRANCHES[kind])
    with pytest.raises(solstice.errors.InvalidValueError, match=r"for one example.*batch=32"):
        exported(model, tmp_path)
    assert not os.listdir(tmp_path)
    found = exported(model, tmp_path, batch=1)
    np.testing.assert_allclose(found(X[:1]), model(X[:1])[0], rtol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 5])  # the example has 5
def test_a_network_that_branches_on_another_number_is_refused(size, tmp_path):
    model = function_model(lambda w, x: x @ w * (100 if x.shape[0] == size else 1))
    with pytest.raises(
        solstice.errors.InvalidValueError, match=rf"for {size} examples.*\(x\.shape"
    ):
        exported(model, tmp_path)
    assert not os.listdir(tmp_path)


def test_a_network_that_computes_with_the_number_of_examples_is_exported(tmp_path):
    model = function_model(lambda w, x: x @ w / x.shape[0])
    found = exported(model, tmp_path)
    for size in 1, 2, 5:
        np.testing.assert_allclose(found(X[:size]), model(X[:size])[0], rtol=1e-5)


def test_a_network_that_computes_the_same_by_other_operations_is_exported(tmp_path):
    model = function_model(lambda w, x: x @ w if x.shape[0] == 1 else (w.T @ x.T).T)
    found = exported(model, tmp_path)
    for size in 1, 5:
        np.testing.assert_allclose(found(X[:size]), model(X[:size])[0], rtol=1e-5)


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/export", r"'.*file' is none"),
        ("file/deep/export", r"'.*file' is none"),
        ("é" * 150, r"refuses the name .*too long"),
        ("new/" + "n" * 300, r"refuses the name .*too long"),
    ],
)
def test_a_path_that_cannot_be_is_told_before_any_work(name, message, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("solstice.exporting.export._traced", None)
    with pytest.raises(solstice.errors.InvalidValueError, match=message):
        solstice.export(linear(), tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("gap", [False, True])
def test_a_folder_that_is_replaced_meanwhile_is_read_again(gap, tmp_path, monkeypatch):
    exported(linear(), tmp_path / "a")
    last = exported(linear(), tmp_path / "b")
    place, load = tmp_path / "a" / "export", folders.load

    def replace():
        os.rename(tmp_path / "b" / "export", place)

    def replacing(path):
        monkeypatch.setattr(folders, "load", load)
        os.rename(place, tmp_path / "old")
        replace()
        return load(path)

    if gap:  # nothing has the name for a moment
        os.rename(place, tmp_path / "old")
        monkeypatch.setattr(folders.time, "sleep", lambda _: replace())
    else:
        monkeypatch.setattr(folders, "load", replacing)
    assert_same_bits([last(X)], [solstice.load_exported(place)(X)])


def test_long_names_of_folders_are_cut_by_bytes(tmp_path):
    solstice.export(linear(), tmp_path / ("é" * 120), platforms="cpu")
    model = compat.as_model(stax.serial(stax.Dense(2)), X, key=0)
    compat.save(model, tmp_path / ("é" * 110 + ".safetensors"))
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("x", [None, {"x": X}])
def test_a_message_names_no_empty_part(x, loaded):
    with pytest.raises(solstice.errors.InvalidTypeError, match=r"float32\[batch,4\]") as raised:
        loaded(x)
    assert "''" not in str(raised.value)


def test_a_batch_without_examples_is_told_why(loaded):
    with pytest.raises(solstice.errors.InvalidValueError, match=r"batch is 0; .* at least 1"):
        loaded(X[:0])


def test_the_package_that_jax_exports_with_is_asked_for(loaded, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    without = lambda name, *rest: None if name == "flatbuffers" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    for use in (lambda: exported(linear(), tmp_path, example=X), lambda: load_again(loaded)):
        with pytest.raises(ImportError, match=r"'flatbuffers'.*jax-solstice\[checkpoint\]"):
            use()


def load_again(found):
    return solstice.load_exported(found.path)


class Normalised(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        self.linear = eqx.nn.Linear(4, 8, key=key)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")

    def __call__(self, x, state):
        return self.norm(jax.numpy.sin(self.linear(x)), state)


@pytest.mark.parametrize(
    "options", [{}, {"batch": 7}, {"platforms": "cpu"}, {"batch": 7, "platforms": "cpu"}], ids=str
)
def test_a_trained_batch_norm_of_equinox_gives_the_same_bits(options, tmp_path):
    # Both of its moments are divided by one correction, which XLA may turn into a product.
    network = eqx.nn.make_with_state(Normalised)(jax.random.key(0))
    exp = solstice.ClassificationExperiment(network, TX, example_input=X[:1])
    x = np.random.default_rng(1).normal(size=(7, 4)).astype("float32")
    y = np.arange(7) % 3
    for i in range(3):
        exp = exp.train(2 + i, [(x, y)], progress=False)
        path = tmp_path / str(i)
        solstice.export(exp, path, **options)
        assert np.array_equal(solstice.load_exported(path)(x), exp(x))
