"""The examples and the guide pages run as they are printed."""

import re
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_a_page_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    namespace = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
