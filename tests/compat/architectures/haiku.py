"""Haiku: functions, whose recurrent cells keep one kernel and add 1 to the forget gate."""

import haiku as hk
import jax
import jax.numpy as jnp

from architectures.common import pooled
from solstice import compat


def mlp(x):
    return hk.nets.MLP([16, 16, 3])(x)


def cnn(x, is_training=False):
    for _ in range(2):
        x = hk.Conv2D(4, 3)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.99)(x, is_training))
    return hk.Linear(5)(pooled(x))


def resnet(x, is_training=False):
    def conv(x, outputs, size, stride=1):
        pads = size // 2, size // 2
        return hk.Conv2D(outputs, size, stride, padding=(pads, pads), with_bias=False)(x)

    def norm(x):
        return hk.BatchNorm(True, True, 0.9)(x, is_training)

    def block(x, outputs, stride):
        y = norm(conv(jax.nn.relu(norm(conv(x, outputs, 3, stride))), outputs, 3))
        return jax.nn.relu(y + (norm(conv(x, outputs, 1, stride)) if stride > 1 else x))

    x = block(block(jax.nn.relu(norm(conv(x, 8, 3))), 8, 1), 16, 2)
    return hk.Linear(3)(pooled(x))


def transformer(x):
    def norm(x):
        return hk.LayerNorm(-1, True, True)(x)

    x = hk.Embed(11, 16)(x) + hk.get_parameter("position", (5, 16), init=jnp.zeros)
    for _ in range(2):
        h = norm(x)
        x = x + hk.MultiHeadAttention(2, 8, w_init=hk.initializers.VarianceScaling())(h, h, h)
        x = x + hk.Linear(16)(jax.nn.relu(hk.Linear(32)(norm(x))))
    return hk.Linear(3)(norm(x).mean(1))


def recurrent(cell):
    def network(x):
        core = cell(8)
        start = core.initial_state(x.shape[0])
        outputs, _ = hk.dynamic_unroll(core, x, start, time_major=False)
        return hk.Linear(3)(outputs[:, -1])

    return network


def attention(x):
    h = hk.LayerNorm(-1, True, True)(x)
    initial = hk.initializers.VarianceScaling()
    x = x + hk.MultiHeadAttention(2, 4, w_init=initial)(h, h, h)
    h = hk.LayerNorm(-1, True, True)(x)
    return x + hk.Linear(8)(jax.nn.gelu(hk.Linear(16)(h)))


def embedding(x):
    return hk.Linear(3)(hk.Embed(11, 8)(x).mean(1))


def _made(network, transform=hk.transform):
    return lambda x: compat.as_model(transform(network), x, key=0)


NETWORKS = {
    "mlp": _made(mlp),
    "cnn": _made(cnn, hk.transform_with_state),
    "resnet": _made(resnet, hk.transform_with_state),
    "transformer": _made(transformer),
    "lstm": _made(recurrent(hk.LSTM)),
    "gru": _made(recurrent(hk.GRU)),
    "attention": _made(attention),
    "embedding": _made(embedding),
}
