"""Calls of `solstice.loggers`."""

import pathlib

import numpy as np
from arguments_table import row
from kinds import (
    Made,
    anything,
    flag,
    function,
    given,
    mapping,
    number,
    only,
    optional,
    path,
    text,
    texts,
)

import solstice


class Lines(solstice.loggers.Sink):
    """A sink as a user writes one."""

    def on_write(self, record):
        pass


def log():
    """The path of a file with one record."""
    pathlib.Path("log").write_text("{}\n")
    return "log"


row("loggers.Sink", made=Lines, name=text(), timeout=number(1))
for name in ("CSV", "JSONLines"):
    row(f"loggers.{name}", path=path("log"), append=flag())
row(
    "loggers.TensorBoard",
    directory=path("log"),
    append=flag(),
    hyperparameters=optional(mapping({"rate": 0.1})),
)
row("loggers.Console", metrics=optional(texts(["loss"])))
row(
    "loggers.MLflow",
    experiment=text(),
    run_name=optional(text()),
    tracking_uri=optional(text("http://localhost:5000")),
    hyperparameters=optional(mapping({"rate": 0.1})),
)
row(
    "loggers.WandB",
    project=optional(text()),
    hyperparameters=optional(mapping({"rate": 0.1})),
    # What wandb.init makes of it is its own.
    options=anything({"mode": "offline"}),
)
row("loggers.JSONLines", path=given("log"), cut=optional(function(lambda path: 0)))
row("loggers.Image", array=only(np.zeros((2, 3))))
row("loggers.read_json_lines", path=only(Made(log)))
RECORD = {"mode": "train", "epoch": 0, "step": 1, "time": 1.0, "loss": 0.5}
row("loggers.Sink.write", on=lambda: Lines("lines"), record=only(RECORD))
row(
    "loggers.Sink.__call__",
    on=lambda: Lines("lines"),
    metrics=mapping({"loss": 0.5}),
    step=number(1).also("zero", "minus one"),
    mode=text("train"),
)
