"""What the strategies draw is what they say."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solstice.compat import Model
from solstice.loggers import Image
from solstice.testing import check_model, strategies


@hypothesis.given(strategies.batches((2, 3), num_classes=4, max_size=5))
def test_batches_have_their_shape_and_classes(batch):
    x, y = batch
    assert x.dtype == np.float32 and y.dtype == np.int32
    assert x.shape == (len(y), 2, 3) and 1 <= len(y) <= 5
    assert ((y >= 0) & (y < 4)).all()


@hypothesis.given(strategies.masks(3))
def test_masks_have_both_kinds(mask):
    assert len(mask) == 3 and any(mask) and not all(mask)


@hypothesis.given(strategies.masks(1))
def test_a_mask_of_one_has_one(mask):
    assert mask in ([True], [False])


@hypothesis.given(strategies.permutations(4), strategies.splits(4))
def test_orders_and_cuts(order, split):
    assert sorted(order) == [0, 1, 2, 3] and 1 <= split <= 3


@hypothesis.given(strategies.trees())
def test_trees_hold_float32_arrays(tree):
    leaves = jax.tree.leaves(tree)
    assert all(leaf.dtype == jnp.float32 and leaf.ndim <= 2 for leaf in leaves)


@pytest.mark.parametrize("kind", ["None", "dict", "list", "tuple"])
def test_trees_come_in_every_form(kind):
    def has(tree):
        if isinstance(tree, dict | list | tuple):
            inner = tree.values() if isinstance(tree, dict) else tree
            return type(tree).__name__ == kind or any(map(has, inner))
        return kind == "None" and tree is None

    hypothesis.find(strategies.trees(), has, settings=hypothesis.settings(max_examples=500))


@hypothesis.settings(max_examples=2)
@hypothesis.given(strategies.networks(inputs=3, outputs=2))
def test_networks_are_models(make_model):
    model = make_model(jax.random.key(0))
    assert isinstance(model, Model)
    outputs, _ = model(jnp.ones((5, 3)), key=jax.random.key(1), train=True)
    assert outputs.shape == (5, 2)


@pytest.mark.parametrize(
    "has",
    [
        lambda value: isinstance(value, float) and np.isnan(value),
        lambda value: isinstance(value, str) and "\r" in value,
        lambda value: isinstance(value, np.ndarray) and value.ndim == 2,
        lambda value: isinstance(value, jax.Array) and value.dtype == jnp.bfloat16,
        lambda value: isinstance(value, Image | bool),
    ],
)
def test_logged_values_are_of_every_kind(has):
    hypothesis.find(
        strategies.logged_values(), has, settings=hypothesis.settings(max_examples=1000)
    )


@hypothesis.given(strategies.records(names=hypothesis.strategies.just("loss"), max_size=2))
def test_records_are_whole_and_in_order(records):
    assert 1 <= len(records) <= 2
    assert records == sorted(records, key=lambda one: (one["epoch"], one["step"]))
    assert all({*one} - {"loss"} == {"mode", "epoch", "step", "time"} for one in records)


@hypothesis.given(strategies.runs(), strategies.cuts(3))
def test_runs_ask_after_each_call_and_each_epoch(run, cuts):
    asked = run.questions()
    assert [q.epochs for q in asked if q.ends_epoch] == [*range(1, len(run.epochs) + 1)]
    assert asked[-1].steps == sum(run.epochs) and asked == sorted(asked)
    assert cuts == sorted(set(cuts)) and all(0 <= cut <= 3 for cut in cuts)


@pytest.mark.slow
@hypothesis.settings(max_examples=2, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(strategies.networks())
def test_networks_keep_the_laws(make_model):
    check_model(make_model, jax.random.normal(jax.random.key(0), (4, 4)), examples=1)


@hypothesis.settings(max_examples=4)
@hypothesis.given(strategies.metrics(num_classes=2))
def test_metrics_compute(metrics):
    results = metrics.compute()
    assert 0 <= float(results["accuracy"]) <= 1
    assert metrics.confusion_matrix.shape == (2, 2)
