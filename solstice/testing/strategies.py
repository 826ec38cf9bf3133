"""Hypothesis strategies: small networks, batches, trees and metrics, and what the laws draw.

Every strategy draws plain seeds and sizes and builds arrays from them, so a smallest failing input
is short to read.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice import arguments
from solstice.compat.function import FunctionModel
from solstice.compat.model import Model
from solstice.errors import InvalidValueError
from solstice.metrics.classification import ClassificationMetrics
from solstice.testing.law import import_hypothesis
from solstice.testing.record_strategies import logged_values, records, texts
from solstice.testing.runs import Run
from solstice.triggers import At, Every, First

__all__ = [
    "batches",
    "cuts",
    "logged_values",
    "masks",
    "metrics",
    "networks",
    "permutations",
    "records",
    "runs",
    "seeds",
    "splits",
    "texts",
    "trees",
    "triggers",
]

# More would be quick to draw and too slow to use.
_MANY = 2**20


def seeds() -> Any:
    """Seeds of PRNG keys.

    >>> import hypothesis
    >>> @hypothesis.given(seeds())
    ... def test_seeded(seed):
    ...     jax.random.key(seed)
    """
    return _st().integers(0, 2**31 - 8)


def permutations(size: int) -> Any:
    """Orders of `size` examples, as lists."""
    return _st().permutations(range(arguments.count(size, "size", most=_MANY))).map(list)


def splits(size: int) -> Any:
    """Indices to cut a batch of `size` examples in two non-empty parts."""
    return _st().integers(1, arguments.count(size, "size", least=2) - 1)


def masks(size: int) -> Any:
    """Lists of `size` booleans; some true and some false, if there are two or more."""
    size = arguments.count(size, "size", least=0, most=_MANY)
    lists = _st().lists(_st().booleans(), min_size=size, max_size=size)
    return lists if size < 2 else lists.filter(lambda mask: any(mask) and not all(mask))


def batches(shape: Sequence[int] = (4,), num_classes: int = 3, *, max_size: int = 16) -> Any:
    """Batches (x, y) of 1 to `max_size` examples, numpy arrays: float inputs, integer labels.

    A batch need not have every class.

    >>> import hypothesis
    >>> @hypothesis.given(batches((2, 2), num_classes=5))
    ... def test_batch(batch):
    ...     x, y = batch
    ...     assert x.shape[1:] == (2, 2) and (y < 5).all()
    >>> test_batch()
    """
    shape = arguments.counts(shape, "shape", least=0)
    num_classes = arguments.count(num_classes, "num_classes")
    max_size = arguments.count(max_size, "max_size", most=_MANY)

    def build(seed: int, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(size, *shape)).astype(np.float32)
        return x, rng.integers(0, classes, size).astype(np.int32)

    st = _st()
    return st.builds(
        build, st.integers(0, 99), st.integers(1, max_size), st.integers(1, num_classes)
    )


def trees(leaf: Callable[[int], Any] | None = None) -> Any:
    """Pytrees of float32 arrays: dicts, lists and tuples, with some None.

    Args:
        leaf: Makes a leaf from a seed; None makes normal arrays of up to two axes.

    >>> import hypothesis
    >>> @hypothesis.given(trees())
    ... def test_tree(tree):
    ...     assert jax.tree.leaves(jax.tree.map(lambda x: x, tree)) is not None
    """
    st = _st()
    if leaf is not None:
        arguments.function(leaf, "leaf", "seed")

    def array(seed: int) -> Array:
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.normal(size=rng.integers(1, 4, size=seed % 3)), jnp.float32)

    leaves = st.integers(0, 99).map(leaf or array)
    names = st.sampled_from(["w", "b", "layer", "head"])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.dictionaries(names, st.one_of(inner, st.none()), min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3),
            st.tuples(inner, inner),
        ),
        max_leaves=6,
    )


def networks(inputs: int = 4, outputs: int = 3) -> Any:
    """Functions from a key to a `Model`: multilayer perceptrons, some with dropout or state.

    Use them to test experiments or callbacks without any network library.

    >>> import hypothesis
    >>> @hypothesis.given(networks())
    ... def test_network(make_model):
    ...     outputs, _ = make_model(jax.random.key(0))(jnp.ones((2, 4)))
    ...     assert outputs.shape == (2, 3)
    """
    st = _st()
    inputs = arguments.count(inputs, "inputs", most=_MANY)
    outputs = arguments.count(outputs, "outputs", most=_MANY)
    widths = st.lists(st.integers(1, 8), max_size=2)

    def build(widths: list[int], dropout: bool, counts: bool) -> Callable[[Array], Model]:
        return _perceptron((inputs, *widths, outputs), dropout, counts)

    return st.builds(build, widths, st.booleans(), st.booleans())


def metrics(num_classes: int = 3) -> Any:
    """`ClassificationMetrics` of small batches.

    >>> import hypothesis
    >>> @hypothesis.given(metrics(), metrics())
    ... def test_merge(one, two):
    ...     assert one.merge(two).count == one.count + two.count
    >>> test_merge()
    """
    st = _st()
    num_classes = arguments.count(num_classes, "num_classes", most=_MANY)

    def build(seed: int, size: int) -> ClassificationMetrics:
        rng = np.random.default_rng(seed)
        preds, targets = rng.integers(0, num_classes, (2, size))
        return ClassificationMetrics(preds, targets, rng.random(), num_classes)

    return st.builds(build, st.integers(0, 99), st.integers(1, 16))


def runs() -> Any:
    """Runs as a trigger sees them: their epochs, the steps of their calls, their time.

    >>> import hypothesis
    >>> @hypothesis.given(runs())
    ... def test_run(run):
    ...     assert run.questions()[-1].steps == sum(run.epochs)
    >>> test_run()
    """
    st = _st()
    several = {"min_size": 1, "max_size": 4}
    return st.builds(
        Run,
        epochs=st.lists(st.integers(1, 12), **several),
        calls=st.lists(st.integers(1, 7), **several),
        # In quarters, so that sums are exact in any order.
        waits=st.lists(st.integers(0, 40).map(lambda quarters: quarters / 4), **several),
    )


def cuts(largest: int = 12) -> Any:
    """Sorted lists of up to three indices to cut at, from 0 to `largest`."""
    st = _st()
    largest = arguments.count(largest, "largest", least=0)
    return st.lists(st.integers(0, largest), max_size=3, unique=True).map(sorted)


def triggers() -> Any:
    """Triggers of steps and epochs, some of them joined.

    >>> import hypothesis
    >>> @hypothesis.given(triggers())
    ... def test_trigger(trigger):
    ...     assert trigger.next_step(5) > 5
    >>> test_trigger()
    """
    st = _st()
    counts = st.integers(1, 12)
    single = st.one_of(
        st.builds(lambda n: Every(steps=n), counts),
        st.builds(lambda n: Every(epochs=n), st.integers(1, 3)),
        st.builds(At, st.sets(counts, min_size=1, max_size=3)),
        st.builds(First, counts),
    )
    return st.one_of(single, st.builds(lambda a, b: a | b, single, single))


def _perceptron(sizes: tuple[int, ...], dropout: bool, counts: bool) -> Callable[[Array], Model]:
    def init(key: Array, x: Array) -> Any:
        keys = jax.random.split(key, len(sizes) - 1)
        params = [
            {"w": jax.random.normal(k, (m, n)) / m**0.5, "b": jnp.zeros(n)}
            for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]
        return (params, jnp.zeros((), jnp.int32)) if counts else params

    def layers(params: Any, x: Array, key: Array | None, train: bool) -> Array:
        for i, layer in enumerate(params):
            x = x @ layer["w"] + layer["b"]
            if i < len(params) - 1:
                x = jax.nn.relu(x)
        if dropout and train:
            if key is None:
                raise InvalidValueError("this network drops outputs in training: pass key=")
            x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0)
        return x

    def counting(params: Any, x: Array, *, state: Array, key: Any, train: bool) -> Any:
        return layers(params, x, key, train), state + 1

    def plain(params: Any, x: Array, *, key: Any, train: bool) -> Any:
        return layers(params, x, key, train)

    example = jax.ShapeDtypeStruct((1, sizes[0]), jnp.float32)
    return lambda key: FunctionModel(init, counting if counts else plain, example, key=key)


def _st() -> Any:
    return import_hypothesis().strategies
