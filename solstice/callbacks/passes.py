"""PassCount: counts the steps of a pass, and says whether it may be over."""

from solstice.tree.pytree import PyTree


class PassCount:
    """Counts the steps of one mode, in the run and in each pass.

    A callback that cannot continue a pass in another process asks it, when the run is saved,
    whether the pass may be over: whether it is as long as the one before, or the first.

    >>> count = PassCount()
    >>> count.add(0), count.add(1), count.may_be_over
    (0, 1, True)
    >>> count.end()
    >>> count.add(2), count.may_be_over, count.add(3), count.may_be_over
    (0, False, 1, True)
    """

    def __init__(self) -> None:
        # Steps of the run, of the pass, and of the last whole pass.
        self._completed = self.seen = 0
        self._length: int | None = None

    def add(self, global_step: int) -> int:
        """Count the steps of a call; return the index of the first in the pass.

        Args:
            global_step: The index of the last step in the run.
        """
        first, self.seen = self.seen, self.seen + global_step + 1 - self._completed
        self._completed = global_step + 1
        return first

    def end(self) -> None:
        """Record that the pass is over."""
        self._length, self.seen = self.seen, 0

    @property
    def may_be_over(self) -> bool:
        """Whether the current pass may be over."""
        return self.seen > 0 and self._length in (None, self.seen)

    def get_state(self) -> dict[str, PyTree]:
        """Return what a resume needs."""
        return {"completed": self._completed, "seen": self.seen, "length": self._length}

    def set_state(self, state: dict[str, PyTree]) -> None:
        """Continue from what `get_state` returned."""
        self._completed, self.seen = int(state["completed"]), int(state["seen"])
        self._length = state["length"]
