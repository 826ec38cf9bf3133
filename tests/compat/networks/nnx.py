"""Flax NNX: modules that hold their parameters and streams, trained in place."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from networks.common import CLASSES, INPUTS, TX, Subject, loss_of, rounded
from solstice.compat import NNXModel


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.dense = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).reshape(x.shape[0], -1)
        return self.dense(self.dropout(x))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        # The carry starts at zeros, so the cell needs no stream of its own.
        self.rnn = nnx.RNN(nnx.SimpleCell(3, 5, rngs=rngs), rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(5, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.rnn(x)[:, -1])


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attend = nnx.MultiHeadAttention(2, 8, dropout_rate=0.3, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.dense = nnx.Linear(8, CLASSES, rngs=rngs)
        self.rngs = rngs

    def __call__(self, queries, memory, train: bool = False):
        x = self.attend(queries, memory)
        if train:
            x += 0.1 * jax.random.normal(self.rngs.noise(), x.shape)
        x = self.norm(queries + x)
        return {"sequence": x, "classes": self.dense(x.mean(1))}


class Embedding(nnx.Module):
    def __init__(self, rngs):
        self.table, self.dense = nnx.Embed(7, 4, rngs=rngs), nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, tokens):
        return self.dense(self.table(tokens).mean(1))


class Parameterless(nnx.Module):
    def __init__(self, rngs):
        del rngs

    def __call__(self, x):
        return nnx.softmax(x)


class Shared(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = self.first

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


class Rounding(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, CLASSES, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x):
        return self.second(rounded(self.first(x), self.rngs.noise()))


def _reseed(module: nnx.Module, key: jax.Array) -> None:
    """Give every stream a key made of `key`, in the order of their paths, and count from 0."""
    streams = nnx.state(module, nnx.RngState)
    leaves, structure = jax.tree.flatten(nnx.to_pure_dict(streams))
    fresh = [
        jax.random.fold_in(key, i)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros_like(leaf)
        for i, leaf in enumerate(leaves)
    ]
    nnx.replace_by_pure_dict(streams, jax.tree.unflatten(structure, fresh))
    nnx.update(module, streams)


def _subject(kind: str, network, *, flag: str | None = None) -> Subject:
    inputs = INPUTS[kind]

    def mode(train):
        return {} if flag is None else {flag: train}

    def make(key):
        # Streams of their own, as a network has them that is to be dropped out reproducibly.
        init, dropout, noise = jax.random.split(key, 3)
        return network(nnx.Rngs(params=init, dropout=dropout, noise=noise))

    def start(key):
        module = make(key)
        module.train()
        return module, nnx.Optimizer(module, TX, wrt=nnx.Param)

    @nnx.jit
    def train_step(module, optimizer, inputs):
        loss, grads = nnx.value_and_grad(lambda module: loss_of(module(*inputs, **mode(True))))(
            module
        )
        optimizer.update(module, grads)
        return loss

    def step(carry, inputs, key):
        return train_step(*carry, inputs), carry

    @nnx.jit
    def forward(module, inputs):
        return module(*inputs, **mode(False))

    def evaluate(carry, inputs):
        carry[0].eval()
        return forward(carry[0], inputs)

    def call(module, *inputs, key, train):
        if train:
            _reseed(module, key)
        else:
            module.eval()
        return module(*inputs, **mode(train))

    def arrays(module):
        return jax.tree.leaves(nnx.to_pure_dict(nnx.state(module)))

    return Subject(
        inputs,
        lambda key: NNXModel(make(key)),
        call,
        start,
        step,
        evaluate,
        lambda carry: carry[0],
        arrays,
        keeps_streams=True,
    )


def _fp8() -> Subject:
    """A Linen layer through the bridge; NNX has none of its own."""
    inputs = INPUTS["fp8"]
    dense = nn.Dense(CLASSES, dot_general_cls=nn.Fp8DirectDotGeneralOp)
    scale = nnx.variable_type_from_name("_overwrite_with_gradient", allow_register=True)

    def make(key):
        return nnx.bridge.ToNNX(dense, rngs=nnx.Rngs(key)).lazy_init(*inputs)

    def start(key):
        module = make(key)
        return module, nnx.Optimizer(module, TX, wrt=nnx.Param)

    @nnx.jit
    def train_step(module, optimizer, inputs):
        wrt = nnx.DiffState(0, nnx.Any(nnx.Param, scale))
        loss, grads = nnx.value_and_grad(lambda m: loss_of(m(*inputs)), argnums=wrt)(module)
        weights, scales = grads.split(nnx.Param, scale)
        optimizer.update(module, weights)
        nnx.update(module, scales)
        return loss

    def step(carry, inputs, key):
        return train_step(*carry, inputs), carry

    def call(module, *inputs, key, train):
        return module(*inputs)

    return Subject(
        inputs,
        lambda key: NNXModel(make(key)),
        call,
        start,
        step,
        lambda carry, inputs: nnx.jit(call)(carry[0], *inputs, key=None, train=False),
        lambda carry: carry[0],
        lambda module: jax.tree.leaves(nnx.to_pure_dict(nnx.state(module))),
        keeps_streams=True,
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
    "fp8": _fp8(),
}
