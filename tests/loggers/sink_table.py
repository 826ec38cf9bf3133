"""The sinks under the laws: how each is made, what another program reads back, what it shows.

What a sink cannot keep, being of its kind, is excluded with the reason.
"""

import contextlib
import csv
import json
import math
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from solstice import HistoryCallback
from solstice.loggers import (
    CSV,
    Console,
    Image,
    JSONLines,
    MLflow,
    TensorBoard,
    WandB,
    read_json_lines,
)
from solstice.loggers.json_text import as_json
from solstice.loggers.values import as_text, is_number, whole
from solstice.testing.strategies import logged_values, records

ABOUT = ("mode", "epoch", "step", "time")


class Row(NamedTuple):
    """A sink for `check_sink`; `excluded` says why a law does not hold."""

    make: Callable[..., Any]
    read: Callable[..., Any]
    shows: Callable[..., Any] | None = None
    records: Any = None
    excluded: Mapping[str, str] = MappingProxyType({})
    examples: int = 8


def json_lines(directory, append=False):
    return JSONLines(directory / "log.jsonl", append=append)


def read_lines(directory):
    path = directory / "log.jsonl"
    if not path.exists():
        return []
    for line in path.read_bytes().split(b"\n")[:-1]:
        json.loads(line, parse_constant=pytest.fail)  # as every reader's JSON, without NaN
    return read_json_lines(path)


def read_csv(directory):
    """By Python's own reader."""
    path = directory / "log.csv"
    csv.field_size_limit(2**31 - 1)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cells(records):
    """Every column in every row: arrays as JSON, anything else as Python prints it."""

    def cell(value):
        if isinstance(value, list | np.ndarray):
            return whole(as_json(value))
        return whole(str(value))

    kept = [
        {whole(n): cell(v) for n, v in one.items() if not isinstance(v, Image)} for one in records
    ]
    columns = dict.fromkeys(name for one in kept for name in one)
    return [{name: one.get(name, "") for name in columns} for one in kept]


def nested(found):
    """Defaults' dicts as plain ones, which are equal only in what they hold."""
    return {k: nested(v) for k, v in found.items()} if isinstance(found, dict) else found


def tree():
    return defaultdict(tree)


def read_events(directory):
    """By TensorBoard's own reader: of each mode and kind, (step, what it shows) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kinds = ("scalars", "histograms", "images", "tensors")
    found = tree()
    for run in sorted({path.parent for path in directory.rglob("*tfevents*")}):
        events = EventAccumulator(str(run), size_guidance=dict.fromkeys(kinds, 0)).Reload()
        mode, tags = found[run.relative_to(directory).as_posix()], events.Tags()
        for tag in tags["scalars"]:
            mode["numbers"][tag] = [(e.step, e.value) for e in events.Scalars(tag)]
        for tag in tags["histograms"]:
            mode["arrays"][tag] = [(e.step, e.histogram_value.num) for e in events.Histograms(tag)]
        for tag in tags["images"]:
            mode["images"][tag] = [(e.step, e.encoded_image_string) for e in events.Images(tag)]
        for tag in tags["tensors"]:
            texts = [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]
            mode["texts"][tag.removesuffix("/text_summary")] = texts
    return nested(found)


def directory_of(name):
    odd = dict.fromkeys(("", ".", ".."), "_")
    return "/".join(odd.get(part, part) for part in whole(name).replace("\0", "_").split("/"))


def events(records):
    found = tree()

    def add(mode, kind, name, *point):
        kind = found[directory_of(mode)][kind]
        kind[name] = [*kind.get(name, []), point]

    for one in records:
        mode, step = one["mode"], one["step"]
        for name, value in one.items():
            if name in ("mode", "step", "time"):
                continue
            name = whole(name)
            if is_number(value):
                with np.errstate(over="ignore"):
                    add(mode, "numbers", name, step, float(np.float32(value)))
            elif isinstance(value, Image):
                add(mode, "images", name, step, value.png())
            elif (text := as_text(value)) is not None:
                add(mode, "texts", name, step, text)
            elif count := np.isfinite(np.asarray(value, np.float64)).sum():
                add(mode, "arrays", name, step, float(count))
    return nested(found)


class InAFile(Console):
    """A Console that prints into a file."""

    _lock = threading.Lock()

    def __init__(self, directory):
        super().__init__(["loss", "count"])
        self._path = directory / "printed"

    def on_write(self, record):
        with self._lock, self._path.open("a") as file, contextlib.redirect_stdout(file):
            super().on_write(record)


def read_rows(directory):
    """The words of each printed row, without headers."""
    path = directory / "printed"
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row[0] != "mode"]


def rows(records):
    def shown(value):
        return f"{value:.4g}" if type(value) is float else str(value)

    return [
        [one["mode"], str(one["epoch"]), str(one["step"])]
        + [shown(one[name]) for name in ("loss", "count") if is_number(one.get(name))]
        for one in records
    ]


LISTS = {}


def history(directory):
    LISTS[directory] = HistoryCallback()._list
    return LISTS[directory]


def mlflow(directory):
    return MLflow("digits", tracking_uri=(directory / "mlruns").as_uri())


def read_mlflow(directory):
    """The histories of metrics and the artifacts of the one run that there is."""
    from mlflow import MlflowClient

    if not (directory / "mlruns").exists():
        return {"metrics": {}, "artifacts": {}}
    client = MlflowClient(tracking_uri=(directory / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    metrics = {
        name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    home = next((directory / "mlruns").rglob("artifacts"))
    artifacts = {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file()
    }
    return {"metrics": metrics, "artifacts": artifacts}


def mlflow_shows(records):
    metrics, artifacts = defaultdict(list), {}
    for one in records:
        for name, value in one.items():
            key = directory_of(f"{one['mode']}/{name}")
            if name in ("mode", "step", "time"):
                continue
            if is_number(value):
                metrics[key].append((one["step"], float(value)))
            elif isinstance(value, Image):
                artifacts[f"{key}/{one['step']}.png"] = value.png()
            elif (text := as_text(value)) is not None:
                artifacts[f"{key}/{one['step']}.txt"] = text.encode()
    return {"metrics": dict(metrics), "artifacts": artifacts}


def wandb_records(directory):
    """The records of an offline run, by W&B's format: LevelDB's log with a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = directory.glob("run-*.wandb")
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    whole, at = b"", 7
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def offline_runs(directory):
    """Of each offline run: its id, its config and what was logged."""
    import wandb

    wandb.teardown()  # until then, W&B's own process may not have written all
    runs = []
    for one in sorted((directory / "wandb").glob("offline-run-*")):
        run, logged = {}, []
        for found in wandb_records(one):
            if found.WhichOneof("record_type") == "run":
                run = {"id": found.run.run_id, "project": found.run.project}
                config = {item.key: item.value_json for item in found.run.config.update}
                run["config"] = {name: json.loads(value) for name, value in config.items()}
            elif found.WhichOneof("record_type") == "history":
                items = found.history.item
                row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}
                logged.append({k: v for k, v in row.items() if not k.startswith("_")})
        runs.append((run, logged))
    return runs


def weights_and_biases(directory):
    return WandB("digits", dir=str(directory), mode="offline")


def read_wandb(directory):
    return [row for _, logged in offline_runs(directory) for row in logged]


def wandb_shows(records):
    def shown(value):
        return whole(value) if isinstance(value, str) else value

    about = ("epoch", "step", "time")
    return [
        {name: one[name] for name in about}
        | {f"{one['mode']}/{n}": shown(v) for n, v in one.items() if n not in ("mode", *about)}
        for one in records
    ]


KNOWN = st.sampled_from(["loss", "", "f1 macro", "top-5", "Größe", "a.b", "c//d", "e/../f"])
MODES = st.sampled_from(["train", "val", "test"])
# Each run of W&B takes half a second, so it gets these alone.
ABOUT_ONE = {"mode": "train", "epoch": 0, "step": 1, "time": 1e9}
ONCE = [
    {**ABOUT_ONE, "loss": 0.1, "count": 2**53, "name": 'a "b",\r\n\0é\udce9'},
    {**ABOUT_ONE, "step": 2, "loss": math.nan, "least": -math.inf, "flag": True},
    {**ABOUT_ONE, "step": 2, "mode": "val", "loss": math.inf},
]
GROWS = "It can only grow: records that a crashed run logged after its checkpoint stay."
IN_MEMORY = "It keeps values in memory: it waits for them, and no write can fail."

SINKS = {
    "JSONLines": Row(json_lines, read_lines),
    "CSV": Row(lambda at, append=False: CSV(at / "log.csv", append=append), read_csv, cells),
    "TensorBoard": Row(
        lambda at, append=False: TensorBoard(at, append=append), read_events, events, examples=6
    ),
    "Console": Row(
        InAFile,
        read_rows,
        rows,
        records(logged_values(), names=st.sampled_from(["loss", "count"]), modes=MODES),
        {
            "a_resumed_run_logs_what_a_whole_one_does": GROWS,
            "a_resume_drops_what_came_later": GROWS,
            "it_may_be_set_back": GROWS,
        },
    ),
    "HistoryCallback": Row(
        history,
        lambda at: LISTS[at].records,
        lambda records: records,
        None,
        {
            "a_write_waits_for_nothing": IN_MEMORY,
            "a_failing_write_is_told_once": IN_MEMORY,
        },
    ),
    "MLflow": Row(
        mlflow,
        read_mlflow,
        mlflow_shows,
        records(logged_values(), names=KNOWN, modes=MODES),
        {"a_resume_drops_what_came_later": GROWS, "it_may_be_set_back": GROWS},
        examples=6,
    ),
    "WandB": Row(
        weights_and_biases,
        read_wandb,
        wandb_shows,
        st.just(ONCE),
        {
            "a_flush_is_enough": "Another process writes, and ends only when the run is closed.",
            "a_resumed_run_logs_what_a_whole_one_does": GROWS,
            "a_resume_drops_what_came_later": GROWS,
            "it_may_be_set_back": GROWS,
        },
        examples=1,
    ),
}
