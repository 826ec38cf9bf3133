"""InspectionCallback: logs values inside the experiment when a trigger fires.

A function computes the values; `solstice.compat` has some such functions.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from solstice import arguments
from solstice.callbacks.passes import PassCount
from solstice.callbacks.triggered import TriggeredCallback
from solstice.loggers.outlets import LoggingFn, Outlets, SinkLike
from solstice.loggers.values import to_host
from solstice.tree.flat import Flat
from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import PyTree
from solstice.triggers import Trigger

_logger = logging.getLogger("solstice")


class InspectionCallback(TriggeredCallback):
    """Logs what `values_fn(exp, batch)` returns whenever a trigger fires during training.

    It gets the experiment after a training step and the step's (last) batch, and is compiled. It
    runs only when the trigger fires; training steps cost nothing more. Numbers are logged as
    numbers; sinks that can show arrays as histograms.

    Args:
        values_fn: Returns a pytree of numbers and arrays; their paths are their names.
        when: The trigger.
        logging_fn: As in `EvaluationCallback`.
        mode: The mode under which the values are logged.
        jit: Whether to compile `values_fn`.

    Attributes:
        results: The last values by name, on the host.

    Raises:
        TypeError: An argument is not what it must be.

    >>> import flax.linen as nn, jax.numpy as jnp, optax, solstice
    >>> from solstice import compat
    >>> from solstice.triggers import Every
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         hidden = nn.relu(nn.Dense(8)(x))
    ...         self.sow("intermediates", "hidden", hidden)
    ...         return nn.Dense(2)(hidden)
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(Net(), optax.adam(0.1), example_input=x, key=0)
    >>> def inside(exp, batch):
    ...     return compat.intermediates(exp.model, batch[0]) | compat.training_norms(exp, batch)
    >>> looks = solstice.callbacks.InspectionCallback(inside, when=Every(steps=10))
    >>> exp = exp.train(10, [(x, y)], callbacks=[looks], progress=False)
    >>> list(looks.results), looks.results["hidden"].shape
    (['gradient_norm', 'hidden', 'parameter_norm'], (4, 8))
    """

    needs_batch = True

    def __init__(
        self,
        values_fn: Callable[[PyTree, PyTree], PyTree],
        *,
        when: Trigger,
        logging_fn: LoggingFn | SinkLike | Sequence[LoggingFn | SinkLike] | None = None,
        mode: str = "inside",
        jit: bool = True,
    ) -> None:
        arguments.function(values_fn, "values_fn", "exp, batch")
        super().__init__(when, Outlets(logging_fn))
        self._mode = arguments.text(mode, "mode")
        self._values = _compiled(values_fn) if arguments.flag(jit, "jit") else values_fn
        self.results: dict[str, Any] = {}
        self._steps_per_call = 1
        self._batch: PyTree = None
        self._pass = PassCount()
        # Whether the training pass is over, so no other batch comes before the epoch's end.
        self._trained = False

    def attach(self, experiment: Callable[[], PyTree], steps_per_call: int = 1) -> None:
        super().attach(experiment, steps_per_call)
        self._steps_per_call = steps_per_call

    def on_run_start(self, exp: PyTree) -> None:
        super().on_run_start(exp)
        self._batch, self._trained, self._pass = None, False, PassCount()

    def on_epoch_start(self, exp: PyTree, epoch: int, mode: str) -> None:
        super().on_epoch_start(exp, epoch, mode)
        self._trained = self._trained and mode != "train"

    def on_step_end(
        self, outs: PyTree, exp: PyTree, global_step: int, mode: str, batch: PyTree
    ) -> None:
        if mode == "train":
            self._batch = batch if self._steps_per_call == 1 else batch[-1]
            self._pass.add(global_step)
        super().on_step_end(outs, exp, global_step, mode, batch)

    def on_epoch_end(self, exp: PyTree, epoch: int, mode: str) -> None:
        if mode == "train":
            self._trained = True
            self._pass.end()

    def on_run_end(self, exp: PyTree, error: BaseException | None) -> None:
        super().on_run_end(exp, error)
        self._batch = None

    def get_state(self) -> dict[str, PyTree]:
        # The batch may be large, so it is kept only if it may be the last one of the epoch.
        last = self._trained or self._pass.may_be_over
        kept = last and self._when.counts_epochs and _is_plain(self._batch)
        return {
            **super().get_state(),
            "batch": self._batch if kept else None,
            "trained": self._trained,
            "pass": self._pass.get_state(),
        }

    def set_state(self, state: dict[str, PyTree]) -> None:
        super().set_state(state)
        self._batch, self._trained = state["batch"], bool(state["trained"])
        self._pass.set_state(state["pass"])

    def act(self, exp: PyTree, step: int) -> None:
        if self._batch is None:
            _logger.warning(
                "InspectionCallback logs nothing after %d training steps: "
                "the run was resumed at the end of an epoch, and its last batch is not known.",
                step + 1,
            )
            return
        self.results = to_host(leaves_by_path(self._values(exp, self._batch)))
        self._outlets.write(
            self.results, index=step, mode=self._mode, epoch=self._epoch, step=step + 1
        )


def _is_plain(tree: PyTree) -> bool:
    """Return whether a checkpoint restores a tree exactly: dicts, lists, tuples, arrays."""
    if type(tree) in (tuple, list):
        return all(map(_is_plain, tree))
    if type(tree) is dict:
        return all(map(_is_plain, tree.values()))
    whole = getattr(tree, "is_fully_addressable", True)
    return whole and isinstance(tree, np.ndarray | np.generic | jax.Array | int | float | str)


def _compiled(values_fn: Callable[[PyTree, PyTree], PyTree]) -> Callable[[PyTree, PyTree], PyTree]:
    values_of = jax.jit(lambda flat, batch: Flat.of(values_fn(flat.whole(), batch)))
    return lambda exp, batch: values_of(Flat.of(exp), batch).whole()
