"""Runs examples/tour.ipynb and stores what its cells show: `python docs/assets/notebook.py`.

It needs `nbclient` and `ipykernel`. What depends on the machine and the clock is left out.
"""

import json
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "tour.ipynb"


def main():
    """Run every cell anew."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["PYTHONPATH"] = str(ROOT)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook["cells"]:
        cell["metadata"] = {}
    NotebookClient(notebook, record_timing=False).execute()
    notebook["metadata"]["language_info"] = {"name": "python"}
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
