"""The metrics of a pass so far, shown next to a progress bar.

A step only keeps its outs and sometimes merges many in one call. Numbers are computed and read when
the bar is drawn, at most ten times a second, and only if the device has finished them.
"""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from solstice.errors import UsageError
from solstice.metrics.accumulator import is_hosted, merge_all
from solstice.metrics.base import is_metrics
from solstice.metrics.named import named_values, reported_name

_logger = logging.getLogger("solstice")

# How many outs may wait to be merged: at most, and for drawing to merge them one by one.
_WAITING = 64
_FEW = 8
_WAITING_BYTES = 16 * 2**20
_USUAL = ("loss", "average_loss", "accuracy")


class Running:
    """The merged metrics of a pass so far, as texts.

    At the end of a pass they equal what a callback logs: both merge the same outs. Metrics that
    cannot be merged or computed are left out.

    Args:
        names: The names in `compute()` to show, with or without `average_`; None shows the loss and
            the accuracy, or the first two numbers if there are neither.

    >>> from solstice.metrics import ClassificationMetrics
    >>> running = Running(None)
    >>> for target in (0, 1, 1, 1):
    ...     running.add(ClassificationMetrics([1], [target], loss=0.5, num_classes=2))
    >>> running.end()
    ('loss=0.5000', 'accuracy=0.7500')
    """

    def __init__(self, names: tuple[str, ...] | None) -> None:
        self._names = names
        # The outs to merge, in order. Drawing does not change them, so the groups merged are the
        # ones that a callback merges too, which are compiled once.
        self._outs: list[object] = []
        # How many of them may wait; None before the first, 0 if nothing is shown.
        self._room: int | None = None
        # What is being read, and from how many of the outs.
        self._merged: object = None
        self._seen = 0
        self._numbers: Mapping[str, jax.Array] | None = None
        self._said: tuple[str, ...] = ()

    def add(self, outs: object) -> None:
        """Add what one call of a step returned."""
        if self._room is None:
            self._room = 0  # unless that is known
            with self._left_out_where_it_fails():
                self._room = _room(outs)
        if self._room:
            self._outs.append(outs)
            if len(self._outs) > self._room:
                with self._left_out_where_it_fails():
                    self._outs, self._seen = [_merged(self._outs)], 0

    def look(self) -> tuple[str, ...]:
        """Return the newest texts whose numbers are ready, without waiting."""
        with self._left_out_where_it_fails():
            if self._numbers is not None and all(map(_is_ready, self._numbers.values())):
                self._said, self._numbers = _texts(self._numbers), None
            new = self._outs[self._seen :]
            # Many are merged soon.
            if self._numbers is None and 0 < len(new) <= _FEW:
                for one in new:
                    self._merged = one if self._seen == 0 else _merged([self._merged, one])
                    self._seen += 1
                self._numbers = _numbers(self._merged, self._names)
        return self._said

    def end(self) -> tuple[str, ...]:
        """Return the texts of the whole pass; waits for the device."""
        with self._left_out_where_it_fails():
            if self._outs:
                self._said = _texts(_numbers(_merged(self._outs), self._names))
        self.drop()
        return self._said

    def drop(self) -> None:
        """Drop all outs, and take no more."""
        self._outs, self._seen, self._room = [], 0, 0
        self._merged = self._numbers = None

    @contextlib.contextmanager
    def _left_out_where_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a bar stops no run
            _logger.info(
                "The progress bar shows no metrics, since they cannot be merged or computed: %s: "
                "%s",
                type(error).__name__,
                error,
            )
            self.drop()
            self._said = ()


def _room(outs: object) -> int:
    """Return how many such outs may wait; 0 if there is nothing to show."""
    leaves = jax.tree.leaves(outs, is_leaf=is_hosted)
    if not (is_metrics(outs) and leaves and all(map(eqx.is_array, leaves))):
        return 0
    size = sum(leaf.nbytes for leaf in leaves)
    return 0 if size > _WAITING_BYTES else max(2, min(_WAITING, _WAITING_BYTES // max(size, 1)))


def _merged(outs: list[object]) -> object:
    if len(outs) == 1:
        return outs[0]
    merged = merge_all(outs)
    first, whole = ([leaf.shape for leaf in jax.tree.leaves(one)] for one in (outs[0], merged))
    if first != whole:
        raise UsageError(
            f"A bar shows metrics of one size; {type(merged).__name__} grows when it is merged."
        )
    return merged


@partial(jax.jit, static_argnums=1)
def _numbers(metrics: object, names: tuple[str, ...] | None) -> OrderedDict[str, jax.Array]:
    computed = named_values(metrics)
    numbers = {name: jnp.asarray(one) for name, one in computed.items() if _is_number(one)}
    if names is None:
        names = tuple(name for name in _USUAL if name in numbers) or tuple(numbers)[:2]
    full = {name: reported_name(name, numbers) for name in names}
    missing = [name for name in names if full[name] is None]
    if missing:
        _say_missing(", ".join(map(repr, missing)), ", ".join([*numbers][:12]))
    return OrderedDict((one, numbers[one]) for one in full.values() if one is not None)


@cache
def _say_missing(missing: str, given: str) -> None:
    """Say it once."""
    _logger.warning(
        "The progress bar has no %s. compute() returns numbers named %s.", missing, given
    )


def _is_ready(array: Any) -> bool:  # jax does not declare the method
    return array.is_ready()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, jax.Array) and value.ndim == 0)


def _texts(numbers: Mapping[str, jax.Array]) -> tuple[str, ...]:
    return tuple(
        f"{name.removeprefix('average_')}={_short(value.item())}"
        for name, value in jax.device_get(numbers).items()
    )


def _short(value: complex | str) -> str:
    return f"{value:#.4g}".rstrip(".") if isinstance(value, float) else str(value)
