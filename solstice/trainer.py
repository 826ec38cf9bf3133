"""train, test and predict: the only loops. They decide when something happens, never what.

What happens in a step is the experiment's business, what happens on the host the callbacks'.
"""

import os
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, overload

import jax
import numpy as np
from jaxtyping import PyTree

from solstice import arguments
from solstice.callbacks import Callback, CheckpointingCallback
from solstice.data import batches, check_dataset, is_one_shot, length
from solstice.errors import InvalidTypeError, InvalidValueError, UsageError
from solstice.experiment import Experiment
from solstice.flat import Flat
from solstice.hooks import listed
from solstice.position import Position
from solstice.progress import Progress, Shown, check_progress
from solstice.run import Run
from solstice.saving.checkpoints import Checkpoints, newest
from solstice.sharding import Sharding, is_first_process
from solstice.sharding.batches import predict_placed
from solstice.sharding.placements import check_sharding
from solstice.sharding.processes import in_step
from solstice.signatures import explained
from solstice.tree import describe
from solstice.triggers import Trigger, check_trigger

_E = TypeVar("_E", bound=Experiment)


# What Keras, Lightning, Transformers and scikit-learn call them.
_OTHERS = {
    "epochs": "num_epochs",
    "max_epochs": "num_epochs",
    "n_epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "steps": "num_steps",
    "max_steps": "num_steps",
    "x": "train_ds",
    "data": "train_ds",
    "dataset": "train_ds",
    "train_dataset": "train_ds",
    "train_dataloader": "train_ds",
    "train_dataloaders": "train_ds",
    "eval_ds": "val_ds",
    "eval_dataset": "val_ds",
    "valid_ds": "val_ds",
    "validation_ds": "val_ds",
    "validation_data": "val_ds",
    "val_dataset": "val_ds",
    "val_dataloaders": "val_ds",
    "callback": "callbacks",
    "resume": "resume_from",
    "ckpt_path": "resume_from",
    "resume_from_checkpoint": "resume_from",
    "steps_per_execution": "steps_per_call",
    "verbose": "progress",
    "enable_progress_bar": "progress",
}


@explained(**_OTHERS)
def train(
    exp: _E,
    num_epochs: int | None,
    train_ds: Any,
    val_ds: Any = None,
    callbacks: Iterable[Callback] | None = None,
    *,
    num_steps: int | None = None,
    validate_every: Trigger | None = None,
    steps_per_call: int = 1,
    prefetch: int | None = None,
    sharding: Sharding | None = None,
    resume_from: CheckpointingCallback | str | os.PathLike[str] | None = None,
    recompile: Literal["warn", "error"] = "warn",
    donate: bool = False,
    progress: Shown = True,
) -> _E:
    """Return the experiment after training; the one passed in stays as it is.

    Each epoch is a pass of `train_step` over `train_ds` and then, if there is a `val_ds`, a pass
    of `eval_step` over it. Steps and epochs count from 0.

    Args:
        exp: The experiment.
        num_epochs: How many epochs; None when `num_steps` alone ends the run.
        train_ds: Any re-iterable of batches: a list, a tf.data or grain dataset, a DataLoader, or
            a function that returns an iterator (called with the epoch if it takes an argument,
            with the epoch and the experiment if it requires two), or `data.live(make)`. A method
            `set_epoch(epoch)` is called before each pass. It may fill the same buffers again for
            each batch: but for a list's, numpy's arrays are copied.
        val_ds: The same, for validation. Its first batch is read before the first training step,
            to see that an evaluation works, and the first validation begins with it.
        callbacks: What watches the run. One that raises `EarlyStoppingException` ends it: the
            epoch's other hooks are still called, its validation is not run any more.
        num_steps: Ends the run after so many training steps; the epoch it cuts short is
            validated as any other. To know whether it cuts one short, one more batch is read of
            what can be read again. A run that is resumed with more steps goes on as if it had
            had them from the start.
        validate_every: The trigger that says when to run a pass over `val_ds`; None says after each
            epoch. `Every(steps=500)` validates in the middle of an epoch too.
        steps_per_call: How many steps one compiled call takes. More are quicker where a step is
            small, and equal up to the compiler's rounding. Hooks are then called once a call, with
            the index of its last step, the list of its batches, and the steps' outs: merged, or
            stacked on a new first axis if they do not merge. What is left at the end of a pass,
            or differs in shape, is taken step by step, in one call of the hooks. Steps that are
            not compiled by `solstice.jit` are all taken so.
        prefetch: How many batches a thread reads and places on the device ahead of time; 0 reads
            each when its turn comes. None means 2 on accelerators and 0 on a CPU, where a
            compiled call takes numpy's arrays more cheaply. Nothing is read ahead of a dataset that
            reads one of `callbacks`, such as one that keeps the experiment for it.
        sharding: Where the experiment and its batches are: `solstice.sharding.DataParallel()`,
            `FullySharded()` or `Rules(...)`; None is one device. The experiment comes back as it is
            placed.
        resume_from: A `CheckpointingCallback` or its directory: go on after its newest complete
            checkpoint, with the experiment, the callbacks and the data where they were, to the
            same bits; start anew if it holds none, with the log of a run that was killed before it
            had saved anything. A run that had ended is returned at once, unless
            it is asked for more epochs or steps than it was. `on_epoch_start` is called again for
            the pass in which a run goes on, and after `on_run_start` each callback's `set_state`.
        recompile: When a step compiled by `solstice.jit` is traced again, the log says what
            changed, as a warning from the third trace on; "error" raises at the second.
        donate: Whether the run may take the buffers of `exp` itself, which nobody can use any more
            afterwards. It saves the copy that a run otherwise starts with.
        progress: Whether to show a progress bar with the loss and the accuracy (or the first two
            numbers that `compute()` gives); names of metrics show those. A bar in a terminal or a
            notebook; elsewhere, as in a log file, one line an epoch. Epochs count from 0, as in
            every record. The metrics are those of the pass so far, merged, as far as the device
            has finished them; at its end, those of the whole pass, as `LoggingCallback` logs them
            (of a pass that a resumed run goes on with, those of the steps since). What cannot be
            shown ends no run: standard error may be closed, or a terminal gone.

    Raises:
        TypeError, ValueError: An argument or the first batch is not what it must be; raised
            before the first step.
        ValueError: A pass over a dataset gave no batch.
        RecompileError: A step was compiled again, and `recompile` is "error".
        DamagedFileError: `resume_from` holds only checkpoints that cannot be read.
        KeyboardInterrupt, SystemExit: A signal came; the step in hand was finished and saved.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> exp = solstice.train(exp, 20, [(x, y)], progress=False)
    >>> exp.predict(x).tolist()
    [0, 1, 1, 0]
    """
    _check_experiment(exp)
    if num_epochs is not None:
        num_epochs = arguments.count(num_epochs, "num_epochs", least=0)
    if num_steps is not None:
        num_steps = arguments.count(num_steps, "num_steps")
    steps_per_call = arguments.count(steps_per_call, "steps_per_call")
    if prefetch is not None:
        prefetch = arguments.count(prefetch, "prefetch", least=0)
    donate = arguments.flag(donate, "donate")
    check_sharding(sharding)
    check_progress(progress)
    arguments.choice(recompile, "recompile", ("warn", "error"))
    if num_epochs is None and num_steps is None:
        raise InvalidValueError("Nothing ends this run: give num_epochs, num_steps or both.")
    passes = None if num_steps is not None else num_epochs
    check_dataset(train_ds, "train_ds", passes, endless=num_steps is not None)
    if val_ds is not None:
        check_dataset(val_ds, "val_ds", passes)
        if val_ds is train_ds and is_one_shot(train_ds):
            raise InvalidValueError(
                "With one iterator for both, val_ds gave no batch in epoch 0. An iterator that can "
                "be read only once is used up by the training: pass two, or lists, or functions."
            )
    if validate_every is not None:
        check_trigger(validate_every, "validate_every")
        if val_ds is None:
            raise InvalidValueError(
                f"validate_every is given, {describe(validate_every)}, and no val_ds to validate "
                f"on: it is None."
            )
    callbacks = listed(callbacks)
    for callback in callbacks:
        if val_ds is None and getattr(callback, "needs_validation", False):
            raise UsageError(
                f"{type(callback).__name__} watches the validation, and train() has none: give it "
                f"a val_ds, or a callback that watches the training."
            )
    found = store = None
    if resume_from is not None:
        chosen = resume_from
        store = Checkpoints(
            chosen.directory
            if isinstance(chosen, CheckpointingCallback)
            else arguments.path(chosen, "resume_from")
        )
        found = newest(store, exp)
        if found is not None:
            there = Position.from_state(found[2]["position"])
            if there.cut and not there.is_over(num_epochs, num_steps):
                found = newest(store, exp, before=found[0]) or found
            exp = found[1]
    run = Run(
        exp,
        callbacks,
        progress=progress,
        steps_per_call=steps_per_call,
        prefetch=prefetch,
        recompile=recompile,
        donate=donate or found is not None,
        saved=True,
        sharding=sharding,
    )
    if found is None and store is not None:
        run.replace_run(store.start())
    if found is not None and store is not None:
        run.resume(found[2], store)
        if run.position.is_over(num_epochs, num_steps):
            run.give_states()
            return run.exp
    if num_epochs != 0:
        run.check_sequence(train_ds, "train")
        run.check_sequence(val_ds, "val")
    where = run.position
    where.ended, where.cut = None, False
    where.num_epochs, where.num_steps = num_epochs, num_steps

    def validate() -> None:
        where.validated = where.validated or 0
        run.one_pass("val", where.epoch, val_ds, title=f"{title()} val")

    def title() -> str:
        # By its index, and that of the last one, as in every record.
        last = 0 if num_epochs is None else num_epochs - 1
        return f"epoch {where.epoch}" + (f"/{last}" if last else "")

    def epochs() -> None:
        while num_epochs is None or where.epoch < num_epochs:
            if not where.pass_done:
                if val_ds is not None and where.validated is None:
                    run.look_at_validation(val_ds, train_ds)
                run.one_pass("train", where.epoch, train_ds, title=title(), last_step=num_steps)
            if val_ds is not None and validate_every is None and not where.val_done:
                validate()
            ends = num_steps is not None and where.steps["train"] >= num_steps
            if where.pass_done:
                run.end_epoch(last=ends or where.epoch + 1 == num_epochs)
            if ends:
                return

    if validate_every is not None:
        run.validate_when(validate_every, validate)
    run.execute(epochs)
    return run.exp


@overload
def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None = None,
    return_outs: Literal[False] = False,
    *,
    sharding: Sharding | None = None,
    progress: bool = True,
) -> None: ...


@overload
def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None = None,
    *,
    return_outs: Literal[True],
    sharding: Sharding | None = None,
    progress: bool = True,
) -> list[Any]: ...


@overload
def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None,
    return_outs: Literal[True],
    *,
    sharding: Sharding | None = None,
    progress: bool = True,
) -> list[Any]: ...


@overload
def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None = None,
    return_outs: bool = False,
    *,
    sharding: Sharding | None = None,
    progress: bool = True,
) -> list[Any] | None: ...


@explained(dataset="test_ds", data="test_ds", ds="test_ds", verbose="progress")
def test(
    exp: Experiment,
    test_ds: Any,
    callbacks: Iterable[Callback] | None = None,
    return_outs: bool = False,
    *,
    sharding: Sharding | None = None,
    progress: Shown = True,
) -> list[Any] | None:
    """Run `eval_step` over a dataset, in mode "test".

    Args:
        exp: The experiment.
        test_ds: As `train_ds` in `train`.
        callbacks: What watches the run.
        return_outs: Whether to return the list of each step's outs.
        sharding: As in `train`.
        progress: As in `train`.

    Returns:
        The list of outs if `return_outs`, otherwise None.

    Raises:
        UsageError: There are neither callbacks nor `return_outs`, so nothing would come of it.

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
    _check_experiment(exp)
    callbacks = listed(callbacks)
    return_outs = arguments.flag(return_outs, "return_outs")
    if not callbacks and not return_outs:
        raise UsageError(
            "test() was given neither callbacks nor return_outs=True, so its results would be "
            "lost. Pass callbacks=[LoggingCallback(...)], or return_outs=True for the list of outs."
        )
    check_dataset(test_ds, "test_ds")
    check_sharding(sharding)
    check_progress(progress)
    run = Run(exp, callbacks, progress=progress, sharding=sharding)
    run.check_sequence(test_ds, "test")
    outs: list[Any] | None = [] if return_outs else None
    run.execute(lambda: run.one_pass("test", 0, test_ds, title="test", outs=outs))
    return outs


# Otherwise pytest takes it for a test wherever it is imported.
test.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


@explained(dataset="ds", data="ds", test_ds="ds", x="ds", verbose="progress")
def predict(
    exp: Experiment, ds: Any, *, sharding: Sharding | None = None, progress: bool = True
) -> PyTree[np.ndarray]:
    """Return `exp.predict` of each batch's inputs, joined along the first axis, on the host.

    The inputs are what `exp.batch_inputs(batch)` returns; without that method, the first element
    of a tuple or list, and any other batch itself, a named tuple too.

    Args:
        exp: An experiment with a `predict` method.
        ds: As `train_ds` in `train`; labels are not needed.
        sharding: As in `train`. Each process gets the predictions of its own batches.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: The experiment has no `predict` method.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=jnp.eye(4), key=0
    ... )
    >>> solstice.predict(exp, [jnp.eye(4), jnp.zeros((3, 4))], progress=False).shape
    (7,)
    """
    _check_experiment(exp)
    check_sharding(sharding)
    check_progress(progress)
    if not callable(getattr(exp, "predict", None)):
        raise InvalidTypeError(
            f"predict() needs an experiment with a `predict` method; {type(exp).__name__} has "
            f"none. Define `predict(self, inputs)` on it."
        )
    check_dataset(ds, "ds")
    inputs_of = getattr(exp, "batch_inputs", _first_element)
    if sharding is not None:
        exp = sharding.placed(Flat.of(exp), donate=True).whole()
    one_batch: Any = exp.predict  # pyright: ignore[reportAttributeAccessIssue]
    joined = []
    shown = Progress(progress if is_first_process() else False)
    with shown.one_pass("predict", total=length(ds)) as bar:
        source = batches(ds, 0, "ds", experiment=lambda: exp)
        if sharding is not None:
            source = in_step(source, strict=True)
        for batch in source:
            inputs = inputs_of(batch if sharding is None else batch[0])
            if sharding is None:
                joined.append(_on_host(one_batch(inputs)))
            else:
                joined.append(predict_placed(sharding, one_batch, inputs, batch[1]))
            bar.update(1)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *joined)


def _first_element(batch: Any) -> Any:
    return batch[0] if type(batch) in (tuple, list) else batch


def _check_experiment(exp: Any) -> None:
    if not isinstance(exp, Experiment):
        what = (
            f"the class {exp.__name__!r}: pass an instance"
            if isinstance(exp, type)
            else describe(exp)
        )
        raise InvalidTypeError(
            f"exp is expected to be an instance of solstice.Experiment; it is {what}."
        )


def _on_host(predictions: Any) -> Any:
    host = jax.tree.map(np.asarray, predictions)
    if not all(array.ndim for array in jax.tree.leaves(host)):
        raise InvalidValueError(
            f"predict is expected to return arrays with examples along their first axis, for each "
            f"batch of ds; it returned {describe(predictions)}."
        )
    return host
