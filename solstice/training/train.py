"""train: checks its arguments before the first step, and runs the loop."""

import logging
import os
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from solstice import arguments
from solstice.arguments import describe
from solstice.callbacks.base import Callback
from solstice.callbacks.checkpointing import CheckpointingCallback
from solstice.data.datasets import check_dataset, is_one_shot
from solstice.errors import InvalidValueError, NoCheckpointError, UsageError
from solstice.experiment import Experiment, check_defines, check_experiment
from solstice.saving.checkpoints import Checkpoints, newest
from solstice.sharding.placements import Sharding, check_sharding
from solstice.signatures import explained
from solstice.training.calls import StepsPerCall, as_steps_per_call
from solstice.training.hooks import listed
from solstice.training.loop import Loop
from solstice.training.position import Position
from solstice.training.progress.bars import ProgressChoice, check_progress
from solstice.triggers import Trigger, check_trigger

_E = TypeVar("_E", bound=Experiment)

_logger = logging.getLogger("solstice")


# The arguments' names in Keras, Lightning, Transformers and scikit-learn.
OTHER_NAMES = {
    "epochs": "num_epochs",
    "max_epochs": "num_epochs",
    "n_epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "steps": "num_steps",
    "max_steps": "num_steps",
    "x": "train_ds",
    "batch_size": "train_ds=solstice.data.Arrays(x, y, batch_size=)",
    "shuffle": "train_ds=solstice.data.Arrays(x, y, batch_size=, shuffle=)",
    "validation_split": "train_ds, val_ds = solstice.data.Arrays(...).split(0.8)",
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


@explained(**OTHER_NAMES)
def train(
    exp: _E,
    num_epochs: int | None,
    train_ds: Any,
    val_ds: Any = None,
    callbacks: Iterable[Callback] | None = None,
    *,
    num_steps: int | None = None,
    validate_every: Trigger | None = None,
    steps_per_call: StepsPerCall = 1,
    prefetch: int | None = None,
    sharding: Sharding | None = None,
    resume_from: CheckpointingCallback | str | os.PathLike[str] | None = None,
    recompile: Literal["warn", "error"] = "warn",
    donate: bool = False,
    progress: ProgressChoice = True,
) -> _E:
    """Return the experiment after training; the one passed in does not change.

    Each epoch is a pass of `train_step` over `train_ds` and then, if there is a `val_ds`, a pass
    of `eval_step` over it. Steps and epochs count from 0.

    Args:
        exp: The experiment.
        num_epochs: How many epochs; None if `num_steps` ends the run.
        train_ds: `data.Arrays`, or any re-iterable of batches: a list, a tf.data or grain dataset,
            a DataLoader, or a function that returns an iterator (called with the epoch if it takes
            an argument, with the epoch and the experiment if it requires two), or
            `data.live(make)`. A method `set_epoch(epoch)` is called before each pass. The dataset
            may reuse its buffers from batch to batch: numpy arrays are copied, except those of a
            list.
        val_ds: The same, for validation. Its first batch is read and checked before the first
            training step; the first validation starts with it.
        callbacks: The callbacks of the run. One that raises `EarlyStoppingException` ends it: the
            epoch's other hooks are still called, its validation is skipped.
        num_steps: Ends the run after this many training steps. An epoch that it cuts short is
            validated like any other; to find out, one more batch is read if the dataset can be read
            again. A run resumed with more steps continues as if it had had them from the start.
        validate_every: The trigger of passes over `val_ds`; None means after each epoch.
            `Every(steps=500)` validates in the middle of an epoch too.
        steps_per_call: How many steps one compiled call takes. More are faster if a step is small,
            and give the same results up to the compiler's rounding. Hooks are then called once per
            call, with the index of its last step, the list of its batches, and the steps' outs:
            merged, or stacked on a new first axis if they do not merge. The remaining batches of a
            pass, and batches of another shape, are taken step by step, with one call of the hooks;
            so are all steps that `solstice.jit` does not compile. "auto" times the first calls,
            with 1, 4, 16 and 64 steps, as long as none is clearly slower than one before and each
            compiles quickly. The result is logged; a resumed run keeps it, and so does the next run
            of the same kind in this process. "epoch" takes a whole pass in one call, for data that
            fits in memory, such as `data.Arrays(...).on_device()`. With both, hooks always get a
            list, and evaluation takes one step per call.
        prefetch: How many batches a thread reads ahead, and places on the device if a call takes
            one batch; 0 reads each batch when it is needed. None means 0 on a CPU and for data in
            memory (lists, tuples, `Arrays`), where prefetching is not faster, and 2 otherwise. A
            dataset that reads from one of `callbacks` is never prefetched.
        sharding: Where the experiment and its batches are placed:
            `solstice.sharding.DataParallel()`, `FullySharded()` or `Rules(...)`; None is one
            device. The returned experiment stays placed that way.
        resume_from: A `CheckpointingCallback` or its directory: continue from its newest complete
            checkpoint. Experiment, callbacks and data are restored, and the result is the same bit
            for bit. Without a checkpoint the run starts from the beginning and replaces the log of
            a run that was killed before its first save; it warns if this run does not save there
            either. The experiment of a finished run is returned immediately, unless you ask for
            more epochs or steps. After `on_run_start`, each callback's `set_state` is called, then
            `on_epoch_start` again for the pass in which the run continues.
        recompile: If a step compiled by `solstice.jit` is traced again, the log says what changed,
            as a warning from the third trace on; "error" raises an error at the second.
        donate: Whether the run may donate the buffers of `exp`, which cannot be used afterwards. It
            saves the copy that a run otherwise starts with.
        progress: Whether to show a progress bar with the loss and the accuracy (or the first two
            numbers that `compute()` gives), or the names of the metrics to show. It is a bar in a
            terminal or notebook, and one line per epoch elsewhere, as in a log file, with one for
            each validation in the middle of an epoch. Epochs count from 0, as in every record. The
            metrics are merged over the steps of the pass that the device has finished; at the end
            they are those of the whole pass, as `LoggingCallback` logs them (after a resume, of the
            steps since). A failure to show them, such as a closed terminal, does not end the run.

    Raises:
        TypeError, ValueError: An argument or the first batch is wrong; raised before the first
            step.
        ValueError: A pass over a dataset gave no batch.
        RecompileError: A step was compiled again, and `recompile` is "error".
        FileNotFoundError: `resume_from` is a checkpoint or a file, not a directory of checkpoints.
        DamagedFileError: `resume_from` contains only unreadable checkpoints.
        KeyboardInterrupt, SystemExit: A signal came; the current step was finished and saved. A
            note on the exception says where.

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
    check_experiment(exp)
    if num_epochs is not None:
        num_epochs = arguments.count(num_epochs, "num_epochs", least=0)
    if num_steps is not None:
        num_steps = arguments.count(num_steps, "num_steps")
    steps_per_call = as_steps_per_call(steps_per_call)
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
        check_defines(exp, "eval_step", "val_ds is given")
        check_dataset(val_ds, "val_ds", passes)
        if val_ds is train_ds and is_one_shot(train_ds):
            raise InvalidValueError(
                "With one iterator for both, val_ds gave no batch in epoch 0. An iterator that can "
                "be read only once is exhausted by the training: pass two, or lists, or functions."
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
        if val_ds is None and isinstance(callback, Callback) and callback.needs_validation:
            raise UsageError(
                f"{type(callback).__name__} watches the validation, but train() has none: pass "
                f"val_ds, or a callback that watches the training, with watch='train'."
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
        if found is None:
            _start_anew(store, callbacks)
        else:
            there = Position.from_state(found[2]["position"])
            if there.cut and not there.is_over(num_epochs, num_steps):
                found = newest(store, exp, before=found[0]) or found
            exp = found[1]
    loop = Loop(
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
        loop.replace_run(store.start())
    if found is not None and store is not None:
        loop.resume(found[2], store)
        if loop.position.is_over(num_epochs, num_steps):
            loop.end_again()
            return loop.exp
    loop.train(train_ds, val_ds, num_epochs, num_steps, validate_every)
    return loop.exp


def _start_anew(there: Checkpoints, callbacks: list[Callback]) -> None:
    """Warn if a run finds nothing to continue from, unless it is the first of its directory.

    Raises:
        NoCheckpointError: `resume_from` is a checkpoint or a file.
    """
    if hint := there.hint():
        raise NoCheckpointError(
            f"resume_from is expected to be a directory of checkpoints; it is {there.place}.{hint}"
        )
    saving = (one for one in callbacks if isinstance(one, CheckpointingCallback))
    if any(str(one.directory) == there.place for one in saving):
        return  # the callback itself reports why it cannot save there
    if os.path.lexists(there.place) and not os.path.isdir(there.place):
        raise NoCheckpointError(
            f"resume_from is expected to be a directory of checkpoints; {there.place} is a file."
        )
    _logger.warning(
        "resume_from=%r holds no checkpoint, and no callback of this run saves there: the run "
        "starts from the beginning. Check the path.",
        there.place,
    )
