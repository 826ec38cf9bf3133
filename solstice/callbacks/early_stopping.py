"""Early stopping: ends a run when a criterion on the outs of a pass is met."""

import contextlib
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.callbacks.base import Callback
from solstice.callbacks.no_improvement import NoImprovement
from solstice.callbacks.passes import PassCount
from solstice.callbacks.plateau import check_watch
from solstice.errors import EarlyStoppingException, InvalidTypeError, InvalidValueError
from solstice.metrics.accumulator import rebuilt
from solstice.metrics.directions import Direction
from solstice.signatures import explained
from solstice.tree.pytree import PyTree

# The arguments of other libraries' early stopping.
_OTHERS = dict.fromkeys(
    ("metric", "monitor", "mode", "patience", "min_delta", "restore_best"),
    "EarlyStoppingCallback.no_improvement(metric, mode=, patience=, min_delta=, restore_best=)",
)


class EarlyStoppingCallback(Callback):
    """Ends the run when `criterion_fn` of a validation's outs is true.

    It is called once, at the end of each pass.

    Args:
        criterion_fn: Takes the list of the outs of the pass and returns whether to stop. With
            `steps_per_call`, each call has one outs. It should depend on nothing else: if a run is
            saved within a pass, it may be called with the outs so far, since the pass may end
            there.
        accumulate_every_n_steps: Which outs are in the list: those of the pass's steps 0, n, 2n,
            ..., so that it never is empty.
        watch: The mode whose passes are watched: "val" or "train".

    Raises:
        ValueError: `accumulate_every_n_steps` is not positive, or there is no such mode.
        UsageError: Before the first step: it watches a validation, and the run has none.

    >>> import solstice
    >>> good_enough = solstice.EarlyStoppingCallback(
    ...     lambda outs: solstice.reduce(outs).compute()["accuracy"] > 0.99
    ... )
    """

    needs_experiment = False
    needs_batch = False

    @explained(**_OTHERS)
    def __init__(
        self,
        criterion_fn: Callable[[list[PyTree]], object],
        accumulate_every_n_steps: int = 1,
        *,
        watch: Literal["val", "train"] = "val",
    ) -> None:
        if isinstance(criterion_fn, str):
            raise InvalidTypeError(
                f"criterion_fn is expected to be a function of (outs); it is the str "
                f"{criterion_fn!r}. To stop when that metric stops improving: "
                f"EarlyStoppingCallback.no_improvement({criterion_fn!r})."
            )
        self._criterion_fn = arguments.function(criterion_fn, "criterion_fn", "outs")
        self._every = arguments.count(accumulate_every_n_steps, "accumulate_every_n_steps")
        check_watch(watch)
        self._watch = watch
        self.needs_validation: bool = watch == "val"
        self._begin()

    def _begin(self) -> None:
        self._trained = 0
        self._pass = PassCount()
        self._outs: list[PyTree] = []
        # The leaves of the outs before a resume; they get the structure of the next outs.
        self._resumed: list[list[PyTree]] = []
        # The criterion's answer for the first steps of the pass, and their number.
        self._answer: tuple[int, bool] | None = None

    @staticmethod
    def no_improvement(
        metric: str,
        *,
        mode: Direction | None = None,
        patience: int = 5,
        min_delta: float = 0.0,
        watch: Literal["val", "train"] = "val",
        restore_best: bool = False,
    ) -> "Callback":
        """Return a callback that ends the run once a metric has stopped improving.

        Args:
            metric: The name in `compute()`; `loss` finds `average_loss`.
            mode: Whether a smaller ("min") or a larger ("max") value is better. None asks the
                metric, which knows it for the standard names (`solstice.metrics.direction`).
            patience: The number of passes in a row without improvement after which the run ends.
            min_delta: How much better than the best so far counts as an improvement.
            watch: The mode whose passes are watched: "val" or "train".
            restore_best: Whether the run returns the experiment of the best pass, with its
                optimizer's state, whether it stops early or completes its epochs. It is kept in
                memory, on the device, and in each checkpoint. A resumed run with more epochs
                continues from the last pass, not from the best.

        Raises:
            ValueError: An argument is wrong.
            UsageError: In the run: there is no such metric, it is not a number, or its direction is
                not known.

        >>> import solstice
        >>> plateau = solstice.EarlyStoppingCallback.no_improvement("accuracy", patience=3)
        """
        return NoImprovement(
            metric,
            mode=mode,
            patience=patience,
            min_delta=min_delta,
            watch=watch,
            restore_best=restore_best,
        )

    def on_run_start(self, exp: PyTree) -> None:
        self._begin()

    def on_step_end(
        self, outs: PyTree, exp: PyTree, global_step: int, mode: str, batch: PyTree
    ) -> None:
        if mode == "train":
            self._trained = global_step + 1
        if mode != self._watch:
            return
        for leaves in self._resumed:
            self._outs.append(rebuilt(leaves, outs))
        self._resumed = []
        first = self._pass.add(global_step)
        if -(-first // self._every) * self._every < self._pass.seen:
            self._outs.append(outs)

    def on_epoch_end(self, exp: PyTree, epoch: int, mode: str) -> None:
        if mode != self._watch or not self._pass.seen:
            return
        met = self._ask()
        self._pass.end()
        self._outs, self._resumed, self._answer = [], [], None
        if met:
            which = "validation" if mode == "val" else "training pass"
            raise EarlyStoppingException(
                f"the stopping criterion was met by the {which} after {self._trained} training "
                f"steps"
            )

    def get_state(self) -> dict[str, PyTree]:
        # A resumed run has no outs if nothing of the pass is left.
        if self._pass.may_be_over:
            # A criterion that fails for part of a pass is called at the end.
            with contextlib.suppress(Exception):
                self._ask()
        return {
            "trained": self._trained,
            "pass": self._pass.get_state(),
            "outs": self._resumed + [jax.tree.leaves(one) for one in self._outs],
            "answer": None if self._answer is None else list(self._answer),
        }

    def set_state(self, state: dict[str, PyTree]) -> None:
        self._begin()
        self._trained = int(state["trained"])
        self._pass.set_state(state["pass"])
        self._resumed, answer = [list(leaves) for leaves in state["outs"]], state["answer"]
        self._answer = None if answer is None else (int(answer[0]), bool(answer[1]))

    def _ask(self) -> bool:
        """Return the criterion's answer for the pass; calls it only once for the same outs."""
        if self._answer is not None and self._answer[0] == self._pass.seen:
            return self._answer[1]
        if self._resumed:  # the pass has become shorter: not known
            return False
        said = self._criterion_fn(list(self._outs))
        if isinstance(said, str | bytes) or np.ndim(said) != 0 or said != said:  # NaN is not a bool
            raise InvalidValueError(
                f"criterion_fn is expected to return whether to stop, one bool; it returned "
                f"{describe(said)}. Reduce it to one: .any(), .all() or a mean."
            )
        self._answer = self._pass.seen, bool(said)
        return self._answer[1]
