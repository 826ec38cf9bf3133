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


class Block(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train=False):
        def conv(x, size, stride=1):
            return nn.Conv(self.features, (size, size), stride, size // 2, use_bias=False)(x)

        def norm(x):
            return nn.BatchNorm(use_running_average=not train, epsilon=EPSILON)(x)

        y = norm(conv(nn.relu(norm(conv(x, 3, self.stride))), 3))
        return nn.relu(y + (norm(conv(x, 1, self.stride)) if self.stride > 1 else x))


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), padding=1, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, epsilon=EPSILON)(x))
        x = Block(16, 2)(Block(8, 1)(x, train), train)
        return nn.Dense(3)(pooled(x))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.LayerNorm(epsilon=EPSILON)  # noqa: E731
        x = nn.Embed(11, 16)(x) + self.param("position", nn.initializers.normal(), (5, 16))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(2)(norm()(x))
            x = x + nn.Dense(16)(nn.relu(nn.Dense(32)(norm()(x))))
        return nn.Dense(3)(norm()(x).mean(1))


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
    "resnet": _made(ResNet()),
    "transformer": _made(Transformer()),
    "lstm": _made(LSTM()),
    "gru": _made(GRU()),
    "attention": _made(Attention()),
    "embedding": _made(Embedding()),
}
