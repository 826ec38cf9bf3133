"""Equinox: networks of one example, channels first, matrices (out, in)."""

import equinox as eqx
import jax
import jax.numpy as jnp

from architectures.common import keys
from solstice import compat

K = keys(6)
BIASES = {f"use_{one}_bias": True for one in ("query", "key", "value", "output")}


class CNN(eqx.Module):
    conv1: eqx.nn.Conv2d
    bn1: eqx.nn.BatchNorm
    conv2: eqx.nn.Conv2d
    bn2: eqx.nn.BatchNorm
    fc: eqx.nn.Linear

    def __init__(self):
        self.conv1 = eqx.nn.Conv2d(3, 4, 3, padding=1, key=K[0])
        self.bn1 = eqx.nn.BatchNorm(4, "batch", mode="batch")
        self.conv2 = eqx.nn.Conv2d(4, 4, 3, padding=1, key=K[1])
        self.bn2 = eqx.nn.BatchNorm(4, "batch", mode="batch")
        self.fc = eqx.nn.Linear(4, 5, key=K[2])

    def __call__(self, x, state):
        x, state = self.bn1(self.conv1(jnp.moveaxis(x, -1, 0)), state)
        x, state = self.bn2(self.conv2(jax.nn.relu(x)), state)
        return self.fc(jax.nn.relu(x).mean((1, 2))), state


class Block(eqx.Module):
    convs: list
    norms: list

    def __init__(self, inputs, outputs, stride):
        def conv(inputs, size, stride, key):
            return eqx.nn.Conv2d(inputs, outputs, size, stride, size // 2, use_bias=False, key=key)

        self.convs = [conv(inputs, 3, stride, K[0]), conv(outputs, 3, 1, K[1])]
        self.convs += [conv(inputs, 1, stride, K[2])] * (stride > 1)
        self.norms = [eqx.nn.BatchNorm(outputs, "batch", mode="batch") for _ in self.convs]

    def __call__(self, x, state):
        y, state = self.norms[0](self.convs[0](x), state)
        y, state = self.norms[1](self.convs[1](jax.nn.relu(y)), state)
        if len(self.convs) > 2:
            x, state = self.norms[2](self.convs[2](x), state)
        return jax.nn.relu(x + y), state


class ResNet(eqx.Module):
    conv1: eqx.nn.Conv2d
    bn1: eqx.nn.BatchNorm
    blocks: list
    fc: eqx.nn.Linear

    def __init__(self):
        self.conv1 = eqx.nn.Conv2d(3, 8, 3, 1, 1, use_bias=False, key=K[3])
        self.bn1 = eqx.nn.BatchNorm(8, "batch", mode="batch")
        self.blocks = [Block(8, 8, 1), Block(8, 16, 2)]
        self.fc = eqx.nn.Linear(16, 3, key=K[4])

    def __call__(self, x, state):
        x, state = self.bn1(self.conv1(jnp.moveaxis(x, -1, 0)), state)
        x = jax.nn.relu(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.fc(x.mean((1, 2))), state


class Layer(eqx.Module):
    ln1: eqx.nn.LayerNorm
    attn: eqx.nn.MultiheadAttention
    ln2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self):
        self.ln1, self.ln2 = eqx.nn.LayerNorm(16), eqx.nn.LayerNorm(16)
        self.attn = eqx.nn.MultiheadAttention(2, 16, **BIASES, key=K[0])
        self.up = eqx.nn.Linear(16, 32, key=K[1])
        self.down = eqx.nn.Linear(32, 16, key=K[2])

    def __call__(self, x):
        h = jax.vmap(self.ln1)(x)
        x = x + self.attn(h, h, h)
        h = jax.nn.relu(jax.vmap(self.up)(jax.vmap(self.ln2)(x)))
        return x + jax.vmap(self.down)(h)


class Transformer(eqx.Module):
    emb: eqx.nn.Embedding
    position: jax.Array
    layers: list
    norm: eqx.nn.LayerNorm
    fc: eqx.nn.Linear

    def __init__(self):
        self.emb, self.position = eqx.nn.Embedding(11, 16, key=K[0]), jnp.zeros((5, 16))
        self.layers, self.norm = [Layer(), Layer()], eqx.nn.LayerNorm(16)
        self.fc = eqx.nn.Linear(16, 3, key=K[1])

    def __call__(self, x):
        x = jax.vmap(self.emb)(x) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.fc(jax.vmap(self.norm)(x).mean(0))


class LSTM(eqx.Module):
    cell: eqx.nn.LSTMCell
    fc: eqx.nn.Linear

    def __init__(self):
        self.cell = eqx.nn.LSTMCell(6, 8, key=K[0])
        self.fc = eqx.nn.Linear(8, 3, key=K[1])

    def __call__(self, x):
        start = jnp.zeros(8), jnp.zeros(8)
        (h, _), _ = jax.lax.scan(lambda carry, x: (self.cell(x, carry), None), start, x)
        return self.fc(h)


class GRU(eqx.Module):
    cell: eqx.nn.GRUCell
    fc: eqx.nn.Linear

    def __init__(self):
        self.cell = eqx.nn.GRUCell(6, 8, key=K[0])
        self.fc = eqx.nn.Linear(8, 3, key=K[1])

    def __call__(self, x):
        h, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(8), x)
        return self.fc(h)


class Attention(eqx.Module):
    ln1: eqx.nn.LayerNorm
    attn: eqx.nn.MultiheadAttention
    ln2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self):
        self.ln1 = eqx.nn.LayerNorm(8)
        self.attn = eqx.nn.MultiheadAttention(2, 8, **BIASES, key=K[0])
        self.ln2 = eqx.nn.LayerNorm(8)
        self.up = eqx.nn.Linear(8, 16, key=K[1])
        self.down = eqx.nn.Linear(16, 8, key=K[2])

    def __call__(self, x):
        h = jax.vmap(self.ln1)(x)
        x = x + self.attn(h, h, h)
        h = jax.vmap(self.ln2)(x)
        return x + jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(h)))


class Embedding(eqx.Module):
    emb: eqx.nn.Embedding
    fc: eqx.nn.Linear

    def __init__(self):
        self.emb = eqx.nn.Embedding(11, 8, key=K[0])
        self.fc = eqx.nn.Linear(8, 3, key=K[1])

    def __call__(self, x):
        return self.fc(jax.vmap(self.emb)(x).mean(0))


def _made(network):
    return lambda x: compat.EquinoxModel(network())


NETWORKS = {
    "mlp": _made(lambda: eqx.nn.MLP(8, 3, 16, 2, key=K[0])),
    "cnn": lambda x: compat.EquinoxModel(*eqx.nn.make_with_state(CNN)()),
    "resnet": lambda x: compat.EquinoxModel(*eqx.nn.make_with_state(ResNet)()),
    "transformer": _made(Transformer),
    "lstm": _made(LSTM),
    "gru": _made(GRU),
    "attention": _made(Attention),
    "embedding": _made(Embedding),
}
