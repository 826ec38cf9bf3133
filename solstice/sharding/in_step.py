"""Batches in step: processes take one batch each, as long as all have one."""

import logging
from collections.abc import Iterator
from typing import Protocol

from solstice.errors import InvalidValueError, ProcessError
from solstice.sharding.arrays import batch_size
from solstice.sharding.processes import exchange, forget, say, ticket
from solstice.tree.pytree import PyTree

_logger = logging.getLogger("solstice")

_NO_BATCH = object()
# The least number of exchanges that the coordination service keeps.
_KEPT = 100


class _Signals(Protocol):
    received: int | None

    def check(self) -> None: ...


def in_step(
    source: Iterator[PyTree], *, strict: bool = False, signals: _Signals | None = None
) -> Iterator[tuple[PyTree, list[int | None]]]:
    """Yield batches and the sizes in all processes, as long as every process has one.

    Args:
        source: This process's batches.
        strict: Whether it is an error if a process has more batches than another.
        signals: The `Signals` of the run: one in any process ends all of them before the same
            batch.

    Raises:
        RuntimeError: A process has left the pass early.
        ValueError: They have different numbers of batches, and `strict` is True.

    >>> import jax
    >>> list(in_step(iter([[jax.numpy.zeros(3)]])))[0][1]
    [3]
    """
    # Numbered now, since a thread that reads ahead takes the first batch later.
    return _in_step(source, f"batches-{ticket()}", strict, signals)


def _in_step(
    source: Iterator[PyTree], label: str, strict: bool, signals: _Signals | None
) -> Iterator[tuple[PyTree, list[int | None]]]:
    i, over = 0, False
    try:
        while True:
            batch, i = next(source, _NO_BATCH), i + 1
            text = "end" if batch is _NO_BATCH else str(batch_size(batch))
            if signals is not None and signals.received is not None:
                text = f"signal {signals.received}"
            said = exchange(f"{label}/{(i - 1) // _KEPT}/{i - 1}", text)
            if i % _KEPT == 1 and i > 1:
                forget(f"{label}/{i // _KEPT - 1}")  # every process has read these by now
            if "left" in said:
                raise ProcessError(
                    f"Process {said.index('left')} has left this pass after {i - 1} batches, while "
                    f"others continue: its run failed, or a callback stopped it. Look at its log; "
                    f"a callback that stops a run must do so in all processes.",
                    process=said.index("left"),
                )
            numbers = [int(one.split()[1]) for one in said if one.startswith("signal")]
            if signals is not None and (over := bool(numbers)):
                signals.received = signals.received or numbers[0]
                signals.check()
            if over := "end" in said:
                if strict and {*said} != {"end"}:
                    raise InvalidValueError(
                        f"Every process is expected to have as many batches, or some would be left "
                        f"out; after {i - 1} batches, process {said.index('end')} has no more. "
                        f"Give each as many."
                    )
                if batch is not _NO_BATCH:
                    ended = ", ".join(str(j) for j, one in enumerate(said) if one == "end")
                    _logger.info("A pass ends after %d batches, where %s does.", i - 1, ended)
                return
            yield batch, [None if one == "None" else int(one) for one in said]
    finally:
        if not over:  # the others must not wait for this process's next batch
            say(f"{label}/{i // _KEPT}/{i}", "left")
