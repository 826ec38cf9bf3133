"""Learning rates, added to the metrics of a record if an experiment has them.

They are computed on the device, like metrics; nothing waits for them before they are read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from solstice.compat.rates import learning_rates
from solstice.loggers.records import Computed
from solstice.sharding.arrays import local_tree
from solstice.tree.flat import Flat


class Rates:
    """Adds the learning rates of an experiment to its computed metrics.

    Whether it has any is found by tracing, once; without any, nothing more is done.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)),
    ...     optax.inject_hyperparams(optax.sgd)(0.5),
    ...     example_input=jnp.ones((1, 4)),
    ...     key=0,
    ... )
    >>> Rates().beside({"loss": 0.25}, lambda: exp)
    {'loss': 0.25, 'learning_rate': 0.5}
    """

    def __init__(self) -> None:
        self._told: bool | None = None

    def beside(
        self, computed: Mapping[str, Any], experiment: Callable[[], Any] | None
    ) -> Mapping[str, Any]:
        """Return computed metrics with the learning rates, whose names must not be taken.

        Args:
            computed: Computed metrics, by name.
            experiment: Returns the experiment; None if it is not known.
        """
        if experiment is None or self._told is False:
            return computed
        flat = Flat.of(experiment())
        if self._told is None:
            self._told = _tells(flat)
            if not self._told:
                return computed
        rates = local_tree(_rates(flat))
        if isinstance(computed, Computed):
            return computed.beside(rates)
        own = dict(computed)
        return {**own, **{name: one for name, one in rates.on_host().items() if name not in own}}


def known_rates(exp: Any) -> dict[str, Any]:
    """Return the learning rates of an experiment or of its optimizers."""
    own = exp.learning_rates()
    return learning_rates(exp) if own is None else own


def _tells(flat: Flat) -> bool:
    try:
        return bool(jax.tree.leaves(_rates.eval_shape(flat)))  # traced once per structure
    except jax.errors.JAXTypeError:  # a user's optimizer that reads its rate
        return False


# The steps donate the experiment's buffers, so values shown later must be copies.
_rates = jax.jit(lambda flat: Computed(known_rates(flat.whole())))
