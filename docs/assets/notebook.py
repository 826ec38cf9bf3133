"""Makes examples/tutorial.ipynb of docs/tutorial.md and runs it: `python docs/assets/notebook.py`.

The notebook stores what its cells show, so the page's pictures and outputs are left out of it. The
outputs in the page are written anew. It needs `nbclient` and `ipykernel`.
"""

import json
import os
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"
START = """This notebook is the page [Tutorial](../docs/tutorial.md). To run it, install in a clone:
`pip install '.[checkpoint,flax,optax,plot]' scikit-learn`"""


# A program of the page, and what it shows, if the page says that.
OUTPUT = re.compile(r"(```python\n.*?```\n)(\n```text\n.*?```\n)?", re.DOTALL)


def cells(text):
    """Yield the page's programs as code cells, and what is between them as text."""
    text = re.sub(r"^!\[.*\n|<!--.*?-->\n", "", OUTPUT.sub(r"\1", text), flags=re.MULTILINE)
    text = re.sub(r"\]\((\w+\.md)", r"](../docs/\1", text)
    first, *parts = re.split(r"```python\n(.*?)```\n", text, flags=re.DOTALL)
    intro, rest = first.split("\n## ", 1)
    yield nbformat.v4.new_markdown_cell(f"{intro.splitlines()[0]}\n\n{START}\n\n## {rest.strip()}")
    for code, after in zip(parts[::2], parts[1::2], strict=True):
        yield nbformat.v4.new_code_cell(code.strip())
        if after.strip():
            yield nbformat.v4.new_markdown_cell(after.strip())


def with_outputs(text, code):
    """Return the page with the outputs of the notebook's code cells where it has some."""
    shown = iter(code)

    def block(found):
        outputs = next(shown)["outputs"]
        if not found[2]:
            return found[0]
        return f"{found[1]}\n```text\n{outputs[-1]['data']['text/plain']}\n```\n"

    return OUTPUT.sub(block, text)


def main():
    """Run every cell in an empty directory."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["PYTHONPATH"] = str(ROOT)
    notebook = nbformat.v4.new_notebook(cells=[*cells(PAGE.read_text())])
    for i, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{i}"
    with tempfile.TemporaryDirectory() as directory:
        resources = {"metadata": {"path": directory}}
        NotebookClient(notebook, record_timing=False, resources=resources).execute()
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    PAGE.write_text(with_outputs(PAGE.read_text(), code))
    notebook["metadata"] = {"language_info": {"name": "python"}}
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
