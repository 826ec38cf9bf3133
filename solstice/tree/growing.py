"""Growing: the entries of a growing list at one moment, without a copy."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

from solstice.tree.pytree import PyTree

_T = TypeVar("_T")


class Growing(Sequence[PyTree]):
    """The entries that a list has now, even if more are appended later.

    In a callback's state, a checkpoint only writes the entries since the last one. In
    `tree.to_json` it is a list.

    Args:
        entries: The list; it may only be appended to.
        encode: Turns an entry into a tree of plain containers, arrays, numbers and strings.

    >>> log = ["a", "b"]
    >>> now = Growing(log, str.upper)
    >>> log.append("c")
    >>> list(now), len(now), now[-1]
    (['A', 'B'], 2, 'B')
    """

    def __init__(self, entries: list[_T], encode: Callable[[_T], PyTree]) -> None:
        self.entries = entries
        self._encode = encode
        self._length = len(entries)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> PyTree: ...
    @overload
    def __getitem__(self, index: slice) -> list[PyTree]: ...
    def __getitem__(self, index: int | slice) -> PyTree:
        places = range(self._length)[index]
        if isinstance(places, range):
            return [self._encode(self.entries[place]) for place in places]
        return self._encode(self.entries[places])

    def __iter__(self) -> Iterator[PyTree]:
        return (self[place] for place in range(self._length))
