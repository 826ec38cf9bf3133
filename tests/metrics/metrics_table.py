"""Every ready-made metric, how to make it of a batch, and what it does not promise."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import median_absolute_error

from solstice.metrics import (
    BinaryMetrics,
    ClassificationMetrics,
    Collect,
    Last,
    Max,
    Mean,
    MetricsDict,
    Min,
    MultiLabelMetrics,
    OneVsRestMetrics,
    RegressionMetrics,
    Sample,
    Std,
    Sum,
)

SIZE = 12


@dataclasses.dataclass(frozen=True)
class Row:
    """`make(batch, mask=None)`, a batch of `SIZE` examples, and the same with garbage inside."""

    make: Callable
    batch: dict
    fixed: bool = True  # the same tree, shapes and dtypes after a merge
    exclude: tuple[str, ...] = ()


def mean_loss(batch, mask):
    losses = jnp.asarray(batch["loss"], jnp.promote_types(batch["loss"].dtype, jnp.float32))
    fits = mask is not None and mask.shape == losses.shape
    real = mask if fits else np.ones(losses.shape, bool)
    return jnp.where(real, losses, 0).sum() / jnp.maximum(real.sum(), 1).astype(losses.dtype)


RNG = np.random.default_rng(0)
LABELS, PREDS = RNG.integers(0, 3, (2, SIZE))
LOSS = RNG.random(SIZE).astype("float32")
X = (RNG.normal(size=SIZE) * 3 + 50).astype("float32")
Y = (X + RNG.normal(size=SIZE)).astype("float32")
PAIRS = np.stack([X, -Y], 1)
CLASSES = {"preds": PREDS, "targets": LABELS, "loss": LOSS}
SCORES = RNG.normal(size=(SIZE, 3)).astype("float32")
CHANCES = (np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)).astype("float32")
# Drawn apart, so that what other rows draw stays.
TAGS, TAGGED = np.random.default_rng(1).integers(0, 2, (2, SIZE, 3))
NUMBERS = {"values": X}


def classification(**options):
    def make(batch, mask=None):
        given = options | ({"scores": batch["scores"]} if "scores" in batch else {})
        loss = mean_loss(batch, mask)
        return ClassificationMetrics(batch["preds"], batch["targets"], loss, 3, mask=mask, **given)

    return make


def regression(batch, mask=None):
    return RegressionMetrics(batch["x"], batch["y"], mean_loss(batch, mask), mask=mask)


def outputs(batch, mask=None):
    return RegressionMetrics(batch["x"], batch["y"], mask=mask, num_outputs=2)


def binary(batch, mask=None):
    loss = mean_loss(batch, mask)
    return BinaryMetrics(batch["p"], batch["y"], loss, mask=mask, bins=50, calibration_bins=4)


def multilabel(batch, mask=None):
    loss = mean_loss(batch, mask)
    return MultiLabelMetrics(batch["preds"], batch["targets"], loss, mask=mask)


def one_vs_rest(batch, mask=None):
    options = {"bins": 50, "calibration_bins": 4}
    return OneVsRestMetrics(batch["p"], batch["y"], mask=mask, **options)


def number(kind):
    return lambda batch, mask=None: kind(batch["values"], mask=mask)


def last(batch, mask=None):
    return Last(batch["values"], at=batch["at"], mask=mask)


def several(batch, mask=None):
    values = batch["values"]
    return MetricsDict(
        RegressionMetrics(values, -values, mask=mask),
        Max(values, mask=mask),
        average=Mean(values, mask=mask),
        inner=MetricsDict(spread=Std(values, mask=mask), least=Min(values, mask=mask)),
    )


def collected(batch, mask=None):
    values = batch["x"], batch["y"]
    return Collect(values, mask=mask, functions={"median_error": median_absolute_error})


def nested(batch, mask=None):
    return MetricsDict(mean=Mean(batch["x"], mask=mask), rest=collected(batch, mask))


def sampled(batch, mask=None):
    keys = jax.random.wrap_key_data(jnp.asarray(batch["key"]))
    return Sample({"x": batch["x"], "y": batch["y"]}, key=keys, max_size=1, mask=mask)


KEYS = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), SIZE)))
TABLE = {
    "classification": Row(classification(), CLASSES),
    "totals": Row(classification(track="totals", perplexity=True, per_class=False), CLASSES),
    "top k": Row(classification(top_k=(1, 2)), CLASSES | {"scores": SCORES}),
    "regression": Row(regression, {"x": X, "y": Y, "loss": LOSS}),
    "outputs": Row(outputs, {"x": PAIRS, "y": PAIRS[:, ::-1]}),
    "binary": Row(binary, {"p": LOSS, "y": LABELS == 1, "loss": LOSS}),
    "overlap": Row(classification(overlap=True), CLASSES),
    "multi-label": Row(multilabel, {"preds": TAGGED, "targets": TAGS, "loss": LOSS}),
    "one vs rest": Row(one_vs_rest, {"p": CHANCES, "y": LABELS}),
    "labels vs rest": Row(one_vs_rest, {"p": CHANCES, "y": TAGS}),
    "mean": Row(number(Mean), NUMBERS),
    "sum": Row(number(Sum), NUMBERS),
    "sum of integers": Row(number(Sum), {"values": LABELS.astype("int8")}),
    "min": Row(number(Min), NUMBERS),
    "max": Row(number(Max), NUMBERS),
    "std": Row(number(Std), NUMBERS),
    "last": Row(last, NUMBERS | {"at": RNG.permutation(SIZE)}),
    "dict": Row(several, NUMBERS),
    "sample": Row(sampled, {"x": X, "y": PAIRS, "key": KEYS}),
    # What it computes on the host cannot be jitted.
    "collect": Row(collected, {"x": X, "y": Y}, fixed=False, exclude=("jit_equals_eager",)),
    "nested": Row(nested, {"x": X, "y": Y}, fixed=False, exclude=("jit_equals_eager",)),
}
FIXED = [name for name, row in TABLE.items() if row.fixed]
