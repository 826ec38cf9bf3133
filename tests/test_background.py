"""The threads that write, beside the one that trains."""

import errno
import os

import pytest

import solstice
from solstice import CheckpointingCallback
from solstice.checkpoints import Checkpoints
from solstice.loggers.worker import Worker

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="it is Linux's")


def test_a_logger_takes_no_turn_of_the_thread_that_trains():
    worker = Worker("test")
    assert worker.call(lambda: os.sched_getscheduler(0)) == os.SCHED_BATCH
    worker.stop()


def test_where_its_policy_may_not_be_set_a_thread_goes_on_as_it_is(monkeypatch):
    def refuse(*arguments):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    worker = Worker("test")
    assert worker.call(lambda: os.sched_getscheduler(0)) == os.SCHED_OTHER
    worker.stop()


def test_the_thread_that_writes_takes_no_turn_of_the_one_that_trains(tmp_path, monkeypatch, adding):
    policies = []
    monkeypatch.setattr(
        Checkpoints, "prune", lambda store, keep: policies.append(os.sched_getscheduler(0))
    )
    saving = CheckpointingCallback(tmp_path)
    solstice.train(adding, 1, [1], callbacks=[saving], progress=False)
    assert set(policies) == {os.SCHED_BATCH}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
