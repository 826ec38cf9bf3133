"""Draws the pictures of the pages into docs/images: `python docs/assets/pictures.py`.

It runs every example, and the first program of the first page; names after it draw those alone.
Each picture is there twice, for light and for dark pages, in few colours, so that the files stay
small. `python benchmarks/picture.py` draws those of the benchmarks from their tables.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLES, IMAGES = ROOT / "examples", ROOT / "docs" / "images"
COLOURS = 96


def first_program():
    """Return the first programs of the README, the second of which draws a picture."""
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return "\n".join(programs[:2])


def notebook_program():
    """Return the notebook's cells as one program, which draws its learning curves."""
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join([*code, "solstice.plots.confusion_matrix(metrics).savefig('picture.png')"])


def run(name, directory):
    """Run what draws a picture in an empty directory."""
    program, arguments = EXAMPLES / f"{name}.py", ["--picture", str(directory / "picture.png")]
    if name in ("first", "tour"):
        program, arguments = directory / "program.py", []
        program.write_text(first_program() if name == "first" else notebook_program())
    elif name == "quickstart":
        arguments = ["--quiet", "--output", str(directory)]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "docs" / "assets" / "twice.py"), str(program)]
    subprocess.run([*command, *arguments], cwd=directory, env=environment, check=True)


def main():
    """Draw what was asked for, or everything."""
    found = {path.stem for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]}
    for name in sys.argv[1:] or sorted({*found, "first"} - {"handwriting", "multi_process"}):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            run(name, directory)
            drawn = {"first": "curves", "quickstart": "learning_curves"}.get(name, "picture")
            for kind in ("light", "dark"):
                with Image.open(directory / f"{drawn}-{kind}.png") as image:
                    small = image.convert("RGBA").quantize(COLOURS, Image.Quantize.FASTOCTREE)
                    small.save(IMAGES / f"{name}-{kind}.png", optimize=True)


if __name__ == "__main__":
    main()
