"""Everything a developer runs: `nox -s quickstart`, `nox -s tests`, `nox -s lint types`, ..."""

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests", "lint", "types"]
nox.needs_version = ">=2025.2.9"

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Run with a wheel that was just installed.
PROOF = """
import pathlib, solstice
home = pathlib.Path(solstice.__file__).parent
assert "site-packages" in home.parts, home
assert (home / "py.typed").exists()
print("solstice", solstice.__version__, "from", home)
"""
QUIET = {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "2"}


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PROJECT, name)


def runs(version: str) -> bool:
    """Whether this Python is here; pyenv keeps names of some that it does not start."""
    if (python := shutil.which(f"python{version}")) is None:
        return False
    return not subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode


@nox.session
def quickstart(session: nox.Session) -> None:
    """Run the main example: four network libraries, two optimizers, one experiment."""
    session.install(".[flax,haiku,optax,plot,tfds]", "scikit-learn")
    session.run("python", "examples/quickstart.py", *session.posargs, env=QUIET)


# Each process takes neighbouring tests, which compile the same programs.
PARALLEL = ("pytest", "-n", "auto", "--dist", "worksteal")


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests on the current Python; arguments after -- go to pytest."""
    session.install("-e", ".[all]", *group("test"))
    session.run(*PARALLEL, *session.posargs, env=QUIET)


# In addition to `tests`, which must work on any machine with a single Python.
@nox.session(python=[v for v in PYTHONS if runs(v)], name="tests-on")
def tests_on(session: nox.Session) -> None:
    """Run all tests on each Python that is found."""
    absent = [v for v in PYTHONS if not runs(v)]
    if absent:
        session.warn(f"Not found, so not tested: Python {', '.join(absent)}")
    tests(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format, style and import rules."""
    session.install("-e", ".", *group("lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, and those that users of it see, on the examples."""
    session.install("-e", ".[all,mlflow,wandb]", *group("types"))
    session.run("pyright")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into site/, warnings as errors; `-- serve` shows it as you write."""
    session.install(*group("docs"))
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def release(session: nox.Session) -> None:
    """Build wheel and sdist into dist/, and test the wheel in a clean environment."""
    session.install(*group("release"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")  # the wheel is built from the sdist
    built = sorted(Path("dist").iterdir())
    session.run("twine", "check", "--strict", *map(str, built))
    clean = Path(session.create_tmp()).absolute() / "clean"
    session.run("python", "-m", "venv", "--clear", str(clean))
    python = str(clean / ("Scripts" if os.name == "nt" else "bin") / "python")
    (wheel,) = (path.absolute() for path in built if path.suffix == ".whl")
    wanted = [f"{wheel}[flax,haiku,optax,plot]", "scikit-learn"]
    session.run(python, "-m", "pip", "install", "--quiet", *wanted, external=True)
    program = Path("examples/quickstart.py").absolute()
    with session.chdir(clean):  # where no checkout can be imported instead
        session.run(python, "-c", PROOF, external=True)
        session.run(python, str(program), "--epochs", "2", "--quiet", env=QUIET, external=True)


@nox.session(venv_backend="uv")
def minimums(session: nox.Session) -> None:
    """Run the tests with the lowest versions that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "-e", ".[all]", *group("test"))
    # Old versions warn of each other's deprecations, which cannot be fixed any more.
    quiet = ("-W", "ignore::DeprecationWarning")
    session.run(*PARALLEL, *quiet, *session.posargs, env=QUIET)


@nox.session
def soak(session: nox.Session) -> None:
    """Kill a training process 30 times and compare; run the other long tests, unlike CI."""
    session.install("-e", ".[all]", *group("test"))
    session.run(*PARALLEL, "--soak", "-m", "soak", *session.posargs, env=QUIET)
    session.run(
        "pytest", "--soak", "tests/test_kill.py", *session.posargs, env={**QUIET, "KILLS": "30"}
    )


@nox.session
def convert(session: nox.Session) -> None:
    """Convert every architecture from every library to every other; writes docs/converting.md.

    Arguments after -- are architectures, `mlp lstm` (the page then has these alone): the MLP takes
    20 seconds of one core.
    """
    session.install("-e", ".[flax,haiku,keras]")
    env = {**QUIET, "PYTHONPATH": "tests/compat"}
    script = "tests/compat/conversions.py"
    session.run("python", script, "docs/converting.md", *session.posargs, env=env)


# pip, not uv: only pip takes a torch without CUDA, of several gigabytes, from where one is set up.
@nox.session(venv_backend="venv")
def interop(session: nox.Session) -> None:
    """Load what torch trained into every library, and run the tests marked torch.

    It takes five minutes of one core.

    Arguments after -- go to the script: `--write` for the table in docs/weights_tested.md and the
    files in tests/compat/from_torch, `--only lstm` for some of the networks.
    """
    session.install(*group("interop"))
    session.install("-e", ".[checkpoint,flax,haiku,keras,optax,plot,sklearn,testing]")
    env = {**QUIET, "PYTHONPATH": "tests/compat"}
    session.run("python", "benchmarks/interop.py", *session.posargs, env=env)
    # The other files import what is not installed here.
    marked = [path for path in Path("tests").rglob("test_*.py") if "mark.torch" in path.read_text()]
    session.run("pytest", "-m", "torch", *map(str, sorted(marked)), env=QUIET)


@nox.session(venv_backend="venv")
def bench(session: nox.Session) -> None:
    """Time the trainer and other trainers against a hand-written loop; 15 minutes.

    Arguments after -- go to each script: `--quick` for a smoke test, `--write` to put tables and
    pictures into benchmarks/README.md and docs/speed.md.
    """
    session.install(*group("bench-lightning"))
    session.install("-e", ".[all]", *group("bench"), *group("bench-kauldron"))
    with session.chdir("benchmarks"):
        for script in ("train.py", "cold.py", "growth.py"):
            session.run("python", script, *session.posargs, env=QUIET)


@nox.session(name="bench-bobbin")
def bench_bobbin(session: nox.Session) -> None:
    """Time bobbin against the hand-written loop, in a separate environment for its old Orbax."""
    session.install("flax", "optax", "matplotlib", "tqdm", *group("bench-bobbin"))
    command = ("python", "train.py", "--only", "hand", "bobbin_trainer")
    with session.chdir("benchmarks"):
        session.run(*command, *session.posargs, env=QUIET)


# Some of the packages have no version for other Pythons.
ZOO_PYTHON = "3.12"


@nox.session(python=ZOO_PYTHON if runs(ZOO_PYTHON) else None)
def zoo(session: nox.Session) -> None:
    """Compare networks of other packages with their own loops, into docs/zoo.md.

    It takes ten minutes of one core, most of which goes into compiling.

    Arguments after -- go to the script: `--only mamba` for some, and then nothing is written. On
    another Python than 3.12, packages that it cannot install are left out, and nothing is written.
    """
    session.install("-e", ".[flax,haiku,keras,optax]", *group("zoo"))
    # Which pin old versions of what they use, and run with new ones.
    session.install("--no-deps", *group("zoo-alone"))
    arguments = session.posargs or ["--write"]
    if session.python != ZOO_PYTHON:
        session.warn(f"Python {ZOO_PYTHON} is not found, so docs/zoo.md stays as it is.")
        arguments = session.posargs or []
    session.run("python", "tests/zoo/run.py", *arguments, env=QUIET)
