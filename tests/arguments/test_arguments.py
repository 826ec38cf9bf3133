"""Each odd value for each argument of everything public is right, or a clear error of ours."""

import contextlib
import importlib
import inspect
import os
import re
import warnings

import numpy as np
import pytest
from arguments_table import ROWS
from kinds import Made
from odd_values import odd_values

import solstice
from solstice.tree import describe

# Each module adds its rows to the table.
for room in ("loggers", "metrics", "others", "plots", "testing"):
    importlib.import_module(f"{room}_rows")


def public_callables():
    """Every public function and class, and their public methods, by their names in `solstice`."""
    found = {}
    modules = [solstice] + [
        getattr(solstice, name)
        for name in solstice.__all__
        if inspect.ismodule(getattr(solstice, name))
    ]
    modules += [solstice.testing.strategies]
    for module in modules:
        prefix = module.__name__.removeprefix("solstice").lstrip(".")
        for name in getattr(module, "__all__", None) or vars(module):
            one = getattr(module, name)
            if name.startswith("_") or not callable(one) or one in found.values():
                continue
            if not getattr(one, "__module__", "").startswith("solstice"):
                continue
            found[f"{prefix}.{name}".lstrip(".")] = one
    return found


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch, unchecked):
    """A folder where names of files lead, and no type checks, which users do not have."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def call(row, values):
    """Call a row's function with these values by their names."""
    function = row.function()
    positional, named = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in values:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += values[name]
        elif parameter.kind is parameter.VAR_KEYWORD:
            named |= values[name]
        elif parameter.kind is parameter.POSITIONAL_ONLY or any(
            other.kind is other.VAR_POSITIONAL and other.name in values
            for other in inspect.signature(function).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            positional.append(values[name])
        else:
            named[name] = values[name]
    return function(*positional, **named)


def with_odd(row, name, odd):
    """Return a row's values with one of them replaced; of *args and **options, the first."""
    values = {
        other: argument.value.make() if isinstance(argument.value, Made) else argument.value
        for other, argument in row.arguments.items()
    }
    kind = inspect.signature(row.function()).parameters[name].kind
    if kind is inspect.Parameter.VAR_POSITIONAL:
        odd = (odd, *values[name][1:])
    elif kind is inspect.Parameter.VAR_KEYWORD:
        odd = values[name] | {next(iter(values[name])): odd}
    return values | {name: odd}


def says(message, value):
    """Say whether a message tells what came: in the words of `describe`, its value or its type."""
    told = {getattr(value, "__name__", ""), repr(value), str(value), f"{type(value).__name__}"}
    parts = [*value, *value.values()] if isinstance(value, dict) else []
    if isinstance(value, list | tuple | set | bytes) or getattr(value, "ndim", 0):
        parts = list(value)
    told |= {str(part) for part in parts} | {describe(part) for part in [value, *parts]}
    with contextlib.suppress(ValueError):  # lists of different lengths
        told.add(f"[{','.join(map(str, np.shape(value)))}]")
    return any(part in message for part in told if part)


def fault(row, name, argument, odd_name):
    """Return what is wrong with how a row's function takes an odd value; None if nothing."""
    values = with_odd(row, name, odd := odd_values()[odd_name])
    before = set(os.listdir())
    try:
        with warnings.catch_warnings(action="ignore"):
            row.finish(call(row, values))
    except solstice.SolsticeError as error:
        message = str(error)
        if odd_name in argument.right:
            return f"is right, and refused: {message}"
        called = argument.said or name
        if not re.search(rf"(?<!\w){re.escape(called)}(?!\w)", message):
            return f"the error does not name {called!r}: {message}"
        if not (says(message, odd) or (argument.told and argument.told in message)):
            return f"the error does not say what came: {message}"
        if set(os.listdir()) != before:
            return f"it was refused once {set(os.listdir()) - before} had been written"
    except Exception as error:
        return f"a raw {type(error).__name__}: {str(error)[:300]}"
    else:
        if odd_name not in argument.right:
            return "goes through in silence"
    return None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_odd_value_is_right_or_a_clear_error(row):
    row.finish(call(row, with_odd(row, first := next(iter(row.arguments)), _value(row, first))))
    faults = [
        f"{name}={odd_name}: {found}"
        for name, argument in row.arguments.items()
        for odd_name in odd_values()
        if odd_name not in argument.untried
        if (found := fault(row, name, argument, odd_name))
    ]
    assert not faults, "\n".join([row.name, *faults])


def _value(row, name):
    value = row.arguments[name].value
    value = value.make() if isinstance(value, Made) else value
    kind = inspect.signature(row.function()).parameters[name].kind
    if kind is inspect.Parameter.VAR_POSITIONAL:
        return value[0]
    return next(iter(value.values())) if kind is inspect.Parameter.VAR_KEYWORD else value
