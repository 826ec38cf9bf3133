"""compute() may return a mapping, a number or an array: all that read a metric understand each."""

import csv
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import experiments, loggers
from solstice.metrics import EnsembleMetrics, MetricsDict, named_values
from solstice.metrics.named import reported_name
from solstice.saving.checkpoints import Checkpoints
from solstice.triggers import Every

KINDS = {
    "mapping": lambda total: {"loss": total},
    "number": lambda total: total,  # an array without axes, as jax computes
    "python": lambda total: float(total),
    "numpy": lambda total: np.float32(total),
    "array": lambda total: jnp.stack([total, 2 * total]),
    "numpy array": lambda total: np.asarray([total, 2 * total]),
}
NUMBERS = ("mapping", "number", "python", "numpy")


class Loss(solstice.Metrics):
    """A total, computed as `kind` says; its name is that of the class, or `loss`, as all here."""

    total: jax.Array
    kind: str = eqx.field(static=True)

    def merge(self, other):
        return solstice.replace(self, total=self.total + other.total)

    def compute(self):
        return KINDS[self.kind](self.total)


class Summing(experiments.Runnable):
    kind: str = eqx.field(static=True)
    weight: jax.Array = eqx.field(default_factory=lambda: jnp.ones(1))

    def train_step(self, batch):
        return self, Loss(jnp.asarray(batch, jnp.float32), self.kind)

    eval_step = train_step


def wanted(kind, total):
    return [total, 2 * total] if kind.endswith("array") else total


def same(found, kind, total):
    assert np.asarray(found).tolist() == wanted(kind, total)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_logged_under_the_metrics_name(kind, tmp_path):
    seen, history = [], solstice.HistoryCallback()
    sinks = [loggers.JSONLines(tmp_path / "log.jsonl"), loggers.CSV(tmp_path / "log.csv")]
    callbacks = [
        solstice.LoggingCallback(logging_fn=lambda metrics, *_: seen.append(metrics)),
        solstice.LoggingCallback(logging_fn=sinks),
        history,
    ]
    Summing(kind).train(1, [1, 2], [5], callbacks, progress=False)
    for found, total in zip(seen, (3, 5), strict=True):
        assert list(found) == ["loss"] and same(found["loss"], kind, total)
    records = loggers.read_json_lines(tmp_path / "log.jsonl")
    for record, other, total in zip(records, history.records, (3, 5), strict=True):
        assert same(record["loss"], kind, total) and same(other["loss"], kind, total)
    with open(tmp_path / "log.csv") as file:
        for row, total in zip(csv.DictReader(file), (3, 5), strict=True):
            assert same(json.loads(row["loss"]), kind, total)


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_and_an_evaluation_report_it(kind):
    assert same(Summing(kind).test([1, 2], progress=False)["loss"], kind, 3)
    evaluation = solstice.EvaluationCallback(
        lambda exp, batch, key: exp.eval_step(batch)[1],
        {"hard": [3.0, 4.0]},
        when=Every(epochs=1),
        jit=kind not in ("python", "numpy", "numpy array"),
    )
    Summing(kind).train(1, [1], callbacks=[evaluation], progress=False)
    assert same(evaluation.results["hard"]["loss"], kind, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_dict_names_it(kind):
    loss = Loss(jnp.asarray(3.0), kind)
    assert same(MetricsDict(loss).compute()["loss"], kind, 3)
    assert same(MetricsDict(named=loss).compute()["named"], kind, 3)


@pytest.mark.parametrize("kind", ["mapping", "number", "array"])
def test_an_ensemble_names_it(kind):
    computed = EnsembleMetrics(Loss(jnp.array([3.0, 5.0]), kind)).compute()
    assert same(computed["loss_member_1"], kind, 5)
    if kind in NUMBERS:
        assert computed["loss"] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_bar_shows_numbers(kind, capsys):
    exp = Summing(kind)
    for shown in (True, ("loss",)):
        exp.train(1, [1, 2], [5], progress=shown)
        text = capsys.readouterr().err
        # What cannot be compiled is left out, and said so to the logger.
        assert ("loss=5" in text) == (kind in ("mapping", "number"))


@pytest.mark.parametrize("kind", NUMBERS)
def test_the_best_and_early_stopping_find_it(kind, tmp_path):
    values = [3.0, 2.0, 4.0, 5.0, 6.0]
    stop = solstice.EarlyStoppingCallback.no_improvement("loss", patience=2)
    saving = solstice.CheckpointingCallback(tmp_path, best="loss")
    val_ds = lambda epoch: iter([values[epoch]])  # noqa: E731
    history = solstice.HistoryCallback()
    Summing(kind).train(5, [0], val_ds, [stop, saving, history], progress=False)
    assert [record["loss"] for record in history.records[1::2]] == values[:4]
    assert Checkpoints(tmp_path).best()["value"] == 2


@pytest.mark.parametrize("returned", [None, [1.0, 2.0], (1.0, 2.0)])
def test_what_is_neither_is_refused(returned):
    class Odd(solstice.Metrics):
        def merge(self, other):
            return self

        def compute(self):
            return returned

    with pytest.raises(TypeError, match=r"a number or an array; that of Odd returned"):
        named_values(Odd())


def test_a_test_of_outs_that_are_no_metrics_is_a_usage_error():
    class Bare(experiments.Runnable):
        def train_step(self, batch):
            return self, None

        def eval_step(self, batch):
            return self, {"loss": 1.0}

    with pytest.raises(
        solstice.UsageError, match=r"returned \{.*\} as its outs\. Return a Metrics"
    ):
        Bare().test([1], progress=False)


def test_a_test_leaves_texts_and_pictures_as_they_are():
    class Shown(solstice.Metrics):
        def merge(self, other):
            return self

        def compute(self):
            return {"picture": loggers.Image(np.zeros((2, 2))), "what": "text", "sure": True}

    class Showing(experiments.Runnable):
        def train_step(self, batch):
            return self, None

        def eval_step(self, batch):
            return self, Shown()

    found = Showing().test([1], progress=False)
    assert isinstance(found["picture"], loggers.Image)
    assert (found["what"], found["sure"]) == ("text", 1.0)


def test_an_average_is_found_by_the_name_of_what_is_averaged():
    names = ["average_loss", "accuracy", "inner/average_loss", "error", "average_error"]
    for asked, found in {
        "loss": "average_loss",
        "average_loss": "average_loss",
        "inner/loss": "inner/average_loss",
        "error": "error",
        "los": None,
        "average_accuracy": None,
    }.items():
        assert reported_name(asked, names) == found
