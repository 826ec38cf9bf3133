"""Equinox: networks for one example, mapped over the batch."""

import equinox as eqx
import jax
import jax.numpy as jnp

from networks.common import CLASSES, INPUTS, TX, Subject, arrays, loss_of
from solstice.compat import as_model


class MLP(eqx.Module):
    layers: eqx.nn.MLP

    def __init__(self, key):
        self.layers = eqx.nn.MLP(4, CLASSES, 5, 1, key=key)

    def __call__(self, x):
        return self.layers(x)


class CNN(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    dense: eqx.nn.Linear

    def __init__(self, key):
        conv_key, dense_key = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=conv_key)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.4)
        self.dense = eqx.nn.Linear(4 * 16, CLASSES, key=dense_key)

    def __call__(self, x, state, *, key=None):
        x = self.conv(jnp.moveaxis(x, -1, 0))
        x, state = self.norm(x, state)
        x = self.dropout(jax.nn.relu(x).ravel(), key=key)
        return self.dense(x), state


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    dense: eqx.nn.Linear

    def __init__(self, key):
        cell_key, dense_key = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(3, 5, key=cell_key)
        self.dense = eqx.nn.Linear(5, CLASSES, key=dense_key)

    def __call__(self, x):
        h, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(5), x)
        return self.dense(h)


class Attention(eqx.Module):
    attend: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    dense: eqx.nn.Linear

    def __init__(self, key):
        attend_key, dense_key = jax.random.split(key)
        self.attend = eqx.nn.MultiheadAttention(2, 8, dropout_p=0.3, key=attend_key)
        self.norm = eqx.nn.LayerNorm(8)
        self.dense = eqx.nn.Linear(8, CLASSES, key=dense_key)

    def __call__(self, queries, memory, *, key=None, train):
        dropout, noise = (None, None) if key is None else jax.random.split(key)
        x = self.attend(queries, memory, memory, key=dropout)
        if train:
            x += 0.1 * jax.random.normal(noise, x.shape)
        x = jax.vmap(self.norm)(queries + x)
        return {"sequence": x, "classes": self.dense(x.mean(0))}


class Embedding(eqx.Module):
    table: eqx.nn.Embedding
    dense: eqx.nn.Linear

    def __init__(self, key):
        table_key, dense_key = jax.random.split(key)
        self.table = eqx.nn.Embedding(7, 4, key=table_key)
        self.dense = eqx.nn.Linear(4, CLASSES, key=dense_key)

    def __call__(self, tokens):
        return self.dense(jax.vmap(self.table)(tokens).mean(0))


class Parameterless(eqx.Module):
    def __init__(self, key):
        del key

    def __call__(self, x):
        return jax.nn.softmax(x)


class Shared(eqx.Module):
    dense: eqx.nn.Linear

    def __init__(self, key):
        self.dense = eqx.nn.Linear(4, 4, key=key)

    def __call__(self, x):
        return self.dense(jax.nn.relu(self.dense(x)))


class Rounding(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.first = eqx.nn.Linear(4, 5, key=first)
        self.second = eqx.nn.Linear(5, CLASSES, key=second)

    def __call__(self, x, *, key):
        # A key of one example, that is, one that is mapped, may not be closed over.
        return self.second(rounded_each(self.first(x), jax.random.split(key)[0]))


@jax.custom_vjp
def rounded_each(x, key):
    return x


rounded_each.defvjp(
    lambda x, key: (x, key),
    lambda key, grad: (jnp.floor(64 * grad + jax.random.uniform(key, grad.shape)) / 64, None),
)


def _subject(kind: str, network, *, flag: str | None = None) -> Subject:
    inputs = INPUTS[kind]
    takes_key = kind in ("cnn", "attention", "rounding")
    _, empty = eqx.nn.make_with_state(network)(jax.random.key(0))
    has_state = bool(jax.tree.leaves(empty))

    def apply(module, state, inputs, key, train):
        def one(inputs, state, key):
            options = {"key": key} if takes_key else {}
            if flag is not None:
                options[flag] = train
            if has_state:
                return module(*inputs, state, **options)
            return module(*inputs, **options), state

        if not train and kind == "rounding":  # which asks in evaluation too
            key, train = jax.random.key(0), True
        keys = jax.random.split(key, len(inputs[0])) if train and takes_key else None
        mapped = jax.vmap(one, (0, None, 0), (0, None), axis_name="batch")
        return mapped(inputs, state, keys)

    def make(key):
        return eqx.nn.make_with_state(network)(key) if has_state else (network(key), None)

    def start(key):
        module, state = make(key)
        return module, state, TX.init(eqx.filter(module, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(carry, inputs, key):
        module, state, opt_state = carry

        @eqx.filter_value_and_grad(has_aux=True)
        def objective(module):
            outputs, new_state = apply(module, state, inputs, key, True)
            return loss_of(outputs), new_state

        (loss, state), grads = objective(module)
        updates, opt_state = TX.update(grads, opt_state, eqx.filter(module, eqx.is_inexact_array))
        return loss, (eqx.apply_updates(module, updates), state, opt_state)

    @eqx.filter_jit
    def evaluate(carry, inputs):
        return apply(eqx.nn.inference_mode(carry[0]), carry[1], inputs, None, False)[0]

    def own(carry):
        return carry[:2] if has_state else carry[0]

    def call(own, *inputs, key, train):
        module, state = own if has_state else (own, None)
        return apply(eqx.nn.inference_mode(module, not train), state, inputs, key, train)[0]

    return Subject(
        inputs,
        lambda key: as_model(make(key) if has_state else network(key)),
        call,
        start,
        step,
        evaluate,
        own,
        arrays,
    )


SUBJECTS = {
    "mlp": _subject("mlp", MLP),
    "cnn": _subject("cnn", CNN),
    "recurrent": _subject("recurrent", Recurrent),
    "attention": _subject("attention", Attention, flag="train"),
    "embedding": _subject("embedding", Embedding),
    "parameterless": _subject("parameterless", Parameterless),
    "shared": _subject("shared", Shared),
    "rounding": _subject("rounding", Rounding),
}
