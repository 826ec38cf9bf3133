"""Put the version, the changelog and the programs in examples/ into the site."""

import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    path.relative_to(ROOT / "examples").as_posix(): path
    for path in sorted((ROOT / "examples").rglob("*.py"))
}


def on_config(config: MkDocsConfig) -> None:
    """Show the version at the foot of each page."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    config.copyright = f"Solstice {version}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog, and a page for each program in examples/."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    files.append(File.generated(config, "changelog.md", content=changelog))
    for name, path in PROGRAMS.items():
        page = _page_of(name)
        back = "../" * page.count("/") + "examples.md"
        text = f"# {name}\n\n[All examples]({back})\n\n```python\n{path.read_text()}```\n"
        files.append(
            File.generated(config, page, content=text, inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Link the name of a program, where a page gives it as code, to the program."""
    up = "../" * page.file.src_uri.count("/")

    def linked(found: re.Match[str]) -> str:
        name = found[1].removeprefix("examples/")
        return f"[{found[0]}]({up}{_page_of(name)})" if name in PROGRAMS else found[0]

    return re.sub(r"(?<!\[)`([\w/]+\.py)`(?!\])", linked, markdown)


def _page_of(name: str) -> str:
    return f"programs/{name.removesuffix('.py')}.md"
