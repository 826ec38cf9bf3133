"""Accumulator: what `reduce` gives, for any number and any kind of metrics, in bounded memory."""

import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.metrics import Accumulator


def accumulate(metrics):
    seen = Accumulator()
    for one in metrics:
        seen.add(one)
    return seen


@pytest.mark.parametrize("count", [1, 2, 32, 33, 34, 100])
def test_it_equals_reduce(count):
    rng = np.random.default_rng(count)
    parts = [
        solstice.ClassificationMetrics(*rng.integers(0, 3, (2, 5)), rng.random(), 3)
        for _ in range(count)
    ]
    seen = accumulate(parts)
    merged, expected = seen.pop(), solstice.reduce(parts)
    for left, right in zip(jax.tree.leaves(merged), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)
    assert seen.pop() is None


def test_it_starts_anew_after_each_pop(mean):
    seen = Accumulator()
    assert seen.pop() is None
    for value in (1.0, 2.0):
        seen.add(mean([value]))
        assert float(seen.pop().compute()["mean"]) == value


class Joined(solstice.Metrics):
    """Merges in order: an array of digits, read from left to right."""

    number: jax.Array
    digits: jax.Array

    def merge(self, other):
        number = self.number * 10.0**other.digits + other.number
        return Joined(number, self.digits + other.digits)

    def compute(self):
        return {"number": self.number}


def test_the_order_is_kept(x64):
    digits = [1, 2, 3, 4, 5, 6, 7, 8, 9] + [0] * 40
    seen = accumulate(Joined(jnp.asarray(float(digit)), jnp.asarray(1)) for digit in digits)
    assert float(seen.pop().compute()["number"]) == pytest.approx(1.23456789e48, rel=1e-12)


class Named(eqx.Module):
    """Not a Metrics, and its fields are no arrays."""

    names: tuple[str, ...]

    def merge(self, other):
        return Named(self.names + other.names)

    def compute(self):
        return {"names": self.names}


class Plain:
    """Not a pytree."""

    def __init__(self, value):
        self.value = value

    def merge(self, other):
        return Plain(self.value + other.value)

    def compute(self):
        return {"value": self.value}


class Peeking(solstice.Metrics):
    """Its merge reads values on the host."""

    best: jax.Array

    def merge(self, other):
        return self if self.best > other.best else other

    def compute(self):
        return {"best": self.best}


class Choosing(solstice.Metrics):
    """Its merge has a shape that depends on values."""

    values: jax.Array

    def merge(self, other):
        values = jnp.concatenate([self.values, other.values])
        return Choosing(values[values > 0])

    def compute(self):
        return {"values": self.values}


@pytest.mark.parametrize("count", [1, 2, 40])
def test_any_kind_of_metric_merges(count):
    letters = [chr(ord("a") + i) for i in range(count)]
    assert accumulate(Named((x,)) for x in letters).pop().names == tuple(letters)
    assert accumulate(map(Plain, letters)).pop().value == "".join(letters)


def test_merges_that_cannot_be_compiled_run_eagerly():
    peeking = accumulate(Peeking(jnp.asarray(i % 7)) for i in range(40)).pop()
    assert int(peeking.best) == 6
    choosing = accumulate(Choosing(jnp.asarray([value])) for value in (1, 0, 2)).pop()
    assert choosing.values.tolist() == [1, 2]


def test_unlike_metrics_are_a_usage_error():
    seen = accumulate(solstice.ClassificationMetrics([0], [0], 0.5, n) for n in (2, 3))
    with pytest.raises(solstice.UsageError, match="over 3 classes"):
        seen.pop()


alive = weakref.WeakSet()


class Tracked:
    """Says that it is large; `alive` holds those that exist."""

    def __init__(self, nbytes, steps=1):
        self.nbytes = nbytes
        self.steps = steps
        alive.add(self)

    def merge(self, other):
        return Tracked(self.nbytes, self.steps + other.steps)

    def compute(self):
        return {"steps": self.steps}


@pytest.mark.parametrize(("nbytes", "most"), [(4, 68), (2**20, 20), (2**24, 5), (2**40, 5)])
def test_few_large_metrics_wait_at_once(nbytes, most):
    seen, counts = Accumulator(), []
    for _ in range(100):
        seen.add(Tracked(nbytes))
        counts.append(len(alive))
    assert max(counts) <= most
    assert seen.pop().steps == 100
    assert not alive


def test_folding_compiles_once(mean):
    traces = []

    class Counted(mean):
        def merge(self, other):
            traces.append(1)
            return super().merge(other)

    for _ in range(3):
        accumulate(Counted([float(i)]) for i in range(33)).pop()
    assert len(traces) == 2  # its shapes, and the merge itself
