"""Early stopping of single members of an ensemble: the rule, and each member's state.

It is traced with the ensemble's steps. It does not end the run; callbacks do.
"""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from solstice import arguments
from solstice.errors import UsageError
from solstice.metrics.directions import Direction, better, check_mode, known
from solstice.metrics.ensemble import EnsembleMetrics
from solstice.metrics.named import meant_name, reported_name
from solstice.tree.fields import replace


class MemberStopping(eqx.Module):
    """Stops a member once a metric has not improved in `patience` validation passes in a row.

    The arrays of a stopped member no longer change. The value of a pass is the mean of the metric
    over its batches; for one batch, or for batches of one size and a metric that is a mean, it
    equals the metric over the pass. It is compared when training goes on. A NaN is never an
    improvement.

    Attributes:
        metric: The name in the members' `compute()`; `loss` finds `average_loss`.
        mode: Whether a smaller ("min") or a larger ("max") value is better. None asks the metric,
            which knows it for the standard names (`solstice.metrics.direction`).
        patience: The number of passes without improvement after which a member stops.
        min_delta: How much better than the best so far counts as an improvement.

    >>> from solstice.experiments import MemberStopping
    >>> rule = MemberStopping("accuracy", patience=3)
    >>> rule.metric, rule.mode
    ('accuracy', None)
    """

    metric: str = eqx.field(static=True)
    mode: Direction | None = eqx.field(static=True, default=None)
    patience: int = eqx.field(static=True, default=5)
    min_delta: float = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        arguments.text(self.metric, "metric")
        check_mode(self.mode)
        arguments.count(self.patience, "patience")
        arguments.number(self.min_delta, "min_delta", least=0)

    def is_about(self, metric: str, mode: Direction | None) -> bool:
        """Return whether this rule keeps the best values of a metric, in a direction."""
        same = metric == self.metric or reported_name(metric, [self.metric]) is not None
        same = same or reported_name(self.metric, [metric]) is not None
        return same and mode in (None, self.mode)


class Standing(eqx.Module):
    """Each member's state: its best value, how long it has waited, the current pass.

    Values are signed so that larger is better; the first validation shows which sign that is.
    """

    rule: MemberStopping
    best: Float[Array, " members"]
    waited: Int[Array, " members"]
    total: Float[Array, " members"]
    batches: Int[Array, ""]

    @classmethod
    def start(cls, rule: MemberStopping, num_members: int) -> Self:
        worst = jnp.full(num_members, -jnp.inf)
        none = jnp.zeros(num_members, jnp.int32)
        return cls(rule, worst, none, jnp.zeros(num_members), jnp.zeros((), jnp.int32))

    @property
    def active(self) -> Bool[Array, " members"]:
        return self.waited < self.rule.patience

    def judged(self) -> Self:
        """Return the state after the current pass, if there is one."""
        value = self.total / jnp.maximum(self.batches, 1).astype(self.total.dtype)
        # The first value improves on an infinite one by an infinity, whatever min_delta is.
        better = value - self.best > self.rule.min_delta
        due = (self.batches > 0) & self.active
        return replace(
            self,
            best=jnp.where(due & better, value, self.best),
            waited=jnp.where(due, jnp.where(better, 0, self.waited + 1), self.waited),
            total=jnp.zeros_like(self.total),
            batches=jnp.zeros_like(self.batches),
        )

    def after(self, outs: Any) -> Self:
        """Return the state after one more batch of a validation pass.

        Raises:
            UsageError: The members' outs are not metrics, have no number of that name, or its
                direction is not known.
        """
        computed = outs.per_member() if isinstance(outs, EnsembleMetrics) else {}
        numbers = [name for name, values in computed.items() if values.ndim == 1]
        name = reported_name(self.rule.metric, numbers)
        if name is None:
            raise UsageError(
                f"MemberStopping watches {self.rule.metric!r} in the Metrics of the members' "
                f"eval_step, a number; there is {', '.join(numbers) or 'none'}."
                f"{meant_name(self.rule.metric, numbers)}"
            )
        mode = self.rule.mode or known(
            better(outs, name), name, f"MemberStopping({name!r}, mode='min') or 'max'"
        )
        values = computed[name].astype(self.total.dtype)
        values = values if mode == "max" else -values
        return replace(self, total=self.total + values, batches=self.batches + 1)


def where_active(active: Bool[Array, " members"], new: list[Array], old: list[Array]) -> list[Any]:
    """Return the new arrays of the members that are active and the old ones of the others."""

    def choose(after: Array, before: Array) -> Array:
        if after is before:
            return after
        return jax.lax.select(jax.lax.broadcast_in_dim(active, after.shape, (0,)), after, before)

    return list(map(choose, new, old))
