"""Many processes as one: what `jax.distributed` starts, and what processes agree on between steps.

Agreeing goes through jax's coordination service, not through the devices, so that it may happen in
any thread, and a process that is gone is noticed in bounded time.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax

from solstice.sharding.batches import batch_size

# All processes make the same calls, so that the same number names the same exchange.
_numbers = itertools.count()

_logger = logging.getLogger("solstice")


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int = 100,
    shutdown_timeout_seconds: int = 30,
    **options: Any,
) -> None:
    """Make this process one of many; call it first, before anything touches a device.

    Without addresses, jax finds them where Slurm, Open MPI or GKE started the processes. On CPUs,
    Gloo does what is collective.

    Args:
        coordinator_address: Host and port of process 0, such as "localhost:1234".
        num_processes: How many there are.
        process_id: Which one this is, from 0.
        heartbeat_timeout_seconds: After how long without a sign of life a process counts as dead,
            which ends the others.
        shutdown_timeout_seconds: How long a process that ends waits for the others to end too.
        **options: More of `jax.distributed.initialize`.

    >>> import solstice
    >>> solstice.sharding.initialize("localhost:1234", 2, 0)  # doctest: +SKIP
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        shutdown_timeout_seconds=shutdown_timeout_seconds,
        **options,
    )
    _logger.info("This is process %d of %d.", jax.process_index(), jax.process_count())


def is_first_process() -> bool:
    """Say whether this process is the one that logs and writes; a single process always is.

    >>> is_first_process()
    True
    """
    return jax.process_index() == 0


def ticket() -> int:
    """Return a number that is the same in all processes, which all ask for it at the same point."""
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
    # A part may be large; a process that is gone is noticed by other means.
    said = exchange(label, text, patience=12 * PATIENCE)
    if failure is not None:
        raise failure
    for i, one in enumerate(said):
        if one.startswith("failed "):
            raise RuntimeError(f"In process {i}: {one.removeprefix('failed ')}")
    return [one.removeprefix("done ") for one in said]


def exchange(label: str, text: str, patience: int | None = None) -> list[str]:
    """Return what each process says under a label that is used once; all processes call it.

    Raises:
        RuntimeError: A process has not said anything for `patience` seconds, or `PATIENCE`.

    >>> exchange("colour", "blue")
    ['blue']
    """
    if jax.process_count() == 1:
        return [text]
    from jax._src import distributed  # jax has no public door to its coordination service

    client = distributed.global_state.client
    if client is None:
        raise RuntimeError("Call solstice.sharding.initialize() first.")
    patience = patience or PATIENCE
    client.key_value_set(f"solstice/{label}/{jax.process_index()}", text)
    said = []
    for process in range(jax.process_count()):
        try:
            key = f"solstice/{label}/{process}"
            said.append(client.blocking_key_value_get(key, patience * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise RuntimeError(
                f"Process {process} has said nothing for {patience} s about {label!r}: it has "
                f"ended, is stuck, or does something else than this one. All processes are "
                f"expected to make the same calls of train, test and predict. Look at its log, "
                f"and resume the run from its last checkpoint."
            ) from error
    return said


# How many seconds a process waits for another one to come to the same point.
PATIENCE = 300


def check_same(what: str, digest: str) -> None:
    """Raise where a digest is another one in another process.

    Raises:
        ValueError: The processes are named.
    """
    said = exchange(f"{what}-{next(_numbers)}", digest)
    others = [i for i, one in enumerate(said) if one != said[0]]
    if others:
        raise ValueError(
            f"{what} is expected to be the same in all processes at a run's start; in "
            f"{', '.join(f'process {i}' for i in others)} it differs from process 0's. Make it "
            f"of the same seeds, or restore it from one checkpoint."
        )


def in_step(
    source: Iterator[Any], *, strict: bool = False
) -> Iterator[tuple[Any, list[int | None]]]:
    """Yield batches, with the sizes that all processes have, for as long as each process has one.

    Args:
        source: This process's batches.
        strict: Whether it is an error that a process has more batches than another.

    Raises:
        ValueError: They have not as many, and `strict` says that they must.

    >>> list(in_step(iter([[jax.numpy.zeros(3)]])))[0][1]
    [3]
    """
    label = f"batches-{next(_numbers)}"
    for i in itertools.count():
        batch = next(source, _NO_BATCH)
        said = exchange(f"{label}/{i}", "end" if batch is _NO_BATCH else str(batch_size(batch)))
        if "end" in said:
            if strict and {*said} != {"end"}:
                raise ValueError(
                    f"Every process is expected to have as many batches, or some would be left "
                    f"out; after {i} batches, process {said.index('end')} has no more. Give each "
                    f"as many."
                )
            if batch is not _NO_BATCH:
                ended = ", ".join(str(j) for j, one in enumerate(said) if one == "end")
                _logger.info("A pass ends after %d batches, where process %s does.", i, ended)
            return
        yield batch, [None if one == "None" else int(one) for one in said]


_NO_BATCH = object()
