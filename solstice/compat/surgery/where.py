"""Which of a network's parts a change is for: a glob over their paths, or a predicate."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.names import matches

# A glob, whose `*` stands for any text (slashes too), or a function of a path.
Where = str | Callable[[str], Any]
# How many paths a message lists.
_MANY = 8


def chosen(paths: Sequence[str], where: Where, name: str = "where") -> list[str]:
    """Return the paths that `where` chooses.

    Args:
        paths: All that there are.
        where: The argument of the user.
        name: What it is called.

    Raises:
        TypeError: It is neither a text nor a function of a path.
        ValueError: It chooses none; the message lists the nearest.

    >>> chosen(["head/kernel", "body/kernel"], "head/*")
    ['head/kernel']
    >>> chosen(["head/kernel", "body/kernel"], "haed/*")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: where, the glob 'haed/*', is expected to choose some of the \
network's weights, and chooses none of head/kernel, body/kernel.
    """
    if isinstance(where, str):
        found = [path for path in paths if matches(path, where)]
        said, near = f"the glob {where!r}", get_close_matches(where, paths, _MANY, cutoff=0)
    elif callable(where):
        arguments.function(where, name, "path")
        found = [path for path in paths if where(path)]
        said, near = describe(where), list(paths[:_MANY])
    else:
        raise InvalidTypeError(
            f"{name} is expected to be a glob for paths, such as 'head/*', or a function of "
            f"(path); it is {describe(where)}."
        )
    if found:
        return found
    rest = f" and {len(paths) - len(near)} more" * (len(paths) > len(near))
    raise InvalidValueError(
        f"{name}, {said}, is expected to choose some of the network's weights, and chooses none of "
        f"{', '.join(near) or 'them, for there are none'}{rest}."
    )
