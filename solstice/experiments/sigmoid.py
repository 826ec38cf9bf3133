"""What tasks with sigmoid outputs share: one logit per question, and targets of 0 and 1."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from solstice.experiments.task import check_losses, check_shown
from solstice.metrics.checks import as_binary, check_label_type, check_labels

LossFn = Callable[[Array, Array], Array]


def sigmoid_cross_entropy(
    logits: Float[Array, "*positions"], targets: Num[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """Return the negative log-probability of each target under the sigmoid of its logit, in nats.

    >>> import jax.numpy as jnp
    >>> sigmoid_cross_entropy(jnp.zeros(2), jnp.array([0, 1]))
    Array([0.6931472, 0.6931472], dtype=float32)
    """
    return jax.nn.softplus(logits) - targets.astype(logits.dtype) * logits


def check_binary(targets: Any, real: np.ndarray) -> None:
    """Raise if targets of a first batch are neither 0 nor 1.

    Raises:
        TypeError: They are not real numbers.
        ValueError: They are other numbers.
    """
    check_label_type(targets, "targets")
    shown = np.asarray(targets)[real]
    check_shown(
        shown,
        (shown == 0) | (shown == 1),
        "Targets are expected to be 0 or 1",
        "Targets of -1 and 1 become (y + 1) // 2. Mask unknown targets, or name their value: "
        "ignore_index=. For more than two classes use ClassificationExperiment, for other numbers "
        "RegressionExperiment.",
    )


def losses_of(
    loss: LossFn, logits: Array, targets: Array, *, smoothing: float, positive_weight: Any
) -> tuple[Array, Array]:
    """Return the loss of each question, and which have one: those whose target is 0 or 1."""
    yes, valid = as_binary(check_labels(targets, "targets"))
    labels = yes.astype(logits.dtype)
    losses = loss(logits, labels * (1 - smoothing) + smoothing / 2 if smoothing else labels)
    check_losses(losses, labels.shape, "loss(logits, targets)")
    if positive_weight != 1:
        weight = jnp.broadcast_to(jnp.asarray(positive_weight, losses.dtype), losses.shape)
        losses = losses * jnp.where(yes, weight, 1)
    return losses, valid


def mean_logits(logits: Float[Array, "members ..."]) -> Float[Array, "..."]:
    """Return as logits the mean of the probabilities along the first axis.

    >>> mean_logits(jnp.array([[2.0], [-2.0]]))
    Array([0.], dtype=float32)
    """
    yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(one), axis=0) for one in (logits, -logits))
    return yes - no
