"""Learning rates beside the metrics of a record, where an experiment tells them.

They are computed on the device, as metrics are, and nothing waits for them before they are read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from solstice.compat.rates import learning_rates
from solstice.loggers.records import Computed
from solstice.sharding.arrays import local_tree
from solstice.tree.flat import Flat


class Rates:
    """Adds the learning rates of an experiment to what its metrics say.

    Whether it tells any is found by tracing, once; one that does not costs nothing more.

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
        """Return computed metrics with the learning rates whose names they have not.

        Args:
            computed: What metrics say, by name.
            experiment: Returns the experiment; None where nobody knows it.
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
    """Return the learning rates of an experiment, which tells them itself or by its optimizers."""
    own = exp.learning_rates()
    return learning_rates(exp) if own is None else own


def _tells(flat: Flat) -> bool:
    try:
        return bool(jax.tree.leaves(_rates.eval_shape(flat)))  # traced once for each structure
    except jax.errors.JAXTypeError:  # an optimizer of the user's own, which reads its rate
        return False


# The steps take the experiment's buffers: what is shown later must not be one of them.
_rates = jax.jit(lambda flat: Computed(known_rates(flat.whole())))
