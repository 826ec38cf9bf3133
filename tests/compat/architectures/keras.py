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


def resnet():
    def conv(x, outputs, size, stride=1):
        x = layers.ZeroPadding2D(size // 2)(x) if size > 1 else x
        return layers.Conv2D(outputs, size, stride, use_bias=False)(x)

    def norm(x):
        return layers.BatchNormalization(epsilon=EPSILON)(x)

    def block(x, outputs, stride):
        y = norm(conv(layers.ReLU()(norm(conv(x, outputs, 3, stride))), outputs, 3))
        return layers.ReLU()(y + (norm(conv(x, outputs, 1, stride)) if stride > 1 else x))

    inputs = layers.Input((8, 8, 3))
    x = block(block(layers.ReLU()(norm(conv(inputs, 8, 3))), 8, 1), 16, 2)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


class Position(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], name="position")

    def call(self, x):
        return x + self.table


def transformer():
    def norm(x):
        return layers.LayerNormalization(epsilon=EPSILON)(x)

    inputs = layers.Input((5,), dtype="int32")
    x = Position()(layers.Embedding(11, 16)(inputs))
    for _ in range(2):
        h = norm(x)
        x = x + layers.MultiHeadAttention(2, 8)(h, h)
        x = x + layers.Dense(16)(layers.Dense(32, activation="relu")(norm(x)))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(norm(x))))


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
    "resnet": _made(resnet),
    "transformer": _made(transformer),
    "lstm": _made(lstm),
    "gru": _made(gru),
    "attention": _made(attention),
    "embedding": _made(embedding),
}
