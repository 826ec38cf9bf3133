"""Eight architectures as each library writes them, with equal hyper-parameters.

Names, orders of definition, layouts and fusions are the library's own habits; what they compute is
the same. `build(library, architecture, seed)` gives a model with weights drawn at random. Two of
them, a residual net and a transformer encoder, only take weights of torch (`FROM_TORCH`).
"""

from architectures import equinox, haiku, keras, linen, nnx, stax
from architectures.common import INPUTS, drawn

LIBRARIES = {
    "Linen": linen.NETWORKS,
    "NNX": nnx.NETWORKS,
    "Haiku": haiku.NETWORKS,
    "Equinox": equinox.NETWORKS,
    "Keras": keras.NETWORKS,
    "Stax": stax.NETWORKS,
}
ARCHITECTURES = {
    "mlp": "MLP",
    "cnn": "CNN with batch norm",
    "lstm": "LSTM",
    "attention": "Attention block",
    "embedding": "Embedding",
    "gru": "GRU",
}
FROM_TORCH = {
    "mlp": "MLP",
    "resnet": "residual net with batch norm",
    "lstm": "LSTM",
    "transformer": "transformer encoder",
}


def build(library, architecture, seed):
    """Return an adapted network with random weights."""
    return drawn(LIBRARIES[library][architecture](INPUTS[architecture]), seed)
