"""Flax NNX: layers are attributes."""

import jax.numpy as jnp
from flax import nnx

from architectures.common import EPSILON, pooled
from solstice import compat


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.fc1 = nnx.Linear(8, 16, rngs=rngs)
        self.fc2 = nnx.Linear(16, 16, rngs=rngs)
        self.out = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.fc2(nnx.relu(self.fc1(x)))))


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.bn1 = nnx.BatchNorm(4, epsilon=EPSILON, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.bn2 = nnx.BatchNorm(4, epsilon=EPSILON, rngs=rngs)
        self.fc = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        return self.fc(pooled(x))


class Block(nnx.Module):
    def __init__(self, inputs, outputs, stride, rngs):
        def conv(inputs, size, stride):
            return nnx.Conv(
                inputs, outputs, (size, size), stride, padding=size // 2, use_bias=False, rngs=rngs
            )

        self.conv1, self.bn1 = conv(inputs, 3, stride), nnx.BatchNorm(outputs, rngs=rngs)
        self.conv2, self.bn2 = conv(outputs, 3, 1), nnx.BatchNorm(outputs, rngs=rngs)
        self.stride = stride
        if stride > 1:
            self.skip, self.skip_bn = conv(inputs, 1, stride), nnx.BatchNorm(outputs, rngs=rngs)

    def __call__(self, x):
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(y + (self.skip_bn(self.skip(x)) if self.stride > 1 else x))


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(8, rngs=rngs)
        self.layer1, self.layer2 = Block(8, 8, 1, rngs), Block(8, 16, 2, rngs)
        self.fc = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc(pooled(self.layer2(self.layer1(nnx.relu(self.bn1(self.conv1(x)))))))


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(16, epsilon=EPSILON, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(16, epsilon=EPSILON, rngs=rngs)
        self.up, self.down = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.relu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 16, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((5, 16)))
        self.layers = nnx.List([Layer(rngs), Layer(rngs)])
        self.norm = nnx.LayerNorm(16, epsilon=EPSILON, rngs=rngs)
        self.fc = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.fc(self.norm(x).mean(1))


class Recurrent(nnx.Module):
    def __init__(self, cell, rngs):
        self.rnn = nnx.RNN(cell(6, 8, rngs=rngs))
        self.fc = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.rnn(x)[:, -1])


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.ln1 = nnx.LayerNorm(8, epsilon=EPSILON, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.ln2 = nnx.LayerNorm(8, epsilon=EPSILON, rngs=rngs)
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.down(nnx.gelu(self.up(self.ln2(x))))


class Embedding(nnx.Module):
    def __init__(self, rngs):
        self.emb = nnx.Embed(11, 8, rngs=rngs)
        self.fc = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.emb(x).mean(1))


def _made(network, *arguments):
    return lambda x: compat.as_model(network(*arguments, rngs=nnx.Rngs(0)))


NETWORKS = {
    "mlp": _made(MLP),
    "cnn": _made(CNN),
    "resnet": _made(ResNet),
    "transformer": _made(Transformer),
    "lstm": _made(Recurrent, nnx.LSTMCell),
    "gru": _made(Recurrent, nnx.GRUCell),
    "attention": _made(Attention),
    "embedding": _made(Embedding),
}
