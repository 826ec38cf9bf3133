"""The numbers beside a progress bar: the newest metrics of a pass, read when somebody looks.

A step pays for keeping a reference to its outs. Merging, computing and reading happen when the bar
is drawn, ten times a second at most, and only what the device has finished is read.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from solstice.metrics import Accumulator, is_metrics, merge_all, named_values
from solstice.metrics.accumulator import is_hosted
from solstice.metrics.named import reported_name

_logger = logging.getLogger("solstice")

_RECENT = 32
_RECENT_BYTES = 16 * 2**20
_USUAL = ("loss", "average_loss", "accuracy")


class Running:
    """The metrics of a pass's newest calls, as a text.

    Args:
        names: Which values of `compute()`, with or without `average_`; None takes the loss and the
            accuracy, or the first two numbers where there are neither.
        whole: Whether the end of the pass tells of all its steps, and not of the newest ones.

    >>> from solstice.metrics import ClassificationMetrics
    >>> running = Running(None, whole=False)
    >>> for target in (0, 1, 1, 1):
    ...     running.add(ClassificationMetrics([1], [target], loss=0.5, num_classes=2))
    >>> running.end()
    'loss=0.5000 accuracy=0.7500'
    """

    def __init__(self, names: tuple[str, ...] | None, *, whole: bool) -> None:
        self._names = names
        self._recent: deque[Any] = deque()
        self._all = Accumulator() if whole else None
        self._waiting: Mapping[str, jax.Array] | None = None
        self._text = ""
        # Takes in one call's outs. Not a method, for it is called at each step.
        self.add: Callable[[Any], None] = self._add_first

    def look(self) -> str:
        """Return the newest text whose numbers the device has; nothing is waited for."""
        if self._waiting is not None:
            if not all(map(_is_ready, self._waiting.values())):
                return self._text
            self._text = _text(self._waiting)
        # Only a full window, or one call's outs: each other length would be compiled by itself.
        full = len(self._recent) == self._recent.maxlen
        self._waiting = self._numbers(list(self._recent) if full else list(self._recent)[-1:])
        return self._text

    def end(self) -> str:
        """Return the text of the pass, once the device has its numbers."""
        merged = None if self._all is None else self._all.pop()
        numbers = self._numbers(list(self._recent) if merged is None else [merged])
        self.drop()
        return self._text if numbers is None else _text(numbers)

    def drop(self) -> None:
        """Let go of all outs."""
        self.add, self._recent, self._all, self._waiting = _ignore, deque(), None, None

    def _add_first(self, outs: Any) -> None:
        leaves = jax.tree.leaves(outs, is_leaf=is_hosted)
        shown = is_metrics(outs) and bool(leaves) and all(map(eqx.is_array, leaves))
        size = sum(leaf.nbytes for leaf in leaves) if shown else 0
        if not shown or size > _RECENT_BYTES:
            self.add = _ignore
            return
        self._recent = deque(maxlen=max(1, min(_RECENT, _RECENT_BYTES // max(size, 1))))
        self.add = self._recent.append if self._all is None else self._add_to_both
        self.add(outs)

    def _add_to_both(self, outs: Any) -> None:
        assert self._all is not None
        self._recent.append(outs)
        self._all.add(outs)

    def _numbers(self, outs: list[Any]) -> Mapping[str, jax.Array] | None:
        if not outs:
            return None
        try:
            return _numbers(outs, self._names)
        except Exception as error:  # noqa: BLE001 - a bar stops no run
            self.drop()
            kind = type(outs[0]).__name__
            _logger.info(
                "The progress bar is without metrics, as %s.compute() does not compile: %s: %s",
                kind,
                type(error).__name__,
                error,
            )
            return None


def _ignore(outs: Any) -> None:
    return


@partial(jax.jit, static_argnums=1)
def _numbers(outs: list[Any], names: tuple[str, ...] | None) -> OrderedDict[str, jax.Array]:
    computed = named_values(merge_all(outs))
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


def _text(numbers: Mapping[str, jax.Array]) -> str:
    return " ".join(
        f"{name.removeprefix('average_')}={_short(value.item())}"
        for name, value in jax.device_get(numbers).items()
    )


def _short(value: Any) -> str:
    return f"{value:#.4g}".rstrip(".") if isinstance(value, float) else str(value)
