"""The laws of a `Metrics`, and `check_metrics`, which runs them on your metric."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from solstice import arguments
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.metrics.base import Metrics, is_metrics, reduce
from solstice.testing.compare import assert_close
from solstice.testing.law import EXAMPLES, Law, LawBook, Report, maker, run
from solstice.testing.strategies import permutations, splits
from solstice.tree.pytree import PyTree


class MetricsSubject:
    """A metric under the laws, for `law.check(subject)`; its arguments are `check_metrics`'.

    Args:
        make_metrics: Makes the metric of a batch, and of a `mask` if it takes one.
        batch: Examples for it, along the first axis of each array.
    """

    def __init__(self, make_metrics: Callable[..., Any], batch: PyTree) -> None:
        try:
            self.make_metrics = maker(make_metrics, "make_metrics", "batch", Metrics, "a Metrics")
        except InvalidTypeError as error:
            if callable(make_metrics):
                error.add_note(
                    "For several arrays, batch is a tuple that make_metrics takes apart: "
                    "check_metrics(lambda batch, mask=None: Margin(*batch, mask=mask), "
                    "(logits, targets))."
                )
            raise
        self.batch = jax.tree.map(np.asarray, batch)
        shapes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(self.batch)}
        if len(shapes) != 1 or min(shapes) < (2,):
            raise InvalidValueError(
                f"batch is expected to hold two examples or more along the first axis of every "
                f"array; it is {arguments.describe(batch)}."
            )
        ((self.size,),) = shapes
        self.mask = inspect.signature(make_metrics).parameters.get("mask")
        made = make_metrics(self.batch)
        if not is_metrics(made):
            raise InvalidTypeError(
                f"make_metrics is expected to return Metrics; it returned "
                f"{arguments.describe(made)}."
            )

    def __str__(self) -> str:
        return type(self.make_metrics(self.batch)).__name__

    def of(self, examples: Any) -> Any:
        """The metric of some of the examples, by their indices."""
        return self.make_metrics(jax.tree.map(lambda x: x[examples], self.batch))


_book = LawBook(
    MetricsSubject,
    split=lambda subject: splits(subject.size),
    order=lambda subject: permutations(subject.size),
)


@_book.law("split")
def merge_is_commutative(subject: MetricsSubject, split: int) -> None:
    """Merging a with b gives the same as merging b with a."""
    one, two = subject.of(slice(None, split)), subject.of(slice(split, None))
    assert_close(one.merge(two).compute(), two.merge(one).compute(), "a with b, and b with a")


@_book.law("split", "order")
def merge_is_associative(subject: MetricsSubject, split: int, order: list[int]) -> None:
    """Merging (a with b) with c gives the same as merging a with (b with c)."""
    parts = np.array_split(np.array(order), 3) if subject.size > 2 else [order] * 3
    a, b, c = (subject.of(np.array(part)) for part in parts)
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert_close(left.compute(), right.compute(), "(a b) c, and a (b c)")


@_book.law("split", "order")
def batching_does_not_matter(subject: MetricsSubject, split: int, order: list[int]) -> None:
    """Any batching and any order of the same examples give the same values."""
    whole = subject.of(slice(None)).compute()
    shuffled = np.array(order)
    parts = [subject.of(shuffled[:split]), subject.of(shuffled[split:])]
    assert_close(whole, reduce(parts).compute(), "all examples at once, and in two batches")


@_book.law("split", needs="mask")
def masked_examples_count_nowhere(subject: MetricsSubject, split: int) -> None:
    """Masked examples change nothing."""
    mask = np.arange(subject.size) < split
    masked = subject.make_metrics(subject.batch, mask=mask).compute()
    assert_close(subject.of(slice(None, split)).compute(), masked, "without them, and masked")


@_book.law("split")
def jit_equals_eager(subject: MetricsSubject, split: int) -> None:
    """Creating, merging and computing give the same results with and without jit."""
    one, two = subject.of(slice(None, split)), subject.of(slice(split, None))
    eager = one.merge(two).compute()
    jitted = jax.jit(lambda a, b: a.merge(b).compute())(one, two)
    assert_close(eager, jitted, "merged and computed with and without jit")
    made = jax.jit(lambda batch: subject.make_metrics(batch).compute())(subject.batch)
    assert_close(subject.of(slice(None)).compute(), made, "made with and without jit")


METRICS_LAWS: tuple[Law, ...] = tuple(_book.laws)


def check_metrics(
    make_metrics: Callable[..., Any],
    batch: PyTree,
    *others: PyTree,
    exclude: Iterable[str] = (),
    examples: int = EXAMPLES,
    on_failure: str = "raise",
    progress: bool = False,
) -> Report:
    """Check every law of a `Metrics` on a metric, and return the report.

    Args:
        make_metrics: Makes the metric of a batch; if it has a parameter `mask`, of the real
            examples.
        batch: Examples along the first axis of every array, two or more; several arrays are a
            tuple, or any other pytree.
        *others: Nothing; more arrays are an error that shows the tuple.
        exclude: Names of laws to leave out, or a mapping from them to reasons.
        examples: How many inputs Hypothesis draws for each law.
        on_failure: "raise" or "report", as in `check_model`.
        progress: Whether to show a progress bar.

    Raises:
        LawError: A law is violated.

    >>> import numpy as np, solstice
    >>> def make_metrics(batch, mask=None):
    ...     preds, targets, losses = batch
    ...     weight = 1.0 if mask is None else mask
    ...     loss = (losses * weight).sum() / (np.ones(len(preds)) * weight).sum()
    ...     return solstice.ClassificationMetrics(preds, targets, loss, 3, mask=mask)
    >>> batch = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]), np.array([0.1, 0.5, 2.0, 0.3])
    >>> len(solstice.testing.check_metrics(make_metrics, batch).failures)
    0
    """
    if others:
        raise InvalidTypeError(
            f"batch is expected to be one argument, a tuple for several arrays; there are "
            f"{1 + len(others)}. Pass them as check_metrics(make_metrics, (logits, targets)), with "
            f"`logits, targets = batch` in make_metrics(batch, mask=None)."
        )
    subject = MetricsSubject(make_metrics, batch)
    return run(
        METRICS_LAWS,
        subject,
        exclude=exclude,
        examples=examples,
        on_failure=on_failure,
        progress=progress,
    )
