"""Runnable: the trainer as methods of an experiment."""

import os
from collections.abc import Iterable
from typing import Any, Literal, Self

from solstice.arguments import describe
from solstice.callbacks.base import Callback
from solstice.callbacks.checkpointing import CheckpointingCallback
from solstice.errors import UsageError
from solstice.experiment import Experiment
from solstice.loggers.values import is_number, to_host
from solstice.metrics.accumulator import Accumulator
from solstice.metrics.base import is_metrics, joining
from solstice.metrics.left_out import told_elsewhere
from solstice.metrics.named import named_values
from solstice.sharding.placements import Sharding
from solstice.signatures import explained
from solstice.training.calls import StepsPerCall
from solstice.training.hooks import listed
from solstice.training.progress.bars import ProgressChoice
from solstice.training.test import OTHER_NAMES as OTHER_NAMES_OF_TEST
from solstice.training.test import test
from solstice.training.train import OTHER_NAMES as OTHER_NAMES_OF_TRAIN
from solstice.training.train import train
from solstice.triggers import Trigger


class Runnable(Experiment):
    """An experiment whose steps return metrics, with `train` and `test` as methods.

    >>> import jax.numpy as jnp, solstice
    >>> from solstice.experiments import Runnable
    >>> class Guess(Runnable):
    ...     value: jnp.ndarray
    ...
    ...     def train_step(self, batch):
    ...         return solstice.replace(self, value=batch.mean()), None
    ...
    ...     def eval_step(self, batch):
    ...         return self, solstice.metrics.MetricsDict(
    ...             error=solstice.metrics.Mean((batch - self.value) ** 2)
    ...         )
    >>> exp = Guess(jnp.zeros(())).train(1, [jnp.array([1.0, 3.0])], progress=False)
    >>> exp.test([jnp.array([2.0, 4.0])], progress=False)
    {'error': 2.0}
    """

    @explained(**OTHER_NAMES_OF_TRAIN)
    def train(
        self,
        num_epochs: int | None = None,
        train_ds: Any = None,
        val_ds: Any = None,
        callbacks: Iterable[Callback] | None = None,
        *,
        num_steps: int | None = None,
        validate_every: Trigger | None = None,
        steps_per_call: StepsPerCall = 1,
        prefetch: int | None = None,
        sharding: Sharding | None = None,
        resume_from: CheckpointingCallback | str | os.PathLike[str] | None = None,
        recompile: Literal["warn", "error"] = "warn",
        donate: bool = False,
        progress: ProgressChoice = True,
    ) -> Self:
        """Return this experiment after training: `solstice.train` with it."""
        return train(
            self,
            num_epochs,
            train_ds,
            val_ds,
            callbacks,
            num_steps=num_steps,
            validate_every=validate_every,
            steps_per_call=steps_per_call,
            prefetch=prefetch,
            sharding=sharding,
            resume_from=resume_from,
            recompile=recompile,
            donate=donate,
            progress=progress,
        )

    @explained(**OTHER_NAMES_OF_TEST, return_outs="solstice.test(exp, test_ds, return_outs=True)")
    def test(
        self,
        test_ds: Any,
        callbacks: Iterable[Callback] | None = None,
        *,
        sharding: Sharding | None = None,
        progress: ProgressChoice = True,
    ) -> dict[str, Any]:
        """Return the metrics over a whole dataset, by name.

        Numbers are floats; other values are not converted. A value that a metric computes without a
        name gets the name of its class. The arguments are those of `solstice.test`.

        Raises:
            UsageError: `eval_step` returns no metrics.
        """
        measured = self._measured(test_ds, callbacks, sharding=sharding, progress=progress)
        with told_elsewhere():  # by the run that has just ended
            computed = named_values(measured)
        host = to_host(computed)
        return {k: float(v) if is_number(v) else computed[k] for k, v in host.items()}

    def _measured(
        self,
        test_ds: Any,
        callbacks: Iterable[Callback] | None = None,
        *,
        sharding: Sharding | None = None,
        progress: ProgressChoice = True,
    ) -> Any:
        """Return the metrics over a whole dataset."""
        total = _Total()
        test(self, test_ds, [total, *listed(callbacks)], sharding=sharding, progress=progress)
        return total.metrics.pop()


class _Total(Callback):
    """Merges the metrics of a whole test."""

    needs_experiment = False
    needs_batch = False

    def __init__(self) -> None:
        self.metrics = Accumulator()

    def on_step_end(self, outs: Any, exp: Any, global_step: int, mode: str, batch: Any) -> None:
        if not is_metrics(outs):
            raise UsageError(
                f"test() computes the Metrics (objects with `merge` and `compute`) that eval_step "
                f"returns; it returned {describe(outs)} as its outs. Return a Metrics, or call "
                f"solstice.test(exp, ds, return_outs=True) for the outs.{joining(outs)}"
            )
        self.metrics.add(outs)
