"""Signatures: what users' functions require, and hints for wrong argument names of ours."""

import functools
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar

from solstice.errors import InvalidTypeError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def overrides(thing: Any, base: type, method: str) -> bool:
    """Return whether an object overrides the default of a protocol's method.

    Args:
        thing: An object of any class.
        base: The protocol's class, which has the default.
        method: The method's name.

    >>> class Greeter:
    ...     def greet(self): ...
    >>> class Loud(Greeter):
    ...     def greet(self): ...
    >>> overrides(Loud(), Greeter, "greet"), overrides(Greeter(), Greeter, "greet")
    (True, False)
    """
    # On the type first, since an Equinox module makes a new object for each method lookup.
    own = getattr(type(thing), method, None)
    default = getattr(base, method)
    held = getattr(thing, "__dict__", {}).get(method)
    return callable(held) or (callable(own) and own is not default)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def required(function: Callable[..., Any], name: str, optional: str | None = None) -> int:
    """Return how many arguments a function requires by position.

    Args:
        function: The function; one written in C without a signature requires none.
        name: Its name in messages.
        optional: The name of a first argument that counts even if it has a default.

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
                f"is not passed. Give it a default, or bind it with functools.partial."
            )
    takes = [one for one in parameters if one.kind in _POSITIONAL]
    needs = sum(one.default is one.empty for one in takes)
    return max(needs, int(any(one.name == optional for one in takes)))


def explained(**others: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator whose error for an unknown argument suggests the right name.

    Args:
        **others: Other libraries' names of arguments, and the names here.

    >>> @explained(epochs="num_epochs")
    ... def run(num_epochs, verbose=True): ...
    >>> run(epochs=3)
    Traceback (most recent call last):
        ...
    solstice.errors.InvalidTypeError: run() has no argument 'epochs'; did you mean 'num_epochs'? \
It takes num_epochs, verbose.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        known = inspect.signature(function).parameters
        called = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
        takes = ", ".join(name for name in known if name != "self")

        @functools.wraps(function)
        def call(*arguments: _P.args, **options: _P.kwargs) -> _R:
            __tracebackhide__ = True  # IPython and pytest leave this frame out
            for name in options:
                if name not in known:
                    meant = others.get(name) or next(iter(get_close_matches(name, known)), None)
                    hint = "" if meant is None else f"; did you mean {meant!r}?"
                    raise InvalidTypeError(
                        f"{called}() has no argument {name!r}{hint or '.'} It takes {takes}."
                    )
            return function(*arguments, **options)

        return call

    return decorate
