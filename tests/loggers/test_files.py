"""JSON lines and CSV: nothing lost, nothing twice, whatever happens to the run."""

import csv
import json
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solstice import LoggingCallback, plots
from solstice.loggers import CSV, Image, JSONLines, Text, read_json_lines

csv.field_size_limit(2**31 - 1)

FORMATS = {"jsonl": JSONLines, "csv": CSV}


def rows_of(path):
    """The records of either file, a CSV's as text."""
    if path.suffix == ".jsonl":
        return read_json_lines(path)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def steps_of(path):
    return [int(row["step"]) for row in rows_of(path)]


def record(step, mode="train", **metrics):
    return {"mode": mode, "epoch": 0, "step": step, "time": 0.0, **metrics}


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / "new" / f"log.{request.param}"


def make(path, **options):
    return FORMATS[path.suffix[1:]](path, **options)


def write(sink, steps):
    for step in steps:
        sink.write(record(step, loss=step / 3, **({"late": step} if step > 2 else {})))


def test_a_new_run_refuses_a_file_that_holds_something(path, train):
    train(1, [1, 2], callbacks=[LoggingCallback(1, make(path))])
    before = path.read_bytes()
    events = []
    with pytest.raises(FileExistsError, match=r"of another run \(\d+ bytes\).* append=True"):
        train(1, lambda: iter(events), callbacks=[LoggingCallback(1, make(path))])
    assert path.read_bytes() == before
    train(1, [1, 2], callbacks=[LoggingCallback(1, make(path, append=True))])
    assert steps_of(path) == [1, 2, 1, 2]
    assert path.read_bytes().startswith(before)


def test_an_empty_file_is_no_other_run(path):
    path.parent.mkdir()
    path.touch()
    sink = make(path)
    write(sink, [1])
    sink.close()
    assert steps_of(path) == [1]


@given(keep=st.integers(1, 200), more=st.integers(0, 3))
def test_a_resume_drops_what_a_killed_process_left(tmp_path_factory, keep, more):
    for suffix in FORMATS:
        path = tmp_path_factory.mktemp("torn") / f"log.{suffix}"
        sink = make(path)
        for step in (0, 1):
            sink.write(record(step))
        state = sink.get_state()
        safe = path.stat().st_size
        for step in range(2, 2 + more):
            sink.write(record(step))
        sink.close()
        content = path.read_bytes() + b'{"mode": "tr'
        path.write_bytes(content[: safe + keep])
        sink = make(path)
        sink.set_state(state)
        for step in (2, 3):
            sink.write(record(step))
        sink.close()
        assert steps_of(path) == [0, 1, 2, 3]


def test_appending_cuts_off_a_torn_line_and_says_so(path, caplog):
    sink = make(path)
    write(sink, [1, 2])
    sink.close()
    with path.open("ab") as file:
        file.write(b"torn")
    sink = make(path, append=True)
    write(sink, [3])
    sink.close()
    assert steps_of(path) == [1, 2, 3]
    assert caplog.messages == [
        f"{str(path)!r} ended in an incomplete line, which is now cut off: b'torn'."
    ]


@pytest.mark.parametrize("left", [0, 1])
def test_a_file_that_has_lost_something_is_warned_about(path, caplog, left):
    sink = make(path)
    write(sink, [1, 2])
    state = sink.get_state()
    sink.close()
    if left:
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    sink = make(path)
    with caplog.at_level(logging.WARNING, logger="solstice"):
        sink.set_state(state)
        write(sink, [3])
        sink.close()
    assert steps_of(path) == ([1, 3] if left else [3])
    assert any("part of the log is lost." in message for message in caplog.messages)


VALUES = {
    "nan": math.nan,
    "inf": math.inf,
    "low": -math.inf,
    "third": 1 / 3,
    "single": np.float32(0.1),
    "half": jnp.bfloat16(1.5),
    "tiny": 5e-324,
    "count": 2**53 + 1,
    "flag": True,
    "none": None,
    "text": Text('a "b",\nline 2 \u2014 é'),
}


def test_json_lines_keep_every_value(tmp_path):
    sink = JSONLines(tmp_path / "log")
    arrays = {"array": jnp.arange(4.0).reshape(2, 2), "nans": np.array([math.nan, 1])}
    sink.write(record(1, **VALUES, **arrays, image=Image(np.zeros((2, 2)))))
    sink.close()
    (line,) = (tmp_path / "log").read_text().splitlines()
    json.loads(line, parse_constant=pytest.fail)  # nothing that only Python reads
    (read,) = read_json_lines(tmp_path / "log")
    assert math.isnan(read.pop("nan"))
    nan, one = read.pop("nans")
    assert math.isnan(nan) and one == 1
    expected = {name: value for name, value in VALUES.items() if name != "nan"}
    expected |= {"single": float(np.float32(0.1)), "half": 1.5, "array": [[0, 1], [2, 3]]}
    assert read == record(1) | expected
    assert list(read)[:4] == ["mode", "epoch", "step", "time"]
    assert {type(read[name]) for name in ("flag", "count", "none")} == {bool, int, type(None)}


HALF = "\ud800"
TEXTS = st.sampled_from(["NaN", "Infinity", "-Infinity", "\r", '"', "", " a\r\n", "\0", "a\u2028b"])
TEXTS |= st.text(max_size=8) | st.just(f"half {HALF}")


def test_a_bare_nan_of_an_older_file_is_read(tmp_path):
    (tmp_path / "log").write_text('{"step": 1, "loss": NaN, "most": [-Infinity]}')
    (read,) = read_json_lines(tmp_path / "log")
    assert math.isnan(read["loss"]) and read["most"] == [-math.inf]


def test_not_finite_numbers_of_a_file_are_marked_in_its_curves(tmp_path):
    sink = JSONLines(tmp_path / "log")
    for step, loss in enumerate([1.0, math.nan, math.inf, 0.5]):
        sink.write(record(step, loss=loss))
    sink.close()
    (panel,) = plots.learning_curves(tmp_path / "log").axes
    shown = {line.get_label(): line.get_xdata().tolist() for line in panel.get_lines()}
    assert shown["not finite"] == [1, 2]


@given(texts=st.lists(TEXTS, min_size=2, max_size=5), at=st.integers(0, 4), torn=st.integers(1, 40))
def test_csv_reads_any_text_back_equal_after_a_resume_too(tmp_path_factory, texts, at, torn):
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    sink = CSV(path)
    at = min(at, len(texts))
    for step, text in enumerate(texts[:at]):
        sink.write(record(step, text=text))
    state = json.loads(json.dumps(sink.get_state()))
    safe = path.stat().st_size
    for step, text in enumerate(texts[at:], at):
        sink.write(record(step, text=text))
    sink.close()
    path.write_bytes(path.read_bytes()[: safe + torn])  # a power cut
    sink = CSV(path)
    sink.set_state(state)
    for step, text in enumerate(texts[at:], at):
        sink.write(record(step, text=text))
    sink.close()
    written = [text.replace(HALF, "\\ud800") for text in texts]
    assert [row["text"] for row in rows_of(path)] == written


def test_a_row_that_was_torn_within_quotes_is_cut_off(tmp_path):
    path = tmp_path / "log.csv"
    sink = CSV(path)
    sink.write(record(1, text="one\ntwo"))
    sink.close()
    whole = path.read_bytes()
    row = whole[whole.index(b"\n") + 1 :]
    for length in range(1, len(row)):
        path.write_bytes(whole + row[:length])
        sink = CSV(path, append=True)
        sink.write(record(2, text="three"))
        sink.close()
        assert [one["text"] for one in rows_of(path)] == ["one\ntwo", "three"]


@pytest.mark.parametrize("foreign", [b'a,b\n5" pipe,"x"y\n', b"a\n\rb\n", b'a,"b\n"\n', b""])
def test_rows_of_another_program_stay_when_appended_to(tmp_path, foreign):
    path = tmp_path / "log.csv"
    path.write_bytes(foreign)
    sink = CSV(path, append=True)
    sink.open()
    sink.close()
    assert path.read_bytes() == foreign


def test_a_name_with_half_a_character_is_one_column(tmp_path):
    path = tmp_path / "log.csv"
    sink = CSV(path)
    for step in range(3):
        sink.write(record(step, **{f"a{HALF}": step}))
        sink.close()
    assert [row["a\\ud800"] for row in rows_of(path)] == ["0", "1", "2"]


def test_csv_writes_arrays_as_json_that_everybody_reads(tmp_path):
    sink = CSV(tmp_path / "log.csv")
    sink.write(record(1, weights=np.array([1.0, math.nan, -math.inf]), said=["a", "NaN"]))
    sink.close()
    (row,) = rows_of(tmp_path / "log.csv")
    assert json.loads(row["weights"]) == [1.0, "NaN", "-Infinity"]
    assert json.loads(row["said"]) == ["a", {"$text": "NaN"}]


def test_csv_keeps_every_value_and_takes_new_columns(tmp_path):
    path = tmp_path / "log.csv"
    sink = CSV(path)
    sink.write(record(1, first=1))
    sink.write(record(2, **VALUES, large=jnp.zeros(50_000), image=Image(np.zeros((2, 2)))))
    sink.write(record(3, "val", first=2, third=0.5))
    sink.close()
    one, two, three = rows_of(path)
    assert list(one) == ["mode", "epoch", "step", "time", "first", *VALUES, "large"]
    assert one["first"] == "1" and one["third"] == one["text"] == ""
    assert two["first"] == "" and two["text"] == VALUES["text"]
    assert math.isnan(float(two["nan"]))
    for name in ("inf", "low", "third", "single", "half", "tiny"):
        assert float(two[name]) == float(VALUES[name])
    assert (two["count"], two["flag"], two["none"]) == (str(2**53 + 1), "True", "")
    assert json.loads(two["large"]) == [0.0] * 50_000
    assert (three["mode"], three["third"], three["text"]) == ("val", "0.5", "")
    assert sorted(os.listdir(tmp_path)) == ["log.csv"]


def test_a_value_that_has_no_place_is_told(tmp_path, caplog):
    sink = JSONLines(tmp_path / "log")
    sink.write(record(1, what={1, 2}))
    sink.write(record(2))
    sink.close()
    assert steps_of_file(tmp_path / "log") == [2]
    assert "numbers, strings and arrays; a value is the set {1, 2}" in caplog.text


def steps_of_file(path):
    return [row["step"] for row in read_json_lines(path)]


def test_reading_leaves_out_a_last_torn_line_and_no_other(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert steps_of_file(path) == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"Line 2 of '.*log' is not JSON: '\{\"st'"):
        read_json_lines(path)


def test_another_writer_of_the_file_is_not_overwritten(tmp_path):
    path = tmp_path / "log"
    first, second = JSONLines(path), JSONLines(path, append=True)
    for sink, step in ((first, 1), (second, 2), (first, 3)):
        sink.write(record(step))
        sink.close()
    assert steps_of_file(path) == [1, 2, 3]


@pytest.mark.slow
def test_a_full_disk_leaves_whole_lines_only(path):
    code = """
        import resource, sys
        from pathlib import Path
        from solstice import loggers

        for limit in (150, 200, 250):
            path = Path(sys.argv[1]).with_stem(str(limit))
            sink = (loggers.JSONLines if path.suffix == ".jsonl" else loggers.CSV)(path)
            def write(step):
                text = "a" * 50
                sink.write({"mode": "train", "epoch": 0, "step": step, "time": 0.0, "text": text})
            sink.open()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            for step in range(9):
                write(step)
            sink.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            write(9)
            sink.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for limit in (150, 200, 250):
        steps = steps_of(path.with_stem(str(limit)))
        assert 2 <= len(steps) < 9 and steps == [*range(len(steps) - 1), 9]
    assert done.stderr.count("failed to write a record") == 3
    assert "File too large" in done.stderr or "No space left" in done.stderr


RUN = """
    import json, os, signal, sys
    from pathlib import Path
    from solstice import loggers

    directory, kill_at = Path(sys.argv[1]), int(sys.argv[2])
    checkpoint = directory / "checkpoint"
    sinks = [loggers.JSONLines(directory / "log.jsonl"), loggers.CSV(directory / "log.csv")]
    start = 0
    if checkpoint.exists():
        start, states = json.loads(checkpoint.read_text())
        for sink, state in zip(sinks, states):
            sink.set_state(state)
    for step in range(start, 300):
        if step % 25 == 0:
            beside = directory / "beside"
            beside.write_text(json.dumps([step, [sink.get_state() for sink in sinks]]))
            os.replace(beside, checkpoint)
        for sink in sinks:
            late = {"late": step} if step > 120 else {}
            sink.write(
                {"mode": "train", "epoch": 0, "step": step, "time": 0.0, "text": "a" * 300} | late
            )
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    for sink in sinks:
        sink.close()
"""


@pytest.mark.slow
def test_killed_runs_lose_nothing_and_write_nothing_twice(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for directory, kills in ((whole, [-1]), (killed, [3, 60, 61, 130, 222, -1])):
        directory.mkdir()
        for at in kills:
            command = [sys.executable, "-c", textwrap.dedent(RUN), str(directory), str(at)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == (0 if at < 0 else -signal.SIGKILL), done.stderr
            assert "lost" not in done.stderr
    for name in ("log.jsonl", "log.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
        assert steps_of(killed / name) == list(range(300))
