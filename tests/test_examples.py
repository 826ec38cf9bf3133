"""The examples run, with small settings, and learn what they are to learn."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_bring_your_own_library(capsys):
    program = runpy.run_path(str(ROOT / "examples" / "bring_your_own.py"))
    accuracy = program["main"](num_epochs=15, progress=False)
    printed = capsys.readouterr().out
    assert accuracy > 0.95
    assert "Laws of PebbleModel" in printed
    assert "FAILED" not in printed
