"""F1, recall and precision from counted decisions, for each class or label.

`ClassificationMetrics` and `MultiLabelMetrics` average them.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice.metrics import sums
from solstice.metrics.base import Metrics
from solstice.metrics.checks import is_traced
from solstice.metrics.left_out import tell
from solstice.metrics.named import Values
from solstice.tree.pytree import AnyArray

Ratio = Callable[..., Any]


def computed(
    metrics: Metrics,
    counts: Array,
    loss: Array,
    report: Callable[[Any, AnyArray, Any, ModuleType], tuple[Values, Values]],
) -> Values:
    """Return the values of a report, by name, and warn of examples left out.

    Args:
        metrics: The metrics of the report.
        counts: Its counts.
        loss: The sum of its losses, as a pair (see `sums`).
        report: A function of metrics, counts, loss and an array module (numpy or jax.numpy) that
            returns the averages and the numbers of each class.
    """
    if is_traced(metrics):
        averages, per_class = report(metrics, counts, sums.value(loss), jnp)
    else:
        # On the host, since XLA would take as long to compile it as a small network's training
        # step.
        counts, loss = jax.device_get((counts, loss))
        averages, per_class = report(metrics, counts, loss[0], np)
        tell(metrics)
    return averages | {
        f"{name}_class_{i}": values[i]
        for name, values in per_class.items()
        for i in range(len(values))
    }


def scores_of(
    correct: AnyArray | np.number,
    support: AnyArray | np.number,
    predicted: AnyArray | np.number,
    ratio: Ratio,
) -> Values:
    """Return F1, recall and precision; 0 if the denominator is 0.

    Args:
        correct: How often a class was predicted correctly.
        support: How often it was a target.
        predicted: How often it was predicted.
        ratio: `ratio_of`, bound to a module and a type.
    """
    return {
        "f1": ratio(2 * correct, support + predicted),
        "tpr": ratio(correct, support),
        "ppv": ratio(correct, predicted),
    }


def ratio_of(
    numerator: AnyArray | np.number,
    denominator: AnyArray | np.number,
    *,
    xp: ModuleType,
    dtype: np.dtype,
    empty: float = 0.0,
) -> AnyArray | np.number:
    """Return `numerator / denominator`, and `empty` where the denominator is 0.

    >>> ratio_of(np.array([1, 0]), np.array([2, 0]), xp=np, dtype=np.dtype("float32")).tolist()
    [0.5, 0.0]
    """
    safe = xp.maximum(denominator, 1).astype(dtype)
    value = numerator.astype(dtype) / safe
    return xp.where(denominator > 0, value, xp.asarray(empty, dtype))[()]
