"""Calls of `solstice.triggers`, `sharding`, `tree` and of the top of `solstice`."""

import functools
import pathlib
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from arguments_table import row
from jax.example_libraries import stax
from kinds import (
    Made,
    anything,
    choice,
    count,
    counts,
    flag,
    function,
    given,
    number,
    only,
    optional,
    path,
    text,
    traced,
    tree,
)

import solstice
from solstice.saving.checkpoints import Checkpoints
from solstice.triggers import At, Every

STEPS = Every(steps=3)
TREE = {"w": jnp.ones(2)}
STRUCTURE = jax.tree.structure(TREE)
row("triggers.Every", steps=count(3).telling("it got none"))
row("triggers.Every", epochs=count(3).telling("it got none"))
row("triggers.Every", seconds=number(3).telling("it got none"))
row("triggers.At", steps=counts(3))
row("triggers.First", n=count(3), of_process=flag())
row("triggers.AnyOf", left=only(STEPS), right=only(At(1)))
row("triggers.Trigger.__or__", on=lambda: STEPS, other=only(At(1)).called("right"))
row("triggers.Every.start", on=lambda: STEPS, clock=function(lambda: 0.0, may_take_none=True))
row(
    "triggers.Watch",
    trigger=only(STEPS),
    clock=function(lambda: 0.0, may_take_none=True),
)
row("triggers.check_trigger", trigger=only(STEPS).called("when"), name=anything("when"))


class Point(eqx.Module):
    """A module with one field."""

    x: int


def saved():
    """The path of a file that holds `TREE`."""
    solstice.tree.save("saved", TREE)
    return "saved"


row("tree.as_key", key=count(0, least=-1, most=2**63))
row("tree.describe", value=anything(1))
row("tree.is_key", value=anything(1))
row("tree.is_typed_key", value=anything(1))
REST = traced((1.0,))
row("tree.depends_on", function=function(lambda x, y: x), argument=traced(1.0), rest=REST)
row("tree.used_leaves", function=function(lambda x, y: x), argument=traced(1.0), rest=REST)
row("tree.digest", tree=tree(TREE).but("function", "class", "object", "set", "iterator"))
row("tree.digests", tree=tree(TREE))
row("tree.flatten_with_paths", tree=anything(TREE), is_leaf=optional(function(lambda node: False)))
row("tree.leaves_by_path", tree=anything(TREE))
row("tree.paths", tree=anything(TREE))
row("tree.leaf_names", structure=only(STRUCTURE))
row("tree.path_name", path=only((jax.tree_util.DictKey("w"),), "empty tuple", "seven ints", "pair"))
row("tree.nbytes", tree=anything(TREE))
row("tree.size", tree=anything(TREE))
row("tree.norm", tree=anything(TREE))
row("tree.owned", tree=tree(TREE))
LIKE = only(TREE).telling("they have")
row("tree.to_json", tree=tree(TREE), indent=optional(count(least=0, most=100)))
row("tree.from_json", text=only("1.5", "number as text"))
row("tree.from_json", text=given(solstice.tree.to_json(TREE)), like=LIKE.also("None"))
row("tree.save", path=path("saved"), tree=tree(TREE))
row("tree.load", path=only(Made(saved)), like=LIKE.also("None"))
row("tree.tree_difference", expected=only(STRUCTURE), found=only(STRUCTURE))
row("tree.replace", obj=only(Point(1)), changes=anything({"x": 1}))


# sharding

MESH = jax.make_mesh((1,), ("data",))
WHOLE = jax.sharding.PartitionSpec()

row("sharding.DataParallel", mesh=only(MESH, "None"))
row("sharding.FullySharded", mesh=only(MESH, "None"), min_size=count(8, least=0))
row(
    "sharding.Rules",
    rules=only([("kernel", WHOLE)], "empty list", "empty tuple", "array without elements").telling(
        "one is"
    ),
    mesh=only(MESH, "None"),
    batch=only(WHOLE, "None"),
)
tolerance = number().also("zero")
row("sharding.assert_replicated", tree=anything(TREE), atol=tolerance, rtol=tolerance)
row("sharding.gather", tree=anything(TREE))


@functools.wraps(solstice.sharding.initialize)
def initialize(*arguments, **options):
    """`initialize` in one process, which must stay alone."""
    with mock.patch("jax.distributed.initialize"), mock.patch.object(jax.config, "update"):
        solstice.sharding.initialize(*arguments, **options)


row(
    "sharding.initialize",
    made=initialize,
    coordinator_address=optional(text("localhost:1234")),
    num_processes=optional(count(2)),
    process_id=optional(count(0, least=0)),
    heartbeat_timeout_seconds=count(100),
    shutdown_timeout_seconds=count(30),
    # What jax makes of it is its own.
    options=anything({"cluster_detection_method": "deactivate"}),
)


# The top, and `data`


class Nothing(solstice.Experiment):
    """An experiment that does nothing."""

    @solstice.jit
    def train_step(self, batch):
        return self, None

    def eval_step(self, batch):
        return self, None


def step(self, batch):
    """A step of nothing."""
    return self, None


def read(dataset):
    """Read a dataset, as a run does."""
    list(dataset() if callable(dataset) else dataset)


row("jit", step=only(step))
RATED = solstice.compat.OptaxOptimizer(optax.inject_hyperparams(optax.sgd)(0.1)).init(
    {"w": jnp.ones(2)}
)
row("set_learning_rate", exp=only(RATED), rate=number(0.1).also("zero"))
row("snapshot", exp=tree(TREE))
ARRAYS = ("seven floats", "seven with a NaN", "seven with a negative", "seven bools", "matrix")
ARRAYS += ("array without elements", "array of complex", "array of one int", "jax int")
ARRAYS += ("numpy True", "numpy int", "numpy float", "numpy NaN", "array of text")
row("summary", experiment_or_model=only(TREE, *ARRAYS, "array of objects"))
row("summary", experiment_or_model=given(Nothing()), batch=traced(None))
row(
    "pad_last",
    ds=only([(jnp.ones(1), jnp.ones(1))]).telling("; it"),
    batch_size=count(2, most=2**31),
    mask_key=text("mask"),
    finish=read,
)
WHOLE = np.linspace(0, 1, 7), np.array([0, 1, 0, 1, 0, 1, 1])


def arrays():
    """A dataset of seven rows."""
    return solstice.data.Arrays(*WHOLE, batch_size=2, shuffle=0)


SEED = count(3, least=0, most=2**32).also("None", "False")
LABELS = only(True, "True", "seven ints", "seven bools")
row(
    "data.Arrays",
    data=only(WHOLE, "seven floats", "seven with a NaN", "seven with a negative", "seven bools")
    .called("Arrays")
    .telling("first axis"),
    batch_size=count(2, most=2**31),
    shuffle=SEED,
    last=optional(choice("short")),
)
row("data.Arrays.__call__", on=arrays, epoch=count(3, least=0, most=2**31), finish=list)
row("data.Arrays.in_order", on=arrays)
row("data.Arrays.on_device", on=arrays)
row(
    "data.Arrays.split",
    on=arrays,
    fraction=only(0.5, "numpy float"),
    seed=SEED,
    stratify=optional(LABELS),
)
row(
    "data.Arrays.folds",
    on=arrays,
    k=count(2, least=2, most=7),
    seed=SEED,
    stratify=optional(LABELS),
)
row("data.Arrays.map", on=arrays, function=function(lambda batch, key: batch), seed=SEED)
row(
    "data.Arrays.weighted",
    on=arrays,
    weights=only(np.ones(7), "seven ints", "seven floats", "seven bools"),
)
row("data.Arrays.balanced", on=arrays, labels=LABELS)
row("data.live", make=function(lambda exp, step: None), length=optional(count(3)))


def checkpoint():
    """A directory with one checkpoint of `TREE`."""
    if not pathlib.Path("saved").exists():
        Checkpoints("saved").write(TREE, {})
    return "saved"


row("restore", directory=only(Made(checkpoint)), exp=LIKE, which=only("newest"))


def classifier():
    """A small experiment."""
    return solstice.ClassificationExperiment(
        stax.serial(stax.Dense(2)), SGD, example_input=np.ones((1, 3), np.float32), key=0
    )


def export():
    """A folder with an export."""
    if not pathlib.Path("exported").exists():
        solstice.export(CLASSIFIER, "exported", platforms="cpu")
    return "exported"


SGD = optax.sgd(0.1)
CLASSIFIER = classifier()
BATCH = np.ones((1, 3), np.float32)
row(
    "export",
    exp_or_model=only(CLASSIFIER),
    path=path("export"),
    batch=count(2, most=2**31),
    platforms=only("cpu"),
    classes=optional(only(["yes", "no"], "pair", "array of text")),
    overwrite=flag(),
)
row(
    "export",
    exp_or_model=given(CLASSIFIER),
    path=given("export"),
    platforms=given("cpu"),
    example=optional(only(BATCH, "matrix", "array without elements")).telling("they are"),
)
row(
    "export",
    exp_or_model=given(CLASSIFIER),
    path=given("export"),
    platforms=given("cpu"),
    example=given(BATCH),
    preprocess=optional(function(lambda x: x)),
)
row("load_exported", path=only(Made(export)))
for name in ("__call__", "predict"):  # `ODD_INPUTS` of `exporting/test_export.py` has odd ones
    row(
        f"Exported.{name}",
        on=lambda: solstice.load_exported(export()),
        inputs=given((BATCH,)),
    )

for name in ("leaves_by_path", "paths"):
    row(f"tree.{name}", tree=given(TREE), is_leaf=optional(function(lambda node: False)))
