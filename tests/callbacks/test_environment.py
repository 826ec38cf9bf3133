"""EnvironmentCallback: what a run ran with, noted once."""

import logging
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.example_libraries import stax

import solstice
from solstice import EnvironmentCallback
from solstice.loggers import Console, JSONLines, read_json_lines


def test_it_tells_once_a_run_what_the_run_ran_with(train):
    told = []
    callback = EnvironmentCallback(lambda *arguments: told.append(arguments))
    train(2, [1, 2], [3], [callback])
    ((facts, step, mode),) = told
    assert (step, mode) == (0, "environment")
    assert facts["jax"] == jax.__version__ and facts["solstice"] == solstice.__version__
    assert facts["optax"] == optax.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["devices"] == "1 cpu (cpu)" and facts["processes"] == 1
    assert sys.orig_argv[0] in facts["command"]
    assert all(isinstance(fact, str | int) for fact in facts.values())


def test_parameters_are_those_of_the_model():
    told = []
    x = jnp.ones((2, 4))
    exp = solstice.ClassificationExperiment(
        stax.serial(stax.Dense(3)), optax.adam(0.1), example_input=x, key=0
    )
    exp.test(
        [(x, jnp.zeros(2, int))],
        [EnvironmentCallback(lambda f, *_: told.append(f))],
        progress=False,
    )
    assert told[0]["parameters"] == 15
    assert told[0]["bytes"] == solstice.tree.nbytes(exp)


def test_a_sink_gets_a_whole_record(train, tmp_path):
    path = tmp_path / "log.jsonl"
    train(1, [1], callbacks=[EnvironmentCallback(JSONLines(path))])
    (record,) = read_json_lines(path)
    assert list(record)[:4] == ["mode", "epoch", "step", "time"]
    assert (record["mode"], record["step"]) == ("environment", 0)
    assert record["jax"] == jax.__version__


def test_a_list_of_functions_and_sinks_is_told_alike(train, tmp_path, capsys):
    told, path = [], tmp_path / "log.jsonl"
    outlets = [lambda facts, step, mode: told.append(facts), JSONLines(path), Console()]
    train(1, [1], callbacks=[EnvironmentCallback(outlets)])
    (record,) = read_json_lines(path)
    assert told == [{name: record[name] for name in list(record)[4:]}]
    assert f"jax        {jax.__version__}" in capsys.readouterr().out.splitlines()


def test_a_resumed_run_goes_on_in_the_sink_that_it_shares(train, tmp_path):
    path = tmp_path / "log.jsonl"

    def run(epochs):
        sink = JSONLines(path)
        saving = solstice.CheckpointingCallback(tmp_path / "run")
        callbacks = [EnvironmentCallback(sink), solstice.LoggingCallback(None, sink), saving]
        train(epochs, [1, 2], callbacks=callbacks, resume_from=saving)

    run(1)
    with path.open("a") as file:
        file.write('{"mode": "train", "step": 3, "of": "what came after the checkpoint"}\n')
    run(2)
    modes = [record["mode"] for record in read_json_lines(path)]
    assert modes == ["environment", "train", "environment", "train"]


def test_without_a_function_it_is_a_line_of_the_logger(train, caplog):
    with caplog.at_level(logging.INFO, logger="solstice"):
        train(1, [1], callbacks=[EnvironmentCallback()])
    (line,) = caplog.messages
    assert f"jax={jax.__version__}" in line and "devices=1 cpu (cpu)" in line


def test_what_cannot_be_told_is_left_out_and_ends_no_run(caplog):
    class Odd(solstice.Experiment):
        tensor: Any

        def train_step(self, batch):
            return self, None

        eval_step = train_step

    told = []
    odd = Odd(SimpleNamespace(shape=(2,), dtype="a dtype of another library"))
    callback = EnvironmentCallback(lambda facts, *_: told.append(facts))
    solstice.train(odd, 1, [1], callbacks=[callback], progress=False)
    assert "jax" in told[0] and "parameters" not in told[0]
    assert "EnvironmentCallback leaves out a part that failed: AttributeError" in caplog.text


def test_an_experiment_without_arrays_has_none(train):
    class Empty(solstice.Experiment):
        def train_step(self, batch):
            return self, None

        def eval_step(self, batch):
            return self, None

    told = []
    solstice.test(Empty(), [1], [EnvironmentCallback(lambda f, *_: told.append(f))], progress=False)
    assert (told[0]["parameters"], told[0]["bytes"]) == (0, 0)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"it is the str 'log\.txt'"):
        EnvironmentCallback("log.txt")
