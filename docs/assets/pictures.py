"""Runs every example and draws its picture into docs/images: `python docs/assets/pictures.py`.

Names of examples after it draw those alone. Pictures are kept small, in few colours.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLES, IMAGES = ROOT / "examples", ROOT / "docs" / "images"
COLOURS, WIDTH = 64, 900


def run(name, directory, picture):
    """Run an example in an empty directory; its picture is drawn into `picture`."""
    if name == "tour":
        cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        code.append(f"solstice.plots.confusion_matrix(metrics).savefig({str(picture)!r}, dpi=80)")
        command = ["-c", "\n".join(code)]
    elif name == "quickstart":
        command = [str(EXAMPLES / "quickstart.py"), "--quiet", "--output", str(directory)]
    else:
        command = [str(EXAMPLES / f"{name}.py"), "--picture", str(picture)]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *command], cwd=directory, env=environment, check=True)
    return directory / "learning_curves.png" if name == "quickstart" else picture


def main():
    """Draw what was asked for, or everything."""
    found = {path.stem for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]}
    for name in sys.argv[1:] or sorted(found - {"handwriting"}):
        with tempfile.TemporaryDirectory() as directory:
            drawn = run(name, Path(directory), Path(directory) / "picture.png")
            with Image.open(drawn) as image:
                small = image.convert("RGB")
                small.thumbnail((WIDTH, WIDTH))
                small.quantize(COLOURS).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
