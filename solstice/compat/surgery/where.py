"""Selecting parts of a network: with a glob over their paths, or with a predicate."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.names import matches

# A glob, whose `*` matches any characters (slashes too), or a function of a path.
Where = str | Callable[[str], Any]
# How many paths a message lists.
_MANY = 8


def chosen(
    paths: Sequence[str],
    where: Where,
    name: str = "where",
    *,
    what: str = "weights",
    groups: Sequence[str] | None = None,
) -> list[int]:
    """Return the indices of the paths that `where` selects.

    Args:
        paths: All paths that exist.
        where: The user's argument.
        name: The name of that argument.
        what: What the paths belong to, for messages.
        groups: A second name for each path, which a glob may match too.

    Raises:
        TypeError: `where` is neither a string nor a function of a path.
        ValueError: It selects none; the message lists the closest paths.

    >>> chosen(["head/kernel", "body/kernel"], "head/*")
    [0]
    >>> chosen(["head/kernel", "body/kernel"], "haed/*")
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidValueError: where, the glob 'haed/*', is expected to select some of the \
network's weights, and selects none of head/kernel, body/kernel.
    """
    if isinstance(where, str):
        names = zip(paths, groups or paths, strict=True)
        found = [i for i, some in enumerate(names) if any(matches(one, where) for one in some)]
        said, near = f"the glob {where!r}", get_close_matches(where, paths, _MANY, cutoff=0)
    elif callable(where):
        arguments.function(where, name, "path")
        found = [i for i, path in enumerate(paths) if where(path)]
        said, near = "the function", list(paths[:_MANY])
    else:
        raise InvalidTypeError(
            f"{name} is expected to be a glob for paths, such as 'head/*', or a function of "
            f"(path); it is {describe(where)}."
        )
    if found:
        return found
    rest = f" and {len(paths) - len(near)} more" * (len(paths) > len(near))
    raise InvalidValueError(
        f"{name}, {said}, is expected to select some of the network's {what}, and selects none of "
        f"{', '.join(near) or 'them, for there are none'}{rest}."
    )
