"""The laws of an `Experiment`, and `check_experiment`, which runs them on yours."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice.experiment import Experiment
from solstice.signatures import overrides
from solstice.testing.compare import assert_same_bits, assert_same_signature, values
from solstice.testing.law import EXAMPLES, Law, LawBook, Report, check_returned, maker, run
from solstice.testing.strategies import seeds


class ExperimentSubject:
    """An experiment under the laws, for `law.check(subject)`; see `check_experiment`.

    Args:
        make_experiment: Makes the experiment from a key.
        batch: A batch for its steps.
    """

    def __init__(self, make_experiment: Callable[[Array], Experiment], batch: Any) -> None:
        self.make_experiment = maker(
            make_experiment, "make_experiment", "key", Experiment, "an Experiment"
        )
        self.batch = batch
        check_returned(self.made(0), "make_experiment", Experiment, "an Experiment")
        evaluates = overrides(self.made(0).innermost(), Experiment, "eval_step")
        self.eval_step = "eval_step" if evaluates else None
        self.steps = ("train_step", "eval_step") if evaluates else ("train_step",)

    def __str__(self) -> str:
        return type(self.made(0)).__name__

    @functools.lru_cache(maxsize=4)  # noqa: B019 - lives as long as the laws run
    def made(self, seed: int) -> Experiment:
        return self.make_experiment(jax.random.key(seed))


_book = LawBook(ExperimentSubject, seed=lambda subject: seeds())


@_book.law("seed")
def steps_are_pure(subject: ExperimentSubject, seed: int) -> None:
    """A step changes neither its experiment nor its batch, and repeats bit for bit."""
    exp = subject.made(seed % 2)
    before = values((exp, subject.batch))
    for step in subject.steps:
        one, two = (getattr(exp, step)(subject.batch) for _ in range(2))
        assert_same_bits(before, values((exp, subject.batch)), f"before and after {step}")
        assert_same_bits(one, two, f"the same {step} twice")


@_book.law("seed")
def signature_is_stable(subject: ExperimentSubject, seed: int) -> None:
    """Steps keep tree, shapes, dtypes and weak types, so nothing recompiles."""
    exp = subject.made(seed % 2)
    for step in ("train_step", *subject.steps):
        new, _ = getattr(exp, step)(subject.batch)
        assert_same_signature(exp, new, f"after {step}")
        exp = new


@_book.law("seed", needs="eval_step")
def eval_leaves_it_unchanged(subject: ExperimentSubject, seed: int) -> None:
    """Evaluation returns an equal experiment, so validating does not disturb training."""
    exp = subject.made(seed % 2)
    new, _ = exp.eval_step(subject.batch)
    assert_same_bits(exp, new, "before and after eval_step")


@_book.law("seed")
def it_is_resumable(subject: ExperimentSubject, seed: int) -> None:
    """Continuing from saved leaves gives the same bits as continuing directly."""
    exp, _ = subject.made(seed % 2).train_step(subject.batch)
    arrays, rest = eqx.partition(exp, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    written = [
        jax.random.wrap_key_data(jax.random.key_data(leaf))
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.asarray(np.frombuffer(np.asarray(leaf).tobytes(), leaf.dtype).reshape(leaf.shape))
        for leaf in leaves
    ]
    resumed = eqx.combine(jax.tree.unflatten(structure, written), rest)
    onward, onward_outs = exp.train_step(subject.batch)
    again, again_outs = resumed.train_step(subject.batch)
    assert_same_bits((onward, onward_outs), (again, again_outs), "trained on, and resumed")


EXPERIMENT_LAWS: tuple[Law, ...] = tuple(_book.laws)


def check_experiment(
    make_experiment: Callable[[Array], Experiment],
    batch: Any,
    *,
    exclude: Iterable[str] = (),
    examples: int = EXAMPLES,
    on_failure: str = "raise",
    progress: bool = False,
) -> Report:
    """Check every law of an `Experiment`, and return the report.

    Args:
        make_experiment: Makes the experiment from a key.
        batch: A batch for its steps. Without an `eval_step`, only the training step is checked.
        exclude: Names of laws to leave out, or a mapping from them to reasons.
        examples: How many inputs Hypothesis draws for each law.
        on_failure: "raise" or "report", as in `check_model`.
        progress: Whether to show a progress bar.

    Raises:
        LawError: A law is violated.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y, tx = jnp.ones((4, 3)), jnp.array([0, 1, 1, 0]), optax.adam(1e-3)
    >>> network = stax.Dense(2)
    >>> def make_experiment(key):
    ...     return solstice.ClassificationExperiment(network, tx, example_input=x, key=key)
    >>> len(solstice.testing.check_experiment(make_experiment, (x, y)).failures)
    0
    """
    subject = ExperimentSubject(make_experiment, batch)
    return run(
        EXPERIMENT_LAWS,
        subject,
        exclude=exclude,
        examples=examples,
        on_failure=on_failure,
        progress=progress,
    )
