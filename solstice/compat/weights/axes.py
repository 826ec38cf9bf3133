"""Which axes of values hold flattened features, while a network's program is followed.

Each axis of a value that depends on the inputs is an `Axis`. Values that are added up share theirs,
so that what is found out about one (a reshape makes one axis of several, or several of one) holds
for all, and for the matrices and vectors that run along it.
"""

from collections.abc import Callable, Sequence

from solstice.compat.weights.uses import Flat

# From a step, whether what comes later counts, and the number of axes, to the channels there.
Channels = Callable[[int, bool, int], int]


class Axis:
    """An axis of a value.

    Args:
        sizes: Of the axes that were made this one, without those of one element.
        step: When that was.
        parts: The axes, with their sizes, that lie one after the other on this one.
    """

    def __init__(
        self,
        sizes: tuple[int, ...] = (),
        step: int = 0,
        parts: Sequence[tuple[int, "Axis"]] = (),
    ) -> None:
        self._sizes, self._step, self._parts = sizes, step, tuple(parts)
        self._later = False
        self._same: Axis | None = None

    @property
    def _root(self) -> "Axis":
        axis = self
        while axis._same is not None:
            axis = axis._same
        return axis

    @property
    def _is_known(self) -> bool:
        return bool(self._sizes or self._parts)

    def join(self, other: "Axis") -> None:
        """Note that values along both were added up, or the like."""
        ours, its = self._root, other._root
        if ours is its:
            return
        if its._is_known and not ours._is_known:
            ours, its = its, ours
        its._same = ours

    def split(self, sizes: tuple[int, ...], step: int) -> None:
        """Note that the axis was made several."""
        root = self._root
        if not root._is_known:
            root._sizes, root._step, root._later = sizes, step, True

    def flat(self, size: int, channels: Channels) -> tuple[Flat, ...]:
        """Return what lies along the axis: empty if no flattened features do.

        Args:
            size: Its number of elements.
            channels: Gives the channels of the convolution before a step, or of the one after.
        """
        root = self._root
        if root._parts:
            found = tuple(flat for part, one in root._parts for flat in one.flat(part, channels))
            return found if any(len(flat.sizes) > 1 for flat in found) else ()
        if len(root._sizes) > 1:
            return (Flat(root._sizes, channels(root._step, root._later, len(root._sizes))),)
        return (Flat((size,), 0),)


def known(flat: tuple[Flat, ...], size: int) -> tuple[Flat, ...]:
    """Return what lies along an axis of some size; empty if it is nothing flattened."""
    fits = sum(one.size for one in flat) == size
    return flat if fits and any(len(one.sizes) > 1 for one in flat) else ()
