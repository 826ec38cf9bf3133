"""Several labels for each image: is the digit even, is it prime, does it have a hole?

A fifth of the answers are unknown: -1, which counts neither in the loss nor in the metrics.
"""

import numpy as np
import optax
from jax.example_libraries import stax
from sklearn.datasets import load_digits

import solstice

x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
labels = np.stack([y % 2 == 0, np.isin(y, [2, 3, 5, 7]), np.isin(y, [0, 6, 8, 9])], axis=1)
known = np.random.default_rng(0).random(labels.shape) < 0.8
labels = np.where(known, labels, -1)
train_ds, test_ds = solstice.data.Arrays(x, labels, batch_size=64, shuffle=0).split(0.8)

net = stax.serial(stax.Dense(64), stax.Relu, stax.Dense(3))
exp = solstice.MultiLabelExperiment(
    net, optax.adam(3e-3), example_input=x[:1], key=0, ignore_index=-1
)
exp = exp.train(20, train_ds, test_ds)
results = exp.test(test_ds)
print(f"macro F1 {results['f1_macro']:.3f}, all three right {results['exact_match']:.3f}")
