"""Flax Linen: layers are named by their order of construction, which may be that from the end."""

import flax.linen as nn

from architectures.common import EPSILON, pooled
from solstice import compat


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(16)(nn.relu(nn.Dense(16)(x)))))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(2):
            x = nn.Conv(4, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, epsilon=EPSILON)(x))
        return nn.Dense(5)(pooled(x))


class LSTM(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.LSTMCell(8))(x)[:, -1])


class GRU(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.GRUCell(8))(x)[:, -1])


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(epsilon=EPSILON)(x)
        x = x + nn.MultiHeadDotProductAttention(2)(h, h)
        h = nn.LayerNorm(epsilon=EPSILON)(x)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(h)))


class Embedding(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Embed(11, 8)(x).mean(1))


def _made(network):
    return lambda x: compat.as_model(network, x, key=0)


NETWORKS = {
    "mlp": _made(MLP()),
    "cnn": _made(CNN()),
    "lstm": _made(LSTM()),
    "gru": _made(GRU()),
    "attention": _made(Attention()),
    "embedding": _made(Embedding()),
}
