"""The train flag: the keyword of a network's call that switches training on.

Libraries and users name it differently. Only the call's named parameters are considered; nothing is
guessed.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.pytree import PyTree

POSITIVE = ("train", "training", "is_training", "is_train")
NEGATIVE = ("deterministic", "use_running_average", "inference", "eval", "evaluate", "is_eval")

# The keywords to pass, each with its value in training; evaluation uses the opposite.
Flags = tuple[tuple[str, bool], ...]


def parameters(function: Callable[..., PyTree]) -> dict[str, inspect.Parameter]:
    """Return a call's named parameters; none for a callable without a signature.

    >>> list(parameters(lambda x, *rest, train: x))
    ['x', 'train']
    """
    try:
        found = inspect.signature(function).parameters
    except ValueError:  # written in C
        return {}
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in found.items() if p.kind not in starred}


def takes_more(function: Callable[..., PyTree]) -> bool:
    """Return whether a call takes arbitrary keywords, which it may pass on.

    >>> takes_more(lambda x, **rest: x), takes_more(lambda x, *rest: x)
    (True, False)
    """
    try:
        found = inspect.signature(function).parameters.values()
    except ValueError:  # written in C
        return False
    return any(one.kind is one.VAR_KEYWORD for one in found)


def call_of(adapter: str, module: Any, call: Callable[..., PyTree] | None) -> Callable[..., PyTree]:
    """Return the function that calls a module: the user's `call`, or its class's `__call__`.

    Args:
        adapter: The adapter's name, for the error.
        module: The network.
        call: The user's `call=`.

    Raises:
        TypeError: There is neither.
    """
    if call is not None:
        return call
    if callable(module):
        return type(module).__call__
    methods = _methods(type(module))
    name = methods[0] if methods else "forward"
    raise InvalidTypeError(
        f"{adapter}: a network is expected to have a __call__; {type(module).__name__} has the "
        f"methods {', '.join(methods) or 'of its base classes only'}. Specify how to call it on a "
        f"batch: {adapter}(..., call=lambda module, x: module.{name}(x))."
    )


def accepts(function: Callable[..., PyTree], name: str) -> bool:
    """Return whether a call takes the keyword `name`, by name or with **kwargs.

    >>> accepts(lambda x, **rest: x, "rng"), accepts(lambda x: x, "rng")
    (True, False)
    """
    return name in parameters(function) or takes_more(function)


def _methods(cls: type) -> list[str]:
    """Return the public methods of a class and its bases of the same package, its own first."""
    package = cls.__module__.partition(".")[0]
    near = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == package]
    parts = {name: part for base in reversed(near) for name, part in vars(base).items()}
    own = [name for base in near for name in vars(base)]
    return [
        name for name in dict.fromkeys(own) if name[0] != "_" and inspect.isroutine(parts[name])
    ]


def binds(function: Callable[..., PyTree], *given: PyTree, **keywords: PyTree) -> bool:
    """Return whether a call takes these arguments; True if its signature is unknown.

    >>> binds(lambda x: x, 1), binds(lambda x: x, 1, 2)
    (True, False)
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C
        return True
    try:
        signature.bind(*given, **keywords)
    except TypeError:
        return False
    return True


def has_default(function: Callable[..., PyTree], name: str) -> bool:
    """Return whether a call's parameter `name` has a default, other than None.

    >>> has_default(lambda x, key=0: x, "key"), has_default(lambda x, key=None: x, "key")
    (True, False)
    """
    parameter = parameters(function).get(name)
    return parameter is not None and not (
        parameter.default is parameter.empty or parameter.default is None
    )


def find_flags(
    function: Callable[..., PyTree], given: Mapping[str, bool] | None, *, skip_none: bool = False
) -> Flags:
    """Return the train flags among a call's parameters, or the given ones.

    With `skip_none`, a parameter that is None by default is left out: in libraries that also set
    the mode in the network, None means to use that.

    >>> find_flags(lambda x, deterministic: x, None)
    (('deterministic', False),)
    """
    if given is not None:
        if not isinstance(given, Mapping) or not all(isinstance(v, bool) for v in given.values()):
            raise InvalidTypeError(
                f"flags are expected to map a keyword of the network's call to its value in "
                f"training, such as {{'deterministic': False}}; they are {describe(given)}."
            )
        unknown = [name for name in given if not accepts(function, name)]
        if unknown:
            raise InvalidValueError(
                f"flags are expected to be keywords of the network's call, which takes "
                f"{', '.join(map(repr, parameters(function))) or 'none'}; they are "
                f"{describe(given)}."
            )
        return tuple(given.items())
    names = parameters(function)
    return tuple(
        (name, name in POSITIVE)
        for name, parameter in names.items()
        if name in POSITIVE + NEGATIVE and not (skip_none and parameter.default is None)
    )


def flag_values(flags: Flags, train: bool) -> dict[str, bool]:
    """Return the flags as keywords.

    >>> flag_values((("train", True), ("deterministic", False)), train=False)
    {'train': False, 'deterministic': True}
    """
    return {name: value if train else not value for name, value in flags}


def check_train(train: object, adapter: str) -> bool:
    """Return `train`, which must be a Python bool.

    Args:
        train: The value that the caller of a model passed.
        adapter: The adapter's name, for the error.

    Raises:
        TypeError: It is traced, or not a bool.

    >>> check_train(True, "PebbleModel")
    True
    """
    if isinstance(train, bool | np.bool_):
        return bool(train)
    raise InvalidTypeError(
        f"{adapter}: train is expected to be a Python bool, since it selects one of two programs; "
        f"it is {describe(train)}. Under jax.jit, make it static (static_argnames='train') or "
        f"write one function for each mode."
    )
