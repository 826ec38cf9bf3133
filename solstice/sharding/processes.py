"""Processes: starting `jax.distributed`, and agreement of processes between steps.

Processes agree through jax's coordination service, not through the devices, so any thread may do
it, and a missing process is noticed in bounded time.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable
from typing import Any

import jax

from solstice import arguments
from solstice.errors import InvalidValueError, ProcessError

# All processes make the same calls, so the same number names the same exchange.
_numbers = itertools.count()

_logger = logging.getLogger("solstice")


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int = 15,
    shutdown_timeout_seconds: int = 30,
    **options: Any,
) -> None:
    """Make this process one of many; call it before anything uses a device.

    Without addresses, jax finds them where Slurm, Open MPI or GKE started the processes. On CPUs,
    Gloo runs the collectives.

    Args:
        coordinator_address: Host and port of process 0, such as "localhost:1234".
        num_processes: The number of processes.
        process_id: The index of this process, from 0.
        heartbeat_timeout_seconds: After how long without a heartbeat a process counts as dead; the
            others then end with an error.
        shutdown_timeout_seconds: How long a process that ends waits for the others to end.
        **options: More arguments of `jax.distributed.initialize`.

    >>> import solstice
    >>> solstice.sharding.initialize("localhost:1234", 2, 0)  # doctest: +SKIP
    """
    if coordinator_address is not None:
        arguments.text(coordinator_address, "coordinator_address")
    if num_processes is not None:
        num_processes = arguments.count(num_processes, "num_processes")
    if process_id is not None:
        process_id = arguments.count(process_id, "process_id", least=0)
    heartbeat, shutdown = (
        arguments.count(heartbeat_timeout_seconds, "heartbeat_timeout_seconds"),
        arguments.count(shutdown_timeout_seconds, "shutdown_timeout_seconds"),
    )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=shutdown,
        **options,
    )
    _logger.info("This is process %d of %d.", jax.process_index(), jax.process_count())


def is_first_process() -> bool:
    """Return whether this process logs and writes; a single process always does.

    >>> is_first_process()
    True
    """
    return jax.process_index() == 0


def ticket() -> int:
    """Return a number that is the same in all processes, if all call it at the same point."""
    return next(_numbers)


def together(label: str, action: Callable[[], str]) -> list[str]:
    """Return what an action returned in each process, or raise in all if it raised in one.

    >>> together("greeting", lambda: "hello")
    ['hello']
    """
    failure = None
    try:
        text = f"done {action()}"
    except Exception as error:  # noqa: BLE001 - raised once the others know
        failure, text = error, f"failed {type(error).__name__}: {error}"
    # A part may be large; a missing process is noticed by other means.
    said = exchange(label, text, patience=12 * PATIENCE)
    if failure is not None:
        raise failure
    for i, one in enumerate(said):
        if one.startswith("failed "):
            raise ProcessError(f"In process {i}: {one.removeprefix('failed ')}", process=i)
    return [one.removeprefix("done ") for one in said]


def exchange(label: str, text: str, patience: int | None = None) -> list[str]:
    """Return each process's text under a label that is used once; all processes call it.

    Raises:
        RuntimeError: A process did not answer for `patience` seconds, or `PATIENCE`.

    >>> exchange("colour", "blue")
    ['blue']
    """
    if jax.process_count() == 1:
        return [text]
    client = _client()
    patience = patience or PATIENCE
    client.key_value_set(f"solstice/{label}/{jax.process_index()}", text)
    said = []
    for process in range(jax.process_count()):
        try:
            key = f"solstice/{label}/{process}"
            said.append(client.blocking_key_value_get(key, patience * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise ProcessError(
                f"Process {process} has not answered for {patience} s about {label!r}: it has "
                f"ended, is stuck, or does something else than this one. All processes are "
                f"expected to make the same calls of train, test and predict. Look at its log, "
                f"and resume the run from its last checkpoint.",
                process=process,
            ) from error
    return said


def _client() -> Any:
    from jax._src import distributed  # jax has no public API for its coordination service

    client = distributed.global_state.client
    if client is None:
        raise ProcessError("Call solstice.sharding.initialize() first.")
    return client


def say(label: str, text: str) -> None:
    """Send a text without waiting for the others or for a service that is gone."""
    if jax.process_count() > 1:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(f"solstice/{label}/{jax.process_index()}", text)


def forget(label: str) -> None:
    """Delete the texts under a label and those below it."""
    if is_first_process() and jax.process_count() > 1:
        _client().key_value_delete(f"solstice/{label}")


# How many seconds a process waits for others to reach the same point.
PATIENCE = 300


def check_same(what: str, digest: str) -> None:
    """Raise if a digest differs between processes.

    Raises:
        ValueError: The message names the processes.
    """
    said = exchange(f"{what}-{next(_numbers)}", digest)
    others = [i for i, one in enumerate(said) if one != said[0]]
    if others:
        raise InvalidValueError(
            f"{what} is expected to be the same in all processes at a run's start; in "
            f"{', '.join(f'process {i}' for i in others)} it differs from process 0's. Make it "
            f"from the same seeds, or restore it from one checkpoint."
        )
