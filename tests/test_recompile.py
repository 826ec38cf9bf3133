"""The recompile guard: what changed is named, once, and costs nothing while nothing changes."""

import logging
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice


class Static(eqx.Module):
    size: int = eqx.field(static=True)


class Changing(solstice.Experiment):
    """Gives its fields what the batch says, so that each may change in any way."""

    total: jax.Array
    number: int
    part: Static

    @solstice.jit
    def train_step(self, batch):
        return solstice.replace(self, total=self.total + 0 * batch["x"].sum()), None

    @solstice.jit
    def eval_step(self, batch):
        return self, None


class Growing(Changing):
    """Changes itself at each step, which a step ought not to do."""

    grow: object = eqx.field(static=True)

    @solstice.jit
    def train_step(self, batch):
        return self.grow(self), None


def run(exp, batches, **options):
    return solstice.train(exp, 1, batches, progress=False, **options)


def batch(*shape, dtype="float32"):
    return {"x": np.ones(shape, dtype), "name": np.zeros(2)}


@pytest.fixture
def exp():
    return Changing(jnp.zeros(()), 1, Static(3))


@pytest.fixture
def told(caplog):
    """What the guard said: (level, what changed)."""
    caplog.set_level(logging.INFO, logger="solstice")

    def told():
        found = []
        for record in caplog.records:
            match = re.search(r"since its input changed: (.*?)\. Give each", record.getMessage())
            if match:
                found.append((record.levelname, match[1]))
        return found

    return told


def test_shapes_and_dtypes_of_a_batch_are_named(exp, told):
    run(exp, [batch(4), batch(4), batch(3), batch(3, dtype="int32")])
    assert told() == [
        ("INFO", "batch/x was float32[4] and is float32[3]"),
        ("WARNING", "batch/x was float32[3] and is int32[3]"),
    ]


def test_a_change_is_told_once(exp, told):
    run(exp, [batch(n) for n in (9, 8, 9, 8, 9, 8, 7)])
    assert told() == [
        ("INFO", "batch/x was float32[9] and is float32[8]"),
        ("WARNING", "batch/x was float32[8] and is float32[7]"),
    ]


def test_nothing_is_told_while_nothing_changes(exp, told):
    for _ in range(3):
        exp = run(exp, [batch(4)] * 3, val_ds=[batch(5)] * 2)
    assert not told()


def test_another_form_of_batch_is_named(exp, told):
    run(exp, [batch(4), {"x": np.ones(4, "float32")}])
    assert told()[0][1] == "batches/0 was a dict of name, x and is a dict of x"


@pytest.mark.parametrize(
    ("grow", "expected"),
    [
        (
            lambda exp: solstice.replace(exp, number=exp.number + 1),
            "number was the static 1 and is the static 2",
        ),
        (
            lambda exp: solstice.replace(exp, total=jnp.zeros(jnp.size(exp.total) + 1)),
            "total was float32[] and is float32[2]",
        ),
        (
            lambda exp: solstice.replace(exp, total=1.0 * jnp.ones(2)),
            "total was float32[] and is float32[2]",
        ),
        (
            lambda exp: solstice.replace(exp, total=jnp.asarray(1.0)),
            "total was float32[] and is float32[] (weakly typed)",
        ),
        (
            lambda exp: solstice.replace(exp, part=Static(exp.part.size + 1)),
            "experiment/part was a Static with size=the int 3 and is a Static with size=the int 4",
        ),
    ],
    ids=["static", "shape", "shape once", "weak type", "tree"],
)
def test_what_changes_in_the_experiment_is_named(grow, expected, told):
    run(Growing(jnp.zeros(()), 1, Static(3), grow), [batch(4)] * 3)
    assert expected in told()[0][1]


def test_another_placement_is_named_and_the_same_one_is_not(exp, told):
    """jax compiles for where an array is bound to, without a new trace."""
    run(exp, [batch(4), jax.tree.map(jnp.asarray, batch(4)), batch(4)])
    assert not told()
    bound = jax.device_put(batch(4), jax.devices()[0])
    traces = Changing.train_step.traces
    with pytest.raises(solstice.RecompileError, match="on no certain device and is on cpu:0"):
        run(exp, [batch(4), bound, bound], recompile="error")
    assert Changing.train_step.traces == traces


def test_it_may_be_an_error_and_the_experiment_lives():
    class Fresh(Changing):
        @solstice.jit
        def train_step(self, batch):
            return self, None

    exp = Fresh(jnp.zeros(()), 1, Static(3))

    class Keep(solstice.Callback):
        def on_run_end(self, exp, error):
            self.total, self.error = float(exp.total), error

    keep = Keep()
    with pytest.raises(solstice.RecompileError, match=r"batch/x was float32\[4\] and is") as caught:
        run(exp, [batch(4), batch(4), batch(3)], callbacks=[keep], recompile="error")
    assert keep.error is caught.value and keep.total == 0
    found = caught.value
    told = (found.leaf, found.before, found.after)
    assert told == ("batch/x", "float32[4]", "float32[3]")
    run(exp, [batch(4)] * 3, val_ds=[batch(3)] * 3, recompile="error")


def test_a_second_run_compiles_nothing(exp):
    for _ in range(2):
        compiled = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, seconds, compiled=compiled, **_: compiled.append(event)
        )
        try:
            run(exp, [batch(4)] * 3, val_ds=[batch(4)], steps_per_call=2)
        finally:
            jax.monitoring.clear_event_listeners()
    assert not [event for event in compiled if "compile" in event or "trace" in event]


@pytest.mark.usefixtures("unchecked")
def test_other_answers_than_these_are_refused(exp):
    with pytest.raises(ValueError, match="'warn' or 'error'; it is 'ignore'"):
        run(exp, [batch(4)], recompile="ignore")
