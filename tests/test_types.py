"""What pyright, in strict mode, says to a user's programs: all is known, and mistakes are found."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "tests" / "typing_programs"
RIGHT = sorted(path.name for path in PROGRAMS.glob("*.py") if path.name != "wrong.py")


def pyright(*arguments):
    """What it reports, as the versions that are installed here are used."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, cwd=ROOT)
    return json.loads(done.stdout)


@functools.cache
def said():
    """Its messages by file and line."""
    found = {}
    for one in pyright("-p", str(PROGRAMS))["generalDiagnostics"]:
        lines = found.setdefault(Path(one["file"]).name, {})
        lines.setdefault(one["range"]["start"]["line"] + 1, []).append(one["message"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("program", RIGHT)
def test_a_right_program_has_no_error_and_nothing_unknown(program):
    assert not said().get(program)


@pytest.mark.slow
def test_each_mistake_is_an_error_where_it_is_made():
    said_of = said()["wrong.py"]
    expected = {}
    for number, line in enumerate((PROGRAMS / "wrong.py").read_text().splitlines(), 1):
        if "  # " in line:
            expected[number] = line.partition("  # ")[2]
    assert len(expected) > 15 and set(said_of) == set(expected)
    for number, text in expected.items():
        assert any(text in message for message in said_of[number]), (number, said_of[number])


@pytest.mark.slow
def test_everything_public_has_a_known_type():
    report = pyright("--verifytypes", "solstice", "--ignoreexternal")["typeCompleteness"]
    unknown = {
        one["name"]
        for one in report["symbols"]
        if one["isExported"] and not one["isTypeKnown"] and not one["isTypeAmbiguous"]
    }
    # tqdm and scikit-learn give their classes no types that a subclass could have.
    untyped = {"Bar", "Estimator", "Classifier", "Regressor"}
    counts = report["exportedSymbolCounts"]
    assert {name.rsplit(".", 1)[-1] for name in unknown} <= untyped, unknown
    assert counts["withKnownType"] > 1000
