"""Every public function and class, with a call of it that is right.

A row gives each parameter a right value and a kind (see `kinds`), which says what else is right.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import solstice


@dataclasses.dataclass(frozen=True)
class Row:
    """One function or class, and its arguments."""

    name: str
    arguments: dict[str, Any]
    # Of a method, what makes the object that it is called on.
    on: Callable[[], Any] | None = None
    # What is called, where it is not what the name says.
    made: Callable[..., Any] | None = None
    # What is done with the result: what it reads at first use belongs to the call.
    finish: Callable[[Any], Any] = lambda result: None

    def function(self):
        """Return what is called."""
        if self.made is not None:
            return self.made
        if self.on is not None:
            return getattr(self.on(), self.name.rpartition(".")[2])
        return functools.reduce(getattr, self.name.split("."), solstice)


ROWS: list[Row] = []
EXEMPT: dict[str, str] = {}


def row(name, /, *, on=None, made=None, finish=lambda result: None, **arguments):
    """Add a row to the table."""
    ROWS.append(Row(name, arguments, on, made, finish))
