"""Handwritten digits for the other examples: scikit-learn's, or MNIST through tfds.

Your own program would load its arrays here instead.
"""

from typing import Any

import numpy as np


def add_flags(parser, epochs):
    """Add what most of the examples can be told."""
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--picture", help="the file to draw a picture of the results into")


def load(dataset):
    """Return (x, y) of training and of test: float32 (images, height, width, 1) in 0..1, int32.

    "mnist" is downloaded the first time.
    """
    if dataset == "mnist":
        return _mnist("train"), _mnist("test")
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype("float32").reshape(-1, 8, 8, 1), y[order].astype("int32")
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def batched(x, y, size=64):
    """Return whole batches (x, y); the rest of the examples is left out."""
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x) - size + 1, size)]


def _mnist(split):
    import tensorflow_datasets as tfds

    data: Any = tfds.data_source("mnist", split=split)
    examples = [data[i] for i in range(len(data))]
    x = np.stack([example["image"] for example in examples])
    return (x / 255).astype("float32"), np.array([one["label"] for one in examples], "int32")
