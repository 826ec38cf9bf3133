"""Records: logged values, on their way from the device to the sinks.

Nothing waits for the device before a value is read. Each record is brought to the host once for all
sinks.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from solstice.errors import InvalidValueError
from solstice.loggers.values import to_host
from solstice.metrics.named import named_values
from solstice.tree.flat import Flat

# The reserved fields of a record.
RESERVED = ("mode", "epoch", "step", "time")


class Record(Mapping[str, Any]):
    """Mode, epoch, step and time, and the metrics, by name, in that order.

    Reading a metric waits for the device.
    """

    def __init__(self, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        self._about = dict(about)
        self._metrics = metrics if isinstance(metrics, Computed) else dict(metrics)
        self._host: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def on_host(self) -> dict[str, Any]:
        """Return all of it as Python numbers and numpy arrays."""
        with self._lock:
            if self._host is None:
                self._host = {**self._about, **on_host(self._metrics)}
        return dict(self._host)

    @property
    def nbytes(self) -> int:
        metrics = self._metrics
        if isinstance(metrics, Computed):
            return metrics.nbytes
        return sum(getattr(value, "nbytes", 0) for value in metrics.values())

    def __getitem__(self, name: str) -> Any:
        return self._about[name] if name in self._about else self.on_host()[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._about, *self._metrics])

    def __len__(self) -> int:
        return len(self._about) + len(self._metrics)


@jax.tree_util.register_pytree_node_class
class Computed(Mapping[str, Any]):
    """What `compute()` returned, on the device; scalars of one dtype share an array."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        groups: dict[object, list[Any]] = {}
        others = []
        layout = []
        for name, value in values.items():
            if eqx.is_array(value) and value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.generic):
                group = groups.setdefault(value.dtype, [])
                layout.append((name, list(groups).index(value.dtype), len(group)))
                group.append(value)
            else:
                layout.append((name, None, len(others)))
                others.append(value)
        self._stacks = [jnp.stack(group) for group in groups.values()]
        self._others = Flat.of(others)
        self._layout = tuple(layout)

    def on_host(self) -> dict[str, Any]:
        """Return all values as Python numbers and numpy arrays."""
        numbers = [stack.tolist() for stack in jax.device_get(self._stacks)]
        others = self._others.whole()
        host = {
            name: others[place] if group is None else numbers[group][place]
            for name, group, place in self._layout
        }
        return to_host(host) if others else host

    def beside(self, more: "Computed") -> "Computed":
        """Return these values, and others under names that these do not have.

        >>> import jax.numpy as jnp
        >>> loss, rate = (Computed({name: jnp.ones(())}) for name in ("loss", "rate"))
        >>> loss.beside(rate).on_host()
        {'loss': 1.0, 'rate': 1.0}
        """
        first, others, own = len(self._stacks), self._others.whole(), set(self)
        layout = [
            (n, None, len(others) + i) if group is None else (n, first + group, i)
            for n, group, i in more._layout
            if n not in own
        ]
        stacks = [*self._stacks, *more._stacks]
        others = Flat.of([*others, *more._others.whole()])
        return Computed.tree_unflatten((*self._layout, *layout), (stacks, others))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in [*self._stacks, *self._others.arrays])

    def __getitem__(self, name: str) -> Any:
        return self.on_host()[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _, _ in self._layout)

    def __len__(self) -> int:
        return len(self._layout)

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self._stacks, self._others), self._layout

    @classmethod
    def tree_unflatten(cls, layout: Any, children: Any) -> "Computed":
        computed = object.__new__(cls)
        computed._stacks, computed._others = children
        computed._layout = layout
        return computed


def compute(metrics: Any) -> Mapping[str, Any]:
    """Return `metrics.compute()` by name, in one compiled call if it can be compiled.

    A `compute` that reads its arrays on the host is not compiled. One that compiles must depend
    only on the metrics.

    >>> import jax.numpy as jnp, solstice
    >>> metrics = solstice.ClassificationMetrics([1, 0], [1, 1], loss=0.5, num_classes=2)
    >>> compute(metrics)["accuracy"]
    0.5
    """
    if type(metrics) not in _EAGER and all(map(eqx.is_array, jax.tree.leaves(metrics))):
        try:
            return _compiled(metrics)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            _EAGER.add(type(metrics))
    return named_values(metrics)


def on_host(computed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `compute` returned as Python numbers and numpy arrays."""
    return computed.on_host() if isinstance(computed, Computed) else to_host(dict(computed))


_EAGER: set[type] = set()
_compiled = jax.jit(lambda metrics: Computed(named_values(metrics)))


def make_record(metrics: Mapping[str, Any], **about: Any) -> Record:
    """Return a record: mode, epoch, step, time and the metrics.

    Raises:
        ValueError: A metric has the name of a reserved field.

    >>> list(make_record({"loss": 0.5}, mode="val", epoch=0, step=100))
    ['mode', 'epoch', 'step', 'time', 'loss']
    """
    taken = sorted(set(metrics).intersection(RESERVED))
    if taken:
        raise InvalidValueError(
            f"The fields {', '.join(RESERVED)} of a record are reserved; compute() returned a "
            f"metric named {taken[0]!r}. Rename it."
        )
    return Record({**about, "time": time.time()}, metrics)
