"""Calls of `solstice.train`, `test` and `predict`, and of the methods of the same names."""

import numpy as np
from arguments_table import row
from kinds import choice, count, flag, given, only, optional

import solstice
from solstice import Callback
from solstice.experiments import Runnable
from solstice.triggers import Every


class Still(Runnable):
    """An experiment that does nothing."""

    def train_step(self, batch):
        return self, None

    def eval_step(self, batch):
        return self, solstice.metrics.Mean(1.0)

    def predict(self, inputs):
        return inputs


# Any tree is a batch, of an experiment that takes it.
TREES = "set", "iterator", "list of None", "list of text", "list of objects", "ragged list"
DS = only([1.0], *TREES, "seven ints", "pair")
# What is no array has no examples to join.
WHOLE = only([np.ones(3)], "list of None").called("ds", "predict").telling("it returned")
CALLBACKS = only([Callback()], "None", "empty list", "empty tuple").telling("one is")
SHARDING = only(None, "None")
NAMES = "text", "number as text", "text with a NUL", "empty list", "empty tuple", "list of text"
PROGRESS = only(False, "True", "False", "pair", *NAMES)
EPOCHS = count(1, least=0).not_trying("huge")
PASSES = {"train_ds": DS, "val_ds": optional(DS), "callbacks": CALLBACKS}
OPTIONS = {
    "num_steps": optional(count(1)).not_trying("huge"),
    "steps_per_call": count(1),
    "prefetch": optional(count(0, least=0)),
    "sharding": SHARDING,
    "resume_from": only(None, "None", "text", "number as text"),
    "recompile": choice("warn"),
    "donate": flag(),
    "progress": PROGRESS,
}

row(
    "train",
    exp=only(Still()),
    num_epochs=optional(EPOCHS),
    **PASSES,
    **OPTIONS,
)
row(
    "train",
    exp=given(Still()),
    num_epochs=given(1),
    train_ds=given([1.0]),
    val_ds=given([1.0]),
    validate_every=only(Every(steps=1), "None"),
    progress=given(False),
)
row(
    "test",
    exp=only(Still()),
    test_ds=DS,
    callbacks=CALLBACKS,
    return_outs=flag(True),
    sharding=SHARDING,
    progress=PROGRESS,
)
row("predict", exp=only(Still()), ds=WHOLE, sharding=SHARDING, progress=PROGRESS)
row(
    "experiments.Runnable.train",
    on=Still,
    num_epochs=optional(EPOCHS),
    **PASSES,
    **OPTIONS,
)
row(
    "experiments.Runnable.train",
    on=Still,
    num_epochs=given(1),
    train_ds=given([1.0]),
    val_ds=given([1.0]),
    validate_every=only(Every(steps=1), "None"),
    progress=given(False),
)
row(
    "experiments.Runnable.test",
    on=Still,
    test_ds=DS,
    callbacks=CALLBACKS,
    sharding=SHARDING,
    progress=PROGRESS,
)
