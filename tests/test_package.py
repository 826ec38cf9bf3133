"""The package's map, and what importing it costs."""

import re
import runpy
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import solstice

FRAMEWORKS = (
    "flax",
    "haiku",
    "keras",
    "optax",
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "orbax",
    "matplotlib",
    "hypothesis",
    "mlflow",
    "sklearn",
    "tensorboardX",
    "torch",
    "wandb",
)


def test_importing_and_using_one_library_loads_no_framework():
    code = f"""
        import sys
        import jax.numpy as jnp
        import solstice, solstice.compat, solstice.testing
        from jax.example_libraries import stax

        print([name for name in {FRAMEWORKS!r} if name in sys.modules])
        solstice.compat.as_model(stax.Dense(2), jnp.ones((1, 3)), key=0)
        print([name for name in {FRAMEWORKS!r} if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize(
    "module",
    [
        solstice,
        solstice.compat,
        solstice.data,
        solstice.metrics,
        solstice.callbacks,
        solstice.loggers,
        solstice.plots,
        solstice.tree,
    ],
)
def test_all_is_what_can_be_imported(module):
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))


def test_dir_is_the_map():
    assert set(dir(solstice)) == {*solstice.__all__, "__version__"}


def test_every_public_name_has_a_docstring():
    for name in solstice.__all__:
        assert getattr(solstice, name).__doc__, name
    for name in solstice.compat.__all__:
        assert getattr(solstice.compat, name).__doc__, name
    for name in solstice.loggers.__all__:
        assert getattr(solstice.loggers, name).__doc__, name


def test_readme_names_the_extras_that_there_are():
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    sentence = (root / "README.md").read_text().partition("The extras are ")[2].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == set(project["optional-dependencies"])


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert solstice.__version__ == version("jax-solstice")


def test_the_readme_on_the_index_has_links_that_lead_somewhere(monkeypatch):
    """Relative ones lead nowhere there; each leads to a file of the repository."""
    root = Path(__file__).parent.parent
    hooks = SimpleNamespace(MetadataHookInterface=object)  # the part of hatchling that is asked for
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", hooks)
    absolute = runpy.run_path(str(root / "hatch_build.py"))["absolute"]
    text = (root / "README.md").read_text()
    made = absolute(text, "https://host/owner/name", "v1.2.3")
    programs = re.compile(r"```.*?```", re.DOTALL)
    assert programs.findall(made) == programs.findall(text)
    places = re.findall(r"""(?:\]\(|src="|srcset=")([^)"]+)""", programs.sub("", made))
    kinds = set()
    for place in places:
        kind, path = re.fullmatch(
            r"https://host/owner/name/(blob|raw)/v1.2.3/([^#]+).*", place
        ).groups()
        assert (root / path).is_file(), place
        kinds.add((kind, Path(path).suffix))
    assert {("blob", ".md"), ("raw", ".png")} <= kinds and len(places) > 20
