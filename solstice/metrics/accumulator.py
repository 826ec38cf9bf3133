"""Merging the metrics of many steps on the host side of a loop, cheaply and in bounded memory.

A merge per step would dispatch as much work as a small step itself. Here the steps' metrics wait
in a short buffer, which one compiled call folds, in order, into the running total.
"""

from typing import Any

import equinox as eqx
import jax

from solstice.metrics.base import reduce

_WAITING = 32
_WAITING_BYTES = 16 * 2**20


class Accumulator:
    """The running merge of the metrics added to it, in the order they were added.

    Not a pytree: it lives beside a loop, never inside a step.

    >>> from solstice.metrics import Accumulator, ClassificationMetrics
    >>> seen = Accumulator()
    >>> for target in (0, 1, 1, 1):
    ...     seen.add(ClassificationMetrics([1], [target], loss=0.0, num_classes=2))
    >>> float(seen.pop().compute()["accuracy"]), seen.pop()
    (0.75, None)
    """

    def __init__(self) -> None:
        self._waiting: list[Any] = []
        self._room = 0

    def add(self, metrics: Any) -> None:
        """Take one step's metrics in."""
        if not self._waiting:
            size = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(metrics))
            self._room = min(_WAITING, max(2, _WAITING_BYTES // max(size, 1)))
        self._waiting.append(metrics)
        if len(self._waiting) > self._room:
            self._fold()

    def pop(self) -> Any:
        """Return everything merged so far and start anew; None when nothing was added."""
        if not self._waiting:
            return None
        self._fold()
        return self._waiting.pop()

    def _fold(self) -> None:
        if len(self._waiting) > 1:
            self._waiting = [merge_all(self._waiting)]


def merge_all(metrics: list[Any]) -> Any:
    """Return what `reduce` does, by one compiled call where that is possible.

    >>> from solstice.metrics import ClassificationMetrics
    >>> ones = [ClassificationMetrics([1], [1], loss=0.0, num_classes=2)] * 5
    >>> int(merge_all(ones).count)
    5
    """
    # Metrics with other leaves than arrays (strings, Python objects) merge eagerly: under jit
    # each new value would compile again. So do those whose merge reads values on the host.
    if all(eqx.is_array(leaf) for leaf in jax.tree.leaves(metrics)):
        try:
            return _jitted_reduce(metrics)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            return reduce(metrics)
    return reduce(metrics)


_jitted_reduce = jax.jit(reduce)
