"""A character-level language model, which then generates text.

    python examples/language_model.py                     # learns from Python's standard library
    python examples/language_model.py --text novel.txt
    python examples/language_model.py --dataset tiny_shakespeare     # which tfds downloads

A small causal transformer in Flax. Its outputs are (batch, length, characters) and its labels
(batch, length), so `ClassificationExperiment` predicts the next token unchanged.
"""

import argparse
import inspect
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import solstice


class Transformer(nn.Module):
    characters: int
    length: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, tokens):
        places = jnp.arange(tokens.shape[1])
        x = nn.Embed(self.characters, self.width)(tokens)
        x = x + nn.Embed(self.length, self.width)(places)
        seen = nn.make_causal_mask(tokens)
        for _ in range(self.depth):
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(h, mask=seen)
            h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(h)
        return nn.Dense(self.characters)(nn.LayerNorm()(x))


@jax.jit
def write(model, start, key, temperature):
    """Continue `start` (length,) by as many characters again, each drawn from the model."""

    def draw(window, key):
        logits, _ = model(window[None])
        token = jax.random.categorical(key, logits[0, -1] / temperature).astype(window.dtype)
        return jnp.append(window[1:], token), token

    return jax.lax.scan(draw, start, jax.random.split(key, len(start)))[1]


def standard_library():
    """Some 300,000 characters that every Python has."""
    import argparse as first
    import statistics as second
    import typing as third

    return "".join(map(inspect.getsource, (first, second, third)))


def shakespeare():
    import tensorflow_datasets as tfds

    data: Any = tfds.data_source("tiny_shakespeare", split="train")
    return data[0]["text"].decode()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=("python", "tiny_shakespeare"), default="python")
    parser.add_argument("--text", type=Path, help="a file to learn from instead")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--picture", help="the file to draw the learning curves into")
    parser.add_argument("--length", type=int, default=64, help="characters that it sees")
    parser.add_argument("--temperature", type=float, default=0.7)
    options = parser.parse_args(arguments)

    if options.text:
        text = options.text.read_text()
    else:
        text = {"python": standard_library, "tiny_shakespeare": shakespeare}[options.dataset]()
    alphabet, tokens = np.unique(list(text), return_inverse=True)
    tokens = tokens.astype("int32")
    cut, length = int(0.95 * len(tokens)), options.length

    def train_ds(epoch):
        rng = np.random.default_rng(epoch)
        for _ in range(100):
            starts = rng.integers(0, cut - length - 1, size=32)
            window = np.stack([tokens[start : start + length + 1] for start in starts])
            yield window[:, :-1], window[:, 1:]

    held_out = tokens[cut:]
    rows = held_out[: (len(held_out) - 1) // length * length + 1]
    val_ds = [(rows[:-1].reshape(-1, length), rows[1:].reshape(-1, length))]

    warmup = min(50, options.steps // 2)
    exp = solstice.ClassificationExperiment(
        Transformer(len(alphabet), length, options.width, options.depth),
        optax.adamw(optax.warmup_cosine_decay_schedule(0, 3e-3, warmup, options.steps)),
        example_input=val_ds[0][0][:1],
        key=0,
    )
    history = solstice.HistoryCallback()
    exp = exp.train(None, train_ds, val_ds, [history], num_steps=options.steps)

    results = exp.test(val_ds)
    print(f"\nheld-out text: {results['average_loss'] / np.log(2):.2f} bits a character")
    tail = jnp.asarray(held_out[:length])
    written = write(exp.model, tail, jax.random.key(1), options.temperature)
    print("".join(alphabet[np.asarray(tail)]) + "".join(alphabet[np.asarray(written)]))
    if options.picture:
        curves = solstice.plots.learning_curves(history, ["average_loss", "accuracy"])
        curves.savefig(options.picture, dpi=200)
    return results["average_loss"]


if __name__ == "__main__":
    main()
