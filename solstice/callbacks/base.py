"""Callback: hooks that watch a run, called by the trainer on the host.

A callback sees experiments and outs; only its `revise` may change the experiment. To end the run it
raises `EarlyStoppingException`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from solstice.metrics.directions import Direction
from solstice.tree.pytree import PyTree
from solstice.tree.reprs import ShownAsMade

Mode = Literal["train", "val", "test"]


class Evaluation(NamedTuple):
    """The last results of a callback that evaluates a dataset.

    Attributes:
        number: The number of evaluations in the run.
        values: The values, by name; None if the dataset was empty.
        better: Takes a name and says whether a smaller ("min") or a larger ("max") value is better.

    >>> Evaluation(1, {"loss": 0.5}, lambda name: "min").better("loss")
    'min'
    """

    number: int
    values: Mapping[str, Any] | None
    better: Callable[[str], Direction | None]


class Callback(ShownAsMade):
    """Hooks into a run; a subclass defines those it needs, all of which return None.

    `exp` is the run's experiment: annotate it with the class of your experiment. `mode` is "train",
    "val" or "test". Steps and epochs count from 0: `global_step` is the index of the step, counted
    in its mode since the start of the run.

    Attributes:
        needs_experiment: Whether the step hooks read `exp`. If no callback of a run does, the
            trainer does not rebuild it at each step, and passes None.
        needs_batch: Whether the step hooks read `batch`. If no callback of a run does, they get
            None for batches of `Arrays.on_device()`, which then stay on the device.
        needs_validation: Whether the callback needs a `val_ds`; `train` without one is then an
            error before the first step.

    >>> import solstice
    >>> class CountSteps(solstice.Callback):
    ...     seen = 0
    ...
    ...     def on_step_end(self, outs, exp, global_step, mode, batch):
    ...         self.seen += 1
    """

    needs_experiment: bool = True
    needs_batch: bool = True
    needs_validation: bool = False

    def attach(self, experiment: Callable[[], PyTree], steps_per_call: int) -> None:
        """Called before anything else, with a function that returns the current experiment.

        A hook that gets None for the experiment, since `needs_experiment` is False, calls it when
        it needs one. Drop it in `on_run_end`, since it keeps the whole run alive.

        Args:
            experiment: Returns the experiment.
            steps_per_call: How many steps a call takes. If several, hooks get the list of its
                batches.
        """

    def check_names(self, names: Mapping[str, Direction | None]) -> None:
        """Called before training with the names of the validation's metrics, if they are known.

        Raise here if a metric is not among them, so that a misspelt name fails before training.
        They are known if `eval_step` is compiled and `compute()` can be traced.

        Args:
            names: For each name, whether a smaller ("min") or a larger ("max") value is better, or
                None if neither the metric nor its name says it.
        """

    def on_run_start(self, exp: PyTree) -> None:
        """Called before anything else of a `train` or `test`."""

    def on_run_end(self, exp: PyTree, error: BaseException | None) -> None:
        """Called last in any case, with the error that ends the run or None.

        An early stop is not an error.
        """

    def on_epoch_start(self, exp: PyTree, epoch: int, mode: Mode) -> None:
        """Called before a pass over a dataset."""

    def on_epoch_end(self, exp: PyTree, epoch: int, mode: Mode) -> None:
        """Called after a pass over a dataset, also one cut short by an early stop."""

    def after_epoch(self, exp: PyTree, epochs: int) -> None:
        """Called when `epochs` epochs of training are completed, validation included."""

    def revise(self, exp: PyTree) -> PyTree:
        """Return the experiment to continue with: `exp`, or one of the same structure.

        Called after each epoch of `train` (after its validation and every `after_epoch`), and again
        at the end of the run, also after an early stop. It is not called when a signal or an error
        ends the run. No other hook may change the experiment. It may return arrays that the
        callback keeps: the run copies them before it donates any.

        >>> import jax.numpy as jnp, solstice
        >>> class Rewind(solstice.Callback):
        ...     def on_run_start(self, exp):
        ...         self.start = solstice.snapshot(exp)
        ...
        ...     def revise(self, exp):
        ...         return self.start
        >>> class Count(solstice.Experiment):
        ...     steps: jnp.ndarray
        ...
        ...     def train_step(self, batch):
        ...         return solstice.replace(self, steps=self.steps + 1), None
        >>> exp = Count(jnp.zeros((), int))
        >>> int(solstice.train(exp, 3, [0, 1], callbacks=[Rewind()], progress=False).steps)
        0
        """
        return exp

    def on_step_start(self, exp: PyTree, global_step: int, mode: Mode, batch: PyTree) -> None:
        """Called before each step with the experiment and the batch it will get."""

    def on_step_end(
        self, outs: PyTree, exp: PyTree, global_step: int, mode: Mode, batch: PyTree
    ) -> None:
        """Called after each step with what it returned."""

    def evaluation(self, dataset: str) -> Evaluation | None:
        """Return the last results for a dataset, by its name; None if it does not evaluate one.

        It can choose the best checkpoint: `CheckpointingCallback(best=(metric, mode, name))`.
        """
        return None

    def get_state(self) -> PyTree:
        """Return the state to save: arrays, numbers, strings, and containers of these."""
        return None

    def set_state(self, state: PyTree) -> None:
        """Restore what `get_state` returned."""
