"""Training through an adapter is the library's own training, bit for bit."""

import jax
import pytest
from networks import LIBRARIES
from networks.common import TX, assert_same_bits, loss_of, other_inputs

import solstice
from solstice.compat import OptaxOptimizer

ROWS = [
    pytest.param(library, kind, marks=() if kind == "cnn" else pytest.mark.slow)
    for library, subjects in LIBRARIES.items()
    for kind in subjects
]


@pytest.mark.parametrize(("library", "kind"), ROWS)
def test_five_adam_steps_equal_the_native_loop(library, kind):
    assert_five_steps_equal(library, kind)


# Those whose own steps are functions of arrays, so that they can be compiled here in another way.
@pytest.mark.parametrize(
    "library",
    [pytest.param("haiku", marks=pytest.mark.slow), "linen"],
)
def test_they_are_equal_at_the_level_that_users_compile_at(library):
    # XLA's defaults, which `conftest.py` lowers.
    level = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    assert_five_steps_equal(library, "cnn", lambda step: jax.jit(step, compiler_options=level))


def assert_five_steps_equal(library, kind, compiled=lambda step: step):
    native = LIBRARIES[library][kind]
    native_step, evaluate = compiled(native.step), compiled(native.evaluate)
    init_key, key = jax.random.split(jax.random.key(0))
    traces = []

    @compiled
    @jax.jit
    def step(model, opt, inputs, key):
        traces.append(1)

        def objective(params):
            outputs, new_model = solstice.replace(model, params=params)(
                *inputs, key=key, train=True
            )
            return loss_of(outputs), new_model

        (loss, new_model), grads = jax.value_and_grad(objective, has_aux=True)(model.params)
        params, opt = opt(grads, model.params)
        return loss, solstice.replace(new_model, params=params), opt

    model = native.make_model(init_key)
    opt = OptaxOptimizer(TX).init(model.params)
    carry = native.start(init_key)
    start = native.arrays(model.unwrap())
    assert_same_bits(start, native.arrays(native.own(carry)))

    for i in range(5):
        inputs = other_inputs(kind, i)
        step_key = jax.random.fold_in(key, i)
        loss, model, opt = step(model, opt, inputs, None if native.keeps_streams else step_key)
        native_loss, carry = native_step(carry, inputs, step_key)
        assert_same_bits([loss], [native_loss])
        assert_same_bits(native.arrays(model.unwrap()), native.arrays(native.own(carry)))

    inputs = other_inputs(kind, 9)
    outputs = compiled(jax.jit(lambda model, inputs: model(*inputs)[0]))(model, inputs)
    theirs = evaluate(carry, inputs)
    assert_same_bits(jax.tree.leaves(outputs), jax.tree.leaves(theirs))
    assert len(traces) == 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_parity_test_sees_a_wrong_key(library):
    native = LIBRARIES[library]["cnn"]
    model = native.make_model(jax.random.key(0))
    step = jax.jit(lambda m, key, *x: m(*x, key=key, train=True)[0])
    one, again, other = (
        step(model, jax.random.key(seed), *native.inputs).tobytes() for seed in (1, 1, 2)
    )
    assert one == again != other
