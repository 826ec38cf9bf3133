"""Stax; what it has no layer for is a layer of one's own, a pair of functions."""

import jax
from jax.example_libraries import stax

from networks import function
from networks.common import CLASSES, INPUTS, Subject, functional, rounded
from solstice.compat import StaxModel, tag


def layer(init, apply, shape):
    """A Stax layer from an init by example and an apply; `shape` says what its outputs are."""

    def stax_init(rng, input_shape):
        return shape(input_shape), init(rng, None)

    return stax_init, lambda params, x, **_: apply(params, x)


def mlp(mode):
    return stax.serial(stax.Dense(5), stax.Relu, stax.Dense(CLASSES))


def cnn(mode):
    return stax.serial(
        tag("conv", stax.Conv(4, (3, 3), padding="SAME")),
        stax.BatchNorm(),
        stax.Relu,
        stax.Flatten,
        stax.Dropout(0.6, mode=mode),
        stax.Dense(CLASSES),
    )


def recurrent(mode):
    return layer(function.recurrent_init, function.recurrent, lambda shape: (shape[0], CLASSES))


def attention(mode):
    def init(rng, shapes):
        return shapes, function.attention_init(rng, None, None)

    def apply(params, inputs, rng=None, **_):
        training = mode == "train"
        return function.attention(params, *inputs, rng=rng, is_training=training)

    return init, apply


def embedding(mode):
    def init(rng, shape):
        return (*shape, 4), jax.random.normal(rng, (7, 4))

    mean = stax.elementwise(lambda x: x.mean(1))
    pooled = (lambda rng, shape: ((shape[0], shape[2]), ()), mean[1])
    return stax.serial(
        (init, lambda table, tokens, **_: table[tokens]), pooled, stax.Dense(CLASSES)
    )


def parameterless(mode):
    return stax.Softmax


def shared(mode):
    init, dense = stax.Dense(4)
    return init, lambda params, x, **_: dense(params, jax.nn.relu(dense(params, x)))


def rounding(mode):
    noisy = (lambda rng, shape: (shape, ())), lambda params, x, rng, **_: rounded(x, rng)
    return stax.serial(stax.Dense(5), noisy, stax.Dense(CLASSES))


def _subject(kind: str, network, *, modal: bool = False) -> Subject:
    inputs = INPUTS[kind]
    joined = inputs[0] if len(inputs) == 1 else inputs
    init, train_apply = network("train")
    _, eval_apply = network("test")
    shapes = jax.tree.map(lambda x: x.shape, joined)

    def apply(params, state, inputs, key, train):
        joined = inputs[0] if len(inputs) == 1 else inputs
        # Dropout asks for a key in evaluation too, and does not use it.
        key = key if train else jax.random.key(0)
        return (train_apply if train else eval_apply)(params, joined, rng=key), None

    return functional(
        inputs,
        lambda key: StaxModel(
            (init, train_apply), inputs, key=key, eval_apply=eval_apply if modal else None
        ),
        lambda key: (init(key, shapes)[1], None),
        apply,
        lambda params, state: params,
        lambda params: (params, None),
    )


SUBJECTS = {
    "mlp": _subject("mlp", mlp),
    "cnn": _subject("cnn", cnn, modal=True),
    "recurrent": _subject("recurrent", recurrent),
    "attention": _subject("attention", attention, modal=True),
    "embedding": _subject("embedding", embedding),
    "parameterless": _subject("parameterless", parameterless),
    "shared": _subject("shared", shared),
    "rounding": _subject("rounding", rounding),
}
