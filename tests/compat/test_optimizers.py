"""Every optimizer through its adapter is the library's own, and mistakes are named."""

import inspect
import logging
import re

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from jax.example_libraries import optimizers
from optax import contrib
from optimizer_table import (
    ADAPTERS,
    JAX,
    LOOPS,
    MATRIX,
    NO_HOLE,
    NO_SCALAR,
    OPTAX,
    PARAMS,
    PER_EXAMPLE,
    RATE,
    TABLES,
    label,
    optax_loop,
    value_fn,
)

from solstice.compat import OptaxOptimizer
from solstice.compat.jax_optimizers import JaxOptimizer
from solstice.compat.keras_optimizer import KerasOptimizer
from solstice.tree import owned

STEPS = 5


def take_step(params, opt):
    """One step for all of them."""
    value, grad = jax.value_and_grad(value_fn)(params)
    return opt(grad, params, value=value, grad=grad, value_fn=value_fn)


def types(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [
        (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in leaves
    ]


def raw(leaf):
    is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def bits(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [leaf.tobytes() for leaf in map(np.asarray, map(raw, leaves))]


# The rows that are always run step by step; of the others, an equal program is enough.
STEPPED = {
    "optax": {"adam", "polyak_sgd", "opaque sam", "lookahead", "schedule_free"}
    | {"MultiSteps", "multi_transform", "injected schedule"},
    "jax": set(JAX),
    "keras": {"Adam", "SGD", "decaying weights", "accumulating"},
}
QUICK = {("optax", "adam"), ("optax", "polyak_sgd"), ("optax", "lookahead")} | {
    ("optax", "MultiSteps"),
    ("jax", "momentum"),
    ("keras", "accumulating"),
}


@pytest.mark.parametrize(
    ("library", "name"),
    [
        pytest.param(library, name, marks=() if (library, name) in QUICK else pytest.mark.slow)
        for library, table in TABLES.items()
        for name in table
    ],
)
def test_an_adapted_optimizer_is_the_librarys_own(library, name):
    row = TABLES[library][name]
    start = ADAPTERS[library](row.make()).init(row.params)
    assert start.wants == tuple(
        {"obj_fn": "value_fn", "grad_fn": "value_fn"}.get(extra, extra) for extra in row.takes
    )
    leaves = jax.tree.leaves(start)
    assert not any(getattr(leaf, "weak_type", False) for leaf in leaves)
    assert_unshared(start, row.params)

    carry, native_step, params_of = LOOPS[library](row, row.params, value_fn)
    own = jax.jit(lambda carry: take_step(*carry)).trace((row.params, start))
    assert types(own.out_info) == types((row.params, start))
    # One program on the same inputs need not be run twice to give the same bits.
    if (
        name not in STEPPED[library]
        and bits(carry)[1] == bits((row.params, start))[1]
        and program(own) == program(jax.jit(native_step).trace(carry))
    ):
        return

    def scan(*carry):
        return jax.lax.scan(lambda carry, _: (take_step(*carry), None), carry, length=STEPS)[0]

    traces = []

    @jax.jit
    def step(params, opt):
        traces.append(1)
        return take_step(params, opt)

    native_step = jax.jit(native_step)
    params, opt = row.params, start
    for _ in range(STEPS):
        params, opt = step(params, opt)
        carry = native_step(carry)
    assert bits(params) == bits(params_of(carry)) != bits(row.params)
    assert len(traces) == 1
    assert types((params, opt)) == types((row.params, start))
    if name in STEPPED[library]:
        scanned, _ = jax.jit(scan)(row.params, start)
        for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def program(traced):
    """The text of a program that is not compiled yet, names aside."""
    text = re.sub(r'jax\.result_info = "[^"]*"', "", traced.lower().as_text())
    return text.partition("\n")[2]


def assert_unshared(*trees):
    arrays = [raw(leaf) for leaf in jax.tree.leaves(trees)]
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == len(arrays)


def public_constructors():
    for module in (optax, contrib):
        for name, function in vars(module).items():
            if inspect.isfunction(function) and "GradientTransformation" in str(
                inspect.signature(function).return_annotation
            ):
                yield name.removeprefix("_deprecated_")


# Not optimizers or parts of them: what makes one of functions, deprecated names.
HELPERS = {"stateless", "stateless_with_tree_map", "with_extra_args_support"} | {
    "inject_stateful_hyperparams"
}


def test_every_public_constructor_of_optax_has_a_row():
    assert set(public_constructors()) - set(OPTAX) == HELPERS | set(PER_EXAMPLE)


@pytest.mark.parametrize(
    ("make", "params", "error"),
    [
        (lambda: optax.sm3(RATE), {"s": jnp.ones(())}, IndexError),
        (lambda: contrib.scale_by_muon(), MATRIX, ValueError),
        (lambda: optax.lbfgs(), {}, IndexError),
        (lambda: contrib.dpsgd(RATE, 1.0, 0.1, 0), NO_HOLE, ValueError),
    ],
)
def test_what_fails_natively_fails_when_it_is_initialised(make, params, error):
    def native_step():
        tx = make()
        return tx.update(params, tx.init(params), params)

    with pytest.raises(error):
        native_step()
    with pytest.raises((error, TypeError)):
        OptaxOptimizer(make()).init(params)


@pytest.mark.skipif(not hasattr(contrib, "galore"), reason="optax.contrib.galore: Optax 0.2.7")
def test_galore_fails_natively_on_a_hole():
    with pytest.raises(AttributeError):
        contrib.galore(RATE, rank=2).init(NO_SCALAR)


def test_an_update_that_changes_the_parameters_shape_is_named():
    tx = optax.scale_by_distance_over_gradients()
    params = {"s": jnp.ones(())}
    assert optax.apply_updates(params, tx.update(params, tx.init(params), params)[0])["s"].ndim == 1
    with pytest.raises(TypeError, match=r"OptaxOptimizer: .* shapes of the parameters"):
        OptaxOptimizer(tx).init(params)


def test_a_state_that_grows_is_named():
    def init(params):
        return ()

    def update(updates, state, params=None):
        return updates, (*state, jnp.zeros(()))

    with pytest.raises(TypeError, match=r"OptaxOptimizer: .* shapes of its state"):
        OptaxOptimizer(optax.GradientTransformation(init, update)).init(PARAMS)


def test_low_precision_states_keep_one_type():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), NO_SCALAR)
    for make in (
        lambda: optax.adam(RATE),
        lambda: optax.scale_by_distance_over_gradients(),  # begins in bfloat16, goes on in float32
        lambda: contrib.reduce_on_plateau(),
    ):
        opt = OptaxOptimizer(make()).init(params)
        assert types(jax.eval_shape(take_step, params, opt)) == types((params, opt))


MAKERS = [
    lambda: OptaxOptimizer(optax.adam(RATE)),
    lambda: OptaxOptimizer(optax.lookahead(optax.sgd(RATE), 2, 0.5)),
    lambda: OptaxOptimizer(contrib.schedule_free_sgd(RATE)),
    lambda: JaxOptimizer(optimizers.adam(RATE)),
    lambda: KerasOptimizer(keras.optimizers.Adam(RATE)),
]
each_maker = pytest.mark.parametrize(
    "make", MAKERS, ids=["optax", "lookahead", "free", "jax", "keras"]
)


@each_maker
def test_initialising_works_under_jit_and_eval_shape(make):
    opt = make()
    ready = opt.init(PARAMS)
    assert bits(jax.jit(opt.init)(PARAMS)) == bits(ready)
    assert types(jax.eval_shape(opt.init, PARAMS)) == types(ready)


@pytest.mark.slow
@each_maker
def test_vmapped_optimizers_equal_each(make):
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1, leaf - 2]), PARAMS)

    def train(params, opt):
        for _ in range(3):
            params, opt = take_step(params, opt)
        return params, opt

    alone_train = jax.jit(train)
    params, opts = jax.jit(jax.vmap(train))(stacked, jax.vmap(make().init)(stacked))
    for i in range(3):
        alone = jax.tree.map(lambda leaf: leaf[i], stacked)  # noqa: B023
        expected = alone_train(alone, make().init(alone))
        for a, b in zip(jax.tree.leaves((params, opts)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


@each_maker
def test_parameters_and_state_can_be_donated(make):
    params = owned(PARAMS)
    step = jax.jit(take_step, donate_argnums=(0, 1))
    params, _ = step(*step(params, make().init(params)))
    assert value_fn(params) < value_fn(PARAMS)


@each_maker
def test_a_model_without_parameters_can_be_trained(make):
    nothing = {"hole": None}
    params, opt = jax.jit(lambda opt: opt(nothing, nothing))(make().init(nothing))
    assert params == nothing and opt.eval_params(params) == nothing


def trained(opt, steps, params=PARAMS):
    opt = opt.init(params)
    for _ in range(steps):
        params, opt = take_step(params, opt)
    return params, opt


def injected(rate):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


def plateau():
    return contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=1.0)


def decay(count):
    return 0.1 / (count + 1)


@pytest.mark.parametrize(
    ("opt", "first", "after_two"),
    [
        (lambda: OptaxOptimizer(optax.sgd(0.1)), None, None),
        (lambda: OptaxOptimizer(injected(0.1)), 0.1, 0.1),
        (lambda: OptaxOptimizer(injected(decay)), 0.1, 0.05),
        (lambda: OptaxOptimizer(optax.MultiSteps(injected(0.1), 2)), 0.1, 0.1),
        (lambda: OptaxOptimizer(optax.chain(injected(0.1), plateau())), 0.1, 0.025),
        (
            lambda: OptaxOptimizer(
                optax.partition({"matrix": injected(0.1), "other": optax.set_to_zero()}, label)
            ),
            0.1,
            0.1,
        ),
        (
            lambda: OptaxOptimizer(
                optax.partition({"matrix": injected(0.1), "other": injected(0.2)}, label)
            ),
            None,
            None,
        ),
        (lambda: JaxOptimizer(optimizers.sgd(0.1)), None, None),
        (lambda: KerasOptimizer(keras.optimizers.SGD(0.1)), 0.1, 0.1),
        (
            lambda: KerasOptimizer(
                keras.optimizers.SGD(keras.optimizers.schedules.InverseTimeDecay(0.1, 1, 1.0))
            ),
            0.1,
            0.05,
        ),
    ],
)
def test_the_learning_rate_is_the_one_in_use(opt, first, after_two):
    assert opt().learning_rate() is None
    for steps, expected in ((0, first), (2, after_two)):
        rate = trained(opt(), steps)[1].learning_rate()
        assert rate == (expected if expected is None else pytest.approx(expected))


def test_the_step_of_a_line_search_is_its_learning_rate():
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15))
    params, opt = jax.jit(take_step)(PARAMS, OptaxOptimizer(tx).init(PARAMS))
    assert opt.learning_rate() == opt.state[-1].learning_rate != 1.0
    moved = jax.tree.map(lambda new, old: new - old, params, PARAMS)
    gradient = jax.grad(value_fn)(PARAMS)
    np.testing.assert_allclose(moved["w"], -opt.learning_rate() * gradient["w"], rtol=1e-5)


def test_schedule_free_parameters_are_found_inside_others():
    free = contrib.schedule_free_sgd(RATE)
    for tx in (free, optax.chain(optax.clip(1.0), free), optax.MultiSteps(free, 2)):
        params, opt = trained(OptaxOptimizer(tx), 3)
        (node,) = (
            leaf
            for leaf in jax.tree.leaves(opt.state, is_leaf=is_schedule_free)
            if is_schedule_free(leaf)
        )
        expected = contrib.schedule_free_eval_params(node, params)
        assert bits(opt.eval_params(params)) == bits(expected) != bits(params)


def is_schedule_free(node):
    return isinstance(node, contrib.ScheduleFreeState)


def test_schedule_free_in_a_partition_averages_its_part():
    tx = optax.partition(
        {"matrix": contrib.schedule_free_sgd(RATE), "other": optax.sgd(RATE)}, label
    )
    params, opt = trained(OptaxOptimizer(tx), 3)
    averaged = opt.eval_params(params)
    alone, opt = trained(OptaxOptimizer(contrib.schedule_free_sgd(RATE)), 3, MATRIX)
    np.testing.assert_allclose(averaged["w"], opt.eval_params(alone)["w"], rtol=1e-6)
    assert averaged["b"] is params["b"] and averaged["hole"] is None


def test_lookahead_evaluates_the_slow_parameters(caplog):
    row = OPTAX["lookahead"]
    params, opt = trained(OptaxOptimizer(row.make()), 3)
    carry, step, _ = optax_loop(row, row.params, value_fn)
    for _ in range(3):
        carry = step(carry)
    assert bits(opt.eval_params(params)) == bits(carry[0].slow) != bits(params)
    assert not caplog.records and not logging.getLogger("absl").filters


def test_most_optimizers_evaluate_what_they_train():
    for make in (MAKERS[0], MAKERS[3], MAKERS[4]):
        assert make().init(PARAMS).eval_params(PARAMS) is PARAMS


def asks_for(name):
    """A transformation that scales by an extra where it is given it."""

    def update(updates, state, params=None, **extras):
        return jax.tree.map(lambda g: g * extras.get(name, 1.0), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def test_wants_can_be_named_where_tracing_does_not_find_them():
    assert OptaxOptimizer(asks_for("scale")).init(PARAMS).wants == ()
    opt = OptaxOptimizer(asks_for("scale"), wants=("scale",)).init(PARAMS)
    assert opt.wants == ("scale",)
    params, _ = opt(PARAMS, PARAMS, scale=-1.0, value=0.0)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(params))
    assert OptaxOptimizer(asks_for("x"), wants=("value", "grad_fn")).wants == ("value", "value_fn")


def test_an_update_that_needs_what_no_step_gives_is_named():
    def update(updates, state, params=None, *, batch):
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(TypeError, match=r"OptaxOptimizer: .*'batch'.* wants=\("):
        OptaxOptimizer(tx).init(PARAMS)


@each_maker
def test_other_parameters_are_named(make):
    opt = make()
    name = type(opt).__name__
    with pytest.raises(ValueError, match=rf"{name} is not initialised.*opt\.init\(params\)"):
        opt(PARAMS, PARAMS)
    opt = opt.init(PARAMS)
    wrong = {
        "gradients .* lack 'b', 's'.* opt.init": ({"w": PARAMS["w"]}, PARAMS),
        "parameters .* have 'new' besides": (PARAMS, PARAMS | {"new": jnp.ones(1)}),
        "parameters .* those were .* these are": (PARAMS, PARAMS | {"hole": ()}),
        r"parameters .* 'b' was float32\[3\] and is float32\[4\]": (
            PARAMS,
            PARAMS | {"b": jnp.ones(4)},
        ),
        r"gradients .* 's' was float32\[\] and is bfloat16\[\]": (
            PARAMS | {"s": jnp.ones((), jnp.bfloat16)},
            PARAMS,
        ),
    }
    for message, trees in wrong.items():
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            opt(*trees)


def test_a_missing_extra_is_named():
    opt = OptaxOptimizer(optax.polyak_sgd()).init(PARAMS)
    with pytest.raises(ValueError, match=r"OptaxOptimizer: .* wants value .*value=\.\.\."):
        opt(PARAMS, PARAMS)


@pytest.mark.parametrize(
    ("adapter", "thing"),
    [
        (OptaxOptimizer, optax.adam),
        (OptaxOptimizer, optax.GradientTransformation),
        (JaxOptimizer, optimizers.adam),
        (JaxOptimizer, optax.adam(RATE)),
        (KerasOptimizer, keras.optimizers.Adam),
        (KerasOptimizer, "adam"),
    ],
)
def test_what_is_no_optimizer_is_named(adapter, thing):
    with pytest.raises(TypeError, match=rf"{adapter.__name__} is expected to get an? .*it got"):
        adapter(thing)


def test_sm3_of_jax_is_named():
    with pytest.raises(TypeError, match=r"JaxOptimizer: .*sm3.*optax\.sm3"):
        JaxOptimizer(optimizers.sm3(RATE)).init(NO_SCALAR)


def test_the_keras_optimizer_stays_as_it_is():
    optimizer = keras.optimizers.Adam(RATE)
    before = [variable.numpy().tobytes() for variable in optimizer.variables]
    trained(KerasOptimizer(optimizer), 2)
    assert not optimizer.built
    assert [variable.numpy().tobytes() for variable in optimizer.variables] == before


def test_equal_keras_optimizers_share_a_compilation():
    step = jax.jit(lambda *carry: take_step(*carry))  # with a cache of its own
    for _ in range(2):
        step(PARAMS, KerasOptimizer(keras.optimizers.SGD(RATE)).init(PARAMS))
    assert step._cache_size() == 1


def without_variables(optimizer):
    optimizer.exclude_from_weight_decay(var_list=[keras.Variable(1.0)])
    return optimizer


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: keras.optimizers.Adam(use_ema=True), "use_ema"),
        (lambda: keras.optimizers.Adam(loss_scale_factor=2.0), "loss_scale_factor"),
        (
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
            "LossScaleOptimizer",
        ),
        (lambda: without_variables(keras.optimizers.AdamW()), "var_list"),
    ],
)
def test_keras_optimizers_that_need_more_than_gradients_are_refused(make, named):
    with pytest.raises(ValueError, match=rf"KerasOptimizer .*{named}.* needs .* Use "):
        KerasOptimizer(make())


def test_a_keras_optimizer_that_cannot_be_cloned_is_named():
    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

    with pytest.raises(TypeError, match=r"KerasOptimizer .*SGD that raised NotImpl.*schedule"):
        KerasOptimizer(keras.optimizers.SGD(Schedule()))
    with pytest.raises(TypeError, match=r"KerasOptimizer .*Make it outside of jax\.jit"):
        jax.jit(lambda x: KerasOptimizer(keras.optimizers.SGD(RATE)))(0)


def test_another_keras_backend_is_named(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match=r"'torch'.*KERAS_BACKEND=jax"):
        KerasOptimizer(keras.optimizers.SGD(RATE))
