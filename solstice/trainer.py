"""train, test and predict: the only loops. They decide when something happens, never what.

What happens in a step is the experiment's business, what happens on the host the callbacks'.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from solstice.callbacks import Callback
from solstice.data import as_arrays, batches, check_dataset, length
from solstice.errors import EarlyStoppingException, UsageError
from solstice.experiment import Experiment, check_result
from solstice.metrics import Metrics
from solstice.step import Flat, Step
from solstice.tree import describe

_E = TypeVar("_E", bound=Experiment)

_logger = logging.getLogger("solstice")


def train(
    exp: _E,
    num_epochs: int | None,
    train_ds: Any,
    val_ds: Any = None,
    callbacks: Iterable[Callback] | None = None,
    *,
    num_steps: int | None = None,
    progress: bool = True,
) -> _E:
    """Return the experiment after training; the one passed in stays as it is.

    Each epoch is a pass of `train_step` over `train_ds` and then, if there is a `val_ds`, a pass
    of `eval_step` over it. Steps and epochs count from 0.

    Args:
        exp: The experiment.
        num_epochs: How many epochs; None when `num_steps` alone ends the run.
        train_ds: Any re-iterable of batches: a list, a tf.data or grain dataset, a DataLoader, or
            a function that returns an iterator (called with the epoch if it takes an argument).
            A method `set_epoch(epoch)` is called before each pass.
        val_ds: The same, for validation.
        callbacks: What watches the run. One that raises `EarlyStoppingException` ends it: the
            epoch's other hooks are still called, its validation is not run any more.
        num_steps: Ends the run after so many training steps; the epoch it cuts short is
            validated as any other.
        progress: Whether to show a progress bar.

    Raises:
        TypeError, ValueError: An argument or the first batch is not what it must be; raised
            before the first step.
        ValueError: A pass over a dataset gave no batch.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> exp = solstice.train(exp, 20, [(x, y)], progress=False)
    >>> exp.predict(x).tolist()
    [0, 1, 1, 0]
    """
    _check_experiment(exp)
    _check_count(num_epochs, "num_epochs", least=0)
    _check_count(num_steps, "num_steps", least=1)
    if num_epochs is None and num_steps is None:
        raise ValueError("Nothing ends this run: give num_epochs, num_steps or both.")
    passes = None if num_steps is not None else num_epochs
    check_dataset(train_ds, "train_ds", passes)
    if val_ds is not None:
        check_dataset(val_ds, "val_ds", passes)
    run = _Run(exp, callbacks, progress)
    if num_epochs != 0:
        run.check_sequence(train_ds, "train")
        run.check_sequence(val_ds, "val")

    def epochs() -> None:
        for epoch in itertools.count() if num_epochs is None else range(num_epochs):
            title = f"epoch {epoch + 1}" + (f"/{num_epochs}" if num_epochs else "")
            run.one_pass("train", epoch, train_ds, title=title, last_step=num_steps)
            if val_ds is not None:
                run.one_pass("val", epoch, val_ds, title=f"{title} val")
            if run.steps["train"] == num_steps:
                return

    run.execute(epochs)
    return run.exp


def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None = None,
    return_outs: bool = False,
    *,
    progress: bool = True,
) -> list[Any] | None:
    """Run `eval_step` over a dataset, in mode "test".

    Args:
        exp: The experiment.
        test_ds: As `train_ds` in `train`.
        callbacks: What watches the run.
        return_outs: Whether to return the list of each step's outs.
        progress: Whether to show a progress bar.

    Returns:
        The list of outs if `return_outs`, otherwise None.

    Raises:
        UsageError: There are neither callbacks nor `return_outs`, so nothing would come of it.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> outs = solstice.test(exp, [(x, y), (x, y)], return_outs=True, progress=False)
    >>> int(solstice.reduce(outs).count)
    8
    """
    _check_experiment(exp)
    callbacks = list(callbacks or ())
    if not callbacks and not return_outs:
        raise UsageError(
            "test() was given neither callbacks nor return_outs=True, so its results would be "
            "lost. Pass callbacks=[LoggingCallback(...)], or return_outs=True for the list of outs."
        )
    check_dataset(test_ds, "test_ds")
    run = _Run(exp, callbacks, progress)
    run.check_sequence(test_ds, "test")
    outs: list[Any] | None = [] if return_outs else None
    run.execute(lambda: run.one_pass("test", 0, test_ds, title="test", outs=outs))
    return outs


# Otherwise pytest takes it for a test wherever it is imported.
test.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def predict(exp: Experiment, ds: Any, *, progress: bool = True) -> PyTree[np.ndarray]:
    """Return `exp.predict` of each batch's inputs, joined along the first axis, on the host.

    The inputs are what `exp.batch_inputs(batch)` returns; without that method, the first element
    of a tuple or list, and any other batch itself.

    Args:
        exp: An experiment with a `predict` method.
        ds: As `train_ds` in `train`; labels are not needed.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: The experiment has no `predict` method.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=jnp.eye(4), key=0
    ... )
    >>> solstice.predict(exp, [jnp.eye(4), jnp.zeros((3, 4))], progress=False).shape
    (7,)
    """
    _check_experiment(exp)
    one_batch = getattr(exp, "predict", None)
    if not callable(one_batch):
        raise TypeError(
            f"predict() needs an experiment with a `predict` method; {type(exp).__name__} has "
            f"none. Define `predict(self, inputs)` on it."
        )
    check_dataset(ds, "ds")
    inputs_of = getattr(exp, "batch_inputs", _first_element)
    joined = []
    with _bar("predict", length(ds), progress) as bar:
        for batch in batches(ds, 0, "ds"):
            joined.append(jax.tree.map(np.asarray, one_batch(inputs_of(batch))))
            bar.update()
    return jax.tree.map(lambda *parts: np.concatenate(parts), *joined)


class _Run:
    """One call of train or test: the current experiment, the counters and the callbacks."""

    def __init__(
        self, exp: Experiment, callbacks: Iterable[Callback] | None, progress: bool
    ) -> None:
        self.exp: Any = exp
        # The same experiment taken apart, and whether nobody else has its buffers.
        self._flat: Flat | None = None
        self._from_flat: Any = None
        self._owned = False
        self.steps = {"train": 0, "val": 0, "test": 0}
        self._progress = progress
        self._callbacks = list(callbacks or ())
        for callback in self._callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(
                    f"callbacks are expected to be instances of solstice.Callback; one is "
                    f"{describe(callback)}."
                )
        self._checked: set[str] = set()
        # How many steps the last whole pass had, for the bar of a dataset that does not say.
        self._lengths: dict[str, int] = {}
        # A hook that a callback leaves out costs a step nothing.
        self._hooks = {
            name: [c for c in self._callbacks if _defines(c, name)]
            for name in vars(Callback)
            if name.startswith("on_")
        }

    def execute(self, passes: Callable[[], None]) -> None:
        """Call `passes` between the hooks of the run's start and end; an early stop ends it."""
        error: BaseException | None = None
        try:
            self._fire("on_run_start", self.exp)
            passes()
        except EarlyStoppingException as stop:
            _logger.info("The run stopped early: %s.", stop)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._end(error)

    def one_pass(
        self,
        mode: str,
        epoch: int,
        dataset: Any,
        *,
        title: str,
        last_step: int | None = None,
        outs: list[Any] | None = None,
    ) -> None:
        """Run one pass of steps over the dataset.

        An early stop is raised on, once every callback has had its `on_epoch_end`.
        """
        stop: EarlyStoppingException | None = None
        try:
            self._fire("on_epoch_start", self.exp, epoch, mode)
            self._steps(mode, epoch, dataset, title, last_step, outs)
        except EarlyStoppingException as raised:
            stop = raised
        try:
            self._fire("on_epoch_end", self.exp, epoch, mode)
        except EarlyStoppingException as raised:
            stop = stop or raised
        if stop is not None:
            raise stop

    def check_sequence(self, dataset: Any, mode: str) -> None:
        """Check a list's first batch now; other datasets can only be read when their turn comes."""
        if isinstance(dataset, list | tuple):
            self._check_batch(as_arrays(dataset[0]), mode)

    def _steps(
        self,
        mode: str,
        epoch: int,
        dataset: Any,
        title: str,
        last_step: int | None,
        outs: list[Any] | None,
    ) -> None:
        start = self.steps[mode]
        total = length(dataset) or self._lengths.get(mode)
        if last_step is not None and total is not None:
            total = min(total, last_step - start)
        with _bar(title, total, self._progress, keep=mode != "val") as bar:
            for batch in batches(dataset, epoch, f"{mode}_ds"):
                self._check_batch(batch, mode)
                step = self.steps[mode]
                self._fire("on_step_start", self.exp, step, mode, batch)
                out = self._take_step(mode, batch)
                if step == 0 and isinstance(out, Metrics) and hasattr(out, "check"):
                    out.check()  # pyright: ignore[reportAttributeAccessIssue]
                if outs is not None:
                    outs.append(out)
                self.steps[mode] = step + 1
                bar.update()
                self._fire("on_step_end", out, self.exp, step, mode, batch)
                if step + 1 == last_step:
                    return
        self._lengths[mode] = self.steps[mode] - start

    def _take_step(self, mode: str, batch: Any) -> Any:
        """Take a step, compiled on flat arrays where it can be, and return its outs."""
        name = "train_step" if mode == "train" else "eval_step"
        step = getattr(type(self.exp), name)
        if not isinstance(step, Step):
            self.exp, outs = check_result(self.exp, name, getattr(self.exp, name)(batch))
            return outs
        if self._flat is None or self.exp is not self._from_flat:
            self._flat, self._from_flat, self._owned = Flat.of(self.exp), self.exp, False
        if mode == "train":
            if not self._owned:
                self._flat, self._owned = self._flat.copy(), True
            flat, outs = step.fused(self._flat, batch)
        else:
            flat, outs = step.pure(self._flat, batch)
        if flat is not self._flat:
            self._flat = flat
            self.exp = self._from_flat = flat.whole()
        return outs

    def _check_batch(self, batch: Any, mode: str) -> None:
        if mode not in self._checked:
            self._checked.add(mode)
            if check := getattr(self.exp, "check_batch", None):
                try:
                    check(batch)
                except Exception as error:
                    error.add_note(f"This is the first batch of {mode}_ds.")
                    raise

    def _fire(self, hook: str, *arguments: Any) -> None:
        """Call the hook of every callback, also after one has asked to stop."""
        stop: EarlyStoppingException | None = None
        for callback in self._hooks[hook]:
            try:
                getattr(callback, hook)(*arguments)
            except EarlyStoppingException as raised:
                stop = stop or raised
            except Exception as error:
                error.add_note(f"Raised by {type(callback).__name__}.{hook}.")
                raise
        if stop is not None:
            raise stop

    def _end(self, error: BaseException | None) -> None:
        failures: list[Exception] = []
        for callback in self._hooks["on_run_end"]:
            try:
                callback.on_run_end(self.exp, error)
            except EarlyStoppingException:
                continue  # the run has ended already
            except Exception as failure:  # noqa: BLE001 - raised once all were called
                failure.add_note(f"Raised by {type(callback).__name__}.on_run_end.")
                failures.append(failure)
        if not failures:
            return
        if error is None:
            raise failures[0]
        # The run's own error goes on; what went wrong after it is told beside it.
        error.add_note(f"After that, {type(failures[0]).__name__}: {failures[0]}")
        for failure in failures:
            _logger.error("A callback failed at the end of a failed run.", exc_info=failure)


def _bar(title: str, total: int | None, show: bool, *, keep: bool = True) -> tqdm:
    return tqdm(
        total=total, desc=title, unit=" steps", disable=not show, leave=keep, dynamic_ncols=True
    )


def _defines(callback: Callback, hook: str) -> bool:
    return hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)


def _first_element(batch: Any) -> Any:
    return batch[0] if isinstance(batch, Sequence) else batch


def _check_experiment(exp: Any) -> None:
    if not isinstance(exp, Experiment):
        what = (
            f"the class {exp.__name__!r}: pass an instance"
            if isinstance(exp, type)
            else describe(exp)
        )
        raise TypeError(f"An instance of solstice.Experiment is expected; it is {what}.")


def _check_count(count: Any, name: str, *, least: int) -> None:
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise TypeError(f"{name} is expected to be an int or None; it is {describe(count)}.")
    if count < least:
        raise ValueError(f"{name} is expected to be at least {least}; it is {count}.")
