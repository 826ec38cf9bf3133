"""summary: what it lists of whom, that its totals are right, and what XLA says of a step."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from jax.example_libraries import stax

import solstice
from solstice import compat, tree

X, Y = jnp.ones((8, 4)), jnp.zeros(8, int)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def keras_net():
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])


NETWORKS = {
    "linen": Net,
    "nnx": lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0)),
    "keras": keras_net,
    "stax": lambda: stax.serial(stax.Dense(3)),
    "equinox": lambda: eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0)),
}


def experiment(network):
    return solstice.ClassificationExperiment(network, optax.adam(0.1), example_input=X, key=0)


@pytest.mark.parametrize("library", NETWORKS)
def test_totals_are_those_of_the_tree(library):
    exp = experiment(NETWORKS[library]())
    found = solstice.summary(exp)
    sizes = {
        role: sum(r.size for r in found.rows if r.role == role)
        for role in ("trainable", "state", "optimizer", "")
    }
    assert sizes == {
        "trainable": tree.size(exp.model.params),
        "state": tree.size(exp.model.state),
        "optimizer": tree.size(exp.optimizer),
        "": tree.size(exp.key),
    }
    assert found.parameters == tree.size(exp.model.params)
    assert found.nbytes == tree.nbytes(exp)
    assert sum(row.arrays for row in found.rows) == len(
        jax.tree.leaves(eqx.filter(exp, eqx.is_array))
    )


def test_frozen_parameters_are_not_trainable():
    model = compat.as_model(Net(), X, key=0)
    frozen = compat.freeze(model, lambda path, leaf: path.endswith("kernel"))
    roles = {row.path: row.role for row in solstice.summary(frozen).rows}
    assert roles["frozen/Dense_0/kernel"] == "frozen"
    assert roles["params/Dense_0/bias"] == "trainable"
    assert roles["state/batch_stats/BatchNorm_0/mean"] == "state"
    assert solstice.summary(frozen).parameters == tree.size(model.params) - 4 * 5 - 5 * 3


class Slope(solstice.Experiment):
    """No model, an undecorated step, a setting that is no array, and a loop if wanted."""

    w: jax.Array
    moment: np.ndarray
    rate: float
    loops: int = eqx.field(static=True, default=0)

    def train_step(self, batch):
        x, y = batch
        loss, slope = jax.value_and_grad(lambda w: jnp.mean((x @ w - y) ** 2))(self.w)
        slope = jax.lax.fori_loop(0, self.loops, lambda i, s: s @ s, slope) if self.loops else slope
        return solstice.replace(self, w=self.w - self.rate * slope), loss

    def eval_step(self, batch):
        return self, None


def test_an_experiment_of_ones_own_has_no_roles():
    found = solstice.summary(Slope(jnp.ones((4, 3)), np.zeros(2), 0.1))
    assert str(found).splitlines() == [
        "Slope",
        "",
        "path    shape     dtype    size  bytes",
        "w       (4, 3)    float32    12   48 B",
        "moment  (2,)      float64     2   16 B",
        "--------------------------------------",
        "total   2 arrays             14   64 B",
    ]
    assert repr(found) == str(found)
    assert found.parameters == 14


def test_xla_counts_what_a_step_computes():
    exp = Slope(jnp.ones((64, 32)), np.zeros(2), 0.1)
    cost = solstice.summary(exp, (np.ones((128, 64), np.float32), jnp.ones((128, 32)))).cost
    # Forward, and the gradient of the weights; the rest is small beside them.
    matmuls = 2 * (2 * 128 * 64 * 32)
    assert matmuls <= cost.flops < 1.1 * matmuls
    inputs = 4 * (64 * 32 + 128 * 64 + 128 * 32)
    assert inputs <= cost.argument_bytes <= inputs + 64
    assert cost.bytes_accessed > inputs
    assert "One training step of (float32[128,64], float32[128,32]) on cpu" in str(cost)
    assert "a loop counts once" not in str(cost)


def test_a_loop_is_said_to_count_once():
    exp = Slope(jnp.ones((4, 4)), np.zeros(2), 0.1, loops=3)
    text = str(solstice.summary(exp, (jnp.ones((2, 4)), jnp.ones((2, 4)))))
    assert text.endswith("(the body of a loop counts once, no matter how often it runs)")


def test_a_batch_may_be_shapes_and_nothing_is_run():
    exp = experiment(Net())
    shapes = (jax.ShapeDtypeStruct(X.shape, X.dtype), jax.ShapeDtypeStruct(Y.shape, Y.dtype))
    assert solstice.summary(exp, shapes) == solstice.summary(exp, (X, Y))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(exp))


def test_a_fused_step_reuses_the_buffers_of_its_experiment():
    exp = experiment(Net())
    cost = solstice.summary(exp, (X, Y)).cost
    assert cost.output_bytes < tree.nbytes(exp) <= cost.argument_bytes


def test_a_model_is_called_in_evaluation():
    model = compat.as_model(Net(), X, key=0)
    cost = solstice.summary(model, X).cost
    assert "One call in evaluation of (float32[8,4]) on cpu" in str(cost)
    assert cost.flops >= 2 * 8 * (4 * 5 + 5 * 3)


def test_abstract_experiments_are_listed():
    assert solstice.summary(jax.eval_shape(lambda: {"w": jnp.ones(3)})).nbytes == 12


def test_long_paths_lose_their_middle():
    value = {"encoder": {f"layers_{i}": {"attention_" * 4: {"kernel": X}} for i in (0, 1)}}
    found = solstice.summary(value)
    lines = [line.split("  ")[0] for line in str(found).splitlines() if "kernel" in line]
    assert len(set(lines)) == 2 and {len(line) for line in lines} == {48}
    assert lines[1].startswith("encoder/layers_1/at...ttention_attention_/kernel")
    assert found.rows[1].path == f"encoder/layers_1/{'attention_' * 4}/kernel"


@pytest.mark.parametrize(
    "name",
    [
        lambda i: f"transformer_block_{i}_feed_forward_projection_layer/kernel",
        lambda i: f"{'b' * i}{'a' * 60}{'b' * (60 - i)}",
        lambda i: f"{i}{'a' * 100}",
        lambda i: f"{'a' * 100}{i}",
        lambda i: "a/b" if i == 0 else "c",
    ],
)
def test_no_two_rows_read_alike(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    value = {name(i): X for i in (0, 1)} | {"a": {"b": X}}
    value |= {name(i): X for i in range(2, 50)}
    lines = str(solstice.summary(value)).splitlines()
    paths = [line.split("  ")[0] for line in lines if "float32" in line]
    assert len(paths) == len(jax.tree.leaves(value)) == len(set(paths))


@pytest.mark.parametrize("thing", [[], {"f": len}, len, 3])
def test_what_has_no_array_is_refused(thing):
    with pytest.raises(TypeError, match=r"experiment_or_model of summary.* is expected to be"):
        solstice.summary(thing)


def test_a_batch_for_something_that_takes_none_is_refused():
    with pytest.raises(TypeError, match=r"dict is neither\. Leave the batch out"):
        solstice.summary({"w": X}, X)


def test_a_narrow_terminal_shows_fewer_columns(monkeypatch):
    found = solstice.summary(compat.as_model(nn.Dense(3), X, key=0))
    wide = str(found)
    monkeypatch.setenv("COLUMNS", "40")
    narrow = str(found)
    assert "float32" in wide and "float32" not in narrow
    assert max(map(len, narrow.splitlines())) <= 40 < max(map(len, wide.splitlines()))
    assert "kernel" in narrow and "trainable" in narrow
