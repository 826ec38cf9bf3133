"""What a check tells: the report, the error, the smallest input, and what it asks for."""

import subprocess
import sys
import textwrap
import unittest

import jax
import jax.numpy as jnp
import pytest

import solstice
from solstice.compat import FunctionModel
from solstice.testing import LawError, ModelSubject, check_metrics, check_model
from solstice.testing.law import LawBook, run
from solstice.testing.strategies import seeds, splits

X = jnp.arange(12.0).reshape(4, 3)


def init(key, x):
    return {"w": jax.random.normal(key, (x.shape[-1], 2))}


def sound(params, x):
    return x @ params["w"]


def centred(params, x):
    """Breaks two laws: it normalises by the batch in evaluation too."""
    return sound(params, x - x.mean(0))


def check(apply, **options):
    return check_model(lambda key: FunctionModel(init, apply, X, key=key), X, examples=1, **options)


def test_a_report_has_a_line_for_each_law_and_the_failures_below():
    left_out = {"vmap_trains_each": "it takes long"}
    report = check(centred, on_failure="report", exclude=left_out)
    lines = str(report).splitlines()
    assert lines[0] == "Laws of FunctionModel"
    assert len(report.outcomes) == len(solstice.testing.MODEL_LAWS)
    assert (
        "    passed  leaves_are_arrays: Every leaf is a jax array; params are strongly" in lines[1]
    )
    text = "\n".join(lines)
    assert "    FAILED  eval_is_per_example: Evaluating two batches gives" in text
    assert "  left out  vmap_trains_each: excluded: it takes long\n" in text
    assert "  left out  equals_the_native_call: it needs `native`, which was not given" in text
    assert "  left out  changes_reach_the_outputs: nothing is tagged in the network's" in text
    assert [str(error).split(":")[0] for error in report.failures] == [
        "FunctionModel breaks the law eval_is_per_example"
    ]
    assert "smallest input: split=1\n" in str(report.failures[0])
    assert text.endswith(f"\n{report.failures[0]}")


def test_a_law_may_be_the_first_to_run():
    def make():
        return ModelSubject(lambda key: FunctionModel(init, sound, X, key=key), X)

    for law in solstice.testing.MODEL_LAWS:
        subject = make()
        if law.needs in ("native", "sub_modules"):
            with pytest.raises(unittest.SkipTest, match=f"^[^:]*{law.name}: (it needs|nothing)"):
                law.check(subject)
            continue
        law.check(subject, examples=1)
        subject.model(X)


def test_a_broken_law_raises_with_the_broken_laws_first():
    with pytest.raises(LawError) as caught:
        check(centred)
    report = check(centred, on_failure="report")
    assert str(caught.value) == report.broken()
    assert report.broken().startswith("FunctionModel breaks the law eval_is_per_example")
    left = sum(outcome.skipped is not None for outcome in report.outcomes)
    passed = len(report.outcomes) - left - 1
    assert report.broken().endswith(f"\n\n{passed} laws passed, {left} were left out.")
    assert isinstance(caught.value.__cause__, LawError)


def test_a_sound_model_is_reported_without_an_error():
    report = check(sound)
    assert report.failures == []
    assert "FAILED" not in str(report)


def test_the_smallest_input_is_the_smallest_that_breaks_the_law():
    book = LawBook(seed=lambda subject: seeds(), split=lambda subject: splits(100))

    @book.law("seed", "split")
    def small(subject, seed, split):
        """All is small."""
        assert seed < 1000 or split < 7, f"{seed} and {split}"

    with pytest.raises(LawError) as caught:
        run(book.laws, "it", exclude=(), examples=200, on_failure="raise", progress=False)
    assert "it breaks the law small: All is small.\n  smallest input: seed=1000, split=7\n" in str(
        caught.value
    )
    assert "AssertionError: 1000 and 7" in str(caught.value)


def test_several_broken_laws_point_to_the_first():
    book = LawBook()

    @book.law()
    def first(subject):
        """One."""
        raise AssertionError("1")

    @book.law()
    def second(subject):
        """Two."""
        raise AssertionError("2")

    with pytest.raises(LawError) as caught:
        run(book.laws, "it", exclude=(), examples=1, on_failure="raise", progress=False)
    text = str(caught.value)
    assert text.startswith("it breaks the law first: One.\n  AssertionError: 1\n  at first, line ")
    assert "smallest input" not in text and "it breaks the law second" in text
    assert text.endswith(
        "0 laws passed, 0 were left out. Start with the first: others may follow from it."
    )


def test_what_fails_once_is_told_as_it_failed():
    book, calls = LawBook(seed=lambda subject: seeds()), []

    @book.law("seed")
    def steady(subject, seed):
        """It is steady."""
        calls.append(seed)
        assert len(calls) != 1, "the first call is another"

    with pytest.raises(LawError, match="AssertionError: the first call is another"):
        book.laws[0].check("it", examples=3)


def test_a_progress_bar_is_drawn_when_asked_for(capsys):
    check(sound, progress=True)
    assert "laws of FunctionModel" in capsys.readouterr().err
    check(sound)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"exclude": ["no_such_law"]},
            r"exclude names unknown laws: 'no_such_law'\. The laws are: leaves",
        ),
        ({"on_failure": "ignore"}, r"on_failure is expected to be 'raise' or 'report'.*'ignore'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(sound, **options)


def test_one_example_is_too_few():
    with pytest.raises(ValueError, match=r"at least 2 examples .* they are float32\[1,3\]"):
        check_model(lambda key: FunctionModel(init, sound, X, key=key), X[:1])


def test_a_metric_without_mask_leaves_that_law_out():
    def make(batch):
        return solstice.ClassificationMetrics(batch, batch, jnp.zeros(()), 3)

    report = check_metrics(make, jnp.array([0, 1, 2]), examples=1)
    assert "left out  masked_examples_count_nowhere: it needs `mask`" in str(report)


def test_without_hypothesis_the_command_is_named():
    code = """
        import sys

        sys.modules["hypothesis"] = None
        import solstice.testing

        import jax.numpy as jnp, solstice

        def make(values, mask=None):
            return solstice.metrics.Mean(values, mask=mask)

        for asks in (
            solstice.testing.strategies.seeds,
            lambda: solstice.testing.check_metrics(make, jnp.ones(3)),
            lambda: solstice.testing.check_metrics(make, jnp.ones(3), on_failure="report"),
            lambda: solstice.testing.check_trigger(lambda: solstice.triggers.Every(steps=7)),
            lambda: solstice.testing.METRICS_LAWS[0].check(
                solstice.testing.MetricsSubject(make, jnp.ones(3))
            ),
        ):
            try:
                asks()
            except solstice.errors.MissingPackageError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and len(set(lines)) == 1, lines
    assert "needs the package 'hypothesis'" in lines[0]
    assert "pip install 'jax-solstice[testing]'" in lines[0]


def test_several_arrays_of_a_metric_are_one_tuple():
    def make(preds, targets, mask=None):
        return solstice.ClassificationMetrics(preds, targets, jnp.zeros(()), 3, mask=mask)

    batch = jnp.array([0, 1, 2]), jnp.array([0, 1, 1])
    with pytest.raises(TypeError, match=r"one argument, a tuple for several arrays; there are 2"):
        check_metrics(make, *batch)
    with pytest.raises(TypeError, match=r"function of \(batch\)") as raised:
        check_metrics(lambda preds, targets: make(preds, targets), batch)
    assert "(*batch, mask=mask)" in raised.value.__notes__[0]
    check_metrics(lambda batch, mask=None: make(*batch, mask=mask), batch, examples=1)
