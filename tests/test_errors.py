"""Every error of Solstice has one root, and stays the builtin error that users already catch."""

import ast
import builtins
import inspect
from pathlib import Path

import pytest

import solstice
from solstice import errors

CLASSES = [one for _, one in inspect.getmembers(errors, inspect.isclass)]
# Where the builtin itself is asked for: by Python's protocols, the system, or the laws' runner.
EXPECTED = {
    ("compat/__init__.py", "AttributeError"),
    ("loggers/files.py", "OSError"),
    ("tree/tensors.py", "OSError"),
    ("testing/compare.py", "AssertionError"),
    ("testing/model.py", "AssertionError"),
}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_error_has_the_root_above_it_and_stands_in_the_drawn_tree(cls):
    assert issubclass(cls, solstice.SolsticeError)
    drawn = next(line for line in errors.__doc__.splitlines() if f"{cls.__name__}" in line)
    builtin = next((b for b in cls.__mro__ if b.__module__ == "builtins"), None)
    stated = drawn.partition("(")[2].partition(")")[0]
    if stated:
        assert stated in [base.__name__ for base in cls.__mro__], (drawn, builtin)


def test_solstice_raises_no_raw_builtin_error():
    home = Path(solstice.__file__).parent
    raw = set()
    for path in sorted(home.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            name = getattr(node.exc.func, "id", "")
            if hasattr(builtins, name):
                raw.add((str(path.relative_to(home)), name))
    assert raw == EXPECTED


def test_the_message_of_an_unknown_key_is_not_quoted():
    with pytest.raises(KeyError) as caught:
        solstice.metrics.MetricsDict(loss=solstice.metrics.Mean(1.0))["accuracy"]
    assert str(caught.value).startswith("'accuracy' is none of the metrics")
