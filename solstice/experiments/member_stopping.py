"""Early stopping of an ensemble's members, each on its own: a rule, and where each stands in it.

It is traced with the ensemble's steps. A run ends by callbacks, as any other.
"""

from typing import Any, Literal, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from solstice.errors import InvalidValueError, UsageError
from solstice.metrics import EnsembleMetrics
from solstice.tree import replace


class MemberStopping(eqx.Module):
    """Stops a member once a metric has not improved in `patience` validation passes in a row.

    A stopped member stays as it is: the other members' steps leave its arrays alone. The value of a
    pass is the mean over its batches of what the metric says of each; for one batch, or batches of
    one size and a metric that is a mean, it is the metric over the pass. It is judged when training
    goes on. A NaN is never an improvement.

    Attributes:
        metric: The name in the members' `compute()`.
        mode: Whether a smaller ("min") or a larger ("max") value is better.
        patience: After how many passes without improvement a member stops.
        min_delta: How much better than the best so far counts as an improvement.

    >>> from solstice.experiments import MemberStopping
    >>> MemberStopping("average_loss", patience=3).mode
    'min'
    """

    metric: str = eqx.field(static=True)
    mode: Literal["min", "max"] = eqx.field(static=True, default="min")
    patience: int = eqx.field(static=True, default=5)
    min_delta: float = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise InvalidValueError(f"mode is expected to be 'min' or 'max'; it is {self.mode!r}.")
        if self.patience < 1:
            raise InvalidValueError(
                f"patience is expected to be at least 1; it is {self.patience}."
            )


class Standing(eqx.Module):
    """Where each member stands: its best value, how long it has waited, the pass in hand."""

    rule: MemberStopping
    best: Float[Array, " members"]
    waited: Int[Array, " members"]
    total: Float[Array, " members"]
    batches: Int[Array, ""]

    @classmethod
    def start(cls, rule: MemberStopping, num_members: int) -> Self:
        worst = jnp.full(num_members, jnp.inf if rule.mode == "min" else -jnp.inf)
        none = jnp.zeros(num_members, jnp.int32)
        return cls(rule, worst, none, jnp.zeros(num_members), jnp.zeros((), jnp.int32))

    @property
    def active(self) -> Bool[Array, " members"]:
        return self.waited < self.rule.patience

    def judged(self) -> Self:
        """Return it with the pass in hand judged, if there is one."""
        value = self.total / jnp.maximum(self.batches, 1)
        gain = self.best - value if self.rule.mode == "min" else value - self.best
        # The first value improves on an infinite one by an infinity, whatever min_delta is.
        better = gain > self.rule.min_delta
        due = (self.batches > 0) & self.active
        return replace(
            self,
            best=jnp.where(due & better, value, self.best),
            waited=jnp.where(due, jnp.where(better, 0, self.waited + 1), self.waited),
            total=jnp.zeros_like(self.total),
            batches=jnp.zeros_like(self.batches),
        )

    def after(self, outs: Any) -> Self:
        """Return it after one more batch of a validation pass.

        Raises:
            UsageError: The members' outs are no metrics, or have no metric of that name.
        """
        name = self.rule.metric
        computed = outs.per_member() if isinstance(outs, EnsembleMetrics) else {}
        if name not in computed:
            raise UsageError(
                f"MemberStopping watches {name!r} in the Metrics of the members' eval_step; there "
                f"is {', '.join(computed) or 'none'}."
            )
        return replace(
            self,
            total=self.total + computed[name].astype(self.total.dtype),
            batches=self.batches + 1,
        )


def where_active(active: Bool[Array, " members"], new: list[Array], old: list[Array]) -> list[Any]:
    """Return the new arrays of the members that are active and the old ones of the others."""

    def choose(after: Array, before: Array) -> Array:
        if after is before:
            return after
        return jax.lax.select(jax.lax.broadcast_in_dim(active, after.shape, (0,)), after, before)

    return list(map(choose, new, old))
