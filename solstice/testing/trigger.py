"""The laws of a `Trigger`, and `check_trigger`, which runs them on yours."""

import itertools
import pickle
from collections.abc import Callable, Collection, Iterable, Sequence

from solstice.testing.law import EXAMPLES, Law, LawBook, Report, check_returned, maker, run
from solstice.testing.runs import Process, Question, Run
from solstice.testing.strategies import cuts, runs, triggers
from solstice.triggers import Moment, Trigger


class TriggerSubject:
    """A trigger under the laws, for `law.check(subject)`; its argument is `check_trigger`'s.

    Args:
        make_trigger: Makes the trigger.

    >>> import solstice
    >>> subject = TriggerSubject(lambda: solstice.triggers.Every(steps=7))
    >>> for law in TRIGGER_LAWS:
    ...     law.check(subject)
    """

    def __init__(self, make_trigger: Callable[[], Trigger]) -> None:
        self.make_trigger = maker(make_trigger, "make_trigger", "", Trigger, "a Trigger")
        check_returned(make_trigger(), "make_trigger", Trigger, "a Trigger")

    def __str__(self) -> str:
        return type(self.make_trigger()).__name__

    def answers(self, asked: Iterable[Question], resumes: Collection[int] = ()) -> list[bool]:
        """Its results for the checks of a run.

        Args:
            asked: The questions, in order.
            resumes: The indices of the questions before which the run is killed and resumed.
        """
        process, said = Process(self.make_trigger()), []
        for i, question in enumerate(asked):
            if i in resumes:
                process = process.resumed(self.make_trigger())
            said.append(process.ask(question))
        return said


_book = LawBook(
    TriggerSubject,
    run=lambda subject: runs(),
    resumes=lambda subject: cuts(),
    again=lambda subject: cuts(),
    ahead=lambda subject: cuts(),
    other=lambda subject: triggers(),
)


@_book.law("run")
def calls_do_not_matter(subject: TriggerSubject, run: Run) -> None:
    """It fires at the end of each call that contains a step at which it would fire by itself."""
    single = run.one_step_a_call().questions()
    fires = [q for q, said in zip(single, subject.answers(single), strict=True) if said]
    steps = {q.steps for q in fires if not q.ends_epoch}
    epochs = {q.epochs for q in fires if q.ends_epoch}
    asked, expected, before = run.questions(), [], 0
    for q in asked:
        taken = range(before + 1, q.steps + 1)
        expected.append(q.epochs in epochs if q.ends_epoch else not steps.isdisjoint(taken))
        before = q.steps
    _assert_same(asked, expected, subject.answers(asked), "one step per call, and in these calls")


@_book.law("run", "resumes")
def runs_do_not_matter(subject: TriggerSubject, run: Run, resumes: list[int]) -> None:
    """A run that is killed and resumed from a checkpoint fires like an uninterrupted one."""
    asked = run.questions()
    whole, resumed = subject.answers(asked), subject.answers(asked, resumes)
    _assert_same(asked, whole, resumed, "in a whole run, and in a resumed one")


@_book.law("run")
def taking_the_state_changes_nothing(subject: TriggerSubject, run: Run) -> None:
    """Taking its state after each call does not change when it fires."""
    asked = run.questions()
    process, said = Process(subject.make_trigger()), []
    for question in asked:
        said.append(process.ask(question))
        process.watch.get_state()
    _assert_same(asked, subject.answers(asked), said, "without and with its state taken")


@_book.law("run", "again")
def it_fires_once_a_question(subject: TriggerSubject, run: Run, again: list[int]) -> None:
    """It fires at most once per question, and not again without progress."""
    asked = run.questions()
    process, said = Process(subject.make_trigger()), []
    start = Question(0, 0, 0.0, ends_epoch=True)
    assert not process.ask(start), f"it fires {start}"
    for i, question in enumerate(asked):
        said.append(process.ask(question))
        if i in again:
            for ends_epoch in (False, True):
                repeated = question._replace(ends_epoch=ends_epoch)
                assert not process.ask(repeated), f"it fires {repeated}, where it was just asked"
    _assert_same(asked, subject.answers(asked), said, "asked once, and asked twice")


@_book.law("run")
def next_step_is_never_late(subject: TriggerSubject, run: Run) -> None:
    """It does not fire before the step that `next_step` returns."""
    asked = run.questions()
    always = TriggerSubject(lambda: _AlwaysAsked(subject.make_trigger()))
    _assert_same(
        asked, always.answers(asked), subject.answers(asked), "always asked, and by `next_step`"
    )


@_book.law("run")
def it_tells_whether_it_counts_epochs(subject: TriggerSubject, run: Run) -> None:
    """Without `counts_epochs`, the end of an epoch does not make it fire unless time passes."""
    asked = run._replace(waits=[0.0]).questions()
    fires = [q for q, said in zip(asked, subject.answers(asked), strict=True) if said]
    first = next((str(q) for q in fires if q.ends_epoch), "")
    told = subject.make_trigger().counts_epochs
    assert told or not first, f"its `counts_epochs` is false, and it fires {first}"


@_book.law("run", "other")
def joined_fires_when_either_does(subject: TriggerSubject, run: Run, other: Trigger) -> None:
    """Joined with another by `|`, from either side, it fires when one of them does."""
    asked = run.questions()
    others = TriggerSubject(lambda: other).answers(asked)
    either = [a or b for a, b in zip(subject.answers(asked), others, strict=True)]
    for join in (lambda: subject.make_trigger() | other, lambda: other | subject.make_trigger()):
        said = TriggerSubject(join).answers(asked)
        _assert_same(asked, either, said, f"either alone, and {join()}")


@_book.law("run", "ahead")
def watches_are_independent(subject: TriggerSubject, run: Run, ahead: list[int]) -> None:
    """Two runs may use one trigger, one ahead of the other."""
    asked, trigger = run.questions(), subject.make_trigger()
    first, second = Process(trigger), Process(trigger)
    said: tuple[list[bool], list[bool]] = [], []
    for early, late in itertools.zip_longest(asked, [None] * len(ahead) + asked):
        if early is not None:
            said[0].append(first.ask(early))
        if late is not None:
            said[1].append(second.ask(late))
    for each in said:
        _assert_same(asked, subject.answers(asked), each, "alone, and beside another")


@_book.law()
def it_is_a_value(subject: TriggerSubject) -> None:
    """Two made with the same arguments are equal, also in a set, and have the same repr."""
    one, two = subject.make_trigger(), subject.make_trigger()
    assert one == two, f"{one!r} and {two!r}, made alike, are not equal"
    assert len({one, two}) == 1, f"{one!r} and {two!r} are equal, and two of a set"
    assert repr(one) == repr(two), f"two that are equal print as {one!r} and {two!r}"
    assert one != object(), f"{one!r} is equal to any object"


@_book.law("run")
def it_can_be_pickled(subject: TriggerSubject, run: Run) -> None:
    """After pickling, it fires the same."""
    pickled = pickle.dumps(subject.make_trigger())
    asked = run.questions()
    said = TriggerSubject(lambda: pickle.loads(pickled)).answers(asked)
    _assert_same(asked, subject.answers(asked), said, "as made, and unpickled")


class _AlwaysAsked(Trigger):
    """The same trigger without its `next_step`."""

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger

    def fires(self, before: Moment, after: Moment) -> bool:
        return self._trigger.fires(before, after)

    def parts(self) -> tuple[Trigger, ...]:
        return self._trigger.parts()


def _assert_same(
    asked: Sequence[Question], left: Sequence[bool], right: Sequence[bool], what: str
) -> None:
    for question, a, b in zip(asked, left, right, strict=True):
        assert a == b, f"{what}: it says {a} and {b} {question}"


TRIGGER_LAWS: tuple[Law, ...] = tuple(_book.laws)


def check_trigger(
    make_trigger: Callable[[], Trigger],
    *,
    exclude: Iterable[str] = (),
    examples: int = 5 * EXAMPLES,
    on_failure: str = "raise",
    progress: bool = False,
) -> Report:
    """Check every law of a `Trigger`, and return the report.

    Args:
        make_trigger: Makes the trigger.
        exclude: Names of laws to leave out, or a mapping from them to reasons.
        examples: How many inputs Hypothesis draws for each law: runs, with their calls and resumes.
        on_failure: "raise" or "report", as in `check_model`.
        progress: Whether to show a progress bar.

    Raises:
        LawError: A law is violated.

    >>> import dataclasses, solstice
    >>> @dataclasses.dataclass(frozen=True)
    ... class Powers(solstice.triggers.Trigger):
    ...     base: int
    ...
    ...     def fires(self, before, after):
    ...         return self.next_step(before.steps) <= after.steps
    ...
    ...     def next_step(self, steps):
    ...         power = 1
    ...         while power <= steps:
    ...             power *= self.base
    ...         return power
    >>> # Python pickles no class of an interactive session.
    >>> report = solstice.testing.check_trigger(lambda: Powers(2), exclude="it_can_be_pickled")
    >>> len(report.failures)
    0
    """
    return run(
        TRIGGER_LAWS,
        TriggerSubject(make_trigger),
        exclude=exclude,
        examples=examples,
        on_failure=on_failure,
        progress=progress,
    )
