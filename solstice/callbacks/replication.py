"""A check that the devices, and processes, still agree."""

from typing import Any

from solstice.callbacks.base import Callback
from solstice.experiment import Experiment
from solstice.sharding import assert_replicated
from solstice.triggers import Trigger, check_trigger


class ReplicationCallback(Callback):
    """Runs `solstice.sharding.assert_replicated` on the experiment when a trigger says.

    It brings every copy of each array to the host, so it is for now and then.

    Args:
        when: The trigger. With several processes, one that says the same in all: no
            `Every(seconds=)`.

    Raises:
        AssertionError: In the run: two devices or processes hold unequal copies of an array.

    >>> import solstice
    >>> check = solstice.callbacks.ReplicationCallback(solstice.triggers.Every(epochs=1))
    """

    def __init__(self, when: Trigger) -> None:
        check_trigger(when, "when")
        self._when = when

    def on_run_start(self, exp: Experiment) -> None:
        self._watch = self._when.start()
        self._steps = 0

    def on_step_end(
        self, outs: Any, exp: Experiment, global_step: int, mode: str, batch: Any
    ) -> None:
        if mode == "train":
            self._steps = global_step + 1
            if self._watch.after_step(self._steps):
                self._check(exp)

    def on_epoch_end(self, exp: Experiment, epoch: int, mode: str) -> None:
        if mode == "train" and self._watch.after_epoch(epoch + 1):
            self._check(exp)

    def get_state(self) -> Any:
        return self._watch.get_state()

    def set_state(self, state: Any) -> None:
        self._watch.set_state(state)

    def _check(self, exp: Experiment) -> None:
        try:
            assert_replicated(exp)
        except AssertionError as error:
            error.add_note(f"Found after {self._steps} training steps.")
            raise
