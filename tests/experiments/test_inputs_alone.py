"""`predict` over inputs alone and over whole batches: the same, whatever form the inputs have."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import solstice
from solstice.compat import FunctionModel
from solstice.data.datasets import check_dataset


class Graph(NamedTuple):
    nodes: jax.Array
    scale: jax.Array


class Pair(NamedTuple):
    """A batch that is a named tuple, as many programs have them."""

    inputs: jax.Array
    targets: jax.Array


NODES, SCALE = np.arange(12.0, dtype="float32").reshape(4, 3), np.full(4, 10, "float32")
TARGETS = np.zeros((4, 2), "float32")
# What the network gets, and how it finds nodes and scale in it; one that gets something else does
# not complain, so that only the predictions tell.
FORMS = {
    "array": (NODES, lambda x: (x, None)),
    "named tuple": (Graph(NODES, SCALE), lambda x: x if isinstance(x, Graph) else (x, None)),
    "dict": ({"nodes": NODES, "scale": SCALE}, lambda x: (x["nodes"], x["scale"])),
    "dict with an x": ({"x": NODES, "scale": SCALE}, lambda x: (x["x"], x["scale"])),
    "two inputs": ((NODES, SCALE), lambda x, scale=None: (x, scale)),
}


def network(parts):
    def apply(params, *inputs):
        nodes, scale = parts(*inputs)
        return (nodes if scale is None else nodes * scale[:, None]) @ params

    return lambda key, *_: jnp.arange(6.0).reshape(3, 2), apply


def experiment(form, *, known):
    inputs, parts = FORMS[form]
    model = FunctionModel(*network(parts), inputs, key=0)
    return solstice.RegressionExperiment(
        model, optax.sgd(0.1), example_input=inputs if known else None
    )


def assert_predicts(exp, inputs, batch):
    given = solstice.predict(exp, [batch, batch], progress=False)
    np.testing.assert_array_equal(given, np.concatenate([exp.predict(inputs)] * 2))


@pytest.mark.parametrize("form", FORMS)
def test_inputs_alone_are_predicted_as_with_targets(form):
    exp, inputs = experiment(form, known=True), FORMS[form][0]
    for batch in (
        inputs,
        (inputs,),
        [inputs],
        (inputs, TARGETS),
        [inputs, TARGETS],
        (inputs, TARGETS, np.ones(4, bool)),
        Pair(inputs, TARGETS),
        {"x": inputs},
        {"x": inputs, "y": TARGETS},
    ):
        assert_predicts(exp, inputs, batch)


@pytest.mark.parametrize("form", ["array", "named tuple", "dict"])
def test_without_an_example_they_are_one_input_too(form):
    exp, inputs = experiment(form, known=False), FORMS[form][0]
    for batch in (inputs, (inputs, TARGETS), {"x": inputs}, {"x": inputs, "y": TARGETS}):
        assert_predicts(exp, inputs, batch)


def test_a_batch_of_targets_without_inputs_is_refused():
    exp = experiment("dict", known=True)
    with pytest.raises(ValueError, match="is expected to have 'x'; it has 'nodes', 'y'"):
        solstice.predict(exp, [{"nodes": NODES, "y": TARGETS}], progress=False)


def test_a_named_tuple_is_one_input_to_any_experiment(adding):
    class Summing(type(adding)):
        def predict(self, inputs):
            return jax.tree.map(lambda leaf: leaf + self.total, inputs)

    exp, graph = Summing(jnp.asarray(1), adding.evaluated), Graph(NODES, SCALE)
    predicted = solstice.predict(exp, [graph], progress=False)
    np.testing.assert_array_equal(predicted.scale, SCALE + 1)
    predicted = solstice.predict(exp, [(graph, TARGETS)], progress=False)
    np.testing.assert_array_equal(predicted.nodes, NODES + 1)


def test_a_single_batch_is_no_dataset():
    with pytest.raises(TypeError, match=r"the named tuple Graph, which is one batch\. Put it in"):
        check_dataset(Graph(NODES, SCALE), "ds")


def test_a_single_input_may_have_its_name():
    exp = experiment("array", known=True)
    np.testing.assert_array_equal(exp({"x": NODES}), exp(NODES))
    np.testing.assert_array_equal(exp.predict({"x": NODES, "y": TARGETS}), exp.predict(NODES))
    # A network that takes a mapping gets it whole.
    exp = experiment("dict with an x", known=True)
    np.testing.assert_array_equal(exp(FORMS["dict with an x"][0]), (NODES * 10) @ exp.model.params)


@pytest.mark.parametrize("x", [{"nodes": NODES}, [NODES], {}])
def test_inputs_of_another_form_than_the_examples_are_refused(x):
    said = r"an array like .* example, float32\[4,3\], or a mapping with 'x'; it is .* batch_keys"
    with pytest.raises(TypeError, match=said):
        experiment("array", known=True)(x)


def test_without_an_example_the_networks_own_error_says_what_it_got():
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    with pytest.raises(TypeError, match="dict") as caught:
        solstice.RegressionExperiment(linear, optax.sgd(0.1))({"x": NODES})
    assert any("The network was called on" in note for note in caught.value.__notes__)


def with_example(apply, example, **options):
    model = FunctionModel(lambda key, *_: jnp.ones((3, 2)), apply, example, key=0)
    return solstice.RegressionExperiment(
        model, optax.sgd(0.1), example_input=example, key=0, **options
    )


def scaled(w, nodes, scale):
    return (nodes @ w) * scale[:, None]


TWO = r"2 inputs as a tuple, \(float32\[4,3\], float32\[4\]\)"
UNLIKE = {
    "a name is missing": ({"nodes": NODES}, rf"{TWO}, or .*'nodes', 'scale'; it .*lack 'scale'"),
    "one array": (NODES, rf"{TWO}.*; it is float32\[4,3\]\."),
    "a list": ([NODES, SCALE], rf"{TWO}.*; it is \[float32\[4,3\], float32\[4\]\]\."),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_inputs_that_several_inputs_of_a_network_are_not(kind):
    x, message = UNLIKE[kind]
    exp = with_example(scaled, (NODES, SCALE), batch_keys=(("nodes", "scale"), "label"))
    for call in exp, exp.predict:
        with pytest.raises(solstice.errors.InvalidTypeError, match=message):
            call(x)
    named = {"scale": SCALE, "nodes": NODES, "label": TARGETS}
    np.testing.assert_array_equal(exp(named), exp((NODES, SCALE)))


def test_inputs_by_names_that_nobody_gave():
    exp = with_example(scaled, (NODES, SCALE))
    with pytest.raises(solstice.errors.InvalidTypeError, match=rf"{TWO}; .* batch_keys=\(\("):
        exp({"nodes": NODES, "scale": SCALE})


@pytest.mark.parametrize(
    ("x", "message"),
    [({"node": NODES}, "lack 'nodes' and they have 'node'"), (NODES, "it is float")],
)
def test_a_network_of_a_mapping_gets_something_else(x, message):
    exp = with_example(lambda w, d: d["nodes"] @ w, {"nodes": NODES})
    with pytest.raises(solstice.errors.InvalidTypeError, match=rf"like .*'nodes'.*{message}"):
        exp(x)
    assert exp({"nodes": NODES, "more": SCALE}).shape == (4, 2)
