"""Task: what is learned from targets, for `SupervisedExperiment` to learn it.

It knows no network, no optimizer and no batch.
"""

import abc
from typing import Any

import numpy as np
from jaxtyping import Array

from solstice.metrics import Metrics


class Task(abc.ABC):
    """What is learned: what targets and outputs look like, a loss and a metric.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> from solstice.experiments import SupervisedExperiment, Task
    >>> class Signs(Task):
    ...     def check_outputs(self, outputs, targets=None):
    ...         pass
    ...
    ...     def check_targets(self, targets, real):
    ...         pass
    ...
    ...     def losses(self, outputs, targets):
    ...         return jnp.maximum(0, 1 - targets * outputs[..., 0]), None
    ...
    ...     def metrics(self, outputs, targets, loss, mask):
    ...         right = outputs[..., 0] * targets > 0
    ...         return solstice.metrics.MetricsDict(
    ...             accuracy=solstice.metrics.Mean(right, mask=mask)
    ...         )
    >>> x, y = jnp.array([[1.0], [-1.0], [2.0]]), jnp.array([1, -1, 1])
    >>> exp = SupervisedExperiment(
    ...     Signs(), stax.serial(stax.Dense(1)), optax.sgd(0.5), example_input=x, key=0
    ... )
    >>> exp.train(20, [(x, y)], progress=False).test([(x, y)], progress=False)
    {'accuracy': 1.0}
    """

    @abc.abstractmethod
    def check_outputs(self, outputs: Any, targets: Any = None) -> None:
        """Raise unless a network's outputs (arrays or their shapes) are of the task's form."""

    @abc.abstractmethod
    def check_targets(self, targets: Any, real: np.ndarray) -> None:
        """Raise for wrong targets of a first batch; on the host, where values can be looked at."""

    @abc.abstractmethod
    def losses(self, outputs: Array, targets: Array) -> tuple[Array, Array | None]:
        """Return a loss for each position, and where there is one; None for everywhere."""

    @abc.abstractmethod
    def metrics(self, outputs: Array, targets: Array, loss: Array, mask: Array | None) -> Metrics:
        """Return a batch's metrics; `loss` is its mean loss."""
