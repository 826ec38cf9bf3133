"""Metrics of other libraries: clu's as they are, others through `as_metrics`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import compat
from solstice.metrics import Accumulator, Mean, MetricsDict
from solstice.testing import check_metrics

clu = pytest.importorskip("clu.metrics", reason="clu")
nnx = pytest.importorskip("flax.nnx", reason="flax")

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(40, 3)).astype("float32")
LABELS = RNG.integers(0, 3, 40)
LOSSES = RNG.random(40).astype("float32")
BATCHES = [slice(0, 7), slice(7, 8), slice(8, 24), slice(24, 40)]


def accumulate(metrics):
    seen = Accumulator()
    for one in metrics:
        seen.add(one)
    return seen.pop()


def multi_metric():
    return nnx.MultiMetric(
        accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"), spread=welford()
    )


def welford():
    return nnx.metrics.Welford("errors")


def values(batch):
    return {
        "logits": LOGITS[batch],
        "labels": LABELS[batch],
        "loss": LOSSES[batch],
        "errors": LOSSES[batch],
    }


@pytest.mark.parametrize("merge", [solstice.reduce, accumulate, lambda p: solstice.reduce(p[::-1])])
def test_nnx_metrics_merge_to_what_one_object_has_seen(merge):
    native, fresh = multi_metric(), compat.as_metrics(multi_metric())
    update = jax.jit(lambda fresh, batch: fresh.update(**batch))
    parts = [update(fresh, values(batch)) for batch in BATCHES]
    for batch in BATCHES:
        native.update(**values(batch))
    expected, merged = native.compute(), merge(parts)
    computed = merged.compute()
    assert computed["accuracy"] == pytest.approx(float(expected["accuracy"]))
    assert computed["loss"] == pytest.approx(float(expected["loss"]))
    for name in ("mean", "standard_deviation", "standard_error_of_mean"):
        one = float(getattr(expected["spread"], name))
        assert computed[f"spread/{name}"] == pytest.approx(one, rel=1e-5)
    assert float(merged.unwrap().compute()["loss"]) == float(computed["loss"])
    assert int(fresh.unwrap().accuracy.count[...]) == 0


def test_an_nnx_metric_updated_in_a_step_keeps_what_it_has_seen():
    @jax.jit
    def step(loss):
        metric = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))
        metric.update(loss=loss)
        return compat.as_metrics(metric)

    merged = solstice.reduce([step(LOSSES[batch]) for batch in BATCHES])
    assert float(merged.compute()["loss"]) == pytest.approx(LOSSES.mean(), rel=1e-6)


def test_the_laws_hold_of_nnx_metrics():
    fresh = compat.as_metrics(nnx.metrics.Average("loss"))

    def make(batch, mask=None):
        return fresh.update(loss=jnp.asarray(batch), mask=mask)

    assert not check_metrics(make, LOSSES).failures


def test_unlike_nnx_metrics_do_not_merge():
    one = compat.as_metrics(multi_metric())
    for other in (compat.as_metrics(welford()), Mean(1.0)):
        with pytest.raises(solstice.UsageError, match="NNXMetrics of MultiMetric merges only with"):
            one.merge(other)


class Longest(nnx.Metric):
    """A user's own, whose merge nobody knows."""

    def __init__(self):
        self.longest = nnx.metrics.MetricState(jnp.zeros(()))

    def reset(self):
        self.longest[...] = jnp.zeros(())

    def update(self, *, values):
        self.longest[...] = jnp.maximum(self.longest[...], values.max())

    def compute(self):
        return self.longest[...]


def test_an_nnx_metric_of_ones_own_sees_all_values_on_the_host():
    with pytest.raises(
        TypeError, match=r"a Welford or a MultiMetric of them.*as_metrics takes any"
    ):
        compat.NNXMetrics(Longest())
    fresh = compat.as_metrics(Longest())
    parts = [fresh.update(values=jnp.asarray(LOSSES[batch])) for batch in BATCHES]
    assert accumulate(parts).compute() == {"longest": LOSSES.max()}


class Median:
    """Changes itself, and works on the host alone."""

    def __init__(self):
        self.seen = []

    def update(self, values, *, scale):
        assert type(values) is np.ndarray
        self.seen.extend(values * scale)

    def compute(self):
        return float(np.median(self.seen))


@pytest.mark.parametrize("merge", [solstice.reduce, accumulate])
def test_an_updated_object_gets_every_real_example(merge):
    mask = np.arange(40) % 3 > 0
    template = Median()
    fresh = compat.as_metrics(template)

    @jax.jit
    def step(values, mask):
        return fresh.update(values, mask=mask, scale=jnp.full(values.shape, 2))

    parts = [step(LOSSES[batch], mask[batch]) for batch in BATCHES]
    merged = merge([fresh, *parts])
    for _ in range(2):  # computing changes nothing
        assert merged.compute() == {"median": pytest.approx(np.median(2 * LOSSES[mask]))}
    assert template.seen == []
    with pytest.raises(
        solstice.UsageError, match="A median merges only with metrics of the same kind"
    ):
        merged.merge(Mean(1.0))


def test_the_laws_hold_of_updated_objects():
    fresh = compat.as_metrics(Median())

    def make(batch, mask=None):
        return fresh.update(batch, scale=np.ones(len(batch)), mask=mask)

    assert not check_metrics(make, LOSSES, exclude="jit_equals_eager").failures


def test_what_merges_is_taken_as_it_is():
    mean = Mean(1.0)
    assert compat.as_metrics(mean) is mean


def test_what_is_no_metric_is_refused():
    with pytest.raises(TypeError, match=r"it got the class 'Average'\. Make one first: Average\("):
        compat.as_metrics(nnx.metrics.Average)
    with pytest.raises(TypeError, match=r"For a function of all examples.*metrics\.Collect\("):
        compat.as_metrics(np.median)


def clu_collection():
    # Not clu.Std, whose compute calls what newer versions of jax have not.
    return clu.Collection.create(accuracy=clu.Accuracy, loss=clu.Average.from_output("loss"))


def logged(outs):
    """What a whole test logs of the outs of its steps."""

    class Replay(solstice.Experiment):
        def train_step(self, batch):
            return self, None

        def eval_step(self, batch):
            return self, outs[batch]

    seen = []
    callback = solstice.LoggingCallback(logging_fn=lambda metrics, step, mode: seen.append(metrics))
    solstice.test(Replay(), list(range(len(outs))), [callback], progress=False)
    return seen[0]


def test_clu_metrics_are_logged_as_they_are():
    kind = clu_collection()
    make = jax.jit(lambda batch: kind.single_from_model_output(**batch))
    outs = [make(values(batch)) for batch in BATCHES]
    assert compat.as_metrics(outs[0]) is outs[0]
    metrics = logged(outs)
    assert metrics["accuracy"] == pytest.approx(np.mean(LOGITS.argmax(-1) == LABELS))
    assert metrics["loss"] == pytest.approx(LOSSES.mean(), rel=1e-6)


@pytest.mark.parametrize("repeat", [1, 10])
def test_clus_collecting_metric_merges_on_the_host(repeat):
    kind = clu.CollectingMetric.from_outputs(("loss", "labels"))
    make = jax.jit(lambda batch: kind.from_model_output(**batch))
    merged = accumulate([make(values(batch)) for batch in BATCHES] * repeat)
    np.testing.assert_array_equal(merged.compute()["loss"], np.tile(LOSSES, repeat))


def test_a_dict_names_a_metric_whose_value_has_no_name():
    kind = clu.Average.from_output("loss")
    outs = [
        MetricsDict(loss=kind.from_model_output(**values(batch)), mean=Mean(LOSSES[batch]))
        for batch in BATCHES
    ]
    metrics = logged(outs)
    assert metrics["loss"] == pytest.approx(metrics["mean"], rel=1e-6)
