"""Many processes as one: what `jax.distributed` starts, and what processes agree on between steps.

Agreeing goes through jax's coordination service, not through the devices, so that it may happen in
any thread, and a process that is gone is noticed in bounded time.
"""

import logging
from typing import Any

import jax

_logger = logging.getLogger("solstice")


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int = 100,
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
        **options,
    )
    _logger.info("This is process %d of %d.", jax.process_index(), jax.process_count())


def is_first_process() -> bool:
    """Say whether this process is the one that logs and writes; a single process always is.

    >>> is_first_process()
    True
    """
    return jax.process_index() == 0
