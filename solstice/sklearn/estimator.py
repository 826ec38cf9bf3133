"""The base of both estimators: from arrays to a trained experiment, and to its outputs.

They train a ready-made experiment on `data.Arrays` with `solstice.train`.
"""

import abc
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from solstice import arguments
from solstice.arguments import describe
from solstice.callbacks.base import Callback
from solstice.data.arrays import Arrays
from solstice.errors import InvalidValueError
from solstice.experiments.supervised import SupervisedExperiment
from solstice.sklearn.making import made
from solstice.training.progress.bars import ProgressChoice
from solstice.tree.encoding import from_host, host_array, key_impl
from solstice.tree.flat import Flat
from solstice.tree.reprs import Shown

BATCH_KEYS = ("x", "y", "mask", "weight")
# The experiment's arguments that an estimator sets itself.
_OURS = ("model", "optimizer", "key", "example_input", "batch_keys", "num_classes")
_INTS = tuple(np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64))


class Recipe(NamedTuple):
    """What the experiment was made from, at the time of the fit.

    Attributes:
        net: The network, or the function that makes it.
        optimizer: The optimizer, or the function that makes it.
        options: Further options of the experiment.
        outputs: How many numbers the network must return for an example.
        example: Zeros of the shape of one example.
        seed: The seed of the random numbers.
    """

    net: Any
    optimizer: Any
    options: Mapping[str, Any]
    outputs: int
    example: np.ndarray
    seed: int


class Estimator(Shown, BaseEstimator, abc.ABC):
    """The base of `Classifier` and `Regressor`, which document the arguments."""

    # Set by a fit.
    experiment_: Any
    n_features_in_: int
    _recipe: Recipe
    _passes: int

    def __init__(
        self,
        net: Any,
        optimizer: Any,
        *,
        epochs: int = 10,
        batch_size: int = 32,
        random_state: int | np.random.RandomState | None = None,
        validation_fraction: float | None = None,
        callbacks: Iterable[Callback] | Callable[[], Iterable[Callback]] | None = None,
        experiment_options: Mapping[str, Any] | None = None,
        progress: ProgressChoice = False,
    ) -> None:
        # scikit-learn requires unchanged arguments here; `fit` checks them.
        self.net = net
        self.optimizer = optimizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks
        self.experiment_options = experiment_options
        self.progress = progress

    @abc.abstractmethod
    def _experiment(self, network: Any, optimizer: Any, **options: Any) -> SupervisedExperiment:
        """Return the experiment for this estimator."""

    @abc.abstractmethod
    def _check_outputs(self, outputs: Any, count: int) -> None:
        """Raise unless the network returns this many numbers for one example."""

    @abc.abstractmethod
    def _targets(self, y: np.ndarray, outputs: Any) -> np.ndarray:
        """Return targets in the form that matches the network's outputs."""

    def __sklearn_is_fitted__(self) -> bool:
        return "experiment_" in vars(self)

    def _shown(self) -> list[tuple[str, Any]]:
        known = self._get_param_names()
        return [(name, value) for name, value in super()._shown() if name in known]

    # From arrays to an experiment.

    def _inputs(self, X: Any, y: Any = "no_validation", *, reset: bool, **checks: Any) -> Any:
        """Return inputs in dtypes of jax, and checked targets."""
        floats = jax.dtypes.canonicalize_dtype(np.float64)
        options = {"dtype": (floats, *_INTS), "allow_nd": True, "reset": reset, **checks}
        found: Any = validate_data(self, X, y, **options)
        x, targets = found if isinstance(found, tuple) else (found, None)
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        if not reset:
            example = self._recipe.example
            dtype = example.dtype if example.dtype.kind == "f" else dtype
            if x.shape[1:] != example.shape[1:]:
                raise InvalidValueError(
                    f"X is expected to have examples of shape {example.shape[1:]}, like those that "
                    f"{type(self).__name__} was fitted with; it is {describe(x)}."
                )
        if x.dtype.kind in "iu" and dtype.kind in "iu" and x.dtype != dtype:
            limits = np.iinfo(dtype)
            if x.min() < limits.min or x.max() > limits.max:
                raise InvalidValueError(
                    f"X is expected to hold integers from {limits.min} to {limits.max}, which fit "
                    f"jax's {dtype}; it holds {x.min()} to {x.max()}. Give floats."
                )
        x = x.astype(dtype, copy=False)
        return x if targets is None else (x, targets)

    def _weights(self, sample_weight: Any, x: np.ndarray) -> np.ndarray | None:
        if sample_weight is None:
            return None
        floats = jax.dtypes.canonicalize_dtype(np.float64)
        return _check_sample_weight(sample_weight, x, dtype=floats, ensure_non_negative=True)

    def _new_recipe(self, x: np.ndarray, outputs: int) -> Recipe:
        options = self.experiment_options
        options = {} if options is None else arguments.mapping(options, "experiment_options")
        if ours := [name for name in options if name in _OURS]:
            raise InvalidValueError(
                f"experiment_options are expected to be options that {type(self).__name__} does "
                "not "
                f"set itself; they are {describe(options)}, with {', '.join(map(repr, ours))}."
            )
        chance = self.random_state
        if not (chance is None or isinstance(chance, np.random.RandomState)):
            chance = arguments.count(chance, "random_state", least=0, most=2**32 - 1)
        seed = int(check_random_state(chance).randint(2**31 - 1))
        example = np.zeros_like(x[:1])
        return Recipe(self.net, self.optimizer, options, outputs, example, seed)

    def _new_experiment(self, recipe: Recipe) -> SupervisedExperiment:
        key, net_key = jax.random.split(jax.random.key(recipe.seed))
        given = {"outputs": recipe.outputs, "example": recipe.example, "key": net_key}
        exp = self._experiment(
            made(recipe.net, "net", **given),
            made(recipe.optimizer, "optimizer"),
            key=key,
            example_input=recipe.example,
            batch_keys=BATCH_KEYS,
            **recipe.options,
        )
        self._check_outputs(jax.eval_shape(exp, recipe.example), recipe.outputs)
        return exp

    def _trained(
        self,
        exp: SupervisedExperiment,
        recipe: Recipe,
        data: tuple[np.ndarray, np.ndarray, np.ndarray | None],
        *,
        epochs: int,
        passes: int = 0,
    ) -> SupervisedExperiment:
        """Return the experiment after epochs over inputs, targets and weights."""
        x, y, weight = data
        targets = self._targets(y, jax.eval_shape(exp, recipe.example))
        arrays = {"x": x, "y": targets} | ({} if weight is None else {"weight": weight})
        # Another pass may have the same data, and needs another order.
        seed = (recipe.seed + passes) % 2**32
        train_ds, val_ds = Arrays(arrays, batch_size=self.batch_size, shuffle=seed), None
        if self.validation_fraction is not None:
            fraction = arguments.number(
                self.validation_fraction, "validation_fraction", above=0, below=1
            )
            labels = "y" if is_classifier(self) else None
            train_ds, val_ds = train_ds.split(1 - fraction, seed=recipe.seed, stratify=labels)
        callbacks = made(self.callbacks, "callbacks")
        return exp.train(epochs, train_ds, val_ds, callbacks, progress=self.progress)

    def _fit(self, outputs: int, data: tuple[np.ndarray, np.ndarray, np.ndarray | None]) -> None:
        """Train a new experiment, with a network of this many outputs, and keep it."""
        x, targets, weight = data
        epochs = arguments.count(self.epochs, "epochs", least=0)
        recipe = self._new_recipe(x, outputs)
        data = (x, targets, relative(weight))
        exp = self._trained(self._new_experiment(recipe), recipe, data, epochs=epochs)
        self._recipe, self._passes, self.experiment_ = recipe, 1, exp

    def _one_more_pass(
        self, recipe: Recipe, data: tuple[np.ndarray, np.ndarray, np.ndarray | None]
    ) -> None:
        """Train for one more epoch and keep the experiment; the first time, make a new one."""
        first = not self.__sklearn_is_fitted__()
        exp = self._new_experiment(recipe) if first else self.experiment_
        passes = 0 if first else self._passes
        exp = self._trained(exp, recipe, data, epochs=1, passes=passes)
        self._recipe, self._passes, self.experiment_ = recipe, passes + 1, exp

    # From a trained experiment to its outputs.

    def _outputs(self, X: Any) -> np.ndarray:
        """Return the network's outputs, in batches of one size, so only one program is compiled."""
        check_is_fitted(self)
        x = self._inputs(X, reset=False)
        size = arguments.count(self.batch_size, "batch_size")
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            rows = np.minimum(np.arange(size), len(part) - 1)
            parts.append(np.asarray(self.experiment_(part[rows]))[: len(part)])
        return np.concatenate(parts)

    # A pickle holds the arrays of the experiment; the functions are rebuilt.

    def __getstate__(self) -> dict[str, Any]:
        held: Any = super().__getstate__()
        state = dict(held)
        if self.__sklearn_is_fitted__():
            state["experiment_"] = list(map(host_array, Flat.of(self.experiment_).arrays))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self.__sklearn_is_fitted__():
            return
        new, values = Flat.of(self._new_experiment(self._recipe)), self.experiment_
        shapes = [np.shape(host_array(one)) for one in new.arrays]
        if shapes != [one.shape for one in values]:
            raise InvalidValueError(
                f"A pickled {type(self).__name__} is expected to be read where `net` and "
                f"`optimizer` make the same as when it was fitted; arrays of shapes {shapes} "
                f"are expected, and {[one.shape for one in values]} were pickled."
            )
        pairs = zip(values, new.arrays, strict=True)
        new.arrays = [from_host(value, like, key_impl(like)) for value, like in pairs]
        self.experiment_ = new.whole()


def relative(weight: np.ndarray | None) -> np.ndarray | None:
    """Return weights divided by their mean.

    >>> relative(np.array([1.0, 3.0]))
    array([0.5, 1.5])
    """
    return None if weight is None else weight / weight.mean()
