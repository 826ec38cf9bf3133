"""Keras: functional and sequential models."""

import jax
import keras
from keras import layers

from architectures.common import EPSILON
from solstice import compat


def mlp():
    hidden = [layers.Dense(16, activation="relu") for _ in range(2)]
    return keras.Sequential([layers.Input((8,)), *hidden, layers.Dense(3)])


def cnn():
    blocks = [
        layer
        for _ in range(2)
        for layer in (
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(epsilon=EPSILON),
            layers.ReLU(),
        )
    ]
    last = layers.GlobalAveragePooling2D(), layers.Dense(5)
    return keras.Sequential([layers.Input((8, 8, 3)), *blocks, *last])


def lstm():
    return keras.Sequential([layers.Input((5, 6)), layers.LSTM(8), layers.Dense(3)])


def gru():
    return keras.Sequential([layers.Input((5, 6)), layers.GRU(8), layers.Dense(3)])


def attention():
    inputs = layers.Input((5, 8))
    h = layers.LayerNormalization(epsilon=EPSILON)(inputs)
    x = inputs + layers.MultiHeadAttention(2, 4)(h, h)
    h = layers.LayerNormalization(epsilon=EPSILON)(x)
    h = layers.Dense(16, activation=lambda x: jax.nn.gelu(x))(h)
    return keras.Model(inputs, x + layers.Dense(8)(h))


def embedding():
    first = layers.Input((5,), dtype="int32"), layers.Embedding(11, 8)
    return keras.Sequential([*first, layers.GlobalAveragePooling1D(), layers.Dense(3)])


def _made(network):
    return lambda x: compat.KerasModel(network())


NETWORKS = {
    "mlp": _made(mlp),
    "cnn": _made(cnn),
    "lstm": _made(lstm),
    "gru": _made(gru),
    "attention": _made(attention),
    "embedding": _made(embedding),
}
