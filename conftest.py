"""Settings for all tests, those in docstrings too: on the CPU, quiet, with shapes checked."""

import gc
import os
import zlib
from collections import defaultdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# A test compiles much and runs little: at LLVM's level 0, dropout compiles in a sixth of the time;
# without the emitters that build fusions with MLIR, and in one piece, most of the rest in half.
# `XLA_FLAGS= pytest ...` tests as users compile.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # Later versions refuse this flag.
    + " --xla_cpu_use_fusion_emitters=false"
    * (tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)),
)
# Most of the time goes into compiling the same small programs, in each process, those that tests
# start too, in this run and in the next. A file that another process has not yet written to its end
# is compiled again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # after what it reads
import pytest
from hypothesis import HealthCheck, settings

# The first examples compile, which Hypothesis takes for slow data.
settings.register_profile(
    "solstice",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("solstice")


# Each compiled program takes some memory maps, and a process may have 65530: beyond them, LLVM
# crashes. So what earlier modules compiled is let go of now and then.
_MAPS, _MOST_MAPS = Path("/proc/self/maps"), 12_000


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Forget compiled programs once they take many memory maps."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_collection_finish(session):
    # What the imports left, millions of objects, need not be looked through at each collection.
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="run the tests marked soak too")


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(config, items):
    # Each process of xdist must collect the same names.
    if changing := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"names of tests hold an address: {changing}")
    if find_spec("torch") is None:
        for item in items:
            if item.get_closest_marker("torch"):
                item.add_marker(pytest.mark.skip(reason="torch: `nox -s interop` has it"))
    if not config.getoption("--soak"):
        soaks = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=soaks)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    # The quick profile takes one row of each table, another one for each test.
    rows = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("slow"):
            rows[item.nodeid.partition("[")[0]].append(item)
    for name, alike in rows.items():
        alike.pop(zlib.crc32(name.encode()) % len(alike))
        for item in alike:
            item.add_marker("slow")
