"""The numbers beside a progress bar: what the metrics of a pass say so far.

A step pays for keeping its outs, and, now and then, for one call that merges those of many.
Computing and reading happen when the bar is drawn, ten times a second at most, and only what the
device has finished is read.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache, partial, wraps
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp

from solstice.errors import UsageError
from solstice.metrics.accumulator import is_hosted, merge_all
from solstice.metrics.base import is_metrics
from solstice.metrics.named import named_values, reported_name

_logger = logging.getLogger("solstice")

# How many outs wait to be merged: at most, and for a drawing to merge them one by one.
_WAITING = 64
_FEW = 8
_WAITING_BYTES = 16 * 2**20
_USUAL = ("loss", "average_loss", "accuracy")


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _stopping_nothing(method: _Method) -> _Method:
    """Return a method that leaves the metrics out where it fails, for they are only shown."""

    @wraps(method)
    def trying(self: "Running", *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except Exception as error:  # noqa: BLE001 - a bar stops no run
            _logger.info(
                "The progress bar is without metrics, which it cannot merge or compute: %s: %s",
                type(error).__name__,
                error,
            )
            self.drop()
            self._said = ()
            return self._said

    return cast("_Method", trying)


class Running:
    """The merged metrics of a pass so far, a text each.

    At the end of a pass it says what a callback logs of it: both merge the same outs.

    Args:
        names: Which values of `compute()`, with or without `average_`; None takes the loss and the
            accuracy, or the first two numbers where there are neither.

    >>> from solstice.metrics import ClassificationMetrics
    >>> running = Running(None)
    >>> for target in (0, 1, 1, 1):
    ...     running.add(ClassificationMetrics([1], [target], loss=0.5, num_classes=2))
    >>> running.end()
    ('loss=0.5000', 'accuracy=0.7500')
    """

    def __init__(self, names: tuple[str, ...] | None) -> None:
        self._names = names
        # In order, what is merged first. Drawing leaves them as they are, so that they are merged
        # in the same numbers, which are compiled once, as those that a callback logs.
        self._outs: list[Any] = []
        self._room = 0
        # What is looked at, and of how many of the outs that is.
        self._merged: Any = None
        self._seen = 0
        self._numbers: Mapping[str, jax.Array] | None = None
        self._said: tuple[str, ...] = ()
        # Takes in one call's outs. Not a method, for it is called at each step.
        self.add: Callable[[Any], None] = self._add_first

    @_stopping_nothing
    def look(self) -> tuple[str, ...]:
        """Return the newest texts whose numbers the device has; nothing is waited for."""
        if self._numbers is not None:
            if not all(map(_is_ready, self._numbers.values())):
                return self._said
            self._said, self._numbers = _texts(self._numbers), None
        new = self._outs[self._seen :]
        if not new or len(new) > _FEW:  # many are merged soon
            return self._said
        for one in new:
            self._merged = one if self._seen == 0 else _merged([self._merged, one])
            self._seen += 1
        self._numbers = _numbers(self._merged, self._names)
        return self._said

    @_stopping_nothing
    def end(self) -> tuple[str, ...]:
        """Return the texts of the whole pass, once the device has its numbers."""
        if self._outs:
            self._said = _texts(_numbers(_merged(self._outs), self._names))
        self.drop()
        return self._said

    def drop(self) -> None:
        """Let go of all outs."""
        self.add, self._outs, self._seen = _ignore, [], 0
        self._merged = self._numbers = None

    @_stopping_nothing
    def _add_first(self, outs: Any) -> None:
        leaves = jax.tree.leaves(outs, is_leaf=is_hosted)
        shown = is_metrics(outs) and bool(leaves) and all(map(eqx.is_array, leaves))
        size = sum(leaf.nbytes for leaf in leaves) if shown else 0
        if not shown or size > _WAITING_BYTES:
            self.add = _ignore
            return
        self._room = max(2, min(_WAITING, _WAITING_BYTES // max(size, 1)))
        self._outs, self.add = [outs], self._add_next

    def _add_next(self, outs: Any) -> None:
        self._outs.append(outs)
        if len(self._outs) > self._room:
            self._fold()

    @_stopping_nothing
    def _fold(self) -> None:
        self._outs, self._seen = [_merged(self._outs)], 0


def _merged(outs: list[Any]) -> Any:
    if len(outs) == 1:
        return outs[0]
    merged = merge_all(outs)
    if _shapes(merged) != _shapes(outs[0]):
        raise UsageError(
            f"A bar shows metrics of one size; {type(merged).__name__} grows when it is merged."
        )
    return merged


def _shapes(metrics: Any) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(metrics)]


def _ignore(outs: Any) -> None:
    return


@partial(jax.jit, static_argnums=1)
def _numbers(metrics: Any, names: tuple[str, ...] | None) -> OrderedDict[str, jax.Array]:
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
    _logger.warning("The progress bar has no %s. compute() gives numbers named %s.", missing, given)


def _is_ready(array: Any) -> bool:
    return array.is_ready()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (eqx.is_array(value) and value.ndim == 0)


def _texts(numbers: Mapping[str, jax.Array]) -> tuple[str, ...]:
    return tuple(
        f"{name.removeprefix('average_')}={_short(value.item())}"
        for name, value in jax.device_get(numbers).items()
    )


def _short(value: Any) -> str:
    return f"{value:#.4g}".rstrip(".") if isinstance(value, float) else str(value)
