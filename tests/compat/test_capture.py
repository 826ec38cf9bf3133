"""What sub-modules return: captured and changed, in every library, in and under transformations."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from jax.example_libraries import stax
from networks import LIBRARIES
from networks.common import INPUTS
from networks.lifted import LIFTED, MAKERS, X
from test_laws import marks

import solstice
from solstice import compat
from solstice.compat import capture, intervene
from solstice.compat.surgery.capture import sub_modules
from solstice.compat.surgery.difference import first_difference
from solstice.testing.compare import assert_close, assert_same_bits

KEY = jax.random.key(0)

# The paths of a few networks, in order of execution.
PATHS = {
    ("linen", "mlp"): ["Dense_1", "Dense_0"],
    ("linen", "cnn"): ["Conv_0", "BatchNorm_0", "Dropout_0", "Dense_0"],
    ("linen", "shared"): ["dense#0", "dense#1"],
    ("nnx", "mlp"): ["first", "second"],
    ("nnx", "shared"): ["first#0", "first#1"],
    ("nnx", "recurrent"): ["rnn/cell/dense_i", "rnn/cell/dense_h", "rnn/cell", "rnn", "dense"],
    ("haiku", "mlp"): ["linear_1", "linear"],
    ("haiku", "shared"): ["linear#0", "linear#1"],
    ("equinox", "mlp"): ["layers/layers/0", "layers/layers/1", "layers"],
    ("equinox", "shared"): ["dense#0", "dense#1"],
    ("equinox", "recurrent"): ["cell", "dense"],
    ("keras", "mlp"): ["dense", "dense_1"],
    ("keras", "embedding"): ["embedding", "global_average_pooling1d", "dense"],
    ("keras", "shared"): [
        "functional/dense#0",
        "functional/re_lu",
        "functional",
        "functional/dense#1",
    ],
}


@pytest.mark.parametrize(("library", "kind"), PATHS)
def test_sub_modules_have_the_librarys_paths_in_order_of_execution(library, kind):
    subject = LIBRARIES[library][kind]
    model = subject.make_model(KEY)
    assert list(jax.eval_shape(lambda: capture(model, *subject.inputs))) == PATHS[library, kind]


# By library: a network, the path of its first dense layer, and the params of that layer, as w, b.
FIRST = {
    "linen": ("Dense_1", "Dense_1/kernel", "Dense_1/bias", False),
    "nnx": ("first", "first/kernel", "first/bias", False),
    "haiku": ("linear_1", "linear_1/w", "linear_1/b", False),
    "equinox": ("layers/layers/0", "layers/layers/0/weight", "layers/layers/0/bias", True),
}


@pytest.mark.parametrize("library", FIRST)
def test_what_is_captured_is_what_the_layer_computes(library):
    subject = LIBRARIES[library]["mlp"]
    model, (x,) = subject.make_model(KEY), subject.inputs
    path, weight, bias, turned = FIRST[library]
    leaves = solstice.tree.leaves_by_path(model.params)
    w = np.asarray(leaves[weight])
    found = capture(model, x, where=path)
    assert list(found) == [path]
    expected = np.asarray(x) @ (w.T if turned else w) + np.asarray(leaves[bias])
    np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6)


def test_what_keras_computes_is_captured_by_its_own_means_too():
    network = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(5, "relu")])
    network.add(keras.layers.Dense(2))
    inner = keras.Model(network.inputs, network.layers[0].output)
    found = capture(compat.KerasModel(network), X)
    np.testing.assert_allclose(found["dense"], inner(X), rtol=1e-6)
    assert not [layer for layer in network.layers if "call" in vars(layer)]


@pytest.mark.parametrize(
    ("library", "kind"),
    [
        pytest.param(library, kind, marks=marks(library, kind))
        for library in LIBRARIES
        for kind in ("cnn", "recurrent", "attention")
        if library not in ("stax", "function")
    ],
)
def test_putting_back_changes_no_bit_in_training(library, kind):
    subject = LIBRARIES[library][kind]
    model, mode = subject.make_model(KEY), {"key": jax.random.key(1), "train": True}
    found = capture(model, *subject.inputs, **mode)
    outputs, _ = model(*subject.inputs, **mode)
    back = intervene(model, *subject.inputs, edits=found, **mode)
    assert_same_bits(outputs, back, "the call, and the pass with all put back")


def doubled(value):
    return jax.tree.map(lambda leaf: 2 * leaf, value)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(row, id="-".join(row), marks=[pytest.mark.slow] if "scan" in row else [])
        for row in LIFTED
    ],
)
def lifted(request):
    library, how = request.param
    model = MAKERS[library](how)
    model(X)  # what is jitted inside is compiled without tags
    return how, model


def test_within_a_transformation(lifted):
    how, model = lifted
    found = capture(model, X, where="*block*")
    dense, block = list(found)[-2:]
    np.testing.assert_allclose(found[block], np.tanh(found[dense]), rtol=1e-5, atol=1e-6)
    shapes = {"scan": [(2, 3, 4)], "vmap": [(2, 3, 4), (3, 2, 4), (3, 4)]}
    assert found[block].shape in shapes.get(how, [(3, 4)])
    outputs, _ = model(X)
    assert_same_bits(outputs, intervene(model, X, edits=found), "with all put back")
    others = jax.tree.map(lambda leaf: leaf + 1, found)
    moved = intervene(model, X, edits={block: others[block]})
    assert float(jnp.abs(moved - outputs).max()) > 1e-3


def test_under_jit_grad_and_vmap(lifted):
    _, model = lifted
    path = next(path for path in capture(model, X) if path.endswith("block"))
    eager = capture(model, X, where=path)[path]
    jitted = jax.jit(lambda model, x: capture(model, x, where=path)[path])
    assert_close(eager, jitted(model, X), "captured with and without jit")

    def changed(params, factor, x=X):
        other = solstice.replace(model, params=params)
        return intervene(other, x, edits={path: lambda value: factor * value}).sum()

    _, tangent = jax.jvp(lambda factor: changed(model.params, factor), (1.0,), (1.0,))
    step = 1e-2
    finite = (changed(model.params, 1 + step) - changed(model.params, 1 - step)) / (2 * step)
    np.testing.assert_allclose(tangent, finite, rtol=1e-2)
    grads = jax.grad(changed)(model.params, 0.0)
    assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(grads))  # nothing goes through
    grads, plain = (
        jax.grad(changed)(model.params, 1.0),
        jax.grad(lambda params: solstice.replace(model, params=params)(X)[0].sum())(model.params),
    )
    assert_close(plain, grads, "gradients of the call, and through a change that changes nothing")
    stacked = jax.vmap(lambda factor: changed(model.params, factor))(jnp.array([1.0, 2.0]))
    alone = [changed(model.params, factor) for factor in (1.0, 2.0)]
    np.testing.assert_allclose(stacked, alone, rtol=1e-5)


def test_a_function_is_called_in_each_step_of_a_scan():
    model = MAKERS["linen"]("scan")
    seen = []

    def note(value):
        seen.append(value.shape)
        return 0.5 * value

    outputs = intervene(model, X, edits={"steps/block": note})
    w, b = (np.asarray(leaf) for leaf in jax.tree.leaves(model.params)[::-1])
    x = np.asarray(X)
    for i in range(2):
        x = 0.5 * np.tanh(x @ w[i] + b[i])
    np.testing.assert_allclose(outputs, x, rtol=1e-5)
    assert set(seen) == {(3, 4)}


def test_a_mapped_axis_comes_first():
    def apply(params, x):
        return jax.vmap(lambda column: compat.tag("column", 2 * column), 1, 1)(x)

    model = compat.FunctionModel(lambda key, x: {"w": jnp.ones(1)}, apply, X, key=KEY)
    found = capture(model, X)
    np.testing.assert_array_equal(found["column"], 2 * X.T)
    assert_same_bits(model(X)[0], intervene(model, X, edits=found), "with all put back")


@pytest.mark.slow
def test_masks_of_keras_pass_tags():
    layers = keras.layers
    inner = keras.Sequential([layers.Embedding(4, 3, mask_zero=True), layers.Dense(3)])
    network = keras.Sequential([layers.Input((5,), dtype="int32"), inner, layers.SimpleRNN(2)])
    model, tokens = compat.KerasModel(network), jnp.array([[1, 2, 0, 0, 0], [1, 2, 3, 1, 0]])
    outputs, _ = model(tokens)
    assert_close(outputs, intervene(model, tokens, edits={}), "without and with tags")


def test_a_bare_path_stands_for_all_calls_of_a_shared_layer():
    subject = LIBRARIES["linen"]["shared"]
    model, (x,) = subject.make_model(KEY), subject.inputs
    both = intervene(model, x, edits={"dense": jnp.zeros_like})
    last = intervene(model, x, edits={"dense#1": jnp.zeros_like})
    first = intervene(model, x, edits={"dense#0": jnp.ones_like})
    ones = np.full((4, 4), 1.0, np.float32) @ model.params["dense"]["kernel"]
    assert not both.any() and not last.any()
    np.testing.assert_allclose(first, ones, rtol=1e-6)
    assert list(capture(model, x, where="dense")) == ["dense#0", "dense#1"]
    assert list(capture(model, x, where=lambda path: path.endswith("1"))) == ["dense#1"]


class HaikuChild(hk.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class NNXChild(nnx.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class EquinoxChild(eqx.nn.Linear):
    def __call__(self, x, *, key=None):
        return 2 * super().__call__(x)


class KerasChild(keras.layers.Dense):
    def call(self, x):
        return 2 * super().call(x)


def keras_child():
    network = keras.Sequential([keras.layers.Input((4,)), KerasChild(2)])
    return compat.KerasModel(network)


CHILDREN = {
    "linen": lambda: compat.FlaxModel(
        nn.Sequential([nn.SelfAttention(2, qkv_features=4)]), X[None], key=KEY
    ),
    "nnx": lambda: compat.NNXModel(nnx.Sequential(NNXChild(4, 2, rngs=nnx.Rngs(0)))),
    "haiku": lambda: compat.HaikuModel(hk.transform(lambda x: HaikuChild(2)(x)), X, key=KEY),
    "equinox": lambda: compat.EquinoxModel(eqx.nn.Sequential([EquinoxChild(4, 2, key=KEY)])),
    "keras": keras_child,
}


@pytest.mark.parametrize("library", CHILDREN)
def test_a_call_of_the_parent_class_is_no_call_of_its_own(library):
    model = CHILDREN[library]()
    x = X[None] if library == "linen" else X
    found = capture(model, x)
    assert not [path for path in found if "#" in path]
    np.testing.assert_array_equal(list(found.values())[-1], model(x)[0])


def test_the_first_edit_that_matches_wins():
    subject = LIBRARIES["linen"]["mlp"]
    model, (x,) = subject.make_model(KEY), subject.inputs
    edits = {"Dense_0": lambda value: value + 1, "*": jnp.zeros_like}
    bias = model.params["Dense_0"]["bias"]
    np.testing.assert_allclose(intervene(model, x, edits=edits), np.tile(bias + 1, (4, 1)))
    with pytest.raises(
        ValueError, match=r"edits\['Dense_0'\] matches only values that earlier edits"
    ):
        intervene(model, x, edits=dict(reversed(edits.items())))


def test_layers_of_stax_are_named_before_they_are_joined():
    def network(mode):
        return stax.serial(
            compat.tag("hidden", stax.Dense(5)),
            stax.Relu,
            stax.Dropout(0.5, mode=mode),
            compat.tag("head", stax.Dense(2)),
        )

    model = compat.StaxModel(network("train"), X, key=KEY, eval_apply=network("test")[1])
    found = capture(model, X)
    w, b = model.params[3]
    np.testing.assert_allclose(found["head"], np.maximum(found["hidden"], 0) @ w + b, rtol=1e-5)
    assert_same_bits(model(X)[0], intervene(model, X, edits=found), "with all put back")


def test_a_tag_is_nothing_where_nobody_looks():
    x = jnp.ones(3)
    assert compat.tag("x", x) is x
    program = jax.make_jaxpr(lambda x: compat.tag("x", x + 1))(x)
    assert "tag" not in str(program)


def test_a_network_that_differentiates_itself():
    """As one for forces, which are the derivative of an energy."""

    def energy(w, x):
        return compat.tag("energy", jnp.tanh(compat.tag("hidden", x @ w)).sum())

    def apply(params, x):
        return compat.tag("forces", -jax.grad(energy, argnums=1)(params, x))

    model = compat.FunctionModel(lambda key, x: jnp.ones((4, 2)), apply, X, key=KEY)
    found = capture(model, X)
    assert list(found) == ["hidden", "energy", "forces"]
    np.testing.assert_allclose(found["hidden"], X @ jnp.ones((4, 2)), rtol=1e-6)
    assert_same_bits(model(X)[0], found["forces"], "the outputs, and the last value")
    doubled_forces = intervene(model, X, edits={"forces": doubled})
    np.testing.assert_allclose(doubled_forces, 2 * found["forces"])
    with pytest.raises(ValueError, match="network itself differentiates"):
        intervene(model, X, edits={"hidden": jnp.zeros_like})


def test_a_derivative_of_ones_own_stays_and_what_is_inside_has_none():
    @jax.custom_vjp
    def straight(x):
        return compat.tag("inside", jnp.tanh(x))

    straight.defvjp(lambda x: (straight(x), None), lambda _, grad: (7 * grad,))

    def apply(params, x):
        return compat.tag("out", straight(params["w"] * x))

    model = compat.FunctionModel(lambda key, x: {"w": jnp.ones(4)}, apply, X, key=KEY)
    found = capture(model, X)
    np.testing.assert_array_equal(found["inside"], jnp.tanh(X))

    def after(params, **options):
        return capture(solstice.replace(model, params=params), X, **options)

    grads = jax.grad(lambda params: after(params, where="out")["out"].sum())(model.params)
    np.testing.assert_allclose(grads["w"], 7 * X.sum(0), rtol=1e-5)
    with pytest.raises(TypeError, match="with a custom derivative"):
        jax.grad(lambda params: after(params)["inside"].sum())(model.params)
    assert not intervene(model, X, edits={"inside": jnp.zeros_like}).any()


def within(loop):
    def apply(params, x):
        block = lambda x: compat.tag("inner", jnp.sin(x))  # noqa: E731
        if loop == "while":
            x = jax.lax.while_loop(lambda x: x.sum() > 100, block, x)
        else:
            x = jax.lax.cond(x.sum() > 0, block, jnp.cos, x)
        return compat.tag("outer", x)

    return compat.FunctionModel(lambda key, x: {"w": jnp.ones(1)}, apply, X, key=KEY)


@pytest.mark.parametrize("loop", ["while", "cond"])
def test_what_is_in_a_loop_of_unknown_length_or_a_branch_is_refused(loop):
    model = within(loop)
    for choose in (capture, lambda *a: intervene(*a, edits={"inner": jnp.zeros_like})):
        with pytest.raises(ValueError, match=f"'inner', which is inside a '{loop}' of jax"):
            choose(model, X)
    assert list(capture(model, X, where="outer")) == ["outer"]


def test_unknown_paths_are_told_with_those_near_them():
    subject = LIBRARIES["nnx"]["attention"]
    model = subject.make_model(KEY)
    with pytest.raises(ValueError, match=r"the glob 'atend/query', .* none of attend/q"):
        intervene(model, *subject.inputs, edits={"atend/query": jnp.zeros_like})
    with pytest.raises(ValueError, match=r"'\*\*\*x', .* sub-modules, .* none of .*attend/query"):
        capture(model, *subject.inputs, where="***x")
    with pytest.raises(ValueError, match=r"where, the function, .* selects none of attend/query"):
        capture(model, *subject.inputs, where=lambda path: False)


@pytest.mark.parametrize("library", ["stax", "function"])
def test_a_network_without_names_is_told_of_tag(library):
    subject = LIBRARIES[library]["mlp"]
    with pytest.raises(ValueError, match=r"called no sub-modules .* compat\.tag"):
        capture(subject.make_model(KEY), *subject.inputs)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (jnp.zeros((4, 6)), r"float32\[4,5\], as the value at 'first'; it is float32\[4,6\]"),
        (lambda value: value[:, :2], r"edits\['first'\] returns is expected to be float32\[4,5\]"),
        (lambda value: value.astype(jnp.bfloat16), r"it is bfloat16\[4,5\]"),
        (
            lambda value: (value, value),
            r"the value at 'first', float32\[4,5\]; it is \(float32\[4,5\], float32\[4,5\]\)",
        ),
        (0.0, r"it is float32\[\]"),
    ],
)
def test_shapes_and_types_must_stay(edit, message):
    subject = LIBRARIES["nnx"]["mlp"]
    with pytest.raises(ValueError, match=message):
        intervene(subject.make_model(KEY), *subject.inputs, edits={"first": edit})


@pytest.mark.parametrize(
    ("given", "edit"),
    [
        (np.ones(3, np.float32), np.zeros(3, np.float32)),
        (2, 3),
        (2.0, jnp.array(3.0)),
    ],
    ids=["numpy", "int", "float"],
)
def test_a_change_of_what_is_no_array_is_refused(given, edit):
    def apply(params, x):
        value = compat.tag("value", {"gain": given, "x": x @ params["w"]})
        return value["x"] * value["gain"]

    x = jnp.ones((2, 3))
    model = compat.FunctionModel(lambda key, x: {"w": jnp.eye(3)}, apply, x, key=0)
    seen = capture(model, x)
    for new in ({**seen["value"], "gain": edit}, lambda value: {**value, "gain": edit}):
        with pytest.raises(ValueError, match="to keep the part that is not a jax array"):
            intervene(model, x, edits={"value": new})
    for same in (seen, jax.jit(capture)(model, x)):
        np.testing.assert_array_equal(intervene(model, x, edits=same), model(x)[0])
    assert not sub_modules(model, x)  # which the laws change
    doubled = {"value": lambda value: {**value, "x": 2 * value["x"]}}
    np.testing.assert_array_equal(intervene(model, x, edits=doubled), 2 * model(x)[0])


MODULES = {
    "nnx": lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
    "equinox": lambda: eqx.nn.Linear(3, 2, key=KEY),
    "linen": lambda: nn.Dense(2),
    "keras": lambda: keras.layers.Dense(2),
    "class": lambda: nn.Dense,
    "partial": lambda: functools.partial(nn.Dense(2), train=True),
}


@pytest.mark.parametrize("library", MODULES)
def test_a_module_is_no_function_to_tag(library):
    """As an attribute, the function would hide the module's parameters."""
    with pytest.raises(TypeError, match=r"Tag its output: compat\.tag\('hidden', layer"):
        compat.tag("hidden", MODULES[library]())


@pytest.mark.parametrize(
    "function",
    [jax.nn.relu, jnp.tanh, jnp.add, jax.jit(jnp.sin), functools.partial(jnp.sum, axis=0), abs,
     jax.custom_vjp(jnp.sin), np.tanh, np.vectorize(abs), functools.cache(abs)],
    ids=lambda function: type(function).__name__,
)  # fmt: skip
def test_functions_of_each_kind_are_tagged(function):
    assert callable(compat.tag("hidden", function))


def test_where_says_what_it_may_be():
    subject = LIBRARIES["nnx"]["mlp"]
    with pytest.raises(TypeError, match=r"where is expected to be a glob .* it is the int 3"):
        capture(subject.make_model(KEY), *subject.inputs, where=3)


class EquinoxTwin(eqx.Module):
    """The Linen network of `twins` in Equinox, with channels first and an epsilon of its own."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __call__(self, x):
        x = self.conv(jnp.moveaxis(x, -1, 0))
        return self.head(self.norm(jnp.moveaxis(x, 0, -1).ravel()))


def twins(eps):
    x = INPUTS["cnn"][0]
    network = nn.Sequential(
        [nn.Conv(2, (3, 3)), lambda x: x.reshape(len(x), -1), nn.LayerNorm(eps), nn.Dense(3)]
    )
    linen = compat.FlaxModel(network, x, key=KEY)
    conv, norm, head = (linen.params[f"layers_{i}"] for i in (0, 2, 3))
    module = EquinoxTwin(
        eqx.nn.Conv2d(1, 2, 3, padding=1, key=KEY),
        eqx.nn.LayerNorm(32, eps=1e-5),
        eqx.nn.Linear(32, 3, key=KEY),
    )
    module = eqx.tree_at(
        lambda one: (
            one.conv.weight,
            one.conv.bias,
            one.norm.weight,
            one.head.weight,
            one.head.bias,
        ),
        module,
        (
            conv["kernel"].transpose(3, 2, 0, 1),
            conv["bias"].reshape(2, 1, 1),
            norm["scale"],
            head["kernel"].T,
            head["bias"],
        ),
    )
    return capture(linen, x), capture(compat.EquinoxModel(module), x)


@pytest.mark.slow
def test_the_first_layer_that_differs_between_libraries():
    assert first_difference(*twins(1e-5)) is None
    found, others = twins(1e-1)
    different = first_difference(found, others)
    assert (different.path, different.nearest) == ("layers_2", "norm")
    assert different.distance > 1e-3
    assert first_difference(others, found).path == "norm"
    spoilt = found | {"layers_0": jnp.full_like(found["layers_0"], jnp.nan)}
    assert first_difference(spoilt, others).path == "layers_0"


def test_a_model_stays_as_it_was():
    for library in ("linen", "nnx", "haiku", "equinox", "keras"):
        subject = LIBRARIES[library]["mlp"]
        model = subject.make_model(KEY)
        before, outputs = jax.tree.structure(model), model(*subject.inputs)[0]
        capture(model, *subject.inputs)
        assert jax.tree.structure(model) == before
        assert_same_bits(outputs, model(*subject.inputs)[0], "before and after")


def test_classes_with_tags_are_made_once():
    subject = LIBRARIES["equinox"]["mlp"]
    model = subject.make_model(KEY)
    capture(model, *subject.inputs)
    count = len(eqx.nn.Linear.__subclasses__())
    capture(model, *subject.inputs)
    assert len(eqx.nn.Linear.__subclasses__()) == count


def test_inputs_are_as_the_call_takes_them():
    assert INPUTS["attention"]
    subject = LIBRARIES["haiku"]["attention"]
    found = capture(subject.make_model(KEY), *subject.inputs, where="multi_head_attention/*")
    assert found["multi_head_attention/key"].shape == (4, 3, 8)
