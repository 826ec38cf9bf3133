"""What only shows ends no run: real processes whose streams are closed, broken, full or gone."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from solstice.loggers import read_json_lines

SCRIPT = Path(__file__).with_name("shown_run.py")
ROWS = 2 * (150 + 1)


def check(process, directory, *hows):
    assert process.wait(timeout=120) == 0
    for how in hows:
        made = directory / how
        assert (made / "result").read_text() == "22350.0"
        assert len(read_json_lines(made / "log")) == ROWS
        lines = (made / "lines").read_text()
        assert lines.count("mean=") == ROWS + 1  # and each line reaches who can still be reached


def start(directory, *hows, **options):
    options = {"env": os.environ | {"JAX_PLATFORMS": "cpu"}} | options
    return subprocess.Popen([sys.executable, SCRIPT, directory, *hows], **options)


@pytest.mark.slow
def test_nobody_reads_the_pipes_any_more(tmp_path):
    process = start(tmp_path, "at once", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stderr.close()
    check(process, tmp_path, "at once")


@pytest.mark.slow
def test_streams_fail_midway(tmp_path):
    hows = ["closed", "failing", "odd", "none"]
    with (tmp_path / "out").open("w") as out:
        check(start(tmp_path, *hows, stdout=out, stderr=out), tmp_path, *hows)


@pytest.mark.slow
def test_the_disk_of_a_log_file_is_full(tmp_path):
    with open("/dev/full", "w") as full:
        check(start(tmp_path, "at once", stdout=full, stderr=full), tmp_path, "at once")


@pytest.mark.slow
def test_a_process_is_started_without_streams(tmp_path):
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, SCRIPT, tmp_path, "at once"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    check(subprocess.Popen(command, env=environment), tmp_path, "at once")


@pytest.mark.slow
def test_the_terminal_is_closed_midway(tmp_path):
    ours, theirs = pty.openpty()
    hear, tell = os.pipe()
    heard, told = os.pipe()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TELL": str(tell), "HEAR": str(heard)}
    process = start(
        tmp_path, "gone", stdout=theirs, stderr=theirs, env=environment, pass_fds=(tell, heard)
    )
    os.close(theirs)
    os.close(tell)
    os.read(hear, 1)  # until the run has closed its end
    os.close(ours)
    os.write(told, b".")
    check(process, tmp_path, "gone")
    for end in (hear, heard, told):
        os.close(end)


@pytest.mark.parametrize("at", ["display", "update"])
def test_a_notebook_is_gone(train, monkeypatch, caplog, at):
    def fail(*arguments, **options):
        raise RuntimeError("the kernel's socket is closed")

    handle = SimpleNamespace(update=fail)
    display = fail if at == "display" else lambda data, raw, display_id: handle
    kernel = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    train(1, list(range(50)), [1], progress=True)
    assert {m.split(":")[0] for m in caplog.messages} == {
        "The progress bar can no longer be drawn; the run continues"
    }


def test_a_bar_that_cannot_be_drawn_is_told_once(train, monkeypatch, caplog):
    monkeypatch.setattr("solstice.training.progress.bars.Bar", lambda *arguments, **options: 1 / 0)
    monkeypatch.setattr("solstice.training.progress.bars.is_terminal", lambda stream: True)
    train(2, [1, 2], [3], progress=True)
    (message,) = caplog.messages
    assert message.startswith("The progress cannot be shown: ZeroDivisionError")
