"""Stax: pairs of functions; it has neither recurrent cells, nor attention, nor embeddings."""

import jax.numpy as jnp
from jax.example_libraries import stax

from solstice import compat

_POOL = lambda key, shape: ((shape[0], shape[-1]), ()), lambda params, x, **_: jnp.mean(x, (1, 2))
_CONV = stax.Conv(4, (3, 3), padding="SAME"), stax.BatchNorm(), stax.Relu
MLP = stax.serial(stax.Dense(16), stax.Relu, stax.Dense(16), stax.Relu, stax.Dense(3))
CNN = stax.serial(*_CONV, *_CONV, _POOL, stax.Dense(5))


def _made(network):
    return lambda x: compat.as_model(network, x, key=0)


NETWORKS = {"mlp": _made(MLP), "cnn": _made(CNN)}
