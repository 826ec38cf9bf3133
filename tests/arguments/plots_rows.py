"""Calls of `solstice.plots`."""

import numpy as np
from arguments_table import row
from kinds import anything, choice, count, given, only, optional

IMAGES = np.linspace(0, 1, 7 * 4).reshape(7, 2, 2)
LOSSES = np.linspace(0, 1, 7)
CLASSES = np.array([0, 1, 2, 0, 1, 2, 2])
RECORDS = [{"mode": "train", "epoch": 0, "step": 1, "loss": 0.5}]
MATRIX = np.eye(3, dtype=int)

row("plots.learning_curves", history=only(RECORDS), metrics=only(["loss"], "None"))
row(
    "plots.confusion_matrix",
    metrics=only(MATRIX),
    labels=only(["cat", "dog", "owl"], "None"),
    normalize=only("true", "None"),
)
row(
    "plots.calibration",
    probabilities=only(LOSSES, "seven floats", "seven bools"),
    targets=only(CLASSES == 1, "seven bools"),
    bins=count(2, most=10**4),
)
row("plots.calibration", probabilities=only(np.ones((2, 3))))
row(
    "plots.worst_examples",
    images=only(IMAGES),
    losses=only(LOSSES, "seven ints", "seven floats", "seven with a NaN", "seven with a negative").also("seven bools"),
    targets=only(CLASSES, "None", "seven bools"),
    predictions=only(CLASSES, "None", "seven bools"),
    labels=only(["cat", "dog", "owl"], "None"),
    count=count(1),
)
