"""Calls of `solstice.metrics`."""

import jax
import numpy as np
from arguments_table import row
from kinds import anything, choice, count, flag, mask, numbers, only, optional

from solstice import metrics

SEVEN = np.linspace(0, 1, 7, dtype=np.float32)
BINARY = np.array([0, 1, 1, 0, 1, 0, 1])
CLASSES = np.array([0, 1, 2, 0, 1, 2, 2])
SCORES = np.eye(3, dtype=np.float32)[CLASSES]
_SEVEN = ("seven floats", "seven with a NaN", "seven with a negative", "seven ints", "seven bools")
_ONE = ("zero", "one", "minus one", "numpy int", "array of one int", "jax int")


def loss(value=0.5):
    """One real number; NaN is what some losses are."""
    return only(value, *_ONE, "fraction", "NaN", "inf", "numpy float", "numpy NaN")


for name in ("Mean", "Sum", "Min", "Max", "Std"):
    row(f"metrics.{name}", values=numbers(SEVEN), mask=mask())
row("metrics.Last", values=numbers(SEVEN), at=only(None, "None", "seven ints", *_ONE), mask=mask())
row(
    "metrics.RegressionMetrics",
    preds=only(SEVEN, *_SEVEN),
    targets=only(SEVEN, *_SEVEN),
    loss=optional(loss()),
    mask=mask(),
    num_outputs=only(7, "None"),
)
row(
    "metrics.BinaryMetrics",
    probabilities=only(SEVEN, "seven floats", "seven bools").telling("examples are not"),
    targets=only(BINARY, "seven bools").telling("examples are not"),
    loss=optional(loss()),
    mask=mask(),
    bins=count(8, most=2**24),
    calibration_bins=count(5, most=2**16),
)
row(
    "metrics.ClassificationMetrics",
    # Labels out of range are counted, not refused: under jit nobody knows them.
    preds=only(CLASSES, *_SEVEN),
    targets=only(CLASSES, "seven ints", "seven bools"),
    loss=loss(),
    num_classes=count(3, most=2**15).but("one", "numpy int", "array of one int", "jax int"),
    mask=mask(),
    scores=only(SCORES),
    top_k=count(1, most=3).also("empty list", "empty tuple", "iterator", "array without elements"),
    track=choice("confusion"),
    per_class=flag(True),
    perplexity=flag(),
    overlap=flag(),
)
_PROBABILITIES = SCORES * np.float32(0.5)
row(
    "metrics.OneVsRestMetrics",
    probabilities=only(_PROBABILITIES).telling("examples are not"),
    targets=only(CLASSES, "seven bools").telling("examples are not"),
    mask=mask(),
    bins=count(8, most=2**24),
    calibration_bins=count(5, most=2**16),
    per_class=flag(True),
)
TAGS = np.array([[0, 1, 1]] * 7)
row(
    "metrics.MultiLabelMetrics",
    preds=only(TAGS),
    targets=only(TAGS),
    loss=loss(),
    mask=mask(),
    per_class=flag(True),
)
row(
    "metrics.Collect",
    values=only(
        SEVEN, *_SEVEN[:3], "seven bools", "matrix", "array without elements", "array of complex"
    )
    .also("array of text", "array of objects", "empty list", "list of None", "list of text")
    .also("list of objects"),
    mask=mask(),
    functions=only({"total": np.sum}, "None", "empty dict"),
)
row(
    "metrics.Sample",
    values=only(SEVEN, *_SEVEN, "matrix", "array without elements", "array of complex")
    .also("list of text", "pair", "array of text")
    .but("seven ints"),
    key=only(0, *_ONE),
    max_size=count(2, most=2**24),
    mask=mask(),
)
row(
    "metrics.MetricsDict",
    metrics=only((metrics.Mean(1.0),)),
    named=only({"loss": metrics.Mean(1.0)}).called("metrics"),
)
row("metrics.EnsembleMetrics", members=only(jax.vmap(metrics.Mean)(SEVEN)))
row("metrics.Accumulator", state=only(None, "None"))
row("metrics.Accumulator.add", on=metrics.Accumulator, metrics=only(metrics.Mean(1.0)))
row(
    "metrics.reduce",
    metrics=only([metrics.Mean(1.0)]).telling("one is"),
)
row("metrics.merge_all", metrics=only([metrics.Mean(1.0)]).telling("one is"))
row("metrics.is_metrics", value=anything(1))

MADE = [
    metrics.Mean(SEVEN),
    metrics.Sum(SEVEN),
    metrics.Min(SEVEN),
    metrics.Max(SEVEN),
    metrics.Std(SEVEN),
    metrics.Last(SEVEN),
    metrics.RegressionMetrics(SEVEN, SEVEN),
    metrics.BinaryMetrics(SEVEN, BINARY, bins=8),
    metrics.ClassificationMetrics(CLASSES, CLASSES, 0.5, 3),
    metrics.MultiLabelMetrics(TAGS, TAGS, 0.5),
    metrics.OneVsRestMetrics(_PROBABILITIES, CLASSES, bins=8),
    metrics.Collect(SEVEN),
    metrics.Sample(SEVEN, key=0, max_size=2),
    metrics.MetricsDict(metrics.Mean(SEVEN)),
    metrics.EnsembleMetrics(jax.vmap(metrics.Mean)(SEVEN)),
]
for made in MADE:
    name = f"metrics.{type(made).__name__}.merge"
    row(name, on=lambda made=made: made, other=only(made).called("merges"))
row("metrics.EnsembleMetrics.member", on=lambda: MADE[-1], i=only(0, *_ONE))
row("metrics.direction", name=anything("loss"))
row("metrics.named_values", metrics=only(MADE[0]))
row(
    "metrics.MetricsDict.__getitem__",
    on=lambda: metrics.MetricsDict(loss=metrics.Mean(1.0)),
    name=only("loss").called("not one of the metrics 'loss'"),
)
