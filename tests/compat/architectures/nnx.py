"""Flax NNX: layers are attributes."""

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
    "lstm": _made(Recurrent, nnx.LSTMCell),
    "gru": _made(Recurrent, nnx.GRUCell),
    "attention": _made(Attention),
    "embedding": _made(Embedding),
}
