"""Every error of Solstice has one root, and stays the builtin error that users already catch."""

import ast
import builtins
import inspect
import pickle
import re
from pathlib import Path

import pytest

import solstice
from solstice import errors
from solstice.sharding import processes

CLASSES = [one for _, one in inspect.getmembers(errors, inspect.isclass)]
# Where the builtin itself is asked for: by Python's protocols, the system, or the laws' runner.
EXPECTED = {
    ("compat/__init__.py", "AttributeError"),
    ("loggers/files.py", "OSError"),
    ("tree/tensors.py", "OSError"),
    ("testing/compare.py", "AssertionError"),
    ("testing/model.py", "AssertionError"),
}


def drawn(text):
    """Return each class of a drawn tree with those that it is drawn under and beside."""
    tree, above = {}, []
    for line in text.splitlines():
        found = re.fullmatch(r"    (.*?)(\w+)(?: \((\w+)\))?(?:: .+)?", line)
        if found is None or not (found[1] or not tree):
            continue
        bars, name, builtin = found.groups()
        depth = len(bars) // 4
        above = [*above[:depth], name]
        tree[name] = {*above[depth - 1 : depth], *filter(None, [builtin])}
    return tree


def test_each_error_stands_in_the_drawn_tree_under_its_bases():
    held = {one.__name__: {base.__name__ for base in one.__bases__} for one in CLASSES}
    assert drawn(errors.__doc__) == held
    assert all(issubclass(one, solstice.SolsticeError) for one in CLASSES)


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        (" ├─ RecompileError", " ├─ Recompiled"),
        (" ├─ SlowWriteError (TimeoutError)", " ├─ SlowWriteError (OSError)"),
        (" │   └─ DamagedFileError", " ├─ DamagedFileError"),
    ],
)
def test_a_wrong_drawing_is_seen(line, changed):
    assert line in errors.__doc__
    assert drawn(errors.__doc__.replace(line, changed)) != drawn(errors.__doc__)


FIELDS = [
    (errors.RecompileError, {"leaf": "batch", "before": "float32[3]", "after": "float32[2]"}),
    (errors.UnequalOutputsError, {"difference": 0.1, "layer": "blocks/0"}),
    (errors.DamagedFileError, {"path": "run/step_4/arrays-0.safetensors"}),
    (errors.DirectoryInUseError, {"pid": 7, "host": "node3", "since": "2026-01-31T12:00:00"}),
    (errors.ProcessError, {"process": 1}),
    (errors.NotFiniteError, {"step": 3, "leaves": ("experiment/weight",)}),
]


@pytest.mark.parametrize(("cls", "fields"), FIELDS, ids=[cls.__name__ for cls, _ in FIELDS])
def test_fields_are_told_beside_the_message_and_survive_pickle(cls, fields):
    error = cls("It failed.", **fields)
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert (str(one), one.args, {n: getattr(one, n) for n in fields}) == (
            "It failed.",
            ("It failed.",),
            fields,
        )
    assert not any(getattr(cls("It failed."), name) for name in fields)
    page = Path(__file__).parents[1] / "docs" / "api" / "errors.md"
    assert all(f"`{name}`" in page.read_text() and f"{name}: " in cls.__doc__ for name in fields)


def test_an_error_of_another_process_tells_which(monkeypatch):
    monkeypatch.setattr(processes, "exchange", lambda *_, **__: ["done ", "failed OSError: full"])
    with pytest.raises(errors.ProcessError, match="In process 1: OSError: full") as caught:
        processes.together("save", lambda: "")
    assert caught.value.process == 1


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
    assert str(caught.value).startswith("'accuracy' is not one of the metrics")
