"""Flax Linen."""

import flax.linen as nn
import jax
from flax.training.train_state import TrainState

from networks.common import (
    CLASSES,
    INPUTS,
    TX,
    Subject,
    arrays,
    functional,
    loss_of,
    rounded,
)
from solstice.compat import FlaxModel


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(5)(x)))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x).reshape(x.shape[0], -1)
        x = nn.Dropout(0.4, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(nn.RNN(nn.GRUCell(5))(x)[:, -1])


class Attention(nn.Module):
    @nn.compact
    def __call__(self, queries, memory, deterministic: bool):
        x = nn.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.3)(
            queries, memory, deterministic=deterministic
        )
        if not deterministic:
            x += 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        x = nn.LayerNorm()(queries + x)
        return {"sequence": x, "classes": nn.Dense(CLASSES)(x.mean(1))}


class Embedding(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(CLASSES)(nn.Embed(7, 4)(tokens).mean(1))


class Parameterless(nn.Module):
    def __call__(self, x):
        return nn.softmax(x)


class Shared(nn.Module):
    def setup(self):
        self.dense = nn.Dense(4)

    def __call__(self, x):
        return self.dense(nn.relu(self.dense(x)))


class Rounding(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(rounded(nn.Dense(5)(x), self.make_rng("dropout")))


STREAMS = ("dropout", "noise")


def _subject(kind: str, module: nn.Module, *flags: tuple[str, bool]) -> Subject:
    inputs = INPUTS[kind]

    def mode(train):
        return {name: value == train for name, value in flags}

    def init(key):
        variables = dict(module.init(key, *inputs, **mode(False)))
        return variables.pop("params", {}), variables

    def apply(params, state, inputs, key, train):
        variables = {"params": params, **state}
        if not train:
            rngs = {"dropout": jax.random.key(0)} if kind == "rounding" else {}
            return module.apply(variables, *inputs, **mode(False), rngs=rngs), state
        rngs = {name: jax.random.fold_in(key, i) if i else key for i, name in enumerate(STREAMS)}
        return module.apply(variables, *inputs, **mode(True), rngs=rngs, mutable=list(state))

    return functional(
        inputs,
        lambda key: FlaxModel(module, inputs, key=key, streams=STREAMS),
        init,
        apply,
        lambda params, state: {"params": params, **state},
        lambda variables: (
            variables["params"],
            {name: values for name, values in variables.items() if name != "params"},
        ),
    )


def _fp8() -> Subject:
    """In the hands of Flax's own TrainState."""
    inputs = INPUTS["fp8"]
    module = nn.Dense(CLASSES, dot_general_cls=nn.Fp8DirectDotGeneralOp)

    def start(key):
        variables = dict(module.init(key, *inputs))
        return TrainState.create(apply_fn=module.apply, params=variables, tx=TX)

    @jax.jit
    def step(state, inputs, key):
        def objective(variables):
            return loss_of(state.apply_fn(variables, *inputs))

        loss, grads = jax.value_and_grad(objective)(state.params)
        return loss, state.apply_gradients(grads=grads)

    return Subject(
        inputs,
        lambda key: FlaxModel(module, inputs, key=key),
        lambda variables, *inputs, key, train: module.apply(variables, *inputs),
        start,
        step,
        jax.jit(lambda state, inputs: module.apply(state.params, *inputs)),
        lambda state: state.params,
        arrays,
    )


SUBJECTS = {
    "mlp": _subject("mlp", MLP()),
    "cnn": _subject("cnn", CNN(), ("train", True)),
    "recurrent": _subject("recurrent", Recurrent()),
    "attention": _subject("attention", Attention(), ("deterministic", False)),
    "embedding": _subject("embedding", Embedding()),
    "parameterless": _subject("parameterless", Parameterless()),
    "shared": _subject("shared", Shared()),
    "rounding": _subject("rounding", Rounding()),
    "fp8": _fp8(),
}
