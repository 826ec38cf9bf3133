"""What is inside a network and a step, against the libraries' own, and when it is logged."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from resuming import X, Y, bits, experiment, shuffled
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import solstice
from solstice import compat
from solstice.callbacks import InspectionCallback
from solstice.loggers import JSONLines, TensorBoard, read_json_lines
from solstice.triggers import Every

BATCH = (X[:8], Y[:8])


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        for _ in range(2):
            self.sow("intermediates", "twice", x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        self.sow("intermediates", "hidden", x)
        self.sow("mine", "mean", x.mean())
        return nn.Dense(3)(x)


class SowingNNX(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        self.sow(nnx.Intermediate, "hidden", x)
        return self.last(x)


def noting(x):
    x = jax.nn.relu(hk.Linear(8)(x))
    hk.set_state("seen_hidden", x)
    hk.set_state("other", x.sum())
    return hk.Linear(3)(x)


def test_linen_values_are_those_that_flax_collects():
    model = compat.as_model(Sowing(), X, key=jax.random.key(0))
    before = bits(model)
    for train in (False, True):
        key = jax.random.key(1) if train else None
        _, wanted = Sowing().apply(
            model.unwrap(),
            BATCH[0],
            train=train,
            mutable=["intermediates", "mine", "batch_stats"],
            rngs={"dropout": key} if train else {},
        )
        found = compat.intermediates(model, BATCH[0], key=key, train=train)
        assert list(found) == ["hidden", "twice/0", "twice/1"]
        np.testing.assert_array_equal(found["hidden"], wanted["intermediates"]["hidden"][0])
        mine = compat.intermediates(model, BATCH[0], key=key, train=train, name="mine")
        assert mine == {"mean": wanted["mine"]["mean"][0]}
    assert bits(model) == before


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_nnx_values_are_the_networks_own_and_a_network_that_sows_trains():
    network = SowingNNX(nnx.Rngs(0))
    network(X)  # what it sowed before is no part of the model
    model = compat.as_model(network)
    plain = jax.nn.relu(network.first(BATCH[0]))
    found = compat.intermediates(model, BATCH[0])
    assert list(found) == ["hidden"]
    np.testing.assert_array_equal(found["hidden"], plain)
    exp = solstice.ClassificationExperiment(model, optax.sgd(0.1), example_input=X)
    exp = exp.train(2, [BATCH] * 2, recompile="error", progress=False)
    assert compat.intermediates(exp.model, BATCH[0])["hidden"].shape == (8, 8)


def test_haiku_values_are_states_under_a_prefix():
    model = compat.as_model(hk.transform_with_state(noting), X, key=jax.random.key(0))
    found = compat.intermediates(model, BATCH[0], name="seen")
    assert list(found) == ["~/seen_hidden"] and found["~/seen_hidden"].shape == (8, 8)
    _, after = model(BATCH[0], train=True)
    np.testing.assert_array_equal(found["~/seen_hidden"], after.state["~"]["seen_hidden"])


def test_what_notes_nothing_says_so():
    model = compat.as_model(eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0)))
    with pytest.raises(TypeError, match="Return the values with the network's outputs"):
        compat.intermediates(model, X)
    model = compat.as_model(Sowing(), X, key=jax.random.key(0))
    with pytest.raises(ValueError, match="the network recorded nothing under 'theirs'"):
        compat.intermediates(model, X, name="theirs")


@pytest.mark.parametrize("network", ["linen", "nnx"])
def test_gradients_are_those_that_the_step_takes(network):
    exp = experiment(network)
    exp = solstice.replace(
        exp, optimizer=compat.as_optimizer(optax.sgd(1.0)).init(exp.model.params)
    )
    before = bits(exp)
    grads = jax.jit(compat.gradients)(exp, BATCH)
    assert bits(exp) == before
    after, _ = exp.train_step(BATCH)
    moved = jax.tree.map(lambda a, b: a - b, exp.model.params, after.model.params)
    trees = (jax.tree.leaves(tree) for tree in (grads, moved))
    for one, other in zip(*trees, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert solstice.tree.norm(grads) == pytest.approx(float(optax.global_norm(grads)))


@pytest.mark.slow
def test_norms_and_the_learning_rate_in_use():
    schedule = optax.cosine_decay_schedule(1e-2, 40)
    tx = optax.inject_hyperparams(optax.adam)(schedule)
    exp = solstice.ClassificationExperiment(Sowing(), tx, example_input=X, key=0)
    exp = solstice.train(exp, 1, [BATCH] * 3, progress=False)
    values = compat.training_norms(exp, BATCH)
    assert float(values["parameter_norm"]) == pytest.approx(
        float(optax.global_norm(exp.model.params))
    )
    assert float(values["learning_rate"]) == pytest.approx(float(schedule(2)))


def test_without_an_optimizer_of_compat_there_are_no_gradients(adding):
    with pytest.raises(ValueError, match=r"in Adding, 0 of 0 were. Adapt them with compat"):
        compat.gradients(adding, 1)


def inside(exp, batch):
    return {
        "act": compat.intermediates(exp.model, batch[0]),
        **compat.training_norms(exp, batch),
        "labels": batch[1].sum(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_values_are_logged_when_the_trigger_fires_and_training_is_the_same(
    tmp_path, steps_per_call
):
    def run(*callbacks):
        exp = solstice.ClassificationExperiment(Sowing(), optax.adam(1e-2), example_input=X, key=0)
        return bits(
            solstice.train(
                exp,
                2,
                shuffled,
                callbacks=list(callbacks),
                steps_per_call=steps_per_call,
                progress=False,
            )
        )

    sinks = [JSONLines(tmp_path / "log"), TensorBoard(tmp_path / "board")]
    looks = InspectionCallback(inside, when=Every(steps=4) | Every(epochs=1), logging_fn=sinks)
    assert run(looks) == run()
    steps = [4, 5, 8, 10] if steps_per_call == 1 else [4, 5, 9, 10]
    records = read_json_lines(tmp_path / "log")
    assert [(r["mode"], r["step"]) for r in records] == [("inside", step) for step in steps]
    last = [list(shuffled(epoch))[-1][1].sum() for epoch in (0, 1)]
    assert [records[1]["labels"], records[3]["labels"]] == last
    board = EventAccumulator(str(tmp_path / "board" / "inside"), size_guidance={"tensors": 0})
    board.Reload()
    tags = board.Tags()
    assert "act/hidden" in tags["histograms"] and "gradient_norm" in tags["scalars"]
    assert looks.results["act/hidden"].shape == (2, 8)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match=r"values_fn is expected to be a function of \(exp, batch"):
        InspectionCallback(3, when=Every(steps=1))
    with pytest.raises(TypeError, match="when is expected to be a trigger"):
        InspectionCallback(inside, when=3)


def test_a_norm_of_narrow_numbers_does_not_overflow():
    assert solstice.tree.norm(jnp.full(4, 300, jnp.float16)) == 600
    assert solstice.tree.norm({}) == 0
