"""What functions of a user ask to be called with."""

import inspect
from collections.abc import Callable
from typing import Any

from solstice.errors import InvalidTypeError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def required(function: Callable[..., Any], name: str, optional: str | None = None) -> int:
    """Return how many arguments a function requires by position.

    Args:
        function: The function; one written in C that does not tell requires none.
        name: What it is called in messages.
        optional: The name of a first argument that counts though it has a default.

    Raises:
        TypeError: It requires an argument by name.

    >>> required(lambda epoch, scale=2: None, "train_ds")
    1
    >>> required(lambda epoch=0: None, "train_ds", optional="epoch")
    1
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and one.default is one.empty:
            raise InvalidTypeError(
                f"{name} is a function that requires the argument {one.name!r} by name, which "
                f"nobody gives it. Give it a default, or bind it with functools.partial."
            )
    takes = [one for one in parameters if one.kind in _POSITIONAL]
    needs = sum(one.default is one.empty for one in takes)
    return max(needs, int(any(one.name == optional for one in takes)))
