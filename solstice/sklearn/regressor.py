"""A scikit-learn regressor: one or several numbers per example, any network."""

from typing import Any, Self

import jax
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import RegressorMixin

from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.experiments.regression import RegressionExperiment
from solstice.experiments.supervised import SupervisedExperiment
from solstice.sklearn.estimator import Estimator


class Regressor(RegressorMixin, Estimator):
    """A scikit-learn regressor with a network of any library.

    It trains a `RegressionExperiment` on `data.Arrays`, with one or several numbers per example.
    Scale targets that are far from 1, for example with scikit-learn's `TransformedTargetRegressor`.

    Args:
        net: A network that returns as many numbers as an example of `y` has; otherwise as in
            `Classifier`, with `outputs` the number of these.
        optimizer: As in `Classifier`, like all others.
        epochs: See `optimizer`.
        batch_size: See `optimizer`.
        random_state: See `optimizer`.
        validation_fraction: See `optimizer`.
        callbacks: See `optimizer`.
        experiment_options: Further options of `RegressionExperiment`, such as `{"loss": loss}`.
        progress: See `optimizer`.

    Attributes:
        experiment_: The trained `RegressionExperiment`.
        n_features_in_: The size of the second axis of `X`.
        feature_names_in_: The names of its columns, if it had some.

    >>> import functools, numpy as np, optax
    >>> from jax.example_libraries import stax
    >>> from solstice.sklearn import Regressor
    >>> X = np.linspace(-1, 1, 64)[:, None]
    >>> line = Regressor(stax.Dense(1), functools.partial(optax.adam, 0.1), epochs=50)
    >>> line = line.set_params(random_state=0).fit(X, 3 * X[:, 0] + 1)
    >>> line.predict([[0.0], [0.5]]).round(1)
    array([1. , 2.5])
    """

    _axes: int

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train a new network.

        Args:
            X: The inputs, `(examples, ...)`.
            y: The targets, `(examples,)` or `(examples, outputs)`.
            sample_weight: As in `Classifier.fit`.

        Raises:
            ValueError: Inputs, targets, weights or an argument of the estimator are wrong, or the
                network does not have one output per target.
            TypeError: No adapter knows the network or the optimizer.
        """
        x, y, weight = self._checked(X, y, sample_weight, reset=True)
        self._fit(_width(y), (x, y, weight))
        self._axes = y.ndim
        return self

    def partial_fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train for one more pass, over this data.

        Args:
            X: As in `fit`.
            y: As in `fit`, with the same number of axes and outputs in each call.
            sample_weight: As in `Classifier.partial_fit`.

        Raises:
            ValueError: As in `fit`.
        """
        first = not self.__sklearn_is_fitted__()
        x, y, weight = self._checked(X, y, sample_weight, reset=first)
        recipe = self._new_recipe(x, _width(y)) if first else self._recipe
        if not first and (y.ndim, _width(y)) != (self._axes, recipe.outputs):
            form = "(examples,)" if self._axes == 1 else f"(examples, {recipe.outputs})"
            raise InvalidValueError(
                f"y is expected to be of shape {form}, as in the first call; it is {describe(y)}."
            )
        self._one_more_pass(recipe, (x, y, weight))
        self._axes = y.ndim
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted numbers as float64, of the shape of `y`."""
        outputs = self._outputs(X).astype(np.float64)
        return outputs.reshape(len(outputs), -1) if self._axes == 2 else outputs.reshape(-1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _checked(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        x, y = self._inputs(X, y, reset=reset, multi_output=True, y_numeric=True)
        floats = jax.dtypes.canonicalize_dtype(np.float64)
        with np.errstate(over="ignore"):
            y = np.asarray(y).astype(floats, copy=False)
        if not np.isfinite(y).all():
            raise InvalidValueError(
                f"y is expected to hold numbers that {floats} can hold; {(~np.isfinite(y)).sum()} "
                f"of {y.size} are too large. Scale the targets."
            )
        return x, y, self._weights(sample_weight, x)

    def _experiment(self, network: Any, optimizer: Any, **options: Any) -> SupervisedExperiment:
        return RegressionExperiment(network, optimizer, **options)

    def _check_outputs(self, outputs: Any, count: int) -> None:
        if outputs.shape not in [(1, count), *([(1,)] if count == 1 else [])]:
            raise InvalidValueError(
                f"The network is expected to return {count} number{'s' * (count != 1)} for an "
                f"example of y, of shape (examples, {count}); it returns {outputs.shape} for one "
                f"example. Change its last layer, or give a function that makes it: "
                f"Regressor(lambda outputs: Network(outputs), ...)."
            )

    def _targets(self, y: np.ndarray, outputs: Any) -> np.ndarray:
        return y.reshape(len(y), *outputs.shape[1:])


def _width(y: np.ndarray) -> int:
    """Return how many numbers an example has."""
    return 1 if y.ndim == 1 else y.shape[1]
