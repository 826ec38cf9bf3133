"""EvaluationCallback: evaluations during training, with other datasets and another step.

It only reads the experiment: training gives the same bits with and without it.
"""

import contextlib
import functools
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from solstice import arguments
from solstice.arguments import describe
from solstice.callbacks.base import Evaluation
from solstice.callbacks.triggered import TriggeredCallback
from solstice.data.columns import check_columns
from solstice.data.datasets import batches, check_dataset, length
from solstice.data.memory import own_arrays
from solstice.errors import EarlyStoppingException, InvalidTypeError, UsageError
from solstice.experiment import Experiment
from solstice.loggers.outlets import LoggingFn, Outlets, SinkLike
from solstice.loggers.values import decoded, encoded, to_host
from solstice.metrics.accumulator import Accumulator
from solstice.metrics.base import Metrics, is_metrics, joining, reduce
from solstice.metrics.directions import Direction, better, direction
from solstice.metrics.left_out import LeftOut
from solstice.metrics.named import named_values
from solstice.step import Step
from solstice.tree.flat import Flat
from solstice.tree.keys import as_key
from solstice.tree.pytree import PyTree
from solstice.triggers import Trigger

_logger = logging.getLogger("solstice")

_EMPTY = "The dataset %r of an EvaluationCallback is empty: it is left out."


class EvaluationCallback(TriggeredCallback):
    """Evaluates the experiment on datasets whenever a trigger fires during training.

    The metrics of a dataset's batches are merged, computed, kept in `results` and logged under the
    dataset's name. `eval_fn` is compiled once for each shape of a batch.

    Args:
        eval_fn: Takes the experiment, a batch and a key; returns `Metrics`, or `(experiment,
            Metrics)`. The returned experiment is used for the dataset's next batch and dropped
            after the last: an evaluation may adapt or fill a memory without changing training.
        datasets: The datasets by name, each as in `train`; read with the index of the epoch. An
            empty one is left out, with a warning.
        when: The trigger; one that counts epochs fires after the epoch's validation.
        logging_fn: One of these, or a list of several: a function called as `logging_fn(results,
            step, name)` with the index of the training step just completed, or a sink of
            `solstice.loggers`. None sends one line to the logger "solstice".
        key: A seed or a key. The key of a batch depends on it, on the number of the evaluation, the
            dataset's name and the batch's index, and not on training.
        prepare_batch: Called on the host with each batch; returns the batch to evaluate.
        finalize: Called on the host with the computed metrics; returns those to keep and log.
        on_start: Called as `on_start(exp, step, name)` before a dataset.
        on_end: Called as `on_end(results, exp, step, name)` after a dataset, once it is logged. It
            may raise `EarlyStoppingException`, which takes effect after all datasets.
        on_host: Whether the batches' metrics are merged in host memory instead of on the device.
            None does so for metrics that grow when merged, such as those that keep each example.
        jit: Whether to compile `eval_fn`; if False, it may run any Python.

    Attributes:
        results: The last results of each dataset, by its name: numbers and numpy arrays.
        evaluations: The number of evaluations in the run.

    Raises:
        TypeError, ValueError: An argument is wrong.
        UsageError: `eval_fn` returns no `Metrics`.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> from solstice.triggers import Every
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> def noisy(exp, batch, key):
    ...     x, y = batch
    ...     return exp.eval_step((x + 0.1 * jax.random.normal(key, x.shape), y))
    >>> robustness = solstice.EvaluationCallback(noisy, {"noisy": [(x, y)]}, when=Every(steps=20))
    >>> exp = exp.train(40, [(x, y)], callbacks=[robustness], progress=False)
    >>> robustness.evaluations, robustness.results["noisy"]["accuracy"]
    (2, 1.0)
    """

    def __init__(
        self,
        eval_fn: Callable[[PyTree, PyTree, Array], PyTree],
        datasets: Mapping[str, object],
        *,
        when: Trigger,
        logging_fn: LoggingFn | SinkLike | Sequence[LoggingFn | SinkLike] | None = None,
        key: Array | int = 0,
        prepare_batch: Callable[[PyTree], PyTree] | None = None,
        finalize: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
        on_start: Callable[[PyTree, int, str], object] | None = None,
        on_end: Callable[[dict[str, Any], PyTree, int, str], object] | None = None,
        on_host: bool | None = None,
        jit: bool = True,
    ) -> None:
        arguments.function(eval_fn, "eval_fn", "exp, batch, key")
        hooks: dict[str, tuple[Callable[..., object] | None, str]] = {
            "prepare_batch": (prepare_batch, "batch"),
            "finalize": (finalize, "metrics"),
            "on_start": (on_start, "exp, step, name"),
            "on_end": (on_end, "results, exp, step, name"),
        }
        for name, (hook, takes) in hooks.items():
            if hook is not None:
                arguments.function(hook, name, takes)
        if not isinstance(datasets, Mapping) or not datasets:
            raise InvalidTypeError(
                f"datasets are expected to be a mapping of names to datasets, such as "
                f"{{'test': test_ds}}; they are {describe(datasets)}."
            )
        for name, dataset in arguments.mapping(datasets, "datasets").items():
            if length(dataset) == 0:
                _logger.warning(_EMPTY, name)
            else:
                check_dataset(dataset, f"datasets[{name!r}]", passes=None)
        self._eval_fn = eval_fn
        self._datasets = dict(datasets)
        super().__init__(when, Outlets(logging_fn))
        self._key = as_key(key)
        self._prepare_batch = prepare_batch
        self._finalize = finalize
        self._on_start, self._on_end = on_start, on_end
        self._on_host = None if on_host is None else arguments.flag(on_host, "on_host")
        self._jit = arguments.flag(jit, "jit")
        self._step = Step(self._one)
        self.results: dict[str, dict[str, Any]] = {}
        self.evaluations = 0
        # The empty datasets that a warning was given for.
        self._empty: set[str] = set()
        # The directions of each dataset's metrics.
        self._directions: dict[str, dict[str, Direction | None]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the datasets."""
        return tuple(self._datasets)

    def evaluation(self, dataset: str) -> Evaluation | None:
        if dataset not in self.names:
            return None
        better = functools.partial(self.better, dataset)
        return Evaluation(self.evaluations, self.results.get(dataset), better)

    def better(self, dataset: str, name: str) -> Direction | None:
        """Return which values of a result are better, by the dataset's metrics."""
        said = self._directions.get(dataset, {})
        return said[name] if name in said else direction(name)

    def on_run_start(self, exp: PyTree) -> None:
        super().on_run_start(exp)
        self.evaluations = 0
        self._empty.clear()

    def get_state(self) -> dict[str, PyTree]:
        results = [[name, encoded(results)] for name, results in self.results.items()]
        return {**super().get_state(), "evaluations": self.evaluations, "results": results}

    def set_state(self, state: dict[str, PyTree]) -> None:
        super().set_state(state)
        self.evaluations = int(state["evaluations"])
        self.results = {name: decoded(results) for name, results in state["results"]}

    def act(self, exp: PyTree, step: int) -> None:
        flat, stop = Flat.of(exp), None
        for name, dataset in self._datasets.items():
            if length(dataset) == 0:
                if name not in self._empty:
                    _logger.warning(_EMPTY, name)
                self._empty.add(name)
                continue
            if self._on_start is not None:
                self._on_start(exp, step, name)
            results = self._results(flat, name)
            self.results[name] = results
            self._outlets.write(results, index=step, mode=name, epoch=self._epoch, step=step + 1)
            if self._on_end is not None:
                try:
                    self._on_end(results, exp, step, name)
                except EarlyStoppingException as raised:
                    stop = stop or raised
        self.evaluations += 1
        if stop is not None:
            raise stop

    def _results(self, flat: Flat, name: str) -> dict[str, Any]:
        """Return the computed metrics of all batches of a dataset."""
        key = jax.random.fold_in(self._key, self.evaluations)
        # By name, so that another dataset does not change the keys of the rest.
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        seen, left_out = None, LeftOut()
        dataset = self._datasets[name]
        now = lambda: flat.whole()  # noqa: E731, PLW0108 - another one after each batch
        read = batches(dataset, self._epoch, name, experiment=now)
        for i, batch in enumerate(read):
            try:
                prepare = self._prepare_batch
                prepared = batch if prepare is None else own_arrays(prepare(batch))
                if i == 0 and self._jit:
                    check_columns(prepared, name)
                flat, metrics = self._take(flat, (prepared, key, i))
                if seen is None:
                    if self.evaluations == 0 and isinstance(metrics, Metrics):
                        metrics.check()
                    seen = _OnHost() if self._joins_on_host(metrics) else Accumulator()
                seen.add(metrics)
                left_out.add(metrics)
            except Exception as error:
                error.add_note(f"This is batch {i} of the evaluation {name!r}.")
                raise
        assert seen is not None  # `batches` raises for an empty pass
        left_out.tell(f"{name}: ")
        with _host() if isinstance(seen, _OnHost) else contextlib.nullcontext():
            merged = seen.pop()
            computed = to_host(named_values(merged))
            if name not in self._directions:
                self._directions[name] = {one: better(merged, one) for one in computed}
        return computed if self._finalize is None else to_host(dict(self._finalize(computed)))

    def _take(self, flat: Flat, inputs: tuple[PyTree, Array, int]) -> tuple[Flat, PyTree]:
        if self._jit:
            return self._step.pure(flat, [inputs])
        exp, metrics = self._one(flat.whole(), inputs)
        return Flat.of(exp), metrics

    def _one(self, exp: PyTree, inputs: tuple[PyTree, Array, ArrayLike]) -> tuple[PyTree, PyTree]:
        """Evaluate one batch; this function is compiled."""
        batch, key, i = inputs
        given = self._eval_fn(exp, batch, jax.random.fold_in(key, i))
        pair = type(given) is tuple and len(given) == 2 and isinstance(given[0], Experiment)
        exp, metrics = given if pair else (exp, given)
        if not is_metrics(metrics):
            raise UsageError(
                f"eval_fn is expected to return Metrics (an object with `merge` and `compute`), or "
                f"(experiment, Metrics); it returned {describe(given)}.{joining(metrics)}"
            )
        return exp, metrics

    def _joins_on_host(self, metrics: PyTree) -> bool:
        if self._on_host is not None:
            return self._on_host
        flat = Flat.of(metrics)
        try:
            merged = jax.eval_shape(_merged_twice, flat)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            return False  # it always merges on the host
        shapes = [array.shape for array in merged.arrays]
        return shapes != [array.shape for array in flat.arrays]


class _OnHost:
    """Merges metrics in host memory in pairs, so that growing ones are not copied per batch."""

    def __init__(self) -> None:
        self._parts: list[PyTree] = []
        self._last: Flat | None = None

    def add(self, metrics: PyTree) -> None:
        self._fetch()
        self._last = Flat.of(metrics)  # fetched while the next batch is computed

    def pop(self) -> PyTree:
        self._fetch()
        parts, self._parts = self._parts, []
        while len(parts) > 1:
            parts = [reduce(parts[i : i + 2]) for i in range(0, len(parts), 2)]
        return parts[0]

    def _fetch(self) -> None:
        if self._last is None:
            return
        with _host():
            arrays = [jnp.asarray(array) for array in jax.device_get(self._last.arrays)]
        self._parts.append(Flat(arrays, self._last.structure).whole())
        self._last = None


def _host() -> contextlib.AbstractContextManager[object]:
    """Return a context in which jax computes on the CPU, if it has a CPU backend."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _merged_twice(flat: Flat) -> Flat:
    metrics = flat.whole()
    return Flat.of(metrics.merge(metrics))
