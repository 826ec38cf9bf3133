"""Where results go: into benchmarks/results, and between the markers of two pages."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
PAGES = (ROOT / "benchmarks" / "README.md", ROOT / "docs" / "speed.md")


def results():
    """Return the folder for tables and pictures, which is not kept in the repository."""
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(name, text, among=PAGES):
    """Put a text between `<!-- bench: name -->` and `<!-- end -->` in each page that has these.

    Raises:
        ValueError: No page has.
    """
    marked = re.compile(rf"(<!-- bench: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    found = 0
    for page in among:
        before = page.read_text()
        after, count = marked.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", before)
        page.write_text(after)
        found += count
    if not found:
        raise ValueError(f"No page has '<!-- bench: {name} -->' and '<!-- end -->'.")
