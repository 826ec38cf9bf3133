"""Calls of `solstice.plots`."""

import numpy as np
from arguments_table import row
from kinds import count, given, only

IMAGES = np.linspace(0, 1, 7 * 4).reshape(7, 2, 2)
LOSSES = np.linspace(0, 1, 7)
CLASSES = np.array([0, 1, 2, 0, 1, 2, 2])
RECORDS = [{"mode": "train", "epoch": 0, "step": 1, "loss": 0.5}]
CHOSEN = only(CLASSES, "None", "seven ints", "seven bools").not_trying("seven bools")
# What is a list of three names or more.
_MANY = ("seven ints", "seven floats", "seven with a NaN", "seven with a negative", "seven bools")
MATRIX = np.eye(3, dtype=int)

row(
    "plots.learning_curves", history=only(RECORDS).telling("one is"), metrics=only(["loss"], "None")
)
row(
    "plots.confusion_matrix",
    metrics=only(MATRIX),
    labels=only(["cat", "dog", "owl"], "None"),
    normalize=only("true", "None"),
)
row(
    "plots.calibration",
    probabilities=only(LOSSES, "seven floats", "seven bools").telling("are not"),
    targets=only(CLASSES == 1, "seven bools").telling("are not"),
    bins=count(2, most=10**4),
)
row("plots.calibration", probabilities=only(np.ones((2, 3)), "matrix"))
row(
    "plots.worst_examples",
    images=only(IMAGES),
    losses=only(LOSSES, *_MANY),
    targets=CHOSEN,
    predictions=CHOSEN,
    count=count(1),
)
row(
    "plots.worst_examples",
    images=given(IMAGES),
    losses=given(LOSSES),
    targets=given(CLASSES),
    labels=only(["cat", "dog", "owl"], "None", *_MANY),
)
