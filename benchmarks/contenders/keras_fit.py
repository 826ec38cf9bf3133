"""Keras 3 on JAX: `fit`, one step a call and fifty."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from problems import CLASSES, LEARNING_RATE


class Confusion(keras.metrics.Metric):
    def __init__(self, **options):
        super().__init__(**options)
        self.counts = self.add_weight(shape=(CLASSES, CLASSES), initializer="zeros", name="counts")

    def update_state(self, labels, logits, sample_weight=None):
        cells = keras.ops.reshape(labels, (-1,)) * CLASSES + keras.ops.argmax(logits, -1)
        ones = keras.ops.ones_like(cells, "float32")
        counts = keras.ops.segment_sum(ones, cells, CLASSES**2)
        self.counts.assign(self.counts + keras.ops.reshape(counts, (CLASSES, CLASSES)))

    def result(self):
        return keras.ops.sum(self.counts)


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self._batches = batches

    def __len__(self):
        return len(self._batches)

    def __getitem__(self, i):
        return self._batches[i]


def contenders(problem):
    return {
        "keras fit": fit(problem, 1),
        "keras fit, steps_per_execution=50": fit(problem, 50),
    }


def fit(problem, steps_per_execution):
    network, batches = compiled(problem, steps_per_execution), Batches(problem.batches)
    return lambda: network.fit(batches, shuffle=False, verbose=0).history["loss"][0]


def compiled(problem, steps_per_execution):
    """Return the network, ready for `fit`."""
    layers = [keras.layers.Input(problem.batches[0][0].shape[1:])]
    for n in problem.channels:
        layers += [
            keras.layers.Conv2D(n, 3, padding="same", activation="relu"),
            keras.layers.MaxPool2D(),
        ]
    layers.append(keras.layers.Flatten())
    layers += [keras.layers.Dense(n, activation="relu") for n in problem.widths[:-1]]
    network = keras.Sequential([*layers, keras.layers.Dense(problem.widths[-1])])
    network.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[Confusion(name="confusion")],
        steps_per_execution=min(steps_per_execution, len(problem.batches)),
    )
    return network
