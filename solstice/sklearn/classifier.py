"""A classifier of scikit-learn: any labels, any network."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.experiments.classification import ClassificationExperiment
from solstice.experiments.supervised import SupervisedExperiment
from solstice.sklearn.estimator import Estimator


class Classifier(ClassifierMixin, Estimator):
    """A scikit-learn classifier with a network of any library.

    It trains a `ClassificationExperiment` on `data.Arrays`. `X` is of shape `(examples, ...)`;
    floats become float32, integers stay integers. Labels are anything that scikit-learn takes, also
    strings. With the same `random_state`, a fit gives the same numbers.

    Args:
        net: A network with a logit for each class, two for two classes: anything that
            `compat.as_model` takes, or a function that makes it, called with as many of `(outputs,
            example, key)` as it requires: the number of classes, one example (zeros, of shape `(1,
            ...)`) and a key that depends on `random_state`. A network that has weights starts each
            fit with them.
        optimizer: Anything that `compat.as_optimizer` takes, or a function without arguments that
            makes it. An optax optimizer cannot be pickled; `functools.partial(optax.adam, 1e-3)`
            can.
        epochs: How many passes over the data `fit` takes.
        batch_size: How many examples a batch has.
        random_state: The randomness of weights, dropout and the order of the examples: a seed, a
            `numpy.random.RandomState`, or None for numpy's global one.
        validation_fraction: The share of the examples to hold out, stratified, for the validation
            that callbacks watch; None for none.
        callbacks: As in `solstice.train`, or a function without arguments that makes them.
        experiment_options: Further options of `ClassificationExperiment`, such as
            `{"label_smoothing": 0.1}`.
        progress: As in `solstice.train`.

    Attributes:
        classes_: The labels, sorted; the network's outputs are in this order.
        experiment_: The trained `ClassificationExperiment`.
        n_features_in_: The size of the second axis of `X`.
        feature_names_in_: The names of its columns, if it had some.

    >>> import functools, optax
    >>> from jax.example_libraries import stax
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from solstice.sklearn import Classifier
    >>> def network(outputs):
    ...     return stax.serial(stax.Dense(16), stax.Relu, stax.Dense(outputs))
    >>> adam = functools.partial(optax.adam, 0.01)
    >>> flowers = Classifier(network, adam, epochs=20, random_state=0)
    >>> flowers
    Classifier(net=network, optimizer=adam, epochs=20, random_state=0)
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), flowers)
    >>> cross_val_score(pipeline, X, y, cv=3).mean() > 0.9
    np.True_
    """

    classes_: np.ndarray

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train a new network.

        Args:
            X: The inputs, `(examples, ...)`.
            y: The labels, `(examples,)`, of two classes or more.
            sample_weight: `(examples,)`: the weights of the losses; they are divided by their mean.

        Raises:
            ValueError: Inputs, labels, weights or an argument of the estimator are wrong, or the
                network does not have one output per class.
            TypeError: No adapter knows the network or the optimizer.
        """
        x, y, weight = self._checked(X, y, sample_weight, reset=True)
        classes = np.unique(y)
        counted = classes if weight is None else np.unique(y[weight > 0])
        if len(counted) < 2:
            raise InvalidValueError(
                f"y is expected to have two classes or more (of a sample_weight above 0); it has "
                f"{len(counted)} class: {counted.tolist()}."
            )
        self._fit(len(classes), (x, _codes(y, classes), weight))
        self.classes_ = classes
        return self

    def partial_fit(
        self,
        X: Any,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train for one more pass, over this data.

        Args:
            X: As in `fit`.
            y: As in `fit`.
            classes: All labels that will ever occur; needed in the first call.
            sample_weight: As in `fit`, but not divided by their mean.

        Raises:
            ValueError: As in `fit`; or `classes` are missing or differ from before, or `y` has
                another label.
        """
        first = not self.__sklearn_is_fitted__()
        if first and classes is None:
            raise InvalidValueError(
                "classes are expected in the first call of partial_fit, since later data may have "
                "others than these: partial_fit(X, y, classes=[...])."
            )
        named = None if classes is None else _labels(classes)
        known = self.classes_ if named is None or not first else named
        if named is not None and not np.array_equal(named, known):
            raise InvalidValueError(
                f"classes are expected to be the same as before, {known.tolist()}; they are "
                f"{named.tolist()}."
            )
        x, y, weight = self._checked(X, y, sample_weight, reset=first)
        if unknown := sorted(set(y.tolist()) - set(known.tolist())):
            raise InvalidValueError(
                f"y is expected to have labels of the classes {known.tolist()}; it has {unknown}. "
                f"Name all of them in the first call, or call fit."
            )
        recipe = self._new_recipe(x, len(known)) if first else self._recipe
        self._one_more_pass(recipe, (x, _codes(y, known), weight))
        self.classes_ = known
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each example, `(examples,)`."""
        chosen = self._logits(X).argmax(-1)
        return self.classes_[chosen]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of `classes_`, `(examples, classes)`: the logits' softmax."""
        return softmax(self._logits(X), axis=-1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities."""
        return log_softmax(self._logits(X), axis=-1)

    def _logits(self, X: Any) -> np.ndarray:
        return self._outputs(X).astype(np.float64)

    def _checked(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        x, y = self._inputs(X, y, reset=reset)
        check_classification_targets(y)
        return x, y, self._weights(sample_weight, x)

    def _experiment(self, network: Any, optimizer: Any, **options: Any) -> SupervisedExperiment:
        return ClassificationExperiment(network, optimizer, **options)

    def _check_outputs(self, outputs: Any, count: int) -> None:
        if outputs.shape != (1, count):
            raise InvalidValueError(
                f"The network is expected to return a logit for each of the {count} classes of y, "
                f"of shape (examples, {count}); it returns {outputs.shape} for one example. Change "
                f"its last layer, or give a function that makes it: Classifier(lambda outputs: "
                f"Network(outputs), ...)."
            )

    def _targets(self, y: np.ndarray, outputs: Any) -> np.ndarray:
        return y


def _codes(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the index of each label in the sorted classes."""
    return np.searchsorted(classes, y).astype(np.int32)


def _labels(classes: Any) -> np.ndarray:
    """Return the user's classes, sorted."""
    try:
        found = np.asarray(classes)
        found = np.unique(found) if found.ndim == 1 else None
    except (TypeError, ValueError):  # a ragged list, or labels that cannot be ordered
        found = None
    if found is None or len(found) < 2:
        raise InvalidValueError(
            f"classes are expected to be two labels or more, such as ['no', 'yes']; they are "
            f"{describe(classes)}."
        )
    return found
