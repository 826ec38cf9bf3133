"""Every law of a sink on every sink."""

import pytest
from sink_table import SINKS

from solstice.testing import SINK_LAWS, SinkSubject, check_sink

RECORD = {"mode": "train", "epoch": 0, "step": 1, "time": 1e9, "loss": 0.5}
INPUTS = {
    "records": [RECORD, {**RECORD, "step": 2}],
    "more": [{**RECORD, "loss": 0.25}],
    "cut": 1,
    "cuts": [1],
    "lost": 1,
    "killed": False,
}
SLOW = ("TensorBoard", "MLflow", "WandB")


def rows(pairs):
    return [pytest.param(*one, marks=[pytest.mark.slow] * (one[0] in SLOW)) for one in pairs]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.parametrize("name", rows((name,) for name in SINKS))
def test_every_law_holds(name):
    row = SINKS[name]
    check_sink(
        row.make,
        row.read,
        shows=row.shows,
        records=row.records,
        exclude=row.excluded,
        examples=row.examples,
    )


@pytest.mark.parametrize(
    ("name", "law"), rows((name, law) for name, row in SINKS.items() for law in row.excluded)
)
def test_what_is_excluded_is_still_so(name, law):
    row = SINKS[name]
    (law,) = (one for one in SINK_LAWS if one.name == law)
    subject = SinkSubject(row.make, row.read, row.shows, row.records)
    with pytest.raises((AssertionError, OSError, ValueError)):
        law.assertion(subject, **{name: INPUTS[name] for name in law.draw(subject)})
