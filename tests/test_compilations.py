"""What is compiled, and what is not: before the first step, in a run, and in a second one."""

import logging

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import solstice
from solstice.tree import owned


@pytest.fixture
def compiled():
    """The names of the programs that XLA compiles during the test."""
    names = []

    class Names(logging.Handler):
        def emit(self, record):
            words = record.getMessage().split()
            if words[:3] == ["Finished", "XLA", "compilation"]:
                names.append(words[4])

    handler, logger = Names(), logging.getLogger("jax._src.dispatch")
    logger.addHandler(handler)
    jax.config.update("jax_log_compiles", True)
    yield names
    jax.config.update("jax_log_compiles", False)
    logger.removeHandler(handler)


# Of sizes that no other test has: what was compiled once in a process is not compiled again.
def data(features, classes=7):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 19, features)).astype("float32")
    return list(zip(x, rng.integers(0, classes, (2, 19)).astype("int32"), strict=True))


def experiment(features, classes=7):
    network = nn.Sequential([nn.Dense(23), nn.relu, nn.Dense(classes)])
    example = data(features)[0][0]
    return solstice.ClassificationExperiment(
        network, optax.adam(1e-3), example_input=example, key=0
    )


def train(exp, ds, **options):
    logged = []
    logging = solstice.LoggingCallback(logging_fn=lambda metrics, *_: logged.append(metrics))
    exp.train(1, ds, callbacks=[logging], progress=False, **options)
    assert np.isfinite(logged[0]["average_loss"])


def test_a_run_compiles_its_step_and_merging_alone(compiled):
    ds, exp = data(29), experiment(29)
    assert compiled  # the initialisation, as the network's library has it
    compiled.clear()
    train(exp, ds[:1])
    assert compiled == ["jit(_flat_steps)"]
    compiled.clear()
    train(exp, ds)
    assert compiled == ["jit(_compiled_reduce)"]
    compiled.clear()
    train(exp, ds, val_ds=None)
    assert compiled == []


def test_an_adapter_compiles_nothing_that_its_library_does_not(compiled):
    x = data(31)[0][0]
    network = nn.Sequential([nn.Dense(23), nn.relu, nn.Dense(7)])
    variables = network.init(jax.random.key(0), x)
    optax.adam(1e-3).init(variables["params"])
    compiled.clear()
    model = solstice.compat.as_model(network, x, key=jax.random.key(0))
    solstice.compat.as_optimizer(optax.adam(1e-3)).init(model.params)
    assert compiled == []


@pytest.mark.parametrize("make", [np.asarray, jax.device_put], ids=["numpy", "jax"])
def test_owning_an_array_compiles_nothing_and_copies_it(compiled, make):
    # At an address that jax could use as it is.
    memory = np.zeros(37 * 3 * 4 + 64, "uint8")
    aligned = memory[-memory.ctypes.data % 64 :][: 37 * 3 * 4].view("float32").reshape(37, 3)
    given = make(aligned)
    mine = owned({"array": given})["array"]
    assert compiled == []
    assert isinstance(mine, jax.Array)
    assert mine.unsafe_buffer_pointer() != (
        given.ctypes.data if make is np.asarray else given.unsafe_buffer_pointer()
    )
