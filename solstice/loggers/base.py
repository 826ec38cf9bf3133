"""Sink: a place where logs go, written outside the training thread.

A sink never stops a run and never makes it wait: a record that it cannot write is lost, with one
warning.
"""

import abc
import atexit
import importlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from solstice import arguments
from solstice.errors import InvalidValueError, MissingPackageError, SlowWriteError
from solstice.loggers.records import Record, make_record
from solstice.loggers.values import whole
from solstice.loggers.worker import Worker
from solstice.tree.reprs import ShownAsMade

_logger = logging.getLogger("solstice")

# The sinks with files, by path: only one at a time writes to a path.
_holders: "weakref.WeakValueDictionary[str, Sink]" = weakref.WeakValueDictionary()
# How long a write may take before a warning.
_LONG = 1.0
# How long a new sink waits for an earlier one that still writes to its files.
_PATIENCE = 10.0
# How long to wait for a thread that was late before and has made no progress since.
_AGAIN = 0.1


class Sink(ShownAsMade, abc.ABC):
    """A place where logs go: a file, a dashboard, the screen.

    Give it to a callback as its `logging_fn`, alone or in a list. A thread of the sink writes the
    records in order and brings their arrays to the host; with several processes, only process 0
    writes. If a write fails or takes long, or the queue is full (65536 records, or 256 MiB of
    arrays), the run continues, and the logger "solstice" warns once per run. Each sink's
    documentation lists the values that it leaves out.

    To write your own sink, define the hooks below. They all run on the writing thread, in order.

    Args:
        name: The sink's name in warnings.
        timeout: How many seconds `flush`, `get_state` and `close` each wait at most.

    >>> import solstice
    >>> class Lines(solstice.loggers.Sink):
    ...     def __init__(self):
    ...         super().__init__("Lines()")
    ...         self.lines = []
    ...
    ...     def on_write(self, record):
    ...         self.lines.append(f"{record['mode']} {record['step']}: {record['loss']:.2f}")
    >>> sink = Lines()
    >>> sink({"loss": 0.5}, 100, "train")
    >>> sink.flush()
    >>> sink.lines
    ['train 100: 0.50']
    >>> sink.close()
    """

    # The place of the files, which no other sink may write to at the same time.
    _held: Path | None = None

    def __init__(self, name: str, *, timeout: float = 10.0) -> None:
        self._name = arguments.text(name, "name")
        self._timeout = arguments.number(timeout, "timeout", above=0)
        self._worker = Worker(name)
        self._open = self._begun = False
        self._warned = False
        self._writing_since: float | None = None
        # How many jobs were done when the thread was last late.
        self._gave_up_at: int | None = None
        self._state: Any = None

    def on_open(self) -> None:
        """Hook: called before the first record of a run, and again after each `on_close`."""
        return

    @abc.abstractmethod
    def on_write(self, record: dict[str, Any]) -> None:
        """Hook: write a record of Python numbers and numpy arrays."""

    def on_flush(self) -> None:
        """Hook: make the written records durable."""
        return

    def on_close(self) -> None:
        """Hook: release what `on_open` took; `on_flush` was called before."""
        return

    def on_get_state(self) -> Any:
        """Hook: return the state that `on_set_state` needs to continue after the last record."""
        return None

    def on_set_state(self, state: Any) -> None:
        """Hook: drop what was written after `state` was taken; called while the sink is closed."""
        return

    def __call__(self, metrics: Mapping[str, Any], step: int, mode: str) -> None:
        """Write a record as a plain `logging_fn` would, with this `step`.

        Raises:
            TypeError, ValueError: An argument is wrong.
        """
        arguments.number(step, "step")
        mode = arguments.text(mode, "mode")
        self.write(make_record(arguments.mapping(metrics, "metrics"), mode=mode, step=step))

    def open(self) -> None:
        """Open the sink and wait for it; nothing happens if it is open.

        Raises:
            Exception: It cannot write there; the message says why.
        """
        if not self._open and jax.process_index() == 0:
            self._hold()
            self._do(self.on_open)
            self._open = self._begun = True
            self._warned = False
            atexit.register(self.close)

    def write(self, record: Mapping[str, Any]) -> None:
        """Queue a record; opens the sink if it is closed. It does not wait for the write.

        Args:
            record: `mode`, `epoch`, `step` (training steps completed), `time` (seconds since 1970)
                and the metrics: numbers, arrays (also jax's), `Image`, `Text`. Their buffers must
                not be donated or changed later.
        """
        if not isinstance(record, Record):
            _check_record(record)
        if jax.process_index() != 0:
            return
        if not self._open and self._stuck():
            self._warn("is still writing a record of an earlier run, so a record is lost")
            return
        self.open()
        whole = record if isinstance(record, Record) else Record({}, record)
        if not self._worker.put(lambda: self._write(whole), whole.nbytes):
            self._warn("does not keep up; its queue is full, so a record is lost")
        elif (since := self._writing_since) is not None and time.monotonic() - since > _LONG:
            self._warn(f"has been writing one record for over {_LONG:g} s")

    def flush(self) -> None:
        """Wait, up to the timeout, until all queued records are written and durable."""
        if self._open:
            self._ask(self.on_flush)

    def close(self) -> None:
        """Flush, close files and end the thread; a later `write` opens it again and appends."""
        if self._open:
            self._open = False
            atexit.unregister(self.close)
            self._ask(self._flush_and_get_state)
            self._ask(self.on_close)
            self._worker.stop()

    def get_state(self) -> Any:
        """Return the state for a resume, once all queued records are durable.

        It is a pytree of numbers and strings, or None. A sink that was never open is opened to find
        where it starts.

        Raises:
            SlowWriteError: It took longer than the sink's timeout; the checkpoint is then skipped.
        """
        if not self._begun:
            self.open()
        if self._open and not self._ask(self._flush_and_get_state):
            raise SlowWriteError(
                f"{self._name} has not written its records within {self._timeout:g} s, so the "
                f"position of its log is not known"
            )
        return self._state

    def set_state(self, state: Any) -> None:
        """Continue where `get_state` returned `state`; drop what was written after that."""
        self.close()
        if state is not None and jax.process_index() == 0:
            self._hold()
            self._do(lambda: self.on_set_state(state))
            self._worker.stop()
            self._state, self._begun = state, True

    @property
    def place(self) -> str:
        """Where it writes, as an absolute path."""
        return self._name

    def _write(self, record: Record) -> None:
        try:
            host = record.on_host()
            self._writing_since = time.monotonic()
            self.on_write(host)
            if time.monotonic() - self._writing_since > _LONG:
                self._warn(f"took over {_LONG:g} s to write one record")
        except Exception as error:  # noqa: BLE001 - a sink never stops a run
            self._warn("failed to write a record, which is lost", error)
        finally:
            self._writing_since = None

    def _flush_and_get_state(self) -> None:
        self.on_flush()
        self._state = self.on_get_state()

    def _hold(self) -> None:
        """Close another sink with the same files, and wait until it has written its records."""
        if self._held is None:
            return
        place = os.path.realpath(self._held)
        other = _holders.get(place)
        if other is not None and other is not self:
            other.close()
            other._worker.stop()  # also if it failed to start
            if not other._worker.ended(_PATIENCE):
                raise SlowWriteError(
                    f"The sink {other._name} of an earlier run is still writing its records to "
                    f"{place!r}, after {_PATIENCE:g} s; their records would mix. Wait for it, or "
                    f"log to another path."
                )
        _holders[place] = self

    def _stuck(self) -> bool:
        return self._gave_up_at == self._worker.done

    def _do(self, job: Callable[[], object]) -> None:
        """Run a job on the thread that the run cannot start without."""
        if self._stuck():
            raise SlowWriteError(
                f"The sink {self._name} is still writing a record of an earlier run. Wait for it, "
                f"or log to another path."
            )
        self._worker.call(job)

    def _ask(self, job: Callable[[], object]) -> bool:
        """Run a job on the thread and wait for it; wait only briefly if the thread is stuck.

        Returns:
            Whether it was done in time.
        """
        try:
            self._worker.call(job, min(self._timeout, _AGAIN) if self._stuck() else self._timeout)
        except TimeoutError:
            self._gave_up_at = self._worker.done
            self._warn(f"is not done with its records after {self._timeout:g} s")
            return False
        except Exception as error:  # noqa: BLE001 - a sink never stops a run
            self._warn("failed to flush", error)
        return True

    def _warn(self, what: str, error: Exception | None = None) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                "The sink %s %s%s. Training continues; this is logged only once.",
                self._name,
                what,
                "" if error is None else f": {type(error).__name__}: {error}",
            )


def _check_record(record: object) -> None:
    if not {"mode", "step"} <= set(arguments.mapping(record, "record")):
        raise InvalidValueError(
            f"record is expected to hold `mode`, `step` and metrics; it is "
            f"{arguments.describe(record)}."
        )


def local_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return a local path as an absolute one, which a later `chdir` does not change.

    Raises:
        TypeError: It is not a path.
        ValueError: It is empty, or a URL.

    >>> local_path("gs://bucket/run")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: path is expected to be local; 'gs://bucket/run' is a URL. \
Copy the files later.
    """
    found = arguments.path(path, name)
    if arguments.is_url(path):
        raise InvalidValueError(
            f"{name} is expected to be local; {os.fspath(path)!r} is a URL. Copy the files later."
        )
    return found


def name_below(name: str) -> str:
    """Return a name as a relative path, with a directory before each slash, that cannot escape.

    >>> [name_below(name) for name in ("val", "val/hard", "../val", "/val", "a//b", "")]
    ['val', 'val/hard', '_/val', '_/val', 'a/_/b', '_']
    """
    parts = whole(name).replace("\0", "_").split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)


def check_hyperparameters(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return hyperparameters as a dict of names; None is empty."""
    return {} if values is None else arguments.mapping(values, "hyperparameters")


def require(package: str, sink: str, extra: str) -> None:
    """Import what a sink needs, or raise an ImportError that says how to install it."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingPackageError(
            f"loggers.{sink} needs the package {package!r}, which is not installed: "
            f"pip install 'jax-solstice[{extra}]'"
        ) from error
