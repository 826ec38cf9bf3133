"""Environment: notes what a run ran with, so that it can be run again."""

import logging
import platform
import shlex
import sys
import time
from importlib import metadata
from typing import Any

import jax

from solstice.callbacks.base import Callback
from solstice.errors import InvalidTypeError
from solstice.experiment import Experiment
from solstice.loggers.outlets import LoggingFn
from solstice.summary import summary
from solstice.tree import describe

_logger = logging.getLogger("solstice")

# Modules and the distributions that they come from; those that are loaded are noted.
_LIBRARIES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "solstice": "solstice",
    "equinox": "equinox",
    "numpy": "numpy",
    "flax": "flax",
    "haiku": "dm-haiku",
    "keras": "keras",
    "optax": "optax",
}


class EnvironmentCallback(Callback):
    """Logs once, when a run starts, what it runs with; a resumed run logs it again.

    That is: the versions of Python, of jax, and of the network libraries that are loaded; the
    platform and the devices; how many parameters are trained, how many numbers and bytes the
    experiment has; the command line (whole, so keep secrets out of it).

    Args:
        logging_fn: Called as `logging_fn(facts, 0, "environment")` with a dict of strings and
            ints; of a sink of `solstice.loggers`, its `write`. None sends one line to the logger
            "solstice".

    Raises:
        TypeError: `logging_fn` cannot be called.

    >>> import solstice
    >>> callback = solstice.EnvironmentCallback(lambda facts, step, mode: print(facts["jax"]))
    """

    def __init__(self, logging_fn: LoggingFn | None = None) -> None:
        if logging_fn is not None and not callable(logging_fn):
            raise InvalidTypeError(
                f"logging_fn is expected to be a function of (facts, step, mode); it is "
                f"{describe(logging_fn)}."
            )
        self._logging_fn = logging_fn

    def on_run_start(self, exp: Experiment) -> None:
        facts = _environment() | _sizes(exp)
        write = getattr(self._logging_fn, "write", None)
        if write is not None:
            write({"mode": "environment", "epoch": 0, "step": 0, "time": time.time(), **facts})
        elif self._logging_fn is not None:
            self._logging_fn(facts, 0, "environment")
        else:
            _logger.info("%s", ", ".join(f"{name}={value}" for name, value in facts.items()))


def _environment() -> dict[str, Any]:
    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    loaded = {name: dist for name, dist in _LIBRARIES.items() if name in sys.modules}
    return {
        "python": platform.python_version(),
        **{name: _version(distribution) for name, distribution in loaded.items()},
        "platform": platform.platform(),
        "devices": f"{len(devices)} {devices[0].platform} ({kinds})",
        "processes": jax.process_count(),
        "command": shlex.join(sys.orig_argv),
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # a source tree on the path
        return "unknown"


def _sizes(exp: Experiment) -> dict[str, int]:
    found = summary(exp)
    numbers = sum(row.size for row in found.rows)
    return {"parameters": found.parameters, "numbers": numbers, "bytes": found.nbytes}
