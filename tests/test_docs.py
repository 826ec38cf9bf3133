"""The pages of the site and the README: their programs run, their links lead somewhere."""

import ast
import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest

import solstice

ROOT = Path(__file__).parents[1]
GUIDE = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDE]
REFERENCE = sorted((ROOT / "docs" / "api").rglob("*.md"))


def blocks(page, languages="python"):
    """The programs of a page, each with the number of its first line."""
    text = page.read_text()
    fences = re.finditer(rf"^( *)```(?:{languages})\b.*\n((?:.*\n)*?)\1```$", text, re.MULTILINE)
    return [(text[: fence.start(2)].count("\n"), textwrap.dedent(fence[2])) for fence in fences]


def run(page, line, code, namespace):
    # Empty lines in front, so that an error names the line of the page.
    exec(compile("\n" * line + code, str(page), "exec"), namespace)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    # The programs of `from_flax` are each run alone below.
    [page for page in PAGES if blocks(page) and page.stem != "from_flax"],
    ids=name_of,
)
def test_the_programs_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for line, code in blocks(page):
        run(page, line, code, namespace)
    if page.stem == "tutorial":
        assert namespace["results"]["accuracy"] > 0.9


@pytest.mark.slow
def test_each_of_the_five_steps_from_flax_is_complete_and_prints_the_same_numbers():
    page = ROOT / "docs" / "from_flax.md"
    printed = []
    for line, code in blocks(page):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            run(page, line, code, {"__name__": "step"})
        printed.append(out.getvalue())
    assert len(printed) == 5
    assert len(printed[0].splitlines()) == 5
    assert set(printed) == {printed[0]}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_program_is_fenced_so_that_it_runs(page):
    fences = re.findall(r"^ *```(\w*)", page.read_text(), re.MULTILINE)
    known = {"python", "bash", "toml", "text"}
    assert set(fences[::2]) <= known, "an unknown language would not run"
    for line, code in blocks(page):
        ast.parse(code, f"{page}:{line}")


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one).strip().lower().replace(" ", "-") for one in headings}


@pytest.mark.parametrize(
    "page", [*PAGES, *REFERENCE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of
)
def test_links_lead_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text):
        link = link[0] or link[1]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if path.endswith(".png"):  # the theme shows it on light or on dark pages alone
            assert anchor in ("", f"only-{target.stem.rpartition('-')[2]}"), link
        else:
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in [*GUIDE, *REFERENCE]:
        assert page.relative_to(ROOT / "docs").as_posix() in nav


def documented(page):
    return re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)


# `errors` has no `__all__`: its classes are public.
PUBLIC = [
    "solstice",
    *(f"solstice.{name}" for name in solstice.__all__ if inspect.ismodule(getattr(solstice, name))),
    "solstice.sklearn",
    "solstice.testing.strategies",
]


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference(module):
    shown = [pkgutil.resolve_name(path) for page in REFERENCE for path in documented(page)]
    room = importlib.import_module(module)
    names = getattr(room, "__all__", None)
    if names is None:
        names = [name for name, thing in vars(room).items() if inspect.isclass(thing)]
    things = {name: getattr(room, name) for name in names}
    missing = [
        name
        for name, thing in things.items()
        if not inspect.ismodule(thing) and not any(thing is one for one in shown)
    ]
    assert not missing, f"add to a page in docs/api: {', '.join(missing)}"


def test_what_is_in_the_reference_is_there_once_and_in_its_index():
    paths = [path for page in REFERENCE for path in documented(page)]
    assert len(paths) == len(set(paths))
    index = (ROOT / "docs" / "api" / "index.md").read_text()
    assert set(re.findall(r"\]\[([\w.]+)\]", index)) == set(paths)


@pytest.mark.parametrize("name", solstice.__all__)
def test_help_says_something_of_every_public_name(name):
    help_text = io.StringIO()
    with contextlib.redirect_stdout(help_text):
        help(getattr(solstice, name))
    assert len(help_text.getvalue().splitlines()) > 5


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/why.md"])
def test_the_pages_give_the_figures_that_were_measured(page):
    measured = (ROOT / "docs" / "speed.md").read_text()
    (row,) = re.findall(r"^\| solstice \| (\S+) .*\| (\S+) .*\| (\S+) .*\|$", measured, re.M)[:1]
    assert "{}, {} and {}".format(*row) in (ROOT / page).read_text()
