"""Examples that metrics could not count, such as labels out of range, and a warning about them.

A run warns on the logger `solstice` at the end of each pass; outside a run, `compute()` warns.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice.metrics.base import Metrics
from solstice.tree.pytree import AnyArray, PyTree

_logger = logging.getLogger("solstice")

# This many steps are counted in one compiled call, since a call for each would take as long as a
# small step. A confusion matrix may be large, so fewer may wait.
_WAITING = 64
_WAITING_BYTES = 8 * 2**20

# One for each context that warns instead.
_tellers: list[None] = []


@contextlib.contextmanager
def told_elsewhere() -> Iterator[None]:
    """Keep `compute()` from warning: in a run, callbacks and sinks call it many times per pass."""
    _tellers.append(None)
    try:
        yield
    finally:
        _tellers.pop()


def tell(metrics: Metrics, where: str = "") -> None:
    """Warn about what some metrics left out, unless the run does."""
    if not _tellers:
        tally = LeftOut()
        tally.add(metrics)
        tally.tell(where)


class LeftOut:
    """How many examples the metrics of a pass left out, for each reason.

    >>> import solstice
    >>> tally = LeftOut()
    >>> for label in (0, 9, 9):
    ...     tally.add(solstice.ClassificationMetrics([0], [label], loss=0.0, num_classes=2))
    >>> [text[:43] for text in tally.texts()]
    ['2 examples had a label that is not a class ']
    """

    def __init__(self) -> None:
        self._kind: type[Metrics] | None = None
        self._reasons: tuple[tuple[str, ...], ...] = ()
        self._waiting: list[Metrics] = []
        self._room = 0
        self._totals: list[Array] | None = None

    def add(self, outs: PyTree) -> None:
        """Add what a step returned; only metrics of this library report what they leave out."""
        if type(outs) is not self._kind:
            self._begin(outs)
        if self._room:
            self._waiting.append(outs)
            if len(self._waiting) == self._room:
                self._totals = _fold(self._totals, self._columns(), self._widths)
                self._waiting = []

    def texts(self) -> list[str]:
        """Return a message for each reason."""
        found = []
        for i, (reasons, column) in enumerate(zip(self._reasons, self._columns(), strict=True)):
            parts = [one[..., -len(reasons) :] for one in jax.device_get(column)]
            if self._totals is not None:
                parts.append(np.asarray(self._totals[i]))
            total = np.sum(parts, axis=0)
            # The most of any member of an ensemble, since members may share their batches.
            numbers = total.reshape(-1, total.shape[-1]).max(0)
            for number, reason in zip(numbers, reasons, strict=True):
                if number:
                    found.append(f"{number} example{'s' if number > 1 else ''} {reason}")
        return found

    def tell(self, where: str = "") -> None:
        """Log a warning."""
        for text in self.texts():
            _logger.warning("%s%s.", where, text)

    def _begin(self, outs: PyTree) -> None:
        known = isinstance(outs, Metrics)
        arrays = outs.left_out() if known else ()
        if self._reasons and (known and outs.left_out_for()) != self._reasons:
            return  # what does not merge with the others either
        self._kind = type(outs)
        self._reasons = outs.left_out_for() if known else ()
        self._widths = tuple(map(len, self._reasons))
        size = sum(array.nbytes for array in arrays)
        self._room = min(_WAITING, max(2, _WAITING_BYTES // size)) if arrays else 0

    def _columns(self) -> list[list[AnyArray]]:
        # On the class, since an Equinox module makes a new object for each method lookup.
        rows = [type(one).left_out(one) for one in self._waiting]
        return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in self._reasons]


@functools.partial(jax.jit, static_argnums=2)
def _fold(
    totals: list[Array] | None, columns: list[list[AnyArray]], widths: tuple[int, ...]
) -> list[Array]:
    ends = [
        jnp.stack([one[..., -width:] for one in column]).sum(0, dtype=column[0].dtype)
        for column, width in zip(columns, widths, strict=True)
    ]
    return ends if totals is None else jax.tree.map(jnp.add, totals, ends)
