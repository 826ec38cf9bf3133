"""Each odd value for each argument of everything public is right, or a clear error of ours."""

import contextlib
import fnmatch
import importlib
import inspect
import os
import re
import shutil
import warnings

import numpy as np
import pytest
from arguments_table import EXEMPT, ROWS
from kinds import Made
from odd_values import ALL, odd_value

import solstice
import solstice.sklearn  # which is not loaded with the others
from solstice.tree import describe

# Each module adds its rows to the table.
ROOMS = "callbacks compat experiments loggers loop metrics others plots sklearn testing"
for room in ROOMS.split():
    importlib.import_module(f"{room}_rows")


def modules():
    """Every public module, with its name's prefix in `solstice`."""
    named = [(name, getattr(solstice, name)) for name in solstice.__all__]
    public = [("", solstice)]
    public += [(f"{name}.", one) for name, one in named if inspect.ismodule(one)]
    public += [("testing.strategies.", solstice.testing.strategies)]
    return [*public, ("sklearn.", solstice.sklearn)]


def names_of(module):
    """The public names of a module; of one without a list, those of what it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    found = [name for name in vars(module) if not name.startswith("_")]
    return [n for n in found if getattr(vars(module)[n], "__module__", "") == module.__name__]


# What users write as a call, an index or a bar.
OPERATORS = "__call__", "__getitem__", "__or__"


def public_callables():
    """Every public function, class and method by its name: one that has several, by the longest."""
    found = {}
    for prefix, module in modules():
        for name in names_of(module):
            one = getattr(module, name)
            if not callable(one) or (isinstance(one, type) and issubclass(one, BaseException)):
                continue
            found[id(one)] = f"{prefix}{name}", one
    for name, one in list(found.values()):
        if isinstance(one, type):
            for method, function in vars(one).items():
                public = not method.startswith("_") or method in OPERATORS
                if public and callable(getattr(one, method)):
                    found[id(function)] = f"{name}.{method}", getattr(one, method)
    return dict(found.values())


def parameters_of(function):
    """The names of what a caller passes."""
    try:
        names = list(inspect.signature(function).parameters)
    except ValueError:  # as of a text, which has the signature of str
        return []
    return [name for name in names if name != "self" and not name.startswith("_")]


def is_exempt(name, argument):
    """Say whether a function has no row, or none for an argument."""
    names = name, f"{name}({argument})"
    return any(fnmatch.fnmatch(one, pattern) for one in names for pattern in EXEMPT)


def test_the_table_has_every_argument_of_everything_public():
    tried = {}
    for row in ROWS:
        for name in row.arguments:
            tried.setdefault(row.name, set()).add(name)
    missing = [
        f"{name}({argument})"
        for name, function in public_callables().items()
        for argument in parameters_of(function)
        if argument not in tried.get(name, ()) and not is_exempt(name, argument)
    ]
    assert not missing, missing


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch, unchecked):
    """A folder where names of files lead, and no type checks, which users do not have."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def call(row, **values):
    """Call a row's function with its right values, but for these."""
    made = {
        name: argument.value.make() if isinstance(argument.value, Made) else argument.value
        for name, argument in row.arguments.items()
    }
    before = set(os.listdir())
    bound = inspect.BoundArguments(row.signature, made | values)
    with warnings.catch_warnings(action="ignore"):
        try:
            row.finish(row.function()(*bound.args, **bound.kwargs))
        except solstice.SolsticeError as error:
            assert set(os.listdir()) == before, "it was refused after something had been written"
            return error
    for name in set(os.listdir()) - before:  # so that what the next call writes is seen
        if os.path.isdir(name):
            shutil.rmtree(name)
        else:
            os.remove(name)
    return None


def odd_call(row, name, odd):
    """Call a row's function with an odd value; of *args and **options, it is the first."""
    kind, value = row.signature.parameters[name].kind, row.arguments[name].value
    if kind is inspect.Parameter.VAR_POSITIONAL:
        odd = (odd, *value[1:])
    elif kind is inspect.Parameter.VAR_KEYWORD:
        odd = value | {next(iter(value)): odd}
    return call(row, **{name: odd})


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
    odd = odd_value(odd_name)
    try:
        error = odd_call(row, name, odd)
    except Exception as raw:
        return f"a raw {type(raw).__name__}: {str(raw)[:300]}"
    if error is None:
        return None if odd_name in argument.right else "goes through in silence"
    message = str(error)
    if odd_name in argument.right:
        return f"is right, and refused: {message}"
    called = argument.said or (name,)
    if not any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", message) for one in called):
        return f"the error does not name {' or '.join(called)}: {message}"
    if not (says(message, odd) or (argument.told and argument.told in message)):
        return f"the error does not say what came: {message}"
    return None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_odd_value_is_right_or_a_clear_error(row):
    assert call(row) is None
    faults = [
        f"{name}={odd_name}: {found}"
        for name, argument in row.arguments.items()
        for odd_name in sorted(ALL - argument.untried)
        if (found := fault(row, name, argument, odd_name))
    ]
    assert not faults, "\n".join([row.name, *faults])
