"""The laws of a sink, and `check_sink`, which runs them on yours."""

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from solstice.testing import strategies
from solstice.testing.law import (
    EXAMPLES,
    Law,
    LawBook,
    Report,
    import_hypothesis,
    run,
)
from solstice.testing.stores import (
    LATE,
    Broken,
    Late,
    Records,
    SinkSubject,
    as_record,
    as_written,
    difference,
    later,
    saved,
    write,
)

_book = LawBook(
    SinkSubject,
    records=lambda subject: subject.records,
    more=lambda subject: subject.records,
    cut=lambda subject: import_hypothesis().strategies.integers(0, 5),
    cuts=lambda subject: strategies.cuts(5),
    lost=lambda subject: import_hypothesis().strategies.integers(0, 3),
    killed=lambda subject: import_hypothesis().strategies.booleans(),
)


@_book.law("records")
def what_is_written_is_read_back(subject: SinkSubject, records: Records) -> None:
    """All written records are read back from a closed sink, equal and in order."""
    with subject.store() as store:
        sink = store.sink()
        write(sink, records)
        sink.close()
        store.assert_holds(records, "closed")


@_book.law("records")
def a_flush_is_enough(subject: SinkSubject, records: Records) -> None:
    """Written records can be read after a flush, while the sink is open."""
    with subject.store() as store:
        sink = store.sink()
        for count, record in enumerate(records, start=1):
            write(sink, [record])
            sink.flush()
            store.assert_holds(records[:count], f"flushed after {count} records")


@_book.law("records")
def a_closed_sink_goes_on(subject: SinkSubject, records: Records) -> None:
    """A closed sink may be closed again, and appends further records."""
    with subject.store() as store:
        sink = store.sink()
        for record in records:
            write(sink, [record])
            sink.close()
            sink.close()
        store.assert_holds(records, "closed after each record")


@_book.law("records", "cuts", "lost", "killed")
def a_resumed_run_logs_what_a_whole_one_does(
    subject: SinkSubject, records: Records, cuts: list[int], lost: int, killed: bool
) -> None:
    """A run that crashes and is resumed logs like an uninterrupted one: nothing lost or twice."""
    places = [min(cut, len(records)) for cut in cuts]
    state: Any = None
    with subject.store() as store:
        for i, (start, stop) in enumerate(itertools.pairwise([0, *places, len(records)])):
            sink = store.sink()
            if i:
                sink.set_state(state)
            write(sink, records[start:stop])
            state = saved(sink.get_state())
            # After the checkpoint and before the crash; at least the flushed records stay.
            write(sink, records[stop : stop + lost])
            _end(sink, killed)
        store.assert_holds(records, f"resumed after {places} records")


@_book.law("records", "more", "cut", "killed")
def a_resume_drops_what_came_later(
    subject: SinkSubject, records: Records, more: Records, cut: int, killed: bool
) -> None:
    """A resume drops the records after its state was taken, and none before."""
    before = records[:cut]
    with subject.store() as store:
        sink = store.sink()
        write(sink, before)
        state = saved(sink.get_state())
        write(sink, records[cut:])
        _end(sink, killed)
        resumed = store.sink()
        resumed.set_state(state)
        store.assert_holds(before, f"resumed after {len(before)} records")
        new = later(more, than=before)
        write(resumed, new)
        resumed.close()
        store.assert_holds([*before, *new], "resumed, and written to")


@_book.law("records", "more", "cut")
def it_may_be_set_back(subject: SinkSubject, records: Records, more: Records, cut: int) -> None:
    """An open sink can go back to any of its states, like one in another process."""
    before = records[:cut]
    with subject.store() as store:
        sink = store.sink()
        write(sink, before)
        state = saved(sink.get_state())
        write(sink, records[cut:])
        sink.set_state(state)
        new = later(more, than=before)
        write(sink, new)
        sink.close()
        store.assert_holds([*before, *new], f"set back to after {len(before)} records")


@_book.law("records")
def the_state_survives_a_checkpoint(subject: SinkSubject, records: Records) -> None:
    """Its state is data that a checkpoint restores exactly, and does not change by itself."""
    with subject.store() as store:
        sink = store.sink()
        for each in ([], records):
            write(sink, each)
            state = sink.get_state()
            found = difference(state, saved(state), "the state from a checkpoint")
            assert found is None, found
            sink.close()
            found = difference(state, sink.get_state(), "the state of the closed sink")
            assert found is None, found


@_book.law("records")
def taking_the_state_changes_nothing(subject: SinkSubject, records: Records) -> None:
    """Taking its state before each record does not change what is written."""
    with subject.store() as store:
        sink = store.sink()
        for record in records:
            sink.get_state()
            write(sink, [record])
        sink.close()
        store.assert_holds(records, "its state taken before each record")


@_book.law("records", needs="append")
def a_new_run_refuses_anothers_log(subject: SinkSubject, records: Records) -> None:
    """A new run raises an error if there is a log, and does not change it."""
    with subject.store() as store:
        sink = store.sink()
        write(sink, records)
        sink.close()
        refused = False
        try:
            _open(store.sink(), records[0])
        except Exception:  # noqa: BLE001 - its class is the sink's
            refused = True
        assert refused, "a new run did not refuse the log of another"
        store.assert_holds(records, "refused")


@_book.law("records", "more", needs="append")
def appending_goes_on_behind(subject: SinkSubject, records: Records, more: Records) -> None:
    """With `append=True`, a new run appends to the log."""
    new = later(more, than=records)
    with subject.store() as store:
        for each in (records, new):
            sink = store.sink(append=True)
            write(sink, each)
            sink.close()
        store.assert_holds([*records, *new], "appended")


@_book.law("records")
def a_write_waits_for_nothing(subject: SinkSubject, records: Records) -> None:
    """A write returns before the values are computed, and writes them once they are."""
    *others, last = records
    late = Late()
    with subject.store() as store:
        sink = store.sink()
        write(sink, others)
        began = time.monotonic()
        write(sink, [{**last, "late": late}])
        # Both, since a machine may pause after the write.
        waited = late.waited_for and (late.in_run or time.monotonic() - began > LATE)
        late.computed.set()
        sink.close()
        assert not waited, "it waited for a value that was not computed yet"
        store.assert_holds([*others, {**last, "late": 0.5}], "computed")


@_book.law("records", "cut")
def a_failing_write_is_told_once(subject: SinkSubject, records: Records, cut: int) -> None:
    """Records that cannot be written raise nothing, are reported once, and lose no other record."""
    with subject.store() as store:
        sink = store.sink()
        write(sink, records[:cut])
        for _ in range(2):
            write(sink, [{**records[0], "broken": Broken()}])
        write(sink, records[cut:])
        sink.close()
        store.assert_holds(records, "two records beside these failed")
        told = [warning for warning in store.warnings if Broken.message in warning]
        assert len(told) == 1, (
            f"two records failed, and that was reported {len(told)} times: {told}"
        )


@_book.law("records")
def a_record_is_left_as_it_was(subject: SinkSubject, records: Records) -> None:
    """Neither a record nor an array in it is changed, since other sinks get them too."""
    with subject.store() as store:
        sink = store.sink()
        wholes = [{**record, "array": np.arange(1.0, 4.0)} for record in records]
        given = [as_record(record) for record in wholes]
        before = copy.deepcopy([as_written(record) for record in wholes])
        for record in given:
            sink.write(record)
        sink.close()
        for record, old in zip(given, before, strict=True):
            found = difference(old, record.on_host(), "the record")
            assert found is None, found


@_book.law("records", "more")
def sinks_are_independent(subject: SinkSubject, records: Records, more: Records) -> None:
    """Two sinks with different places do not mix."""
    with subject.store() as one, subject.store() as two:
        left, right = one.sink(), two.sink()
        for a, b in itertools.zip_longest(records, more):
            write(left, [] if a is None else [a])
            write(right, [] if b is None else [b])
        left.close()
        right.close()
        one.assert_holds(records, "beside another")
        two.assert_holds(more, "beside another")


def _open(sink: Any, record: Mapping[str, Any]) -> None:
    """Start a run: by `open`, where a `Sink` raises, or by the first record."""
    if callable(open_ := getattr(sink, "open", None)):
        open_()
    else:
        write(sink, [record])


def _end(sink: Any, killed: bool) -> None:
    """End a process: a killed one closes nothing."""
    if killed:
        sink.flush()
    else:
        sink.close()


SINK_LAWS: tuple[Law, ...] = tuple(_book.laws)


def check_sink(
    make_sink: Callable[..., Any],
    read: Callable[[Path], Any],
    *,
    shows: Callable[[Records], Any] | None = None,
    records: Any = None,
    exclude: Iterable[str] = (),
    examples: int = 4 * EXAMPLES,
    on_failure: str = "raise",
    progress: bool = False,
) -> Report:
    """Check every law of a sink, and return the report.

    Args:
        make_sink: Makes a sink that writes into a directory, a `pathlib.Path`: the first of a run,
            and one for each process that resumes it. If it has a parameter `append`, a new run must
            raise an error if there is a log, unless it is True.
        read: Returns what is in that directory: a list of the records, in order, as dicts.
        shows: Returns what `read` is expected to return for a list of records (with Python numbers
            and numpy arrays), if that differs from the records. None expects all but images.
        records: A Hypothesis strategy of lists of records, for a sink that does not take everything
            in `strategies.records()`: any number, text, array and name.
        exclude: Names of laws to leave out, or a mapping from them to reasons.
        examples: How many inputs Hypothesis draws for each law: lists of records, a crash, resumes.
        on_failure: "raise" or "report", as in `check_model`.
        progress: Whether to show a progress bar.

    Raises:
        LawError: A law is violated.

    >>> import solstice
    >>> def make_sink(directory, append=False):
    ...     return solstice.loggers.JSONLines(directory / "log.jsonl", append=append)
    >>> def read(directory):
    ...     return solstice.loggers.read_json_lines(directory / "log.jsonl")
    >>> len(solstice.testing.check_sink(make_sink, read, examples=2).failures)
    0
    """
    return run(
        SINK_LAWS,
        SinkSubject(make_sink, read, shows, records),
        exclude=exclude,
        examples=examples,
        on_failure=on_failure,
        progress=progress,
    )
