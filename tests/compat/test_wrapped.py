"""LoRA, quantized weights and their merging, the same in every library."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import LIBRARIES
from networks.common import assert_same_bits

import solstice
from solstice import compat
from solstice.testing import check_model
from solstice.tree import leaves_by_path, nbytes, paths

KEY = jax.random.key(0)
TX = optax.adam(0.1)
X, Y = jnp.eye(8), jnp.arange(8) % 3
# The wrapper knows no library: two are enough here, and the soak runs the others.
EVERY = [
    pytest.param(library, marks=() if library in ("linen", "equinox") else pytest.mark.soak)
    for library in LIBRARIES
]


def stirred(model, key=7):
    """Return a model with other parameters: factors of 0 hide an adapter that does nothing."""
    leaves, structure = jax.tree.flatten(model.params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    moved = [
        leaf + 0.3 * jax.random.normal(one, leaf.shape, leaf.dtype)
        for leaf, one in zip(leaves, keys, strict=True)
    ]
    return solstice.replace(model, params=jax.tree.unflatten(structure, moved))


def lora(model, key=KEY):
    return stirred(compat.lora(model, rank=1, key=jax.random.fold_in(key, 1)))


WRAPPERS = {
    "lora": lora,
    "int8": lambda model, key=KEY: compat.quantize(model),
    "int4 lora": lambda model, key=KEY: lora(compat.quantize(model, bits=4), key),
}


@functools.cache
def initialiser(sizes):
    def init(key, x):
        pairs = zip((x.shape[-1], *sizes), sizes, strict=False)
        keys = jax.random.split(key, len(sizes))
        return [jax.random.normal(key, pair) for key, pair in zip(keys, pairs, strict=True)]

    return init


def layers(params, x):
    for weight in params:
        x = jnp.tanh(x @ weight)
    return x


def network(sizes=(8, 3), key=KEY):
    """A network of plain functions, whose weights are named `0`, `1`, ..."""
    return compat.FunctionModel(initialiser(sizes), layers, X, key=key)


def parameters(values, call=lambda params, x: params["w"][x]):
    """A model of one weight, a table to look values up in."""
    return compat.FunctionModel(lambda key, x: {"w": values}, call, jnp.zeros(1, jnp.int32), key=0)


def outputs(model, inputs, *, train=False):
    return jax.jit(lambda model, *x: model(*x, key=KEY, train=train)[0])(model, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "library",
    [
        pytest.param(library, marks=() if library == "keras" else pytest.mark.soak)
        for library in LIBRARIES
    ],
)
def test_every_law_holds_of_a_wrapped_network(library):
    subject = LIBRARIES[library]["cnn"]
    check_model(
        lambda key: WRAPPERS["int4 lora"](subject.make_model(key), key),
        subject.inputs,
        exclude=("eval_is_per_example",) if library == "stax" else (),  # see `law_table`
        native=subject.call,
        examples=1,
    )


@pytest.mark.soak
@pytest.mark.parametrize("wrapper", ["lora", "int8"])
def test_every_law_holds_of_each_wrapper(wrapper):
    subject = LIBRARIES["linen"]["mlp"]
    check_model(
        lambda key: WRAPPERS[wrapper](subject.make_model(key), key),
        subject.inputs,
        native=subject.call,
        examples=1,
    )


@pytest.mark.parametrize("library", EVERY)
def test_fresh_factors_change_no_bit_of_the_outputs(library):
    for kind in ("mlp", "cnn", "shared"):
        subject = LIBRARIES[library][kind]
        model = subject.make_model(KEY)
        tuned = compat.lora(model, rank=2, key=1)
        for train in (False, True):
            assert_same_bits(
                jax.tree.leaves(outputs(model, subject.inputs, train=train)),
                jax.tree.leaves(outputs(tuned, subject.inputs, train=train)),
            )


def test_fresh_factors_keep_the_sign_of_zero():
    model = parameters(jnp.array([[-0.0, 0.0, 1.0], [-0.0, -2.0, -0.0]]))
    assert float(jnp.float32(-0.0) + jnp.float32(0.0)).hex() == "0x0.0p+0"  # what a sum would do
    tuned = compat.lora(model, rank=1, key=0)
    for run in (lambda model, rows: model(rows)[0], lambda *pair: outputs(pair[0], pair[1:])):
        found = run(tuned, jnp.arange(2))
        assert_same_bits([found], [run(model, jnp.arange(2))])
        assert np.signbit(found).tolist() == [[True, False, False], [True, True, True]]
    # Where the weight is 0, the factors are trained none the less.
    loss = lambda params: solstice.replace(tuned, params=params)(jnp.arange(2))[0].sum()  # noqa: E731
    np.testing.assert_allclose(
        jax.grad(loss)(tuned.params)["w"].b, tuned.params["w"].a.sum(0)[:, None].repeat(3, 1)
    )


def test_the_members_of_an_ensemble_are_adapted_as_each_alone():
    def make(key):
        model = compat.lora(compat.quantize(network(key=key), bits=4), rank=1, key=key)
        return solstice.ClassificationExperiment(model, TX)

    keys = jax.random.split(KEY, 3)
    ensemble = solstice.Ensemble.init(make, keys).train(2, [(X, Y)], progress=False)
    alone = make(keys[1]).train(2, [(X, Y)], progress=False)
    for one, two in zip(
        *(jax.tree.leaves(exp.model) for exp in (ensemble.member(1), alone)), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    merged = jax.vmap(compat.merge)(ensemble.members.model)
    anew = jax.vmap(lambda model, key: compat.lora(model, rank=1, key=key))(merged, keys)
    wanted = outputs(compat.merge(ensemble.member(1).model), [X])
    found = jax.vmap(lambda model: model(X)[0])(anew)
    np.testing.assert_allclose(found[1], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("library", EVERY)
def test_a_merged_network_equals_the_wrapped_one(library, wrapper):
    subject = LIBRARIES[library]["cnn"]
    model = subject.make_model(KEY)
    wrapped = WRAPPERS[wrapper](model)
    merged = compat.merge(wrapped)
    assert type(merged) is type(model)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    found = outputs(wrapped, subject.inputs)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6),
        found,
        outputs(merged, subject.inputs),
    )
    # The wrapper does something.
    assert not np.allclose(
        jax.tree.leaves(found)[0], jax.tree.leaves(outputs(model, subject.inputs))[0]
    )
    own = subject.arrays(wrapped.unwrap())
    assert_same_bits(own, subject.arrays(merged.unwrap()))
    assert [one.shape for one in own] == [one.shape for one in subject.arrays(model.unwrap())]


@pytest.mark.parametrize("library", EVERY)
def test_only_the_factors_are_trained(library):
    subject = LIBRARIES[library]["cnn"]
    model = compat.lora(compat.quantize(subject.make_model(KEY), bits=4), rank=1, key=1)
    exp = solstice.ClassificationExperiment(model, TX, example_input=subject.inputs[0], key=0)
    batch = (subject.inputs[0], jnp.arange(len(subject.inputs[0])) % 3)
    trained = exp.train(num_steps=3, train_ds=[batch], num_epochs=None, progress=False).model
    assert all(path.endswith(("/a", "/b")) for path in paths(trained.params))
    assert_same_bits(jax.tree.leaves(model.frozen), jax.tree.leaves(trained.frozen))
    before, after = leaves_by_path(model.params), leaves_by_path(trained.params)
    assert all((before[path] != after[path]).any() for path in before)
    if jax.tree.leaves(model.state):  # batch statistics move on as ever
        assert any(
            (a != b).any()
            for a, b in zip(*map(jax.tree.leaves, (model.state, trained.state)), strict=True)
        )
    for free in (trained, compat.freeze(trained, "*/a")):
        free = compat.unfreeze(free)
        assert paths(free.params) == paths(trained.params)
    np.testing.assert_allclose(
        exp.with_model(trained)(subject.inputs[0]),
        compat.merge(trained)(*subject.inputs)[0],
        1e-5,
        1e-6,
    )


def test_an_experiment_takes_a_wrapped_network_without_words():
    model = compat.lora(network(), rank=2, key=1)
    assert model.example == network().example
    exp = solstice.ClassificationExperiment(model, TX)
    assert exp.task.num_classes == 3
    assert exp.train(60, [(X, Y)], progress=False).test([(X, Y)], progress=False)["accuracy"] == 1
    assert compat.as_model(model) is model
    group = compat.by_path({"*/a": optax.sgd(0.1), "*/b": optax.sgd(1.6)})  # as LoRA+ has it
    assert solstice.ClassificationExperiment(model, group).optimizer.groups() == {
        "0/a": "*/a", "0/b": "*/b", "1/a": "*/a", "1/b": "*/b",
    }  # fmt: skip


def test_values_noted_in_a_pass_are_those_of_the_wrapped_network():
    import flax.linen as nn

    class Noting(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(3)(x)
            self.sow("intermediates", "hidden", x)
            return x

    model = lora(compat.FlaxModel(Noting(), X, key=0))
    assert_same_bits([compat.intermediates(model, X)["hidden"]], [model(X)[0]])


def test_sub_modules_are_those_of_the_wrapped_network():
    model = LIBRARIES["linen"]["mlp"].make_model(KEY)
    x = LIBRARIES["linen"]["mlp"].inputs
    before, after = compat.capture(model, *x), compat.capture(lora(model), *x)
    assert list(after) == list(before) and len(before) > 1
    silent = compat.intervene(lora(model), *x, edits={"*": jnp.zeros_like})
    assert not silent.any()


def test_what_was_trained_before_is_trained_after_merging():
    model = compat.freeze(LIBRARIES["linen"]["mlp"].make_model(KEY), "Dense_0/*")
    for wrapper in WRAPPERS.values():
        wrapped = wrapper(model)
        merged = compat.merge(
            compat.freeze(wrapped, "*") if jax.tree.leaves(wrapped.params) else wrapped
        )
        assert paths(merged.params) == ["Dense_1/bias", "Dense_1/kernel"]
        assert paths(merged.frozen) == ["Dense_0/bias", "Dense_0/kernel"]
    assert paths(WRAPPERS["int8"](model).params) == ["Dense_1/bias"]
    freed = compat.unfreeze(WRAPPERS["int8"](model))
    assert paths(freed.params) == ["Dense_0/bias", "Dense_1/bias"]
    assert compat.merge(model) is model


def test_a_head_may_be_trained_in_full():
    model = compat.lora(LIBRARIES["linen"]["mlp"].make_model(KEY), rank=2, full="Dense_1/*", key=1)
    trained = ["Dense_0/kernel/a", "Dense_0/kernel/b", "Dense_1/bias", "Dense_1/kernel"]
    assert paths(model.params) == trained
    assert paths(compat.unfreeze(compat.freeze(model, "*")).params) == trained
    assert model.made_of == {
        "Dense_0/bias": "float32",
        "Dense_0/kernel": "float32 + rank 2",
        "Dense_1/bias": "float32",
        "Dense_1/kernel": "float32",
    }


def test_wrappers_wrap_each_other():
    model = network()
    quantized = compat.quantize(compat.lora(model, rank=2, key=1), bits=4)
    other = compat.lora(compat.quantize(model, bits=4), rank=2, key=1)
    assert jax.tree.structure(quantized) == jax.tree.structure(other)
    assert_same_bits(jax.tree.leaves(quantized), jax.tree.leaves(other))
    # A second pair of factors: the first one belongs to what stays.
    first = lora(model)
    twice = compat.lora(first, rank=2, where="0", key=2)
    assert twice.made_of == {"0": "float32 + rank 1 + rank 2", "1": "float32 + rank 1"}
    assert paths(twice.params) == ["0/a", "0/b"]
    assert_same_bits([twice(X)[0]], [first(X)[0]])
    mixed = compat.quantize(compat.quantize(model, where="0"), bits=4, where="1")
    assert mixed.made_of == {"0": "int8", "1": "int4"}
    merged = compat.merge(lora(mixed))
    assert type(merged).__name__ == "FunctionModel" and paths(merged.params) == ["0", "1"]


def test_factors_are_scaled_and_have_the_shape_that_takes_the_fewest_numbers():
    kernel = jax.random.normal(KEY, (3, 3, 8, 16))
    for alpha, scale in ((None, 1), (8, 2), (1, 0.25)):
        model = stirred(compat.lora(parameters(kernel), rank=4, key=0, alpha=alpha))
        a, b = model.params["w"].a, model.params["w"].b
        assert (a.shape, b.shape) == ((72, 4), (4, 16))
        expected = np.float64(kernel) + scale * (np.float64(a) @ np.float64(b)).reshape(
            kernel.shape
        )
        np.testing.assert_allclose(compat.merge(model).params["w"], expected, rtol=1e-5, atol=1e-6)
    turned = compat.lora(parameters(kernel.transpose(3, 2, 0, 1)), rank=4, key=0)
    assert turned.params["w"].a.shape == (16, 4)
    one, two = (compat.lora(network(), rank=2, where=where, key=0) for where in ("1", "*"))
    assert_same_bits([one.params[1].a], [two.params[1].a])


def test_narrow_weights_have_wide_factors_and_keep_their_dtype():
    weight = jax.random.normal(KEY, (8, 4)).astype(jnp.bfloat16)
    model = compat.lora(parameters(weight), rank=2, key=0)
    assert model.params["w"].a.dtype == jnp.float32
    assert_same_bits([compat.merge(model).params["w"]], [weight])
    assert compat.merge(stirred(model)).params["w"].dtype == jnp.bfloat16
    imaginary = parameters(weight.astype(jnp.complex64) * 1j)
    assert compat.lora(imaginary, rank=2, key=0).params["w"].b.dtype == jnp.complex64
    with pytest.raises(ValueError, match=r"select float weights .* w \(complex64\[8, 4\]\)"):
        compat.quantize(imaginary)


SHAPES = [(5, 3), (64, 7), (7, 65), (128, 64), (3, 3, 2, 4), (2, 65, 3)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quantized_weights_are_off_by_half_a_scale_at_most(bits, dtype):
    for i, shape in enumerate(SHAPES):
        weight = (jax.random.normal(jax.random.key(i), shape) * 10.0 ** -(i % 3)).astype(dtype)
        weight = weight.at[0].set(0)
        model = compat.quantize(parameters(weight), bits=bits)
        held = model.frozen["w"]
        after = compat.merge(model).params["w"]
        assert after.dtype == weight.dtype and after.shape == shape
        error = np.abs(np.float64(after) - np.float64(weight))
        rounding = np.abs(np.float64(weight)) * float(jnp.finfo(dtype).eps)
        rounding += float(jnp.finfo(dtype).smallest_subnormal)
        assert (error <= np.float64(held.scale) / 2 + rounding).all()
        # By numpy: the largest of a line is as many scales as there are steps.
        axis = next(i for i in range(len(shape)) if held.scale.shape[i] != shape[i])
        most = {8: 127, 4: 7}[bits]
        scale = np.abs(np.float32(weight)).max(axis, keepdims=True) / most
        np.testing.assert_allclose(held.scale, np.where(scale == 0, 1, scale), rtol=1e-6)
        whole = np.float64(after) / np.float64(held.scale)
        np.testing.assert_allclose(whole, np.round(whole), atol=most * float(jnp.finfo(dtype).eps))
        assert np.abs(np.round(whole)).max() <= most


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tiny_weights_do_not_become_zero(bits, dtype):
    """A scale of 1e-39 would be 0 on a processor."""
    least = max(float(jnp.finfo(dtype).tiny), 3e-38)
    weight = jnp.array([[8, -4, 5], [2, -2, 2]]).astype(dtype) * jnp.asarray(least, dtype)
    model = compat.quantize(parameters(weight), bits=bits)
    scale = np.float64(model.frozen["w"].scale)
    after = np.float64(compat.merge(model).params["w"])
    assert (scale >= np.finfo(np.float32).tiny).all() and (after != 0).all()
    rounding = least * float(jnp.finfo(dtype).eps) * 8
    assert (np.abs(after - np.float64(weight)) <= scale / 2 + rounding).all()


def test_two_numbers_of_four_bits_are_a_byte():
    values = jnp.array([[7.0, -1.0, 0.0], [3.0, -7.0, 2.0]])
    held = compat.quantize(parameters(values), bits=4).frozen["w"]
    assert held.values.dtype == jnp.uint8 and held.values.tolist() == [0x7F, 0xB8, 0xA1]
    assert held.scale.tolist() == [[1.0], [1.0]]
    model = network((64, 64), KEY)
    assert [
        nbytes(one) for one in (model, compat.quantize(model), compat.quantize(model, bits=4))
    ] == [
        4 * 64 * 72,
        64 * 72 + 4 * (8 + 64),
        64 * 72 // 2 + 4 * (8 + 64),
    ]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(64, 64), (3, 2)])
def test_what_is_not_finite_is_refused(shape, odd, bits):
    model = parameters(jnp.ones(shape).at[-1, 0].set(odd))
    with pytest.raises(ValueError, match=r"finite weights; 'w' has"):
        compat.quantize(model, bits=bits)
    with pytest.raises(ValueError, match=r"finite weights; 'w' has"):
        compat.quantize(compat.lora(model, rank=1, key=0), bits=bits)
    traced = jax.jit(lambda model: compat.quantize(model, bits=bits))(model)  # values are unknown
    assert traced.made_of == {"w": f"int{bits}"}


@pytest.mark.parametrize("library", ["linen", pytest.param("keras", marks=pytest.mark.slow)])
def test_overwritten_scales_go_on_being_measured(library):
    subject = LIBRARIES[library]["fp8"]
    model = compat.lora(subject.make_model(KEY), rank=1, key=1)
    exp = solstice.RegressionExperiment(
        model, optax.sgd(0.1), example_input=subject.inputs[0], key=0
    )
    target = jnp.ones(jax.eval_shape(lambda: model(*subject.inputs)[0]).shape)
    trained = exp.train(2, [(subject.inputs[0], target)], progress=False).model
    boxes = lambda params: [  # noqa: E731
        node.value
        for node in jax.tree.leaves(params, is_leaf=lambda n: isinstance(n, compat.Overwritten))
        if isinstance(node, compat.Overwritten)
    ]
    pairs = list(zip(boxes(model.params), boxes(trained.params), strict=True))
    assert pairs and any((a != b).any() for a, b in pairs)
    assert jax.tree.structure(compat.unfreeze(model)) == jax.tree.structure(model)
    merged = compat.merge(trained)
    assert jax.tree.structure(merged) == jax.tree.structure(subject.make_model(KEY))


def test_wrapped_networks_are_made_under_vmap_and_eval_shape():
    def member(key):
        model = WRAPPERS["int4 lora"](network(key=key), key)
        return solstice.ClassificationExperiment(model, TX)

    keys = jax.random.split(KEY, 3)
    shapes = jax.eval_shape(member, keys[0])
    assert jax.tree.structure(shapes) == jax.tree.structure(member(keys[0]))
    ensemble = solstice.Ensemble.init(member, keys).train(2, [(X, Y)], progress=False)
    alone = member(keys[1]).train(2, [(X, Y)], progress=False)
    np.testing.assert_allclose(ensemble.member(1)(X), alone(X), rtol=1e-4, atol=1e-5)


class PebbleModel(compat.Model):
    """An adapter of somebody else, with a field of its own."""

    params: dict
    frozen: dict | None
    state: jax.Array
    pace: jax.Array

    def __call__(self, *inputs, key=None, train=False, **kwargs):
        train = compat.check_train(train, "PebbleModel")
        outputs = inputs[0] @ compat.join_params(self)["w"] + self.state
        return outputs, solstice.replace(self, state=self.state + self.pace) if train else self

    def unwrap(self):
        return compat.join_params(self), self.state


def test_an_adapter_of_somebody_else_is_wrapped_too():
    weights = {"b": jnp.ones(3), "w": jax.random.normal(KEY, (8, 3))}
    model = PebbleModel(weights, None, jnp.zeros(()), jnp.ones(()))
    wrapped = compat.lora(model, rank=2, where=lambda path: path == "w", key=0)
    assert wrapped.made_of == {"b": "float32", "w": "float32 + rank 2"}
    outputs, after = stirred(wrapped)(X, train=True)
    np.testing.assert_allclose(outputs, compat.merge(stirred(wrapped))(X)[0])
    assert float(after.state) == 1 and type(after) is compat.WrappedModel
    own, state = compat.quantize(after).unwrap()
    assert own["w"].shape == (8, 3) and float(state) == 1


def test_a_scan_over_stacked_layers_is_adapted():
    def apply(params, x):
        return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, params)[0]

    init = lambda key, x: jax.random.normal(key, (5, 8, 8)) / 3  # noqa: E731
    model = compat.FunctionModel(init, apply, X, key=KEY)
    wrapped = WRAPPERS["int4 lora"](model)
    np.testing.assert_allclose(wrapped(X)[0], compat.merge(wrapped)(X)[0], rtol=1e-5, atol=1e-6)
    assert wrapped.made_of == {"": "int4 + rank 1"}


def test_a_checkpoint_holds_a_wrapped_network_and_a_run_goes_on_from_it(tmp_path):
    def run(epochs, resume_from=None):
        model = compat.lora(compat.quantize(network(), bits=4), rank=2, key=1)
        exp = solstice.ClassificationExperiment(model, TX)
        saving = solstice.CheckpointingCallback(tmp_path / "run")
        return exp.train(
            epochs, [(X, Y)], callbacks=[saving] if resume_from is None else None,
            resume_from=resume_from, progress=False,
        )  # fmt: skip

    run(2)
    again = run(4, resume_from=tmp_path / "run")
    model = compat.lora(compat.quantize(network(), bits=4), rank=2, key=1)
    whole = solstice.ClassificationExperiment(model, TX).train(4, [(X, Y)], progress=False)
    assert_same_bits(jax.tree.leaves(again), jax.tree.leaves(whole))
    file = tmp_path / "model.solstice"
    solstice.tree.save(file, whole.model)
    assert_same_bits(
        jax.tree.leaves(solstice.tree.load(file, like=model)), jax.tree.leaves(whole.model)
    )


def test_factors_keep_the_scale_that_they_were_trained_with(tmp_path):
    def made(alpha, key=KEY):
        return stirred(compat.lora(network(key=key), rank=2, key=1, alpha=alpha))

    def run(alpha, epochs, **rest):
        exp = solstice.ClassificationExperiment(made(alpha), TX)
        return exp.train(epochs, [(X, Y)], progress=False, **rest)

    saving = solstice.CheckpointingCallback(tmp_path / "run")
    run(8, 2, callbacks=[saving])
    again, whole = run(32, 4, resume_from=tmp_path / "run"), run(8, 4)
    assert float(again.model.frozen[0].scale) == 4
    assert_same_bits(jax.tree.leaves(again), jax.tree.leaves(whole))
    file = tmp_path / "model.safetensors"
    compat.save(made(8), file)
    loaded, _ = compat.load(made(32, jax.random.key(5)), file)
    assert_same_bits([loaded(X)[0]], [made(8)(X)[0]])
    assert not np.allclose(made(32)(X)[0], made(8)(X)[0], atol=1e-2)
    with pytest.raises(ValueError, match=r"0/a"):
        compat.load(compat.lora(network(), rank=1, key=1), file)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda m: compat.lora(m, rank=1, key=1), lambda m: compat.lora(m, rank=2, key=1)),
        (
            lambda m: compat.lora(m, rank=1, key=1),
            lambda m: compat.lora(m, rank=1, key=1, where="0"),
        ),
        (lambda m: compat.lora(m, rank=1, key=1), lambda m: compat.freeze(m, "0")),
        (compat.quantize, lambda m: compat.quantize(m, bits=4)),
        (compat.quantize, lambda m: compat.quantize(m, where="0")),
        (lambda m: compat.freeze(m, "0"), lambda m: compat.freeze(m, "1")),
    ],
)
def test_a_file_of_a_model_that_was_changed_in_another_way_is_refused(tmp_path, one, other):
    file = tmp_path / "model.solstice"
    solstice.tree.save(file, one(network()))
    with pytest.raises(ValueError, match="like"):
        solstice.tree.load(file, like=other(network()))


def test_mixed_precision_reaches_the_joined_weights():
    seen = []

    def apply(params, x):
        seen.append(params["w"].dtype)
        return x @ params["w"]

    init = lambda key, x: {"w": jax.random.normal(key, (8, 3))}  # noqa: E731
    model = WRAPPERS["int4 lora"](compat.FunctionModel(init, apply, X, key=0))
    exp = solstice.ClassificationExperiment(model, TX, compute_dtype="bfloat16")
    seen.clear()
    exp = exp.train(1, [(X, Y)], progress=False)
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(exp.model.params)} == {"float32"}


def test_a_summary_tells_factors_from_what_they_are_beside():
    rows = {row.path: row for row in solstice.summary(WRAPPERS["int4 lora"](network((16,)))).rows}
    assert [(path, row.role, row.dtype, row.nbytes) for path, row in rows.items()] == [
        ("params/0/a", "trainable", "float32", 32),
        ("params/0/b", "trainable", "float32", 64),
        ("frozen/0/base/values", "frozen", "uint8", 64),
        ("frozen/0/base/scale", "frozen", "float32", 32),
        ("frozen/0/scale", "frozen", "float32", 4),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: compat.lora(m, rank=9, key=0), r"at most 8 for '0' of shape \(8, 8\).*it is 9"),
        (lambda m: compat.lora(m, rank=4, key=0), r"at most 3 for '1' .* a matrix of 8 by 3"),
        (lambda m: compat.lora(m, rank=0, key=0), r"rank is expected to be at least 1"),
        (lambda m: compat.lora(m, rank=1, key=None), r"key is expected to be an int seed"),
        (lambda m: compat.lora(m, rank=1, key=0, alpha=0), r"alpha .* above 0; it is 0"),
        (lambda m: compat.lora(m, rank=1, key=0, alpha=1e39), r"float32 holds, .* it is 1e\+39"),
        (lambda m: compat.lora(m, rank=1, key=0, alpha=1e-50), r"float32 holds, .* it is 1e-50"),
        (lambda m: compat.lora(m, rank=1, key=0, where="head/*"), r"'head/\*'.* none of 1, 0"),
        (lambda m: compat.lora(m, rank=1, key=0, where=lambda p: False), r"selects none of 0, 1"),
        (lambda m: compat.lora(m, rank=1, key=0, where=3), r"where is expected to be a glob"),
        (lambda m: compat.lora(m, rank=1, key=0, full="*"), r"it selects none besides .* full"),
        (
            lambda m: compat.lora(compat.quantize(m), rank=1, key=0, where="0", full="1"),
            r"full is expected to select weights that are arrays; '1' is int8\.",
        ),
        (lambda m: compat.quantize(m, bits=2), r"bits is expected to be 8 or 4; it is the int 2"),
        (lambda m: compat.quantize(compat.quantize(m)), r"it selects 0 \(int8\[8, 8\]\), 1"),
        (lambda m: compat.quantize(m, where="a"), r"where, the glob 'a', .* none of .*0"),
        (lambda m: compat.merge(m.params), r"model is expected to be a compat\.Model"),
        (
            lambda m: solstice.replace(compat.quantize(m), frozen=m.params)(X),
            r"WrappedModel: params and frozen are expected to be trees of one structure",
        ),
        (
            lambda m: solstice.replace(compat.lora(m, rank=1, key=0), params=None)(X),
            r"a tree like the one the model was made with; they lack '0/a', '0/b'",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_told(change, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        change(network())
    assert isinstance(error.value, solstice.SolsticeError)


def test_weights_of_one_axis_alone_are_told():
    model = LIBRARIES["linen"]["mlp"].make_model(KEY)
    for change in (
        lambda where: compat.lora(model, rank=1, key=0, where=where),
        lambda where: compat.quantize(model, where=where),
    ):
        with pytest.raises(
            ValueError, match=r"two axes longer than 1; .* Dense_0/bias \(float32\[\d\]\)"
        ):
            change("Dense_0/bias")
        with pytest.raises(ValueError, match=r"selects none of Dense_0/kernel, .* more\.|Dense_1"):
            change("Dense_0/kernl")
        assert change("Dense_0/*").made_of["Dense_0/bias"] == "float32"


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_what_is_saved_wrapped_loads_into_a_model_wrapped_alike(tmp_path, wrap):
    model, other = wrap(network()), wrap(stirred(network()), jax.random.key(5))
    compat.save(model, tmp_path / "wrapped.safetensors")
    loaded, report = compat.load(other, tmp_path / "wrapped.safetensors")
    assert_same_bits(jax.tree.leaves(loaded), jax.tree.leaves(model))
    assert {row.how for row in report.rows} == {"name"}
    own = compat.merge(model)
    compat.save(own, tmp_path / "merged.safetensors")
    merged, _ = compat.load(compat.merge(other), tmp_path / "merged.safetensors")
    assert_same_bits(jax.tree.leaves(merged), jax.tree.leaves(own))


def test_factors_alone_load_into_a_model_that_has_the_rest(tmp_path):
    path = tmp_path / "factors.safetensors"
    compat.save(lora(network()), path, names={"/base$": None})
    other = lora(network(), jax.random.key(5))
    with pytest.raises(ValueError, match=r"the model has 'params/0/base'\. Load into the network"):
        compat.load(other, path)
    loaded, report = compat.load(other, path, strict=False)
    assert_same_bits(jax.tree.leaves(loaded), jax.tree.leaves(lora(network())))
    assert "params/0/base" in report.missing


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_takes_no_other_weights(wrap):
    source = {path: np.asarray(leaf) for path, leaf in leaves_by_path(network().params).items()}
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"of this WrappedModel, .* has '0'\. .*before compat"):
            compat.load(wrap(network()), source, example=X, strict=strict)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_s_file_is_refused_by_the_bare_network(tmp_path, wrap):
    compat.save(wrap(network()), file := tmp_path / "wrapped.safetensors")
    for strict in (True, False):
        with pytest.raises(
            ValueError, match=r"saved from a wrapped model .*: 'params/0' has .*compat.merge"
        ):
            compat.load(network(), file, strict=strict)


def test_a_network_whose_own_parameters_have_the_names_of_factors_is_loaded(tmp_path):
    def make(value):
        weight = {name: jnp.full((8, 8), value) for name in ("values", "scale")}
        call = lambda params, x: x @ params["w"]["values"] * params["w"]["scale"]  # noqa: E731
        return compat.FunctionModel(lambda key, x: {"w": weight}, call, X, key=0)

    compat.save(make(2.0), file := tmp_path / "own.safetensors")
    loaded, _ = compat.load(make(1.0), file)
    assert_same_bits([loaded(X)[0]], [make(2.0)(X)[0]])


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_is_converted_merged(wrap):
    model = wrap(network())
    converted = compat.convert(model, like=stirred(network()), example=X)
    assert_same_bits(jax.tree.leaves(converted), jax.tree.leaves(compat.merge(model)))
    with pytest.raises(TypeError, match=r"it is a WrappedModel.*Convert first, then wrap"):
        compat.convert(network(), like=model, example=X)
