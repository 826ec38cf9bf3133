"""Dependence: which leaves of an argument a function's outputs need; traced, never run."""

from collections.abc import Callable

import jax

from solstice import arguments
from solstice.tree.programs import program
from solstice.tree.pytree import PyTree


def depends_on(function: Callable[..., PyTree], argument: PyTree, *rest: PyTree) -> bool:
    """Return whether an output of `function(argument, *rest)` is computed from `argument`.

    The function is traced, never run.

    >>> depends_on(lambda key, x: x + 1, jax.random.key(0), 1.0)
    False
    >>> depends_on(lambda key, x: x + jax.random.normal(key), jax.random.key(0), 1.0)
    True
    """
    return any(used_leaves(function, argument, *rest))


def used_leaves(function: Callable[..., PyTree], argument: PyTree, *rest: PyTree) -> list[bool]:
    """Return for each leaf of `argument` if an output of `function(argument, *rest)` needs it.

    It looks into scans and jitted functions; everything that a loop of unknown length takes counts
    as needed. What a function takes only for its custom derivative does not.

    >>> used_leaves(lambda pair: 2 * pair["b"], {"a": 1.0, "b": 2.0})
    [False, True]
    """
    _check(function, argument, rest)
    return program(function, argument, *rest).used[: len(jax.tree.leaves(argument))]


def _check(function: object, argument: PyTree, rest: tuple[PyTree, ...]) -> None:
    takes = ", ".join(["argument", *(f"rest[{i}]" for i in range(len(rest)))])
    arguments.function(function, "function", takes)
    named = {"argument": argument, **{f"rest[{i}]": one for i, one in enumerate(rest)}}
    for name, tree in named.items():
        arguments.check_leaves(tree, name)
