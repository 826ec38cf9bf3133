"""Text: padded lines whose vowels are hidden, and a network that fills them in.

The targets of consonants and of padding are -100, which counts neither in the loss nor in the
metrics. The text is Python's own help.
"""

from pydoc_data.topics import topics

import haiku as hk
import jax
import numpy as np
import optax

import solstice

lines = sorted({line.strip().lower() for text in topics.values() for line in text.splitlines()})
padded = [line.encode("ascii", "replace")[:64].ljust(64, b"\0") for line in lines]
tokens = np.array([list(line) for line in padded[::2]])
vowels = np.frombuffer(b"aeiou", "uint8")
hidden = np.isin(tokens, vowels)
targets = np.where(hidden, np.searchsorted(vowels, tokens), -100)
inputs = np.where(hidden, ord("_"), tokens)


def network(tokens):
    """Return the logits of the five vowels at each position."""
    x = hk.Embed(128, 32)(tokens)
    x = jax.nn.relu(hk.Conv1D(64, 9)(x))
    return hk.Linear(5)(jax.nn.relu(hk.Conv1D(64, 5)(x)))


train_ds, test_ds = solstice.data.Arrays(inputs, targets, batch_size=32, shuffle=0).split(0.8)
exp = solstice.ClassificationExperiment(
    hk.transform(network), optax.adam(3e-3), example_input=inputs[:1], key=0, ignore_index=-100
)
exp = exp.train(4, train_ds, test_ds)
results = exp.test(test_ds)
print(f"accuracy {results['accuracy']:.3f}")
