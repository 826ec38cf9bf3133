"""Check that devices and processes still agree."""

from solstice.callbacks.triggered import TriggeredCallback
from solstice.sharding.checks import assert_replicated
from solstice.tree.pytree import PyTree


class ReplicationCallback(TriggeredCallback):
    """Runs `solstice.sharding.assert_replicated` on the experiment when a trigger fires.

    It copies every copy of each array to the host, so do not run it often.

    Args:
        when: The trigger; one that counts epochs fires after the epoch's validation. With several
            processes it must fire in all at once, so not `Every(seconds=)`.

    Raises:
        AssertionError: Two devices or processes hold unequal copies of an array.

    >>> import solstice
    >>> check = solstice.callbacks.ReplicationCallback(solstice.triggers.Every(epochs=1))
    """

    _check = staticmethod(assert_replicated)

    def act(self, exp: PyTree, step: int) -> None:
        try:
            self._check(exp)
        except AssertionError as error:
            error.add_note(f"Found after {step + 1} training steps.")
            raise
