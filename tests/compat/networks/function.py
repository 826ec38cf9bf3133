"""Plain functions of (params, inputs), of no library."""

import jax
import jax.numpy as jnp

from networks.common import CLASSES, INPUTS, Subject, functional, rounded
from solstice.compat import FunctionModel, tag


def dense_init(key, inputs, outputs):
    return {"w": jax.random.normal(key, (inputs, outputs)) / inputs**0.5, "b": jnp.zeros(outputs)}


def dense(params, x):
    return x @ params["w"] + params["b"]


def drop(key, rate, x):
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def mlp_init(key, x):
    first, second = jax.random.split(key)
    return dense_init(first, 4, 5), dense_init(second, 5, CLASSES)


def mlp(params, x):
    return dense(params[1], jax.nn.relu(dense(params[0], x)))


def cnn_init(key, x):
    first, second = jax.random.split(key)
    params = {
        "kernel": jax.random.normal(first, (3, 3, 1, 4)),
        "dense": dense_init(second, 64, CLASSES),
    }
    return params, {"mean": jnp.zeros(4), "variance": jnp.ones(4)}


def cnn(params, x, *, state, key, train):
    x = jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = tag("conv", x)
    if train:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        moved = {"mean": mean, "variance": variance}
        state = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state, moved)
    else:
        mean, variance = state["mean"], state["variance"]
    x = (x - mean) / jnp.sqrt(variance + 1e-5)
    x = jax.nn.relu(x).reshape(len(x), -1)
    return dense(params["dense"], drop(key, 0.4, x) if train else x), state


def recurrent_init(key, x):
    first, second = jax.random.split(key)
    return dense_init(first, 3 + 5, 5), dense_init(second, 5, CLASSES)


def recurrent(params, x):
    def cell(h, x):
        return jnp.tanh(dense(params[0], jnp.concatenate([x, h], axis=-1))), None

    h, _ = jax.lax.scan(cell, jnp.zeros((len(x), 5)), jnp.swapaxes(x, 0, 1))
    return dense(params[1], h)


def attention_init(key, queries, memory):
    keys = jax.random.split(key, 4)
    names = ("query", "key", "value")
    params = {name: dense_init(k, 8, 8) for name, k in zip(names, keys[:3], strict=True)}
    return params | {"head": dense_init(keys[3], 8, CLASSES)}


def attention(params, queries, memory, *, rng, is_training):
    q, k, v = dense(params["query"], queries), dense(params["key"], memory), None
    v = dense(params["value"], memory)
    x = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2)) @ v
    if is_training:
        dropout, noise = jax.random.split(rng)
        x = drop(dropout, 0.3, x) + 0.1 * jax.random.normal(noise, x.shape)
    return {"sequence": queries + x, "classes": dense(params["head"], x.mean(1))}


def embedding_init(key, tokens):
    first, second = jax.random.split(key)
    return {"table": jax.random.normal(first, (7, 4)), "dense": dense_init(second, 4, CLASSES)}


def embedding(params, tokens):
    return dense(params["dense"], params["table"][tokens].mean(1))


def shared_init(key, x):
    return dense_init(key, 4, 4)


def shared(params, x):
    return dense(params, jax.nn.relu(dense(params, x)))


def rounding(params, x, *, key):
    return dense(params[1], rounded(dense(params[0], x), key))


def _subject(kind: str, init, apply, key_name: str | None = None, flag: str = "", state=False):
    inputs = INPUTS[kind]

    def native(params, stats, inputs, key, train):
        options = {} if key_name is None else {key_name: key} | ({flag: train} if flag else {})
        if kind == "rounding" and not train:
            options[key_name] = jax.random.key(0)
        if state:
            return apply(params, *inputs, state=stats, **options)
        return apply(params, *inputs, **options), None

    def initial(key):
        return init(key, *inputs) if state else (init(key, *inputs), None)

    return functional(
        inputs,
        lambda key: FunctionModel(init, apply, inputs, key=key),
        initial,
        native,
        (lambda params, stats: (params, stats)) if state else (lambda params, stats: params),
        (lambda own: own) if state else (lambda own: (own, None)),
    )


SUBJECTS: dict[str, Subject] = {
    "mlp": _subject("mlp", mlp_init, mlp),
    "cnn": _subject("cnn", cnn_init, cnn, "key", "train", state=True),
    "recurrent": _subject("recurrent", recurrent_init, recurrent),
    "attention": _subject("attention", attention_init, attention, "rng", "is_training"),
    "embedding": _subject("embedding", embedding_init, embedding),
    "parameterless": _subject(
        "parameterless", lambda key, x: {}, lambda params, x: jax.nn.softmax(x)
    ),
    "shared": _subject("shared", shared_init, shared),
    "rounding": _subject("rounding", mlp_init, rounding, "key"),
}
