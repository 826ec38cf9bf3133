"""Checkpointing: when a run is saved, and what becomes of a save that fails.

The run hands over what is to be saved, once all hooks of a step or an epoch were called; a thread
writes it. What a checkpoint looks like is `solstice.checkpoints`' business.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from solstice.callbacks.base import Callback
from solstice.callbacks.evaluation import EvaluationCallback
from solstice.checkpoints import Checkpoints
from solstice.errors import UsageError
from solstice.experiment import Experiment
from solstice.flat import snapshot
from solstice.metrics import Accumulator, is_metrics
from solstice.sharding import is_first_process
from solstice.sharding.arrays import local_tree
from solstice.tree import describe
from solstice.triggers import Every, Trigger, check_trigger

_logger = logging.getLogger("solstice")


class CheckpointingCallback(Callback):
    """Saves the run, so that `train(..., resume_from=)` goes on after any crash, to the same bits.

    Saved are the experiment, the loop's position, the state of every callback and, where it can
    tell, that of the dataset's iterator. A copy is taken at once; a thread writes it, checks it in
    by digests, and gives it its name only when it is whole. A save that comes while the last one is
    still being written waits for it. The end of a run is saved too, an early or a signalled one
    as well.

    Args:
        directory: Where the checkpoints go. A run that does not resume refuses one that holds
            any.
        every: The trigger that says when; by default after each epoch, validation included.
        keep: How many of the newest to keep; None keeps all.
        best: A metric of the validation and "min" or "max": the experiment with the best value is
            saved at once and kept too, and `best.json` beside it says which it is. With a third
            element, the name of a dataset, the metric is that of the run's `EvaluationCallback`
            which has it: `best=("accuracy", "max", "hard")`.
        on_error: What a save that fails (no space left, say) does: "warn" logs it, once a save,
            and training goes on; "raise" ends the run at the next save or at its end. The last good
            checkpoint stays in both cases.

    Attributes:
        directory: The directory.

    Raises:
        FileExistsError: At the run's start: the directory holds checkpoints, and the run does not
            resume from them.
        UsageError: `best` names a metric that the validation does not give, or a dataset that no
            `EvaluationCallback` of the run has.

    >>> import solstice
    >>> from solstice.triggers import Every
    >>> callback = solstice.CheckpointingCallback(
    ...     "outputs/run", every=Every(steps=1000) | Every(epochs=1), best=("accuracy", "max")
    ... )
    """

    needs_experiment = False

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: Trigger = Every(epochs=1),  # noqa: B008 - it is immutable
        keep: int | None = 3,
        best: tuple[str, Literal["min", "max"]]
        | tuple[str, Literal["min", "max"], str]
        | None = None,
        on_error: Literal["raise", "warn"] = "warn",
    ) -> None:
        check_trigger(every, "every")
        if keep is not None and keep < 1:
            raise ValueError(f"keep is expected to be at least 1, or None for all; it is {keep}.")
        if best is not None and (len(best) not in (2, 3) or best[1] not in ("min", "max")):
            raise ValueError(
                f"best is expected to be a metric and 'min' or 'max', such as ('accuracy', "
                f"'max'), and the name of an evaluation's dataset if it is not the validation's; "
                f"it is {describe(best)}."
            )
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error is expected to be 'raise' or 'warn'; it is {on_error!r}.")
        self.directory = Path(directory)
        self._store = Checkpoints(directory)
        self._every = every
        self._keep = keep
        self._best = None if best is None else best[:2]
        # The dataset whose metric it is, and the callback that evaluates it; None: the validation.
        self._dataset = best[2] if best is not None and len(best) == 3 else None
        self._evaluation: EvaluationCallback | None = None
        self.needs_validation = best is not None and self._dataset is None
        self._on_error = on_error
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self.begin(resumed_from=None)

    def begin(self, resumed_from: Path | None, callbacks: Iterable[Callback] = ()) -> None:
        """Start anew, or from a directory; the run calls it before `on_run_start`.

        Args:
            resumed_from: The directory.
            callbacks: All callbacks of the run.
        """
        self._resumed_from = resumed_from
        self._watch = self._every.start()
        self._window = Accumulator()
        self._best_value: float | None = None
        self._is_best: float | None = None
        self._evaluations = 0
        evaluating = [one for one in callbacks if isinstance(one, EvaluationCallback)]
        having = [one for one in evaluating if self._dataset in one.names]
        self._evaluation = having[0] if having else None

    def on_run_start(self, exp: Experiment) -> None:
        names = self._store.names()
        if names and self._resumed_from != self._store.directory:
            raise FileExistsError(
                f"{self._store.directory} holds checkpoints of another run ({names[-1]} is the "
                f"newest), which this one would mix with its own. Pass resume_from= to go on with "
                f"that run, or another directory."
            )
        if self._dataset is not None and self._evaluation is None:
            raise UsageError(
                f"CheckpointingCallback(best=) looks for an evaluation of {self._dataset!r}, and "
                f"the run has no EvaluationCallback with a dataset of that name."
            )

    def on_step_end(
        self, outs: Any, exp: Experiment | None, global_step: int, mode: str, batch: Any
    ) -> None:
        if self.needs_validation and mode == "val":
            if not is_metrics(outs):
                raise UsageError(
                    f"CheckpointingCallback(best=) reads the Metrics of the validation; its step "
                    f"returned {describe(outs)}."
                )
            self._window.add(outs)

    def on_epoch_end(self, exp: Experiment, epoch: int, mode: str) -> None:
        merged = self._window.pop()
        if mode == "val" and merged is not None:
            self._compare(merged.compute(), "the validation")

    def _read_evaluation(self) -> None:
        """Look at the evaluation's results where there are new ones."""
        evaluation = self._evaluation
        if evaluation is not None and evaluation.evaluations > self._evaluations:
            self._evaluations = evaluation.evaluations
            dataset = str(self._dataset)
            self._compare(evaluation.results[dataset], f"the evaluation of {dataset!r}")

    def _compare(self, computed: Mapping[str, Any], source: str) -> None:
        assert self._best is not None
        metric, direction = self._best
        if metric not in computed:
            raise UsageError(
                f"CheckpointingCallback(best=) looks for {metric!r}; {source} gives "
                f"{', '.join(computed)}."
            )
        value = float(computed[metric])
        sign = 1 if direction == "max" else -1
        if self._best_value is None or sign * value > sign * self._best_value:
            self._best_value = self._is_best = value

    def due_after_step(self, steps: int) -> bool:
        """Say whether to save, now that `steps` training steps are completed."""
        self._read_evaluation()
        return self._watch.after_step(steps) or self._is_best is not None

    def due_after_epoch(self, epochs: int) -> bool:
        """Say whether to save, now that `epochs` epochs are completed, validation included."""
        self._read_evaluation()
        return self._watch.after_epoch(epochs) or self._is_best is not None

    def save(self, exp: Any, state: Callable[[], Any]) -> None:
        """Save an experiment and the state of its run.

        Args:
            exp: The experiment; its arrays are copied at once.
            state: Called at once for the state, a tree of plain containers.
        """
        self.wait()
        self._read_evaluation()
        best, self._is_best = self._is_best, None
        if jax.process_count() > 1:
            exp = local_tree(exp)  # which all processes must do, though one writes
        if not is_first_process():
            return
        arguments = (snapshot(exp), state(), best)
        self._thread = threading.Thread(
            target=self._write, args=arguments, name="solstice-checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save that is being written.

        Raises:
            Exception: It failed, and failures are to be raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None and self._on_error == "raise":
            raise failure

    def get_state(self) -> dict[str, Any]:
        return {
            "watch": self._watch.get_state(),
            "best": self._best_value,
            "evaluations": self._evaluations,
            "window": self._window.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._watch.set_state(state["watch"])
        self._best_value = state["best"]
        self._evaluations = int(state["evaluations"])
        self._window = Accumulator(state["window"])

    def _write(self, exp: Any, state: Any, best: float | None) -> None:
        try:
            name = self._store.write(exp, state)
            if best is not None and self._best is not None:
                metric, direction = self._best
                self._store.set_best(
                    checkpoint=name, metric=metric, mode=direction, value=best, **_where(state)
                )
            self._store.prune(self._keep)
        except Exception as error:  # noqa: BLE001 - a lost save need not end the run
            self._failure = error
            _logger.warning(
                "A checkpoint in %s could not be saved: %s: %s. %s",
                self._store.directory,
                type(error).__name__,
                error,
                "Training goes on." if self._on_error == "warn" else "The run will end.",
            )


def _where(state: Any) -> dict[str, Any]:
    return {name: state[name] for name in ("epoch", "steps") if name in state}
