"""The exceptions that are Solstice's own.

    ValueError ─┬ UsageError (also an AssertionError)
                └ DamagedFileError
    Exception  ── EarlyStoppingException
    Exception  ── RecompileError

Everything else that a user can get wrong raises a plain `ValueError`, `TypeError`,
`AttributeError` or `ImportError` with a message that says what to do.
"""


class UsageError(ValueError, AssertionError):
    """A misuse of the training interface: raised where older code asserted.

    It is an `AssertionError` too, because users of this interface already catch that.

    >>> import solstice
    >>> try:
    ...     solstice.reduce([])
    ... except AssertionError as error:
    ...     print(error)
    reduce() needs at least one Metrics; it got an empty list. Was the dataset empty?
    """


class DamagedFileError(ValueError):
    """A file is not what was written: cut short, changed, or somebody else's.

    >>> import pathlib, solstice, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "state.solstice"
    >>> solstice.tree.save(file, {"step": 3})
    >>> _ = file.write_bytes(file.read_bytes()[:-1])
    >>> try:
    ...     solstice.tree.load(file, like={"step": 0})
    ... except solstice.DamagedFileError as error:
    ...     print("is damaged" in str(error))
    True
    """


class EarlyStoppingException(Exception):
    """Raise it from any callback hook to end the run cleanly.

    The other callbacks finish their epoch, and `train` returns the trained experiment.

    >>> import solstice
    >>> class StopAtStep(solstice.Callback):
    ...     def on_step_end(self, outs, exp, global_step, mode, batch):
    ...         if mode == "train" and global_step == 99:
    ...             raise solstice.EarlyStoppingException("100 steps are enough")
    """


class RecompileError(Exception):
    """A step was compiled again in a run that asked for `recompile="error"`.

    The message names what changed: a leaf's shape, dtype, weak type or static value, or the tree.

    >>> import jax.numpy as jnp, solstice
    >>> class Total(solstice.Experiment):
    ...     total: jnp.ndarray
    ...
    ...     @solstice.jit
    ...     def train_step(self, batch):
    ...         return solstice.replace(self, total=self.total + batch.sum()), None
    ...
    ...     def eval_step(self, batch):
    ...         return self, None
    >>> try:
    ...     solstice.train(
    ...         Total(jnp.zeros(())),
    ...         1,
    ...         [jnp.ones(3), jnp.ones(2)],
    ...         recompile="error",
    ...         progress=False,
    ...     )
    ... except solstice.RecompileError as error:
    ...     print("batch was float32[3] and is float32[2]" in str(error))
    True
    """
