"""Draws the pictures of the pages into docs/images: `python docs/assets/pictures.py`.

It runs every example, the tutorial, and the first program of the README; names after it draw those
alone. Each picture is there twice, for light and for dark pages, in few colours, so that the files
stay small. `python benchmarks/picture.py` draws those of the benchmarks from their tables.
"""

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
# Whose pictures are drawn by programs of a page, and that page.
PAGES = {"first": ROOT / "README.md", "tutorial": ROOT / "docs" / "tutorial.md"}


def program_of(name):
    """Return the programs of a page as one, whose pictures are saved."""
    programs = re.findall(r"```python\n(.*?)```", PAGES[name].read_text(), re.DOTALL)
    if name == "first":
        return "\n".join(programs[:2]).replace("curves.png", "first.png")
    shown = re.compile(r"^(solstice\.plots\.(\w+)\(.*\))$", re.MULTILINE)
    return shown.sub(rf"\1.savefig('{name}_\2.png')", "\n".join(programs))


def run(name, directory):
    """Run what draws pictures in an empty directory."""
    program, arguments = EXAMPLES / f"{name}.py", ["--picture", str(directory / f"{name}.png")]
    if name in PAGES:
        program, arguments = directory / "program.py", []
        program.write_text(program_of(name))
    elif name == "quickstart":
        arguments = ["--quiet", "--output", str(directory)]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "docs" / "assets" / "twice.py"), str(program)]
    subprocess.run([*command, *arguments], cwd=directory, env=environment, check=True)


def main():
    """Draw what was asked for, or everything."""
    found = {path.stem for path in EXAMPLES.glob("*.py")} - {"handwriting", "multi_process"}
    for name in sys.argv[1:] or sorted(found | set(PAGES)):
        with tempfile.TemporaryDirectory() as folder:
            run(name, Path(folder))
            for drawn in Path(folder).glob("*.png"):
                target = drawn.name
                if name == "quickstart":
                    target = target.replace("learning_curves", name)
                if not target.startswith(name):  # the quickstart's confusion matrix
                    continue
                with Image.open(drawn) as image:
                    small = image.convert("RGBA").quantize(COLOURS, Image.Quantize.FASTOCTREE)
                    small.save(IMAGES / target, optimize=True)


if __name__ == "__main__":
    main()
