"""Parameters that their gradient overwrites, in experiments: as the libraries' own loops do it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import solstice
from solstice.compat import EquinoxModel, FunctionModel, Overwritten, freeze, unfreeze
from solstice.tree import leaves_by_path

X = np.array([[1, -3], [2, 0.5], [0.5, -8], [4, 1]], "float32")
Y = np.array([0, 1, 1, 0])


@jax.custom_vjp
def measure(x, largest):
    """Return `x`; the gradient of `largest` is the largest value that it had."""
    return x


measure.defvjp(
    lambda x, largest: (x, (x, largest)),
    lambda kept, grad: (grad, jnp.abs(kept[0]).max().astype(kept[1].dtype)),
)


def init(key, x):
    return {"w": jax.random.normal(key, (2, 2)), "largest": Overwritten(jnp.float32(1 / 3))}


def apply(params, x):
    assert params["largest"].dtype == jnp.float32, "it is computed in a lower precision"
    return measure(x, params["largest"]) @ params["w"]


def experiment(tx=None, change=lambda model: model, **options):
    model = change(FunctionModel(init, apply, X, key=0))
    return solstice.ClassificationExperiment(
        model, tx or optax.adam(0.1), example_input=X, key=0, **options
    )


def largest(exp):
    return float(exp.model.params["largest"].value)


# Options of an experiment, and what is the largest value that it has seen after a step.
OPTIONS = {
    "plain": ({}, 8),
    # The last part's, as batch statistics go from part to part.
    "two parts": ({"accumulate_steps": 2}, 8),
    "four parts": ({"accumulate_steps": 4}, 4),
    "averaged": ({"ema_decay": 0.9}, 8),
    "bfloat16": ({"compute_dtype": "bfloat16"}, 8),
    # Which multiplies losses and divides gradients.
    "float16": ({"compute_dtype": "float16"}, 8),
    "searching": ({"tx": optax.lbfgs()}, 8),
    "averaging optimizer": ({"tx": optax.contrib.schedule_free_sgd(0.1)}, 8),
    "lookahead": ({"tx": optax.lookahead(optax.sgd(0.1), 5, 0.5)}, 8),
    "clipping": ({"tx": optax.chain(optax.clip_by_global_norm(1e-3), optax.adamw(0.1))}, 8),
    "frozen": ({"change": lambda model: freeze(model, lambda path, leaf: "w" in path)}, 8),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_experiment_writes_the_gradient_as_it_is(name):
    options, seen = OPTIONS[name]
    exp = experiment(**options)
    before = largest(exp)
    assert before == np.float32(1 / 3)
    new, _ = exp.train_step((X, Y))
    assert largest(new) == seen
    new.test([(X, Y)], progress=False)
    if new.ema is not None:
        assert float(new.ema["largest"].value) == seen, "it is averaged"
        assert (new.ema["w"] != new.model.params["w"]).any()


def test_the_gradients_that_are_looked_at_are_those_of_the_optimizer():
    exp = experiment()
    grads = solstice.compat.gradients(exp, (X, Y))
    assert list(leaves_by_path(grads)) == ["w"]
    norms = solstice.compat.training_norms(exp, (X, Y))
    assert float(norms["parameter_norm"]) == float(solstice.tree.norm(exp.model.params["w"]))
    assert solstice.summary(exp).parameters == 4


def test_freezing_passes_over_it():
    model = FunctionModel(init, apply, X, key=0)
    asked = []
    frozen = freeze(model, lambda path, leaf: asked.append(path) or True)
    assert asked == ["w"] and leaves_by_path(frozen.params).keys() == {"largest/value"}
    assert jax.tree.structure(unfreeze(frozen)) == jax.tree.structure(model)


def test_members_of_an_ensemble_have_one_each():
    def make(key, rate):
        return experiment(tx=optax.inject_hyperparams(optax.sgd)(rate))

    ensemble = solstice.Ensemble.init(make, [0, 1], rate=[0.1, 0.2])
    ensemble, _ = ensemble.train_step((X, Y))
    assert [largest(ensemble.member(i)) for i in range(2)] == [8, 8]


def test_an_equinox_module_may_hold_one():
    import equinox as eqx

    class Net(eqx.Module):
        w: jax.Array
        largest: Overwritten

        def __call__(self, x):
            return measure(x, self.largest.value) @ self.w

    model = EquinoxModel(Net(jnp.ones((2, 2)), Overwritten(jnp.float32(0))))
    exp = solstice.ClassificationExperiment(model, optax.sgd(1.0), example_input=X)
    (back, _) = exp.train_step((X[:1], Y[:1]))
    assert float(back.model.unwrap().largest.value) == 3


# --- as the libraries do it -------------------------------------------------------------------


def test_flax_fp8_trains_as_its_train_state_does():
    net = nn.Dense(16, dot_general_cls=nn.Fp8DirectDotGeneralOp)
    r = np.random.default_rng(0)
    x, y = r.normal(size=(16, 16)).astype("float32") * 100, r.integers(0, 16, 16)
    tx = optax.adam(1e-2)
    exp = solstice.ClassificationExperiment(net, tx, example_input=x, key=0)
    state = TrainState.create(apply_fn=net.apply, params=exp.model.unwrap(), tx=tx)

    @jax.jit
    def step(state):
        def loss(variables):
            logits = net.apply(variables, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(3):
        state = step(state)
    ours = leaves_by_path(exp.train(3, [(x, y)], progress=False).model.unwrap())
    theirs = leaves_by_path(state.params)
    assert ours.keys() == theirs.keys()
    assert all(ours[path].tobytes() == theirs[path].tobytes() for path in theirs)
    assert theirs["_overwrite_with_gradient/Fp8DirectDotGeneralOp_0/input_scale"] != 1


@pytest.mark.slow
def test_keras_float8_trains_as_fit_does():
    def make():
        keras.utils.set_random_seed(0)
        dense = keras.layers.Dense(3, dtype="float8_from_float32")
        return keras.Sequential([keras.layers.Input((4,)), dense])

    x = 10 * np.asarray(jax.random.normal(jax.random.key(0), (8, 4)))
    y = np.arange(8, dtype="int32") % 3
    own = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    own.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    own.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    exp = solstice.ClassificationExperiment(
        make(), keras.optimizers.SGD(0.1, momentum=0.9), example_input=x
    )
    ours = exp.train(3, [(x, y)], progress=False).model.unwrap().variables
    for mine, theirs in zip(ours, own.variables, strict=True):
        np.testing.assert_allclose(mine.value, theirs.value, rtol=1e-4, atol=1e-6)
    assert float(next(v for v in ours if v.name == "inputs_scale").value) != 1
