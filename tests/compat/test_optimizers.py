"""Optax through the adapter is Optax, and mistakes are named."""

import jax
import jax.numpy as jnp
import optax
import pytest

import solstice
from solstice.compat import OptaxOptimizer

PARAMS = {"w": jnp.arange(3.0), "hole": None, "b": jnp.ones(())}


def value_fn(params):
    return sum(jnp.sum((leaf - 3.0) ** 2) for leaf in jax.tree.leaves(params))


TABLE = {
    "sgd": optax.sgd(0.1),
    "adamw": optax.adamw(1e-2),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    "scheduled": optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "plateau": optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
    "polyak": optax.polyak_sgd(),
    "lbfgs": optax.lbfgs(),
}


@pytest.mark.parametrize("name", TABLE)
def test_steps_equal_native_with_one_trace(name):
    tx = TABLE[name]
    opt = OptaxOptimizer(tx).init(PARAMS)
    traces = []

    @jax.jit
    def step(params, opt):
        traces.append(1)
        value, grad = jax.value_and_grad(value_fn)(params)
        return opt(grad, params, value=value, grad=grad, value_fn=value_fn)

    @jax.jit
    def native(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        extras = {"value": value, "grad": grad, "value_fn": value_fn}
        wanted = {name: extras[name] for name in opt.wants}
        updates, state = tx.update(grad, state, params, **wanted)
        return optax.apply_updates(params, updates), state

    params, native_params, state = PARAMS, PARAMS, solstice.tree.owned(tx.init(PARAMS))
    for _ in range(5):
        params, opt = step(params, opt)
        native_params, state = native(native_params, state)
    same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), params, native_params)
    assert all(jax.tree.leaves(same))
    assert value_fn(params) < value_fn(PARAMS)
    assert len(traces) == 1


def test_an_optimizer_says_what_it_wants():
    wants = {name: OptaxOptimizer(tx).init(PARAMS).wants for name, tx in TABLE.items()}
    assert wants["sgd"] == wants["adamw"] == wants["injected"] == ()
    assert wants["plateau"] == wants["polyak"] == ("value",)
    assert wants["lbfgs"] == ("value", "grad", "value_fn")
    opt = OptaxOptimizer(optax.polyak_sgd()).init(PARAMS)
    with pytest.raises(ValueError, match=r"OptaxOptimizer: .* wants value .*value=\.\.\."):
        opt(PARAMS, PARAMS)


def test_the_learning_rate_in_use():
    scheduled = optax.inject_hyperparams(optax.sgd)(learning_rate=lambda count: 0.1 / (count + 1))
    opt = OptaxOptimizer(scheduled).init(PARAMS)
    _, opt = opt(PARAMS, PARAMS)
    _, opt = opt(PARAMS, PARAMS)
    assert opt.learning_rate() == pytest.approx(0.05)
    assert OptaxOptimizer(optax.sgd(0.1)).init(PARAMS).learning_rate() is None


def test_other_trees_and_no_init_are_named():
    opt = OptaxOptimizer(optax.adam(1e-3))
    with pytest.raises(ValueError, match=r"OptaxOptimizer is not initialised.*opt\.init\(params\)"):
        opt(PARAMS, PARAMS)
    opt = opt.init(PARAMS)
    with pytest.raises(ValueError, match=r"OptaxOptimizer: gradients are expected .*opt\.init"):
        opt({"w": jnp.ones(3)}, PARAMS)
    with pytest.raises(ValueError, match=r"OptaxOptimizer: parameters are expected"):
        opt(PARAMS, PARAMS | {"new": jnp.ones(1)})


def test_the_state_is_strong_and_unshared():
    opt = OptaxOptimizer(optax.adam(1e-3)).init(PARAMS)
    leaves = jax.tree.leaves(opt)
    assert not any(leaf.weak_type for leaf in leaves)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    assert opt.eval_params(PARAMS) is PARAMS
