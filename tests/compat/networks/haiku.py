"""Haiku."""

import haiku as hk
import jax

from networks.common import CLASSES, INPUTS, Subject, functional, rounded
from solstice.compat import HaikuModel


def mlp(x):
    return hk.Linear(CLASSES)(jax.nn.relu(hk.Linear(5)(x)))


def cnn(x, is_training):
    x = hk.Conv2D(4, 3)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training)
    x = hk.Flatten()(jax.nn.relu(x))
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.4, x)
    return hk.Linear(CLASSES)(x)


def recurrent(x):
    core = hk.GRU(5)
    outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
    return hk.Linear(CLASSES)(outputs[:, -1])


def attention(queries, memory, training):
    attend = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling(), model_size=8)
    x = attend(queries, memory, memory)
    if training:
        x = hk.dropout(hk.next_rng_key(), 0.3, x)
        x += 0.1 * jax.random.normal(hk.next_rng_key(), x.shape)
    x = hk.LayerNorm(-1, True, True)(queries + x)
    return {"sequence": x, "classes": hk.Linear(CLASSES)(x.mean(1))}


def embedding(tokens):
    return hk.Linear(CLASSES)(hk.Embed(7, 4)(tokens).mean(1))


def shared(x):
    dense = hk.Linear(4)
    return dense(jax.nn.relu(dense(x)))


def rounding(x):
    return hk.Linear(CLASSES)(rounded(hk.Linear(5)(x), hk.next_rng_key()))


# What a network that asks for a key gets in evaluation.
_ASKED = {"rounding": jax.random.key(0)}


def _subject(kind: str, function, flag: str | None = None) -> Subject:
    inputs = INPUTS[kind]
    network = hk.transform_with_state(function)

    def mode(train):
        return {} if flag is None else {flag: train}

    def apply(params, state, inputs, key, train):
        key = key if train else _ASKED.get(kind)
        return network.apply(params, state, key, *inputs, **mode(train))

    return functional(
        inputs,
        lambda key: HaikuModel(network, inputs, key=key),
        lambda key: network.init(key, *inputs, **mode(True)),
        apply,
        lambda params, state: (params, state),
        lambda variables: variables,
    )


SUBJECTS = {
    "mlp": _subject("mlp", mlp),
    "cnn": _subject("cnn", cnn, "is_training"),
    "recurrent": _subject("recurrent", recurrent),
    "attention": _subject("attention", attention, "training"),
    "embedding": _subject("embedding", embedding),
    "parameterless": _subject("parameterless", jax.nn.softmax),
    "shared": _subject("shared", shared),
    "rounding": _subject("rounding", rounding),
}
