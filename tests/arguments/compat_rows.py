"""Calls of `solstice.compat`."""

import dataclasses

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from arguments_table import row
from flax import nnx
from jax.example_libraries import optimizers
from kinds import (
    anything,
    choice,
    count,
    flag,
    function,
    given,
    number,
    only,
    optional,
    text,
    texts,
    traced,
)

import solstice
from solstice import compat

X = np.ones((7, 2), np.float32)
WEIGHTS = {"w": jnp.ones(2)}


class Linen(nn.Module):
    """A Flax network that takes any array."""

    @nn.compact
    def __call__(self, x):
        return self.param("w", nn.initializers.ones, (2,)) * jnp.ones((*jnp.shape(x)[:1], 1))


class NNX(nnx.Module):
    """An NNX network that takes any array."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones(2))

    def __call__(self, x):
        return self.w[...] * jnp.ones((*jnp.shape(x)[:1], 1))


class Sowing(NNX):
    """An NNX network that notes a value."""

    def __call__(self, x):
        self.sow(nnx.Intermediate, "noted", jnp.ones(()))
        return super().__call__(x)


def init(key, x):
    """Return a weight."""
    return {"w": jnp.ones(2)}


def apply(params, x):
    """Return as many rows as there are examples."""
    return params["w"] * jnp.ones((*jnp.shape(x)[:1], 1))


def stax_init(key, shape):
    """Return a shape and a weight, as Stax does."""
    return (*shape[:1], 2), {"w": jnp.ones(2)}


def forward(x):
    """Return as many rows as there are examples."""
    return hk.get_parameter("w", (2,), init=jnp.ones) * jnp.ones((*jnp.shape(x)[:1], 1))


STAX = (stax_init, apply)
HAIKU = hk.transform(forward)
EQUINOX = eqx.nn.Linear(2, 2, key=jax.random.key(0))
with jax.default_device(jax.devices()[0]):
    KERAS = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(2)])
SEED = count(0, least=-1, most=2**63)
_SEVEN = ("seven floats", "seven with a NaN", "seven with a negative", "seven bools")
EXAMPLE = only(X, *_SEVEN, "matrix", "array without elements", "array of complex")
KEY = only(jax.random.key(0), "None")
STREAMS = KEY.also("empty dict")
FLAGS = only(None, "None", "empty dict")
CALL = optional(function(lambda network, *inputs: network(*inputs)))

row(
    "compat.FlaxModel",
    module=only(Linen()),
    example=EXAMPLE,
    key=SEED,
    variables=only(None, "None"),
    streams=texts(("dropout",)),
    flags=FLAGS,
    call=CALL,
)
row("compat.NNXModel", module=only(NNX()), flags=FLAGS, call=CALL)
row("compat.HaikuModel", transformed=only(HAIKU), example=EXAMPLE, key=SEED, flags=FLAGS, call=CALL)
row("compat.EquinoxModel", module=only(EQUINOX), state=only(None, "None"), flags=FLAGS, call=CALL)
row("compat.KerasModel", network=only(KERAS), flags=FLAGS, call=CALL)
row(
    "compat.StaxModel",
    network=only(STAX),
    example=EXAMPLE,
    key=SEED,
    eval_apply=optional(function(apply)),
    flags=FLAGS,
    call=CALL,
)
row(
    "compat.FunctionModel",
    init=function(init),
    apply=function(apply),
    example=EXAMPLE,
    key=SEED,
    flags=FLAGS,
    call=dataclasses.replace(CALL, value=None),
)
MODELS = {
    "FlaxModel": compat.FlaxModel(Linen(), X, key=0),
    "NNXModel": compat.NNXModel(NNX()),
    "HaikuModel": compat.HaikuModel(HAIKU, X, key=0),
    "EquinoxModel": compat.EquinoxModel(EQUINOX),
    "KerasModel": compat.KerasModel(KERAS),
    "StaxModel": compat.StaxModel(STAX, X, key=0),
    "FunctionModel": compat.FunctionModel(init, apply, X, key=0),
}
for name, made in MODELS.items():
    row(
        f"compat.{name}.__call__",
        on=lambda made=made: made,
        inputs=given((X,)),
        key=STREAMS if name == "FlaxModel" else KEY,
        train=given(True),
    )
    row(
        f"compat.{name}.__call__",
        on=lambda made=made: made,
        inputs=given((X,)),
        key=given(None),
        train=flag(),
    )
MODEL = MODELS["FunctionModel"]
NEEDED = "initialises the network"
row(
    "compat.as_model",
    network=only(STAX),
    example=EXAMPLE.telling(NEEDED),
    key=SEED.telling(NEEDED),
)
# An example without rows proves nothing.
SHOWN = only(X, *_SEVEN, "matrix", "array of complex")
row("compat.convert", model=only(MODEL), like=only(MODEL), example=SHOWN, strict=flag(True))
row("compat.freeze", model=only(MODEL), predicate=function(lambda path, leaf: True))
row("compat.unfreeze", model=only(MODEL))
row("compat.join_params", model=only(MODEL), like=only(MODEL._tree, "None"))
row("compat.split_params", weights=traced(WEIGHTS))
row("compat.check_train", train=flag(), adapter=anything("PebbleModel"))
row("compat.single_key", key=only(jax.random.key(0), "None"), adapter=anything("PebbleModel"))
row("compat.missing_key", adapter=anything("PebbleModel"), stream=anything("dropout"))
row("compat.Overwritten", value=anything(1.0))
row("compat.Static", value=anything(1.0))
row(
    "compat.register",
    cls=only("mylib.Network", "class"),
    adapt=function(lambda network, example, key: MODEL),
    what=choice("model"),
)

SGD = optax.sgd(0.1)
row(
    "compat.OptaxOptimizer",
    transformation=only(SGD),
    wants=optional(texts(("value",))),
    learning_rate=optional(number(0.1).also("zero")),
)
row("compat.by_path", rules=only({"*": SGD}).called("rule", "rules", "optimizer").telling("'"))
row("compat.JaxOptimizer", optimizer=only(optimizers.sgd(0.1)))
row("compat.KerasOptimizer", optimizer=only(keras.optimizers.SGD(0.1)))
row("compat.as_optimizer", optimizer=only(SGD))
FLOATS = only(WEIGHTS, *_SEVEN[:3], "array without elements", "array of complex")
FLOATS = FLOATS.also("numpy float", "numpy NaN", "None", "empty list", "empty tuple", "empty dict")
FLOATS = FLOATS.also("list of None").telling("one is")
OPTIMIZERS = {
    "OptaxOptimizer": compat.OptaxOptimizer(SGD),
    "JaxOptimizer": compat.JaxOptimizer(optimizers.sgd(0.1)),
    "KerasOptimizer": compat.KerasOptimizer(keras.optimizers.SGD(0.1)),
}
for name, made in OPTIMIZERS.items():
    row(f"compat.{name}.init", on=lambda made=made: made, params=FLOATS)
    row(
        f"compat.{name}.__call__",
        on=lambda made=made: made.init(WEIGHTS),
        grads=only(WEIGHTS).called("gradients").telling("'"),
        params=only(WEIGHTS).called("parameters").telling("'"),
    )

row("compat.NNXMetrics", metric=only(nnx.metrics.Average("loss")))
row("compat.NNXMetrics.knows", on=lambda: compat.NNXMetrics, metric=anything(1))
row("compat.as_metrics", metric=only(nnx.metrics.Average("loss")))
row("compat.UpdatedMetrics", metric=only(nnx.metrics.Average("loss")))
EXP = solstice.ClassificationExperiment(MODEL, SGD, 2)
BATCH = (X, np.zeros(7, int))
row("compat.gradients", exp=only(EXP), batch=given(BATCH))
row("compat.training_norms", exp=only(EXP), batch=given(BATCH))
AVERAGE = compat.as_metrics(nnx.metrics.Average("loss"))
UPDATED = compat.UpdatedMetrics(nnx.metrics.Average("loss"))
row("compat.NNXMetrics.merge", on=lambda: AVERAGE, other=only(AVERAGE).called("merges"))
row("compat.UpdatedMetrics.merge", on=lambda: UPDATED, other=only(UPDATED).called("merges"))
row(
    "compat.intermediates",
    model=only(compat.NNXModel(Sowing())),
    inputs=given((X,)),
    key=given(None),
    train=given(False),
    name=given("intermediates"),
    kwargs=given({}),
)
WHERE = function(lambda path: True)
MATRIX = compat.FunctionModel(lambda key, x: {"w": jnp.ones((3, 4))}, apply, X, key=0)
row(
    "compat.lora",
    model=only(MATRIX),
    rank=count(1, most=3),
    where=WHERE,
    key=SEED,
    alpha=optional(number(2)),
    full=optional(given(None)),
)
row("compat.quantize", model=only(MATRIX), bits=choice(8), where=WHERE)
row("compat.merge", model=only(MATRIX))
row("compat.trained", tree=anything(WEIGHTS))
TAGGED = compat.FunctionModel(
    init, lambda params, x: compat.tag("hidden", apply(params, x)), X, key=0
)
PASS = {"inputs": given((X,)), "key": given(None), "train": flag(), "kwargs": given({})}
row(
    "compat.capture",
    model=only(TAGGED),
    where=function(lambda path: True),
    **PASS,
)
row(
    "compat.intervene",
    model=only(TAGGED),
    edits=only({"hidden": jnp.zeros_like}, "empty dict"),
    **PASS,
)
row("compat.tag", name=text("hidden"), value=anything(1.0).but("class"))


ARRAYS = {"params/w": np.ones(2, np.float32)}
row(
    "compat.load",
    model=only(MODEL),
    source=only(ARRAYS),
    example=only(None, "None", *_SEVEN, "matrix", "array without elements", "array of complex"),
    rename=only(None, "None", "empty dict"),
    strict=flag(True),
    outputs=only(None, "None"),
)
row(
    "compat.LoadReport.check",
    on=lambda: compat.load(MODEL, ARRAYS)[1],
    inputs=given(X),
    outputs=only(X),
    inside=only(None, "None"),
    tolerance=number(0.5),
)
row(
    "compat.save",
    model=only(MODEL),
    path=only("model.safetensors"),
    names=only(None, "None", "empty dict"),
)
