"""For every law of a sink: a fault, and the law's word."""

import numpy as np
import pytest

from solstice.loggers import Sink
from solstice.loggers.values import decoded, encoded
from solstice.testing import SINK_LAWS, LawError, SinkSubject, check_sink
from solstice.tree import from_json, to_json


class Lines(Sink):
    """A user's sink, of one record a line; the faults are subclasses that change one thing."""

    def __init__(self, directory, append=False):
        super().__init__("Lines()")
        self.path = directory / "lines"
        self.append = append

    def on_open(self):
        if self.path.exists() and not self.append:
            raise FileExistsError(self.path)
        self.path.touch()
        self.append = True

    def on_write(self, record):
        with self.path.open("a") as file:
            file.write(to_json(encoded(record)) + "\n")

    def on_get_state(self):
        return {"size": self.path.stat().st_size}

    def on_set_state(self, state):
        with self.path.open("r+") as file:
            file.truncate(state["size"])
        self.append = True


def read(directory):
    path = directory / "lines"
    lines = path.read_text().splitlines() if path.exists() else []
    return [decoded(from_json(line)) for line in lines]


class FourDigits(Lines):
    def on_write(self, record):
        numbers = {n: round(v, 4) for n, v in record.items() if isinstance(v, float)}
        super().on_write({**record, **numbers})


class WritesWhenClosed(Lines):
    def __init__(self, directory, append=False):
        super().__init__(directory, append)
        self.kept = []

    def on_write(self, record):
        self.kept.append(record)

    def on_close(self):
        for record in self.kept:
            super().on_write(record)


class BeginsAnew(Lines):
    def on_open(self):
        super().on_open()
        self.path.write_text("")


class KeepsWhatACrashLeft(Lines):
    def on_set_state(self, state):
        self.append = True


class TakesACrashsLinesForItsOwn(Lines):
    """Skips as many records as a crash left, whatever they are."""

    known = 0

    def on_get_state(self):
        return {"lines": len(self.path.read_text().splitlines())}

    def on_set_state(self, state):
        self.append = True
        self.known = len(self.path.read_text().splitlines()) - state["lines"]

    def on_write(self, record):
        if self.known:
            self.known -= 1
        else:
            super().on_write(record)


class RemembersEveryLine(Lines):
    """Writes the whole file each time, and forgets nothing when it is set back."""

    lines = None

    def on_write(self, record):
        if self.lines is None:
            self.lines = self.path.read_text()
        self.path.write_text(self.lines)
        super().on_write(record)
        self.lines = self.path.read_text()


class StateOfObjects(Lines):
    def on_get_state(self):
        return {**super().on_get_state(), "path": self.path}


class NotesEachCheckpoint(Lines):
    def on_get_state(self):
        self.on_write({"mode": "checkpoint"})
        return super().on_get_state()


class TakesAnyFile(Lines):
    def __init__(self, directory, append=False):
        super().__init__(directory, append=True)


class Plain:
    """No `Sink`, but all that a callback asks of one; it takes any file."""

    def __init__(self, directory, append=False):
        self.lines = Lines(directory, append=True)
        for name in ("write", "flush", "close", "get_state", "set_state"):
            setattr(self, name, getattr(self.lines, name))


class AppendsOver(Lines):
    def on_open(self):
        if self.append:
            self.path.write_text("")
        super().on_open()


class WantsValuesAtOnce(Lines):
    def write(self, record):
        super().write(dict(record))


class WritesInTheRun(Lines):
    def write(self, record):
        self.open()
        self.on_write(record.on_host())


class TellsEachTime(Lines):
    def _warn(self, what, error=None):
        self._warned = False
        super()._warn(what, error)


class SparesMemory(Lines):
    """Empties arrays once they are written."""

    def on_write(self, record):
        super().on_write(record)
        for value in record.values():
            if isinstance(value, np.ndarray) and value.flags.writeable:
                value[...] = 0


class OneFileForAll(Lines):
    """Keeps what is common to all of its class."""

    lines = ""

    def on_write(self, record):
        type(self).lines += to_json(encoded(record)) + "\n"
        self.path.write_text(self.lines)


FAULTS = [
    ("what_is_written_is_read_back", FourDigits, r"closed, what was read back.*is expected to be"),
    ("a_flush_is_enough", WritesWhenClosed, "flushed after 1 records, what was read back has 0 it"),
    ("a_closed_sink_goes_on", BeginsAnew, "closed after each record, what was read back has 1 it"),
    (
        "a_resumed_run_logs_what_a_whole_one_does",
        KeepsWhatACrashLeft,
        r"resumed after \[\d\] records, what was read back has \d items, where \d are expected",
    ),
    (
        "a_resume_drops_what_came_later",
        TakesACrashsLinesForItsOwn,
        "resumed after 0 records, what was read back has 1 items, where 0",
    ),
    ("it_may_be_set_back", RemembersEveryLine, "set back to after 0 records, what was read back"),
    ("the_state_survives_a_checkpoint", StateOfObjects, "'path' is an object that JSON does not"),
    ("taking_the_state_changes_nothing", NotesEachCheckpoint, "before each record, what was read"),
    ("a_new_run_refuses_anothers_log", TakesAnyFile, "a new run did not refuse the log of anot"),
    ("a_new_run_refuses_anothers_log", Plain, "a new run did not refuse the log of another"),
    ("appending_goes_on_behind", AppendsOver, "appended, what was read back has 1 items, where 2"),
    ("a_write_waits_for_nothing", WantsValuesAtOnce, "it waited for a value that was not comput"),
    ("a_failing_write_is_told_once", WritesInTheRun, "ValueError: this value cannot be read"),
    ("a_failing_write_is_told_once", TellsEachTime, "that was reported 2 times"),
    ("a_record_is_left_as_it_was", SparesMemory, r"the record\[.*is expected to be"),
    ("sinks_are_independent", OneFileForAll, "beside another, what was read back"),
]


def subject(sink):
    return SinkSubject(sink, read, shows=lambda records: records)


def test_every_law_has_a_fault():
    assert [law.name for law in SINK_LAWS] == list(dict.fromkeys(law for law, *_ in FAULTS))


def test_a_sound_sink_passes_every_law():
    check_sink(Lines, read, shows=lambda records: records, examples=5)


@pytest.mark.parametrize(("law", "fault", "message"), FAULTS, ids=lambda value: str(value)[:40])
def test_a_law_catches_its_fault(law, fault, message):
    (law,) = (one for one in SINK_LAWS if one.name == law)
    with pytest.raises(LawError, match=message) as caught:
        law.check(subject(fault), examples=20)
    assert f"breaks the law {law}: {law.statement}" in str(caught.value)
