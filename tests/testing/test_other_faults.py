"""For every law of an Optimizer, of Metrics and of an Experiment: a fault, and the law's word."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import compat
from solstice.loggers.outlets import SinkLike
from solstice.testing import (
    EXPERIMENT_LAWS,
    METRICS_LAWS,
    OPTIMIZER_LAWS,
    ExperimentSubject,
    LawError,
    MetricsSubject,
    OptimizerSubject,
)
from solstice.testing.law import maker
from solstice.tree import replace

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}


class Momentum(compat.Optimizer):
    """Gradient descent with momentum; the faults are subclasses that change one thing."""

    wants: tuple = eqx.field(static=True)
    trace: object = None
    count: jax.Array = None
    tag: int = eqx.field(static=True, default=0)

    def __init__(self):
        self.wants = ()

    def zeros(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def init(self, params):
        return replace(self, trace=self.zeros(params), count=jnp.zeros((), jnp.int32))

    def rate(self):
        return 0.1

    def moved(self, params, trace):
        return jax.tree.map(lambda p, t: p - self.rate() * t, params, trace)

    def overwritten(self, params, grads):
        return compat.overwrite(params, grads)

    def __call__(self, grads, params, **extras):
        trace = jax.tree.map(lambda g, t: 0.9 * t + g, grads, self.trace)
        return self.overwritten(self.moved(params, trace), grads), replace(
            self, trace=trace, count=jnp.asarray(self.count + 1, jnp.int32)
        )

    def eval_params(self, params):
        return params

    def learning_rate(self):
        return None


def native(params, value_fn, steps):
    optimizer = Momentum().init(params)
    step = jax.jit(lambda params, optimizer: optimizer(jax.grad(value_fn)(params), params))
    for _ in range(steps):
        params, optimizer = step(params, optimizer)
    return params


class WeakState(Momentum):
    def init(self, params):
        return replace(super().init(params), count=jnp.asarray(0))


class StaticCount(Momentum):
    def __call__(self, grads, params, **extras):
        params, new = super().__call__(grads, params)
        return params, replace(new, tag=self.tag + 1)


class WritesIntoItsTrace(Momentum):
    def __call__(self, grads, params, **extras):
        params, new = super().__call__(grads, params)
        self.trace.update(new.trace)
        return params, new


class KeepsItsTrace(Momentum):
    """Starts from the old trace when it is initialised again."""

    def init(self, params):
        return super().init(params) if self.trace is None else self


class StandsStill(Momentum):
    def moved(self, params, trace):
        return params


CALLS = []


class CountsOutside(Momentum):
    """Counts its steps in a Python list, which a scan runs through once."""

    def rate(self):
        CALLS.append(1)
        return 0.1 / len(CALLS)


class KnowsNames(Momentum):
    """Leaves biases alone, which it knows by their name."""

    def moved(self, params, trace):
        return {**super().moved(params, trace), **({"b": params["b"]} if "b" in params else {})}


class FillsHoles(Momentum):
    def zeros(self, params):
        return jax.tree.map(
            lambda p: jnp.zeros(()) if p is None else jnp.zeros_like(p),
            params,
            is_leaf=lambda p: p is None,
        )

    def __call__(self, grads, params, **extras):
        def fill(tree):
            return jax.tree.map(
                lambda leaf: jnp.zeros(()) if leaf is None else leaf,
                tree,
                is_leaf=lambda leaf: leaf is None,
            )

        return super().__call__(fill(grads), fill(params))


class StepsAlongEveryGradient(Momentum):
    def overwritten(self, params, grads):
        return params


class AnotherRate(Momentum):
    def rate(self):
        return 0.1000001


OPTIMIZER_FAULTS = {
    "signature_is_stable": (WeakState, "the optimizer after 1 steps: count changed"),
    "steps_trace_once": (StaticCount, "3 steps were traced 3 times"),
    "steps_are_pure": (WritesIntoItsTrace, "UnexpectedTracerError|before and after a step"),
    "init_starts_anew": (KeepsItsTrace, "initialised twice: "),
    "it_moves_the_parameters": (StandsStill, "3 steps left every parameter as it was"),
    "scan_equals_loop": (CountsOutside, "after a loop and a scan: "),
    "names_do_not_matter": (KnowsNames, "in two trees: "),
    "none_leaves_pass": (FillsHoles, "a hole was filled"),
    "overwritten_leaves_take_their_gradient": (
        StepsAlongEveryGradient,
        r"its gradient was 7, and it became \[2\.29",
    ),
    "equals_the_native_loop": (AnotherRate, "through the adapter and by the library: "),
}


class Mean(solstice.Metrics):
    """The mean of some values, weighted by how many there are."""

    total: jax.Array
    count: jax.Array

    def merge(self, other):
        return replace(self, total=self.total + other.total, count=self.count + other.count)

    def compute(self):
        return {"mean": self.total / self.count}


def of_values(kind):
    def make(batch, mask=None):
        mask = jnp.ones(len(batch)) if mask is None else mask
        return kind(jnp.sum(batch * mask), jnp.sum(mask))

    return make


class FirstWins(Mean):
    def merge(self, other):
        return replace(self, total=self.total + 0.5 * other.total, count=self.count + other.count)


class MeanOfMeans(Mean):
    def merge(self, other):
        mean = (self.total / self.count + other.total / other.count) / 2
        return replace(self, total=mean, count=jnp.ones(()))


class HostOnly(Mean):
    def merge(self, other):
        count = float(self.count) + float(other.count)
        return replace(self, total=self.total + other.total, count=jnp.asarray(count))


def ignoring_masks(batch, mask=None):
    return Mean(jnp.sum(batch), jnp.asarray(float(len(batch))))


METRICS_FAULTS = {
    "merge_is_commutative": (of_values(FirstWins), "a with b, and b with a: mean differs"),
    "merge_is_associative": (of_values(MeanOfMeans), r"\(a b\) c, and a \(b c\): mean differs"),
    "batching_does_not_matter": (of_values(MeanOfMeans), "all examples at once, and in two"),
    "masked_examples_count_nowhere": (ignoring_masks, "without them, and masked: mean differs"),
    "jit_equals_eager": (of_values(HostOnly), "ConcretizationTypeError"),
}
VALUES = np.array([1.0, 2.0, 4.0, 8.0, 16.0], np.float32)


class Walk(solstice.Experiment):
    """Moves by the batch's mean and noise; the faults are subclasses that change one thing."""

    place: jax.Array
    key: jax.Array
    extra: object = None

    def __init__(self, key):
        self.key, start = jax.random.split(key)
        self.place = jax.random.normal(start, (2,))

    def train_step(self, batch):
        key, noise = jax.random.split(self.key)
        place = self.place + batch.mean() + jax.random.normal(noise, (2,))
        return replace(self, place=place, key=key), place.sum()

    def eval_step(self, batch):
        return self, self.place.sum() * batch.mean()


class DrawsOutside(Walk):
    def train_step(self, batch):
        exp, outs = super().train_step(batch)
        return exp, outs + np.random.default_rng().random()


class Grows(Walk):
    def train_step(self, batch):
        exp, outs = super().train_step(batch)
        return replace(exp, extra=(self.extra, self.place)), outs


class EvaluationMoves(Walk):
    def eval_step(self, batch):
        return replace(self, place=self.place + 1), self.place.sum()


class RemembersOnTheHost(Walk):
    """Keeps what a step needs beside the experiment, in no leaf of it."""

    def train_step(self, batch):
        exp, outs = super().train_step(batch)
        seen = MEMORY.setdefault(id(self), len(MEMORY))
        return exp, outs + seen


MEMORY = {}

EXPERIMENT_FAULTS = {
    "steps_are_pure": (DrawsOutside, "the same train_step twice"),
    "signature_is_stable": (Grows, "after train_step: the tree changed"),
    "eval_leaves_it_unchanged": (EvaluationMoves, "before and after eval_step: place differs"),
    "it_is_resumable": (RemembersOnTheHost, "trained on, and resumed"),
}

BATCH = jnp.arange(4.0)
KINDS = {
    "optimizer": (
        OPTIMIZER_LAWS,
        OPTIMIZER_FAULTS,
        lambda make: OptimizerSubject(make, PARAMS, native),
        Momentum,
    ),
    "metrics": (
        METRICS_LAWS,
        METRICS_FAULTS,
        lambda make: MetricsSubject(make, VALUES),
        of_values(Mean),
    ),
    "experiment": (
        EXPERIMENT_LAWS,
        EXPERIMENT_FAULTS,
        lambda make: ExperimentSubject(make, BATCH),
        Walk,
    ),
}
CASES = [(kind, law) for kind, (laws, *_) in KINDS.items() for law in laws]


@pytest.mark.parametrize("kind", KINDS)
def test_every_law_has_a_fault(kind):
    laws, faults, *_ = KINDS[kind]
    assert {law.name for law in laws} == set(faults)


@pytest.mark.parametrize(("kind", "law"), CASES, ids=lambda value: str(value))
def test_a_law_catches_its_fault_and_passes_what_is_sound(kind, law):
    _, faults, subject, sound = KINDS[kind]
    fault, message = faults[law.name]
    law.check(subject(sound), examples=2)
    with pytest.raises(LawError, match=message) as caught:
        law.check(subject(fault), examples=2)
    assert f"breaks the law {law}: {law.statement}" in str(caught.value)


LINEAR = compat.FunctionModel(lambda key, x: {"w": jnp.ones(4)}, jnp.multiply, BATCH, key=0)


@pytest.mark.parametrize(
    ("check", "made", "what"),
    [
        (solstice.testing.check_model, lambda: LINEAR, "a compat.Model"),
        (solstice.testing.check_experiment, lambda: Walk(jax.random.key(0)), "an Experiment"),
        (solstice.testing.check_optimizer, Momentum, "a compat.Optimizer"),
        (solstice.testing.check_metrics, lambda: solstice.metrics.Mean(jnp.ones(3)), "a Metrics"),
        (solstice.testing.check_trigger, lambda: solstice.triggers.Every(steps=1), "a Trigger"),
        (solstice.testing.check_sink, solstice.loggers.Console, "a sink"),
    ],
)
def test_what_the_laws_would_make_is_no_function_that_makes_it(check, made, what):
    arguments = [None] * (check is not solstice.testing.check_trigger)
    with pytest.raises(
        TypeError, match=rf"to be a function that makes .*{what}.*it is already one"
    ):
        check(made(), *arguments)


def test_a_class_makes_what_it_is_called_for():
    MetricsSubject(solstice.metrics.Mean, VALUES)
    for thing, kind in ((solstice.loggers.CSV, SinkLike), (Momentum, compat.Optimizer)):
        assert maker(thing, "make", "path" * (kind is SinkLike), kind, "one") is thing
