"""The same small CNN (convolution, batch norm, dropout, dense) in each library, twice: as an
adapted `Model`, and in that library's own idiomatic jitted training loop, as the reference.

A `Native` runs the reference: `init` gives its carry (params, state, optimizer state), `step`
takes one optimizer step on it, `evaluate` gives the outputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from jax.example_libraries import stax

from solstice import compat

CLASSES = 3
TX = optax.adam(1e-2)


def batch(seed: int = 0, size: int = 8) -> tuple[jax.Array, jax.Array]:
    x_key, y_key = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(x_key, (size, 6, 6, 1))
    return x, jax.random.randint(y_key, (size,), 0, CLASSES)


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x).reshape(x.shape[0], -1)
        x = nn.Dropout(0.4, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x)


def haiku_cnn(x, is_training):
    x = hk.Conv2D(4, 3)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training)
    x = hk.Flatten()(jax.nn.relu(x))
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.4, x)
    return hk.Linear(CLASSES)(x)


HAIKU_CNN = hk.transform_with_state(haiku_cnn)


class EquinoxCNN(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    dense: eqx.nn.Linear

    def __init__(self, key):
        conv_key, dense_key = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=conv_key)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.4)
        self.dense = eqx.nn.Linear(4 * 36, CLASSES, key=dense_key)

    def __call__(self, x, state, *, key=None):
        x = self.conv(jnp.moveaxis(x, -1, 0))
        x, state = self.norm(x, state)
        x = self.dropout(jax.nn.relu(x).ravel(), key=key)
        return self.dense(x), state


def stax_cnn(mode):
    return stax.serial(
        stax.Conv(4, (3, 3), padding="SAME"),
        stax.BatchNorm(),
        stax.Relu,
        stax.Flatten,
        stax.Dropout(0.6, mode=mode),
        stax.Dense(CLASSES),
    )


STAX_CNN = {mode: stax_cnn(mode) for mode in ("train", "test")}


class Native(NamedTuple):
    """A library's own loop beside the adapted network."""

    adapt: Callable[[jax.Array], compat.Model]
    init: Callable[[jax.Array], tuple[Any, Any, Any]]
    step: Callable[..., tuple[jax.Array, tuple[Any, Any, Any]]]
    evaluate: Callable[..., jax.Array]
    # From an adapted model to (params, state) as the native loop holds them.
    values: Callable[[compat.Model], tuple[Any, Any]]


def _linen() -> Native:
    module = LinenCNN()

    def init(key):
        variables = module.init(key, batch()[0], train=False)
        return variables["params"], variables["batch_stats"], TX.init(variables["params"])

    @jax.jit
    def step(carry, x, y, key):
        params, stats, opt_state = carry

        def loss_of(params):
            logits, updates = module.apply(
                {"params": params, "batch_stats": stats},
                x,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            return cross_entropy(logits, y), updates["batch_stats"]

        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return loss, (optax.apply_updates(params, updates), stats, opt_state)

    @jax.jit
    def evaluate(carry, x):
        return module.apply({"params": carry[0], "batch_stats": carry[1]}, x, train=False)

    return Native(
        lambda key: compat.FlaxModel(module, batch()[0], key=key),
        init,
        step,
        evaluate,
        lambda model: (model.unwrap()["params"], model.unwrap()["batch_stats"]),
    )


def _haiku() -> Native:
    def init(key):
        params, state = HAIKU_CNN.init(key, batch()[0], is_training=True)
        return params, state, TX.init(params)

    @jax.jit
    def step(carry, x, y, key):
        params, state, opt_state = carry

        def loss_of(params):
            logits, new_state = HAIKU_CNN.apply(params, state, key, x, is_training=True)
            return cross_entropy(logits, y), new_state

        (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return loss, (optax.apply_updates(params, updates), state, opt_state)

    @jax.jit
    def evaluate(carry, x):
        return HAIKU_CNN.apply(carry[0], carry[1], None, x, is_training=False)[0]

    return Native(
        lambda key: compat.HaikuModel(HAIKU_CNN, batch()[0], key=key),
        init,
        step,
        evaluate,
        lambda model: model.unwrap(),
    )


def _equinox() -> Native:
    def call(module, state, x, keys):
        mapped = jax.vmap(
            lambda x, state, key: module(x, state, key=key),
            in_axes=(0, None, 0),
            out_axes=(0, None),
            axis_name="batch",
        )
        return mapped(x, state, keys)

    def init(key):
        module, state = eqx.nn.make_with_state(EquinoxCNN)(key)
        return module, state, TX.init(eqx.filter(module, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(carry, x, y, key):
        module, state, opt_state = carry

        @eqx.filter_value_and_grad(has_aux=True)
        def loss_of(module):
            logits, new_state = call(module, state, x, jax.random.split(key, len(x)))
            return cross_entropy(logits, y), new_state

        (loss, state), grads = loss_of(module)
        updates, opt_state = TX.update(grads, opt_state, eqx.filter(module, eqx.is_inexact_array))
        return loss, (eqx.apply_updates(module, updates), state, opt_state)

    @eqx.filter_jit
    def evaluate(carry, x):
        return call(eqx.nn.inference_mode(carry[0]), carry[1], x, jnp.zeros(len(x)))[0]

    return Native(
        lambda key: compat.as_model(eqx.nn.make_with_state(EquinoxCNN)(key)),
        init,
        step,
        evaluate,
        lambda model: (eqx.filter(model.unwrap()[0], eqx.is_array), model.unwrap()[1]),
    )


def _stax() -> Native:
    def init(key):
        _, params = STAX_CNN["train"][0](key, batch()[0].shape)
        return params, None, TX.init(params)

    @jax.jit
    def step(carry, x, y, key):
        params, _, opt_state = carry
        loss, grads = jax.value_and_grad(
            lambda params: cross_entropy(STAX_CNN["train"][1](params, x, rng=key), y)
        )(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return loss, (optax.apply_updates(params, updates), None, opt_state)

    @jax.jit
    def evaluate(carry, x):
        return STAX_CNN["test"][1](carry[0], x, rng=jax.random.key(0))

    return Native(
        lambda key: compat.StaxModel(
            STAX_CNN["train"], batch()[0], key=key, eval_apply=STAX_CNN["test"][1]
        ),
        init,
        step,
        evaluate,
        lambda model: (model.unwrap(), None),
    )


NATIVES = {"linen": _linen, "haiku": _haiku, "equinox": _equinox, "stax": _stax}
