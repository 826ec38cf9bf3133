"""The metrics of an ensemble: each member's, stacked, and their spread."""

import re
from collections import OrderedDict
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, UsageError
from solstice.metrics.base import Metrics, is_metrics
from solstice.metrics.checks import is_traced
from solstice.metrics.directions import Direction, better
from solstice.metrics.left_out import tell, told_elsewhere
from solstice.metrics.named import Values, named_values
from solstice.signatures import overrides
from solstice.tree.pytree import PyTree


class EnsembleMetrics(Metrics):
    """The metrics of N members; they merge member by member.

    For each scalar of the members, `compute()` gives the mean over the members under the same name
    (so a callback can watch "accuracy"), the standard deviation (`ddof=0`) as `{name}_std`, and
    each member's value as `{name}_member_{i}`. Other values have only the last.

    Attributes:
        members: The members' metrics, with the member as the first axis of each array.

    >>> import jax, solstice
    >>> from solstice.metrics import EnsembleMetrics
    >>> def one(pred):
    ...     return solstice.ClassificationMetrics(pred[None], [1], loss=0.5, num_classes=2)
    >>> metrics = EnsembleMetrics(jax.vmap(one)(jax.numpy.array([0, 1, 1, 1])))
    >>> metrics.merge(metrics).per_member()["accuracy"].tolist()
    [0.0, 1.0, 1.0, 1.0]
    >>> computed = metrics.compute()
    >>> float(computed["accuracy"]), round(float(computed["accuracy_std"]), 3)
    (0.75, 0.433)
    >>> float(computed["accuracy_member_0"])
    0.0
    """

    members: PyTree

    def __check_init__(self) -> None:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(self.members)]
        if not is_metrics(self.members) or len({shape[:1] for shape in shapes} - {()}) != 1:
            raise InvalidTypeError(
                f"members are expected to be metrics whose arrays all have the member as their "
                f"first axis; they are {describe(self.members)}. Stack them with jax.vmap."
            )

    @property
    def num_members(self) -> int:
        return jax.tree.leaves(self.members)[0].shape[0]

    def member(self, i: int) -> PyTree:
        """Return one member's metrics.

        Raises:
            IndexError: There is no such member.
        """
        i = arguments.index(i, "i", self.num_members, "members")
        return jax.tree.map(lambda leaf: leaf[i], self.members)

    def merge(self, other: Self) -> Self:
        """Return the metrics of both sets of examples, member by member.

        Raises:
            UsageError: `other` does not have as many members.
        """
        if type(other) is not type(self) or other.num_members != self.num_members:
            raise UsageError(
                f"EnsembleMetrics of {self.num_members} members merges only with the same kind; "
                f"it got {describe(other)}. Give every step the same ensemble."
            )
        try:
            merged = jax.vmap(lambda one, two: one.merge(two))(self.members, other.members)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # it reads values on the host
            both = zip(self._each(), other._each(), strict=True)
            merged = _stack([one.merge(two) for one, two in both])
        return type(self)(merged)

    def compute(self) -> Values:
        """Return mean, spread and each member's value of the members' computed values."""
        computed, nested = {}, isinstance(self.members, EnsembleMetrics)
        with told_elsewhere():
            every = self.per_member()
        if not is_traced(self.members):
            tell(self)
        for name, values in every.items():
            # Means and spreads over an inner ensemble's members would have the names of the outer
            # ones, so they are reported only for each outer member.
            inner = nested and (is_of_member(name) or name.endswith("_std"))
            if values.ndim == 1 and not inner:
                with np.errstate(invalid="ignore"):  # the spread of infinite losses is NaN
                    computed |= {name: values.mean(), f"{name}_std": values.std()}
            computed |= {member_name(name, i): value for i, value in enumerate(values)}
        return computed

    def better(self, name: str) -> Direction | None:
        """Return the members' direction of a mean or a member's value; a spread has none."""
        name = _MEMBER.sub(r"\1", name)
        return None if name.endswith("_std") else better(self.member(0), name)

    def per_member(self) -> Values:
        """Return what the members compute, by name, as arrays with a first axis of members."""
        if is_traced(self.members):
            return dict(jax.vmap(_computed)(self.members))
        try:
            values = _computed_each(self.members)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, TypeError):
            values = _stack([_computed(one) for one in self._each()])
        return {name: np.asarray(value) for name, value in jax.device_get(values).items()}

    def check(self) -> None:
        """Raise if a member's metrics show bad input."""
        if isinstance(self.members, Metrics) and overrides(self.members, Metrics, "check"):
            for one in self._each():
                one.check()

    def left_out(self) -> tuple[Array, ...]:
        return self.members.left_out() if isinstance(self.members, Metrics) else ()

    def left_out_for(self) -> tuple[tuple[str, ...], ...]:
        return self.members.left_out_for() if isinstance(self.members, Metrics) else ()

    def _each(self) -> list[PyTree]:
        host = jax.device_get(self.members)
        return [
            jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), host)
            for i in range(self.num_members)
        ]


# A member, and those of the ensembles within it.
_MEMBER = re.compile(r"_member_\d+((?:_member_\d+)*)$")


def is_of_member(name: str) -> bool:
    """Return whether a value is one member's."""
    return _MEMBER.search(name) is not None


def member_name(name: str, i: int) -> str:
    """Return the name of a member's value; the outer ensemble's member comes first.

    >>> member_name("accuracy", 2), member_name("accuracy_member_0", 2)
    ('accuracy_member_2', 'accuracy_member_2_member_0')
    """
    found = _MEMBER.search(name)
    start = len(name) if found is None else found.start()
    return f"{name[:start]}_member_{i}{name[start:]}"


def _computed(metrics: PyTree) -> OrderedDict[str, PyTree]:
    return OrderedDict(named_values(metrics))  # jax sorts the names of a plain dict


_computed_each = jax.jit(jax.vmap(_computed))


def _stack(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves))), *trees)
