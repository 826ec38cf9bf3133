"""Console: the table that a human reads."""

import io
import sys

import numpy as np

from solstice.loggers import Console, Image, Text


def shown(capsys, records, **options):
    sink = Console(**options)
    for mode, step, metrics in records:
        sink.write({"mode": mode, "epoch": 1, "step": step, "time": 0.0, **metrics})
    sink.close()
    return capsys.readouterr().out.splitlines()


def test_it_is_a_table(capsys):
    records = [("train", 100, {"loss": 0.123456, "count": 7}), ("val", 100, {"loss": 1e-9})]
    assert shown(capsys, records) == [
        "mode   epoch     step       loss      count",
        "train      1      100     0.1235          7",
        "val        1      100      1e-09           ",
    ]


def test_new_metrics_are_a_new_header(capsys):
    rows = shown(capsys, [("train", 1, {"loss": 1.0}), ("val", 1, {"accuracy": 0.5})])
    assert [row.split() for row in rows] == [
        ["mode", "epoch", "step", "loss"],
        ["train", "1", "1", "1"],
        ["mode", "epoch", "step", "loss", "accuracy"],
        ["val", "1", "1", "0.5"],
    ]


def test_a_long_table_repeats_its_header(capsys):
    rows = shown(capsys, [("train", step, {"loss": 1.0}) for step in range(60)])
    assert [i for i, row in enumerate(rows) if row.startswith("mode")] == [0, 26, 52]


def test_it_shows_what_fits_or_what_is_chosen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    metrics = {f"metric_{i}": i for i in range(50)}
    header, row = shown(capsys, [("train", 1, metrics)])
    assert header.split()[3:] == ["metric_0", "metric_1"] and len(header) == len(row) <= 50
    header, row = shown(capsys, [("train", 1, metrics)], metrics=["metric_30", "no"])
    assert (header.split()[3:], row.split()[3:]) == (["metric_30", "no"], ["30"])


def test_an_average_is_found_by_the_name_of_what_is_averaged(capsys):
    metrics = {"average_loss": 0.5, "loss_scale": 2.0}
    header, row = shown(capsys, [("train", 1, metrics)], metrics=["loss"])
    assert (header.split()[3:], row.split()[3:]) == (["loss"], ["0.5"])
    rows = shown(capsys, [("train", 1, {"loss": 1.0}), ("val", 1, {"average_loss": 0.5})])
    assert rows[-1].split() == ["val", "1", "1", "0.5"]  # in a column of its own


def test_it_shows_numbers_only(capsys):
    metrics = {"a": np.ones(3), "b": Image(np.ones((2, 2))), "c": Text("text"), "d": True}
    header, row = shown(capsys, [("train", 1, metrics)])
    assert (header.split()[3:], row.split()[3:]) == (["d"], ["True"])


def test_a_chosen_name_that_never_comes_is_told_of(capsys, caplog):
    sink = Console(["loss", "acuracy", "f1"])
    for step, mode in enumerate(["train", "val", "train", "val", "train"]):
        sink.write({"mode": mode, "epoch": 0, "step": step, "time": 0.0, "loss": 1.0} | F1[mode])
    sink.close()
    (said,) = caplog.messages
    assert "no record so far has 'acuracy'. Its numbers are loss" in said
    one = Console(["acuracy"])
    one.write({"mode": "train", "epoch": 0, "step": 1, "time": 0.0, "loss": 1.0})
    one.close()
    assert len(caplog.messages) == 2


F1 = {"train": {}, "val": {"f1": 0.5}}


def test_a_row_is_written_at_once_with_its_newline(monkeypatch):
    """A bar that begins or ends between the two, in another thread, would erase the row."""
    written = []

    class Stream(io.StringIO):
        def write(self, text):
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Stream())
    console = Console()
    console.write({"mode": "train", "epoch": 0, "step": 3, "time": 0.0, "average_loss": 0.5})
    console.close()
    (row,) = filter(None, written)
    assert row.endswith("0.5\n")
