"""Law: a statement, a check, and the inputs that Hypothesis draws; and running laws."""

import dataclasses
import traceback
import unittest
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from solstice import arguments
from solstice.errors import InvalidTypeError, InvalidValueError, LawError, MissingPackageError

EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Law:
    """One statement about every object of a kind.

    Call `check` on a subject; in pytest, one test per law:

    >>> import pytest, solstice
    >>> @pytest.mark.parametrize("law", solstice.testing.MODEL_LAWS, ids=str)
    ... def test_law(law):
    ...     law.check(solstice.testing.ModelSubject(make_model, inputs))

    Attributes:
        name: Its identifier, for `exclude`.
        statement: The statement.
        draw: Returns the Hypothesis strategy of each input, by name, for a subject.
        needs: An optional part of the subject, without which the law is skipped.
        of: The class of its subjects.
        lacks: The message if it is skipped; by default, that `needs` was not given. A law that
            finds out during the check raises `unittest.SkipTest` with the message.
    """

    name: str
    statement: str
    assertion: Callable[..., None]
    draw: Callable[[Any], dict[str, Any]]
    needs: str | None = None
    of: type = object
    lacks: str = ""

    def __str__(self) -> str:
        return self.name

    def says_nothing(self, subject: Any) -> bool:
        """Whether the subject lacks what the law needs."""
        return self.needs is not None and getattr(subject, self.needs) is None

    def lack(self) -> str:
        """Describe what is missing, for a law that is skipped without it."""
        return self.lacks or f"it needs `{self.needs}`, which was not given"

    def check(self, subject: Any, *, examples: int = EXAMPLES) -> None:
        """Check the law on a subject.

        Raises:
            TypeError: The subject is of another kind.
            unittest.SkipTest: The law says nothing about the subject, and why; pytest reports it as
                skipped.
            LawError: It is broken; the cause is the error with the smallest input found.
            ImportError: Hypothesis is not installed.
        """
        import_hypothesis()
        arguments.instance(subject, "subject", self.of, f"of the class {self.of.__name__}")
        examples = arguments.count(examples, "examples")
        if self.says_nothing(subject):
            raise unittest.SkipTest(f"{self.name}: {self.lack()}")
        drawn: dict[str, Any] = {}
        try:
            self._run(subject, examples, drawn)
        except unittest.SkipTest as why:
            raise unittest.SkipTest(f"{self.name}: {why}") from None
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            inputs = ", ".join(f"{name}={value!r}" for name, value in drawn.items())
            raise LawError(
                f"{subject} breaks the law {self.name}: {self.statement}\n"
                f"{f'  smallest input: {inputs}{chr(10)}' if inputs else ''}"
                f"  {type(error).__name__}: {error}\n"
                f"  at {where.name}, line {where.lineno} of {where.filename}"
            ) from error

    def _run(self, subject: Any, examples: int, drawn: dict[str, Any]) -> None:
        strategies = self.draw(subject)
        if not strategies:
            self.assertion(subject)
            return
        hypothesis = import_hypothesis()

        # Hypothesis runs the smallest failing input last, so `drawn` then holds it.
        def attempt(**inputs: Any) -> None:
            drawn.clear()
            drawn.update(inputs)
            self.assertion(subject, **inputs)

        settings = hypothesis.settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        try:
            settings(hypothesis.given(**strategies)(attempt))()
        except hypothesis.errors.FlakyFailure as flaky:
            # It failed once and then passed: report the first failure.
            raise flaky.exceptions[0] from flaky


class LawBook:
    """The laws of one kind of subject, in the order they were written.

    Args:
        of: The class of the subjects.
        **draws: For each input that a law may name, a function of the subject that returns its
            Hypothesis strategy.
    """

    def __init__(self, of: type = object, /, **draws: Callable[[Any], Any]) -> None:
        self.laws: list[Law] = []
        self._of = of
        self._draws = draws

    def law(
        self, *inputs: str, needs: str | None = None, lacks: str = ""
    ) -> Callable[[Callable[..., None]], Law]:
        """Return a decorator that makes and keeps a law; the docstring is its statement."""

        def decorate(function: Callable[..., None]) -> Law:
            one = Law(
                name=function.__name__,
                statement=" ".join((function.__doc__ or "").split()),
                assertion=function,
                draw=lambda subject: {name: self._draws[name](subject) for name in inputs},
                needs=needs,
                of=self._of,
                lacks=lacks,
            )
            self.laws.append(one)
            return one

        return decorate


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one law: it held, was violated (`error`), or was skipped (`skipped`).

    >>> import jax.numpy as jnp
    >>> from solstice.metrics import Mean
    >>> from solstice.testing import check_metrics
    >>> report = check_metrics(
    ...     lambda values, mask=None: Mean(values, mask=mask), jnp.arange(4.0), examples=1
    ... )
    >>> report.outcomes[0].error is None, report.outcomes[0].skipped is None
    (True, True)
    """

    law: Law
    error: LawError | None = None
    skipped: str | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of all laws on one subject; `str()` gives one line per law.

    Attributes:
        subject: The name of the class that was checked.
        outcomes: The result of each law, in order.
    """

    subject: str
    outcomes: Sequence[Outcome]

    @property
    def failures(self) -> list[LawError]:
        """The errors of the violated laws."""
        return [outcome.error for outcome in self.outcomes if outcome.error is not None]

    def broken(self) -> str:
        """Return the message of an error: the violated laws, and how many others there are."""
        passed = sum(one.error is None and one.skipped is None for one in self.outcomes)
        left = sum(one.skipped is not None for one in self.outcomes)
        first = (
            "" if len(self.failures) == 1 else " Start with the first: others may follow from it."
        )
        total = f"{passed} laws passed, {left} were left out.{first}"
        return "\n\n".join([*map(str, self.failures), total])

    def __str__(self) -> str:
        lines = [f"Laws of {self.subject}"]
        for outcome in self.outcomes:
            mark = "FAILED" if outcome.error else "left out" if outcome.skipped else "passed"
            lines.append(
                f"  {mark:>8}  {outcome.law.name}: {outcome.skipped or outcome.law.statement}"
            )
        lines.extend(f"\n{error}" for error in self.failures)
        return "\n".join(lines)


def run(
    laws: Iterable[Law],
    subject: Any,
    *,
    exclude: Iterable[str],
    examples: int,
    on_failure: str,
    progress: bool,
) -> Report:
    """Check every law on a subject.

    Raises:
        LawError: A law is violated and `on_failure` is "raise"; the message has the violated laws.
        ImportError: Hypothesis is not installed.
        ValueError: `exclude` names an unknown law, or `on_failure` is unknown.
    """
    from tqdm import tqdm

    laws = list(laws)
    excluded = _with_reasons(exclude)
    if unknown := set(excluded) - {law.name for law in laws}:
        raise InvalidValueError(
            f"exclude names unknown laws: {', '.join(map(repr, sorted(unknown)))}. The laws are: "
            f"{', '.join(law.name for law in laws)}."
        )
    arguments.choice(on_failure, "on_failure", ("raise", "report"))
    examples = arguments.count(examples, "examples")
    progress = arguments.flag(progress, "progress")
    import_hypothesis()
    outcomes = []
    for law in tqdm(laws, desc=f"laws of {subject}", disable=not progress, leave=False):
        if law.name in excluded:
            outcomes.append(Outcome(law, skipped=f"excluded{excluded[law.name]}"))
            continue
        try:
            law.check(subject, examples=examples)
        except unittest.SkipTest as why:
            outcomes.append(Outcome(law, skipped=str(why).removeprefix(f"{law.name}: ")))
        except LawError as error:
            outcomes.append(Outcome(law, error=error))
        else:
            outcomes.append(Outcome(law))
    report = Report(str(subject), outcomes)
    if report.failures and on_failure == "raise":
        raise LawError(report.broken()) from report.failures[0]
    return report


def _with_reasons(exclude: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """Return the names of excluded laws, each with its reason for the report."""
    if isinstance(exclude, Mapping):
        return {name: f": {why}" for name, why in arguments.mapping(exclude, "exclude").items()}
    names = [exclude] if isinstance(exclude, str) else arguments.texts(exclude, "exclude")
    return dict.fromkeys(names, "")


def maker(value: Any, name: str, takes: str, kind: type, what: str) -> Callable[..., Any]:
    """Return the function that makes the subject of laws.

    Raises:
        TypeError: It is the subject itself, or not such a function.
    """
    if isinstance(value, kind) and not isinstance(value, type):  # a class makes them
        head = f"lambda {takes}".rstrip()
        raise InvalidTypeError(
            f"{name} is expected to be a function that makes {what}, since the laws need fresh "
            f"ones; it is already one, of the class {type(value).__name__}. Pass the function that "
            f"made it, such as {head}: {type(value).__name__}(...)."
        )
    return arguments.function(value, name, takes)


def check_returned(value: Any, function: str, kind: type, example: str) -> None:
    """Raise if a function that makes the subject of laws returned something else.

    Raises:
        TypeError: The message names the function and what it returned.
    """
    if not isinstance(value, kind):
        raise InvalidTypeError(
            f"{function} is expected to return {example}; it returned {arguments.describe(value)}."
        )


def import_hypothesis() -> Any:
    """Return Hypothesis, or say how to install it."""
    try:
        import hypothesis
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "solstice.testing needs the package 'hypothesis', which is not installed: "
            "pip install 'jax-solstice[testing]'"
        ) from error
    return hypothesis
