"""Calls of `solstice.experiments`."""

import jax.numpy as jnp
import numpy as np
from arguments_table import row
from compat_rows import EXAMPLE, EXP, MODEL, SGD, X, apply, init
from kinds import (
    choice,
    count,
    flag,
    function,
    given,
    number,
    only,
    optional,
    text,
)

import solstice
from solstice import compat
from solstice.experiments import Ensemble, MemberStopping
from solstice.experiments.regression import Regression, squared_error
from solstice.experiments.sigmoid import sigmoid_cross_entropy

SEED = count(0, least=-1, most=2**63)
_ONES = ("one", "numpy int", "array of one int", "jax int")
DTYPE = only(None, "None")
SHARED = {
    "model": only(MODEL).called("network"),
    # Told what it wants, it need not be traced for it.
    "optimizer": only(compat.OptaxOptimizer(SGD, wants=())),
    "key": optional(SEED),
    "example_input": optional(EXAMPLE),
    "ema_decay": only(None, "None", "numpy float"),
    "compute_dtype": DTYPE,
    "accumulate_steps": count(1),
    "metrics": optional(function(lambda outputs, targets, mask: None)),
}
IGNORED = {"ignore_index": optional(count(0, least=-(2**31)))}
CLASSES = {
    "label_smoothing": only(0.0, "zero", "numpy float"),
    "per_class": flag(),
}
row(
    "experiments.ClassificationExperiment",
    **SHARED,
    **IGNORED,
    **CLASSES,
    num_classes=optional(only(2, "numpy int", "array of one int", "jax int")),
    loss=function(lambda logits, labels: labels),
    overlap=flag(),
    ranking=flag(),
    top_k=count(1, most=2).also("empty list", "empty tuple", "array without elements", "iterator"),
    track=optional(choice("confusion")),
    perplexity=flag(),
    batch_keys=only(("image", "label", "mask"), "pair"),
)
SEVEN = compat.FunctionModel(
    init, lambda params, x: jnp.ones((len(x), 7)) * params["w"][0], X, key=0
)
_WEIGHTS = "seven ints", "seven floats", "seven bools"
row(
    "experiments.ClassificationExperiment",
    model=given(SEVEN),
    optimizer=given(SGD),
    class_weights=only(np.ones(7), "None", *_WEIGHTS).telling("there are"),
)
row(
    "experiments.RegressionExperiment",
    **SHARED,
    loss=function(squared_error),
    num_outputs=optional(count(2)),
    batch_keys=only(("x", "y", "mask"), "pair"),
)
row(
    "experiments.BinaryClassificationExperiment",
    **SHARED,
    **IGNORED,
    loss=function(sigmoid_cross_entropy),
    label_smoothing=CLASSES["label_smoothing"],
    positive_weight=number(1.0),
    batch_keys=only(("x", "y", "mask"), "pair"),
)
WEIGHT = number(1.0).telling("there are")
row(
    "experiments.MultiLabelExperiment",
    **SHARED,
    **IGNORED,
    **CLASSES,
    loss=function(sigmoid_cross_entropy),
    positive_weight=WEIGHT,
    ranking=flag(),
    batch_keys=only(("x", "y", "mask"), "pair"),
)
row(
    "experiments.Classification",
    **CLASSES,
    num_classes=optional(count(3)),
    loss=function(lambda logits, labels: labels),
    class_weights=only(None, "None").telling("there are"),
    top_k=count(1, most=3).also("empty list", "empty tuple", "array without elements", "iterator"),
    track=optional(choice("confusion")),
    perplexity=flag(),
    overlap=flag(),
    ranking=flag(),
)
row(
    "experiments.BinaryClassification",
    loss=function(sigmoid_cross_entropy),
    label_smoothing=CLASSES["label_smoothing"],
    positive_weight=number(1.0),
)
row(
    "experiments.MultiLabel",
    **CLASSES,
    loss=function(sigmoid_cross_entropy),
    positive_weight=WEIGHT.also("seven ints"),
    ranking=flag(),
)
row(
    "experiments.Regression",
    loss=function(squared_error),
    num_outputs=optional(count(2)),
)
row(
    "experiments.SupervisedExperiment",
    **SHARED,
    **IGNORED,
    task=only(Regression(squared_error, None)),
    batch_keys=only(("x", "y", "mask"), "pair"),
)
NUMBERS = only(X, "matrix", "array without elements").called("x", "inputs")
row("experiments.SupervisedExperiment.with_model", on=lambda: EXP, model=only(EXP.model))
row("experiments.ClassificationExperiment.predict", on=lambda: EXP, x=NUMBERS)
row("experiments.MemberStopping", metric=text("loss"), mode=only("min", "None"))
row(
    "experiments.MemberStopping",
    metric=given("loss"),
    patience=count(5),
    min_delta=number(0.0).also("zero"),
)


_TWO = "matrix", "array of complex"


def make(key, rate=0.1):
    """Return one member."""
    return solstice.RegressionExperiment(compat.FunctionModel(init, apply, X, key=key), SGD)


ENSEMBLE = Ensemble.init(make, [0, 1])
row(
    "experiments.Ensemble.init",
    make_experiment=function(make),
    keys=only([0, 1]),
    own_batches=flag(),
    stopping=only(MemberStopping("loss"), "None"),
    stacked_hyperparameters=only({"rate": jnp.ones(2)}, *_TWO).called("rate"),
)
row("experiments.Ensemble.member", on=lambda: ENSEMBLE, i=only(0, "zero", "one", "minus one"))
row("experiments.Ensemble.predict", on=lambda: ENSEMBLE, x=NUMBERS)
BATCHES = [(X, np.zeros((7, 2), np.float32))]
row(
    "experiments.Ensemble.best",
    on=lambda: ENSEMBLE,
    metric=only("loss"),
    ds=only(BATCHES).called("ds", "test_ds", "batch").telling("it"),
    mode=only("min", "None"),
)
row("experiments.SupervisedExperiment.__call__", on=lambda: EXP, x=NUMBERS)
