"""Models and optimizers of several libraries, each adapter by its name."""

from typing import Any, assert_type

import equinox as eqx
import jax

import solstice
from solstice import compat


def adapted(linen: Any, haiku: Any, keras: Any, optax: Any, x: jax.Array) -> list[compat.Model]:
    model = compat.as_model(linen, x, key=1)
    assert_type(model, compat.Model)
    optimizer = compat.as_optimizer(optax).init(model.params)
    assert_type(optimizer, compat.Optimizer)
    params, after = optimizer(model.params, model.params)
    assert_type(after, compat.Optimizer)
    outputs, model = model(x, train=True)
    print(outputs, solstice.replace(model, params=params).unwrap(), after.learning_rate())
    frozen = compat.freeze(model, lambda path, leaf: path.startswith("dense") and leaf.ndim > 1)
    assert_type(frozen, compat.Model)
    return [
        frozen,
        compat.FlaxModel(linen, x, key=0),
        compat.HaikuModel(haiku, x, key=0),
        compat.EquinoxModel(eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))),
        compat.KerasModel(keras),
    ]


def trained(make: Any, x: jax.Array) -> jax.Array:
    ensemble = solstice.Ensemble.init(make, jax.random.split(jax.random.key(0), 3), rate=[0.1, 1])
    assert_type(ensemble, solstice.Ensemble)
    ensemble = ensemble.train(2, [x], sharding=solstice.sharding.DataParallel())
    exp = solstice.RegressionExperiment(compat.as_model(make, x), make, loss=lambda a, b: a - b)
    assert_type(exp.train(1, [x]), solstice.RegressionExperiment)
    return exp.predict(x)
