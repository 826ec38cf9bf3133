"""The position of a run: what it needs, besides the experiment, to continue."""

import dataclasses
from typing import Any, Self

from solstice.arguments import describe
from solstice.tree.digests import digest
from solstice.tree.tensors import damaged, untrusted


@dataclasses.dataclass
class Position:
    """The position of a run between two steps.

    Attributes:
        epoch: The current epoch.
        trained: How many batches of the epoch's training pass are consumed.
        validated: How many batches of a validation pass are consumed; None outside of one.
        pass_done: Whether the training pass is over, so that the epoch's validation is next.
        val_done: Whether the validation is over too.
        steps: How many steps each mode has completed in the run.
        first: The digest of the training pass's first batch.
        opening: The digest of the first pass's first batch, for a dataset that does not get the
            epoch.
        reshuffled: Whether such a dataset started a later pass with another batch.
        last: The digest of its last consumed batch.
        iterator: A state of its iterator, None if it has none; see `Bookmark`.
        read: How many batches were read at that state; None after the end of the pass before.
        ended: How the run ended: "finished" or "stopped"; None while it is running.
        cut: Whether it ended within a pass. The hooks of the pass's end were then called, so a
            longer run continues from the checkpoint before.
        steps_per_call: The result of `steps_per_call="auto"`; None before, and without it.
        num_epochs: The run's `num_epochs`, to detect a request for more.
        num_steps: The same for `num_steps`.

    >>> Position.from_state(Position(epoch=3).to_state()).epoch
    3
    """

    epoch: int = 0
    trained: int = 0
    validated: int | None = None
    pass_done: bool = False
    val_done: bool = False
    steps: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"train": 0, "val": 0, "test": 0}
    )
    first: str | None = None
    opening: str | None = None
    reshuffled: bool = False
    last: str | None = None
    iterator: Any = None
    read: int | None = 0
    ended: str | None = None
    cut: bool = False
    steps_per_call: int | None = None
    num_epochs: int | None = None
    num_steps: int | None = None

    def to_state(self) -> dict[str, Any]:
        """Return it as a dict of plain values."""
        return {**vars(self), "steps": dict(self.steps)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return what `to_state` was called on."""
        with untrusted("The position of the run in the checkpoint", is_file=False):
            found = cls(**state)
            for field in dataclasses.fields(cls):
                value = getattr(found, field.name)
                if field.name == "steps":
                    right = {*value} == {"train", "val", "test"} and all(
                        map(_counts, value.values())
                    )
                else:
                    sort: Any = field.type
                    right = sort is Any or isinstance(value, sort)
                    right &= not isinstance(value, int) or value >= 0
                if not right:
                    raise damaged(
                        f"The {field.name} of the run", f"it is {describe(value)}", is_file=False
                    )
            return found

    def end_pass(self, mode: str) -> None:
        """Go to the end of a pass."""
        if mode == "train":
            self.pass_done = True
        elif mode == "val":
            self.validated, self.val_done = None, self.pass_done

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.trained, self.validated = 0, None
        self.pass_done = self.val_done = False
        self.first = self.last = None

    def is_over(self, num_epochs: int | None, num_steps: int | None) -> bool:
        """Return whether a run that ended here has nothing left to do for these numbers.

        >>> ended = Position(epoch=2, ended="finished", num_epochs=2)
        >>> ended.is_over(2, None), ended.is_over(3, None)
        (True, False)
        """
        if self.ended is None:
            return False
        return not (_more(num_epochs, self.num_epochs) or _more(num_steps, self.num_steps))


def batch_digest(batch: Any) -> str | None:
    """Return a digest of a batch; None if it holds objects that are not data.

    >>> batch_digest(["a"]) == batch_digest(["b"])
    False
    """
    try:
        return digest(batch)
    except TypeError:  # arrays of strings or objects, which only skipping can tell apart
        return None


def _counts(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _more(now: int | None, before: int | None) -> bool:
    return before is not None and (now is None or now > before)
