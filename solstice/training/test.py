"""test: `eval_step` over a dataset."""

from collections.abc import Iterable
from typing import Any, Literal, overload

from solstice import arguments
from solstice.callbacks.base import Callback
from solstice.data.datasets import check_dataset
from solstice.errors import UsageError
from solstice.experiment import Experiment, check_defines, check_experiment
from solstice.sharding.placements import Sharding, check_sharding
from solstice.signatures import explained
from solstice.training.hooks import listed
from solstice.training.loop import Loop
from solstice.training.progress.bars import ProgressChoice, check_progress

# Other libraries' names of the arguments.
OTHER_NAMES = {"dataset": "test_ds", "data": "test_ds", "ds": "test_ds", "verbose": "progress"}


@overload
def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None = None,
    return_outs: Literal[False] = False,
    *,
    sharding: Sharding | None = None,
    progress: ProgressChoice = True,
) -> None: ...


@overload
def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None = None,
    *,
    return_outs: Literal[True],
    sharding: Sharding | None = None,
    progress: ProgressChoice = True,
) -> list[Any]: ...


@overload
def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None,
    return_outs: Literal[True],
    *,
    sharding: Sharding | None = None,
    progress: ProgressChoice = True,
) -> list[Any]: ...


@overload
def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None = None,
    return_outs: bool = False,
    *,
    sharding: Sharding | None = None,
    progress: ProgressChoice = True,
) -> list[Any] | None: ...


@explained(**OTHER_NAMES)
def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None = None,
    return_outs: bool = False,
    *,
    sharding: Sharding | None = None,
    progress: ProgressChoice = True,
) -> list[Any] | None:
    """Run `eval_step` over a dataset, in mode "test".

    Args:
        exp: The experiment.
        test_ds: As `train_ds` in `train`.
        callbacks: The callbacks of the run.
        return_outs: Whether to return the list of each step's outs.
        sharding: As in `train`.
        progress: As in `train`.

    Returns:
        The list of outs if `return_outs`, otherwise None.

    Raises:
        UsageError: There are neither callbacks nor `return_outs`, so the results would be lost.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> outs = solstice.test(exp, [(x, y), (x, y)], return_outs=True, progress=False)
    >>> int(solstice.reduce(outs).count)
    8
    """
    check_experiment(exp)
    callbacks = listed(callbacks)
    return_outs = arguments.flag(return_outs, "return_outs")
    if not callbacks and not return_outs:
        raise UsageError(
            "test() was given neither callbacks nor return_outs=True, so its results would be "
            "lost. Pass callbacks=[LoggingCallback(...)], or return_outs=True for the list of outs."
        )
    check_defines(exp, "eval_step", "test() is called")
    check_dataset(test_ds, "test_ds")
    check_sharding(sharding)
    check_progress(progress)
    loop = Loop(exp, callbacks, progress=progress, sharding=sharding)
    outs: list[Any] | None = [] if return_outs else None
    loop.test(test_ds, outs)
    return outs


# Otherwise pytest collects it as a test wherever it is imported.
test.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]
