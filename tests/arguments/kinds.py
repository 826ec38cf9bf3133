"""Kinds of arguments: a value that is right, and which of the odd values are right there too.

What a kind lists is what the documentation promises. So that something odd is taken without an
error is a decision, which stands here and in the tables.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from odd_values import ALL


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a call."""

    value: Any
    right: frozenset[str] = frozenset()
    said: tuple[str, ...] = ()  # what an error calls it, where that is not its name
    untried: frozenset[str] = frozenset()  # what is right and would take too long
    told: str | None = None  # how an error says what came, where it does so in words of its own

    def also(self, *names):
        """The same, where these odd values are right too."""
        return dataclasses.replace(self, right=self.right | _known(names))

    def but(self, *names):
        """The same, where these odd values are wrong."""
        assert self.right >= set(names), set(names) - self.right
        return dataclasses.replace(self, right=self.right - set(names))

    def called(self, *said):
        """The same, called otherwise in errors."""
        return dataclasses.replace(self, said=said)

    def not_trying(self, *names):
        """The same, where these odd values are right, and not tried: they would take long."""
        return dataclasses.replace(self, untried=_known(names))

    def telling(self, told):
        """The same, where an error says what came in other words."""
        return dataclasses.replace(self, told=told)


@dataclasses.dataclass(frozen=True)
class Made:
    """A value that is made anew for each call."""

    make: Callable[[], Any]


def _known(names):
    assert set(names) <= ALL, set(names) - ALL
    return frozenset(names)


# One number that is whole: numpy's and jax's count as Python's, True does not.
_INTS = _known({"one", "numpy int", "array of one int", "jax int", "huge"})
_FRACTIONS = _known({"fraction", "numpy float"})
# What numpy makes an array of numbers of.
_NUMBERS = _known(
    {"True", "False", "numpy True", "zero", "one", "minus one", "fraction", "NaN", "inf"}
    | {"numpy int", "numpy float", "numpy NaN", "array of one int", "jax int", "empty list"}
    | {"empty tuple", "seven ints", "seven floats", "seven with a NaN", "seven with a negative"}
    | {"seven bools", "matrix", "array without elements"}
)


def anything(value):
    """Where every object is right."""
    return Argument(value, ALL)


def given(value):
    """What a call needs to be right, and another row tries."""
    return Argument(value, untried=ALL)


def only(value, *names):
    """Where but these odd values all are wrong."""
    return Argument(value, _known(names))


def count(value=2, *, least=1, most=None):
    """An int; with `most`, a huge one is refused."""
    names = {name: n for name, n in {"minus one": -1, "zero": 0}.items() if n >= least}
    ints = _INTS - ({"huge"} if most else set())
    return Argument(value, ints - ({"one"} if least > 1 else set()) | set(names))


def number(value=0.5):
    """A real, finite number above 0."""
    return Argument(value, _INTS | _FRACTIONS)


def flag(value=False):
    """A bool."""
    return Argument(value, _known({"True", "False", "numpy True"}))


def choice(value):
    """One of some texts."""
    return Argument(value)


def text(value="name"):
    """A text that says something."""
    return Argument(value, _known({"text", "number as text", "text with a NUL"}))


def path(value):
    """A path."""
    return Argument(value, _known({"text", "number as text"}))


def function(value, *, may_take_none=False):
    """A function with arguments; one that takes none is wrong unless told otherwise."""
    return Argument(value, _known({"function", "class"} if may_take_none else ()))


def numbers(value):
    """Real numbers of any shape."""
    return Argument(value, _NUMBERS)


def optional(argument):
    """An argument that may be None."""
    return argument.also("None")


def counts(value, *, least=1):
    """One count, or several."""
    return count(value, least=least).also("seven ints", "iterator")


def texts(value):
    """Several texts."""
    return Argument(value, _known({"list of text", "pair", "set", "array of text"})).also(
        "empty list", "empty tuple", "array without elements"
    )


def tree(value):
    """Any tree, whose arrays hold numbers."""
    return Argument(value, ALL - {"array of text", "array of objects"}, said=("leaf",))


def mapping(value):
    """A mapping of names to any values."""
    return Argument(value, _known({"empty dict", "dict of text"}))


def mask():
    """What says where an example is real, of seven: booleans, or numbers that are 0 or 1."""
    return only(None, "None", "seven bools")


def traced(value):
    """A tree of what jax can trace."""
    return numbers(value).also(
        "complex",
        "array of complex",
        "None",
        "empty dict",
        "dict of ints",
        "list of None",
        "ragged list",
    )
