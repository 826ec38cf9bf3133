"""Calls of `solstice.testing`."""

import jax.numpy as jnp
import numpy as np
import optax
from arguments_table import row
from kinds import anything, choice, count, counts, flag, function, only, optional

import solstice
from solstice import testing
from solstice.compat import FunctionModel, OptaxOptimizer
from solstice.loggers import JSONLines
from solstice.triggers import Every

X = np.linspace(-1, 1, 7 * 2, dtype=np.float32).reshape(7, 2)


class Nothing(solstice.Experiment):
    """An experiment that does nothing."""

    def train_step(self, batch):
        return self, None

    def eval_step(self, batch):
        return self, None


def make_model(key):
    """Return a matrix product."""
    return FunctionModel(lambda key, x: jnp.ones((2, 2)), lambda params, x: x @ params, X, key=key)


def make_metrics(batch, mask=None):
    """Return a mean of nothing, whatever comes."""
    return solstice.metrics.Mean(1.0)


def checked(laws):
    """Return what every check takes, with all laws left out: nothing is run."""
    names = [law.name for law in laws]
    none = "empty list", "empty tuple", "empty dict", "array without elements"
    return {
        "exclude": only(names, *none).not_trying(*none).telling("exclude names unknown laws"),
        "examples": count(1),
        "on_failure": choice("raise"),
        "progress": flag(),
    }


EXAMPLES = only(X, "matrix", "array of complex")
_ARRAYS = ("seven floats", "seven with a NaN", "seven with a negative", "seven bools")
PARAMS = only({"w": jnp.ones(2)}, "fraction", "NaN", "inf", "complex", "numpy float", "numpy NaN")
PARAMS = PARAMS.also("array without elements", "array of complex", *_ARRAYS[:3])
MADE = "it returned"

SUBJECTS = {
    "Model": (
        {"make_model": function(make_model).telling(MADE)},
        {"batch": EXAMPLES.also(*_ARRAYS)},
        {"native": optional(function(make_model, may_take_none=True))},
    ),
    "Optimizer": (
        {"make_optimizer": function(lambda: OptaxOptimizer(optax.sgd(0.1))).telling(MADE)},
        {"params": PARAMS},
        {"native": optional(function(lambda params, value_fn, steps: None))},
    ),
    "Experiment": (
        {"make_experiment": function(lambda key: Nothing()).telling(MADE)},
        {"batch": anything(X)},
        {},
    ),
    "Metrics": (
        {"make_metrics": function(make_metrics)},
        {"batch": EXAMPLES.also(*_ARRAYS, "array of text", "array of objects")},
        {},
    ),
    "Trigger": ({"make_trigger": function(lambda: Every(steps=2)).telling(MADE)}, {}, {}),
}
for name, (make, batch, native) in SUBJECTS.items():
    laws = getattr(testing, f"{name.upper()}_LAWS")
    row(f"testing.check_{name.lower()}", **make, **batch, **native, **checked(laws))
    inputs = {"inputs": batch["batch"]} if name == "Model" else batch
    row(f"testing.{name}Subject", **make, **inputs, **native)

SINK = {
    "make_sink": function(lambda directory: JSONLines(directory / "log")).telling(MADE),
    "read": function(lambda directory: []),
    "shows": optional(function(lambda records: records)),
    "records": optional(only(testing.strategies.records())),
}
row("testing.check_sink", **SINK, **checked(testing.SINK_LAWS))
row("testing.SinkSubject", **SINK)

row(
    "testing.Law.check",
    on=lambda: testing.TRIGGER_LAWS[-1],
    subject=only(testing.TriggerSubject(lambda: Every(steps=2))),
    # Each runs the law so often.
    examples=count(1).not_trying("huge", "numpy int", "array of one int", "jax int"),
)
row("testing.strategies.permutations", size=count(3, most=2**20))
row("testing.strategies.splits", size=count(3, least=2))
row("testing.strategies.masks", size=count(3, least=0, most=2**20))
row(
    "testing.strategies.batches",
    shape=counts((4,), least=0).also("empty list", "empty tuple", "array without elements"),
    num_classes=count(3),
    max_size=count(3, most=2**20),
)
row("testing.strategies.trees", leaf=optional(function(lambda seed: seed)))
row("testing.strategies.networks", inputs=count(3, most=2**20), outputs=count(3, most=2**20))
row("testing.strategies.metrics", num_classes=count(3, most=2**20))
STRATEGY = optional(only(testing.strategies.texts()))
row("testing.strategies.texts", min_size=count(0, least=0, most=8))
row(
    "testing.strategies.records",
    values=STRATEGY,
    names=STRATEGY,
    modes=STRATEGY,
    max_size=count(3),
)
row("testing.strategies.cuts", largest=count(3, least=0))
