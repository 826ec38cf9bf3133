"""Environment: logs versions and devices, so that a run can be repeated."""

import logging
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

import jax

from solstice.analysis.summary import summary
from solstice.callbacks.base import Callback
from solstice.experiment import Experiment
from solstice.loggers.outlets import LoggingFn, Outlets, SinkLike
from solstice.tree.pytree import PyTree

_logger = logging.getLogger("solstice")

# Modules and their distributions; the versions of loaded ones are logged.
_LIBRARIES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "solstice": "jax-solstice",
    "equinox": "equinox",
    "numpy": "numpy",
    "flax": "flax",
    "haiku": "dm-haiku",
    "keras": "keras",
    "optax": "optax",
}


class EnvironmentCallback(Callback):
    """Logs versions, devices and sizes once, when a run starts or resumes.

    It logs the versions of Python, jax and the loaded network libraries; the platform and the
    devices; the number of trained parameters, and the experiment's numbers and bytes; and the whole
    command line (keep secrets out of it).

    Args:
        logging_fn: One of these, or a list of several: a function called as `logging_fn(facts, 0,
            "environment")` with a dict of strings and ints, or a sink of `solstice.loggers`, which
            gets a record of that mode. None sends one line to the logger "solstice".

    Raises:
        TypeError: `logging_fn` is none of these.

    >>> import solstice
    >>> callback = solstice.EnvironmentCallback(lambda facts, step, mode: print(facts["jax"]))
    """

    def __init__(
        self, logging_fn: LoggingFn | SinkLike | Sequence[LoggingFn | SinkLike] | None = None
    ) -> None:
        self._outlets = Outlets(_log_line if logging_fn is None else logging_fn)

        self._logged = False

    def on_run_start(self, exp: PyTree) -> None:
        self._logged = False

    def on_epoch_start(self, exp: PyTree, epoch: int, mode: str) -> None:
        # Not at the run's start, when a resumed run's sinks are not yet restored.
        if not self._logged:
            self._logged = True
            facts = {**_told(_environment), **_told(lambda: _sizes(exp))}
            self._outlets.write(facts, index=0, mode="environment", epoch=0, step=0)

    def on_run_end(self, exp: PyTree, error: BaseException | None) -> None:
        self._outlets.close()

    def get_state(self) -> dict[str, PyTree]:
        return {"sinks": self._outlets.get_state()}

    def set_state(self, state: dict[str, PyTree]) -> None:
        self._outlets.set_state(state["sinks"])


def _log_line(facts: dict[str, object], step: int, mode: str) -> None:
    _logger.info("%s", ", ".join(f"{name}={value}" for name, value in facts.items()))


def _told(facts: Callable[[], Mapping[str, object]]) -> Mapping[str, object]:
    try:
        return facts()
    except Exception as error:  # noqa: BLE001 - a log entry must not stop a run
        _logger.warning(
            "EnvironmentCallback leaves out a part that failed: %s: %s.",
            type(error).__name__,
            error,
        )
        return {}


def _environment() -> dict[str, object]:
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
