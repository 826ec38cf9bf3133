"""SIGTERM and Ctrl-C: the step in hand is finished, the run saved, then it ends."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from resuming import VAL, bits, experiment, shuffled

import solstice
from solstice.saving.checkpoints import Checkpoints


class Signal(solstice.Callback):
    """Sends this process a signal in a step, and notes what comes after."""

    def __init__(self, number, mode="train", step=3):
        self.number, self.at = number, (mode, step)
        self.events = []

    def on_step_start(self, exp, global_step, mode, batch):
        if (mode, global_step) == self.at:
            os.kill(os.getpid(), self.number)

    def on_step_end(self, outs, exp, global_step, mode, batch):
        self.events.append((mode, global_step))

    def on_run_end(self, exp, error):
        self.events.append(type(error).__name__)


def run(directory, *callbacks):
    saving = solstice.CheckpointingCallback(directory)
    return solstice.train(
        experiment(), 3, shuffled, VAL, [*callbacks, saving], resume_from=saving, progress=False
    )


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize(
    ("number", "ending"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_the_step_is_finished_and_saved(tmp_path, number, ending, mode):
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    sending = Signal(number, mode)
    with pytest.raises(ending) as caught:
        run(tmp_path / "run", sending)
    if ending is SystemExit:
        assert caught.value.code == 143
    assert sending.events[-2:] == [(mode, 3), ending.__name__]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert len(Checkpoints(tmp_path / "run").names()) == 1 + (mode == "val")
    assert bits(run(tmp_path / "run")) == bits(run(tmp_path / "whole"))


@pytest.mark.parametrize("shown", [False, True])
def test_an_interrupted_and_a_resumed_run_say_where(tmp_path, capfd, caplog, shown):
    def said():
        lines = capfd.readouterr().err.splitlines() if shown else caplog.messages
        return [line for line in lines if str(tmp_path) in line]

    def go(*callbacks):
        saving = solstice.CheckpointingCallback(tmp_path)
        options = dict(resume_from=saving, progress=shown)
        return solstice.train(experiment(), 2, shuffled, callbacks=[*callbacks, saving], **options)

    caplog.set_level("INFO", logger="solstice")
    with pytest.raises(KeyboardInterrupt) as caught:
        go(Signal(signal.SIGINT))
    assert caught.value.__notes__ == [f"Saved after 4 training steps in {tmp_path}."]
    assert said() == [
        f"Interrupted: the run is saved in {tmp_path} after 4 training steps; resume_from= "
        f"continues from there."
    ]
    caplog.clear()
    go()
    assert said() == [f"Resuming from {tmp_path} after 4 training steps, in epoch 0."]
    caplog.clear()
    go()
    assert said() == [f"The run in {tmp_path} is over, after 10 training steps."]


def test_an_interrupted_run_whose_save_was_lost_does_not_say_so(tmp_path, caplog, monkeypatch):
    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(Checkpoints, "finish", full)
    caplog.set_level("INFO", logger="solstice")
    callbacks = [Signal(signal.SIGINT), solstice.CheckpointingCallback(tmp_path)]
    with pytest.raises(KeyboardInterrupt) as caught:
        solstice.train(experiment(), 2, shuffled, callbacks=callbacks, progress=False)
    assert not hasattr(caught.value, "__notes__")
    assert any("no space left" in message for message in caplog.messages)
    assert not any("Interrupted" in message for message in caplog.messages)


TWICE = """
import os, signal, solstice

class Twice(solstice.Callback):
    def on_step_start(self, exp, global_step, mode, batch):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            print("after", number.name, flush=True)

class Still(solstice.Experiment):
    def train_step(self, batch):
        return self, batch

    def eval_step(self, batch):
        return self, batch

solstice.train(Still(), 1, [1.0], callbacks=[Twice()], progress=False)
"""


@pytest.mark.slow  # starts a process
def test_a_second_signal_ends_the_process_at_once():
    ended = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, "after SIGTERM\n"), ended.stderr


AT_THE_END = """
import os, signal, sys, solstice

class AtTheEnd(solstice.Callback):
    def on_run_end(self, exp, error):
        os.kill(os.getpid(), int(sys.argv[1]))
        print("the rest of the hook")
        if sys.argv[2] == "hook":
            raise OSError("the disk is full")

class Told(solstice.Callback):
    def on_run_end(self, exp, error):
        print("the next callback is told of", error)

class Still(solstice.Experiment):
    def train_step(self, batch):
        if sys.argv[2] == "step":
            raise OSError("the disk is full")
        return self, batch

    def eval_step(self, batch):
        return self, batch

try:
    solstice.train(Still(), 1, [1.0], callbacks=[AtTheEnd(), Told()], progress=False)
except Exception:
    pass  # a script that goes on whatever fails
print("nobody asked it to stop", flush=True)
"""


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize(
    ("number", "failing"),
    [(signal.SIGTERM, "nothing"), (signal.SIGINT, "step"), (signal.SIGTERM, "hook")],
)
def test_a_signal_that_comes_while_a_run_ends_is_heeded(number, failing):
    command = [sys.executable, "-c", AT_THE_END, str(int(number)), failing]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == (143 if number == signal.SIGTERM else -number), ended.stderr
    told = "the disk is full" if failing == "step" else None
    assert ended.stdout == f"the rest of the hook\nthe next callback is told of {told}\n"
    assert ("OSError: the disk is full" in ended.stderr) == (failing != "nothing")


def test_a_test_ends_after_its_step_too():
    sending = Signal(signal.SIGINT, "test", 0)
    with pytest.raises(KeyboardInterrupt):
        solstice.test(experiment(), VAL, [sending], progress=False)
    assert sending.events == [("test", 0), "KeyboardInterrupt"]


def test_off_the_main_thread_nothing_is_installed(tmp_path):
    handler, found = signal.getsignal(signal.SIGTERM), []

    class Look(solstice.Callback):
        def on_step_end(self, outs, exp, global_step, mode, batch):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run, args=(tmp_path, Look()))
    thread.start()
    thread.join()
    assert found and set(found) == {handler}
