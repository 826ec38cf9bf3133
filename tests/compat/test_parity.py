"""Training through an adapter is the library's own training, bit for bit."""

import equinox as eqx
import jax
import pytest
from natives import NATIVES, TX, batch, cross_entropy

import solstice
from solstice.compat import OptaxOptimizer


def same_bits(left, right):
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    assert len(left) == len(right) and len(left) > 0
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("library", NATIVES)
def test_five_adam_steps_equal_the_native_loop(library):
    native = NATIVES[library]()
    init_key, key = jax.random.split(jax.random.key(0))
    traces = []

    @jax.jit
    def step(model, opt, x, y, key):
        traces.append(1)

        def loss_of(params):
            logits, new_model = solstice.replace(model, params=params)(x, key=key, train=True)
            return cross_entropy(logits, y), new_model

        (loss, new_model), grads = jax.value_and_grad(loss_of, has_aux=True)(model.params)
        params, opt = opt(grads, model.params)
        return loss, solstice.replace(new_model, params=params), opt

    model = native.adapt(init_key)
    opt = OptaxOptimizer(TX).init(model.params)
    carry = native.init(init_key)
    same_bits(native.values(model), eqx.filter(carry[:2], eqx.is_array))

    for i in range(5):
        x, y = batch(seed=i)
        step_key = jax.random.fold_in(key, i)
        loss, model, opt = step(model, opt, x, y, step_key)
        native_loss, carry = native.step(carry, x, y, step_key)
        same_bits(loss, native_loss)
        same_bits(native.values(model), eqx.filter(carry[:2], eqx.is_array))
        same_bits(opt.state, eqx.filter(carry[2], eqx.is_array))

    x, _ = batch(seed=9)
    outputs = jax.jit(lambda model, x: model(x)[0])(model, x)
    same_bits(outputs, native.evaluate(carry, x))
    assert len(traces) == 1


@pytest.mark.parametrize("library", NATIVES)
def test_the_parity_test_sees_a_wrong_key(library):
    native = NATIVES[library]()
    model = native.adapt(jax.random.key(0))
    x, _ = batch()

    def dropped(seed):
        return jax.jit(lambda m, x: m(x, key=jax.random.key(seed), train=True)[0])(model, x)

    assert dropped(1).tobytes() == dropped(1).tobytes() != dropped(2).tobytes()
