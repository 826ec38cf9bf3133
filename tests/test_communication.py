"""What a step communicates: the page's figures are the compiled program's."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "communication.py"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [8, pytest.param(256, marks=pytest.mark.soak)])
def test_the_page_has_the_figures_of_the_compiled_step(devices):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--devices", str(devices)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows = done.stdout.splitlines()[2:]
    assert len(rows) == 3
    page = (ROOT / "docs" / "parallelism.md").read_text().splitlines()
    assert rows == [line for line in page if line.startswith(f"| {devices} |")]
    for row in rows:  # the program sends what the formula says, and nothing else
        sent, formula = row.split("|")[-3:-1]
        assert sent == formula


def test_collectives_are_read_from_a_program():
    script = runpy.run_path(str(SCRIPT))
    program = """
  %a.1 = (f32[8,4]{1,0}, /*index=1*/bf16[3]{0}, f32[]) all-reduce(%x, %y, %z), channel_id=1
  %b = pred[16]{0} all-gather(%all-reduce.2), dimensions={0}
  ROOT %fusion = f32[2]{0} fusion(%all-gather.1), calls=%all-reduce.3
  %c = s8[10]{0} collective-permute(%p)"""
    assert script["collectives"](program) == [
        ("all-reduce", 128 + 6 + 4),
        ("all-gather", 16),
        ("collective-permute", 10),
    ]
    with pytest.raises(ValueError, match="asynchronous"):
        script["collectives"]("%a = f32[2]{0} all-reduce-start(%x)")
    assert script["sent"]("all-reduce", 80, 8) == 140
    assert script["sent"]("all-gather", 80, 8) == 70
    assert script["sent"]("collective-permute", 80, 8) == 80
