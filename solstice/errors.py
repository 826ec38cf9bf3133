"""The exceptions of Solstice: one root; each is also the matching builtin error.

    SolsticeError (Exception)
     ├─ InvalidValueError (ValueError): an argument, a batch or a file has a wrong value
     │   ├─ UsageError (AssertionError): a misuse of train, test, callbacks or metrics
     │   └─ DamagedFileError: a file is not what was written
     ├─ InvalidTypeError (TypeError): an argument, a batch or an outs has a wrong type
     ├─ UnknownFieldError (AttributeError): `replace` got a field that does not exist
     ├─ UnknownKeyError (KeyError): a `MetricsDict` has no metric of that name
     ├─ InvalidIndexError (IndexError): an ensemble has no such member
     ├─ MissingPackageError (ImportError): a feature needs a package that is not installed
     ├─ NotFiniteError (FloatingPointError): `StopOnNaN` found a NaN or an infinity
     ├─ NoCheckpointError (FileNotFoundError): a directory holds no checkpoint
     ├─ MissingFileError (FileNotFoundError): there is no file of that name
     ├─ ExistingFileError (FileExistsError): a new run would mix with the files of another
     ├─ DirectoryInUseError (RuntimeError): another run writes checkpoints there
     ├─ SlowWriteError (TimeoutError): a sink is not done within its timeout
     ├─ ProcessError (RuntimeError): another process of the run failed, exited or is silent
     ├─ UnequalCopiesError (AssertionError): copies of an array differ between devices
     ├─ UnequalOutputsError (AssertionError): a network's outputs differ from the original's
     ├─ LawError (AssertionError): an object violates a law of `solstice.testing`
     ├─ RecompileError: a step was compiled again where that was forbidden
     └─ EarlyStoppingException: raise it from a callback to end a run cleanly

`except solstice.SolsticeError` catches what Solstice raises, and nothing that your functions raise.

Some errors have attributes for programs: see `RecompileError`, `DamagedFileError`,
`DirectoryInUseError`, `ProcessError`, `NotFiniteError` and `UnequalOutputsError`.
"""


class SolsticeError(Exception):
    """The root of every exception that Solstice raises.

    >>> import solstice
    >>> try:
    ...     solstice.triggers.Every(steps=0)
    ... except solstice.SolsticeError as error:
    ...     print(error, isinstance(error, ValueError))
    Every(steps=) is expected to be at least 1; it is 0. True
    """


class InvalidValueError(SolsticeError, ValueError):
    """A value is not allowed: the message says which are."""


class InvalidTypeError(SolsticeError, TypeError):
    """An object has another type than expected: the message says which is expected."""


class UnknownFieldError(SolsticeError, AttributeError):
    """An object has no field of that name: the message lists those it has."""


class UnknownKeyError(SolsticeError, KeyError):
    """A collection has no entry of that name: the message lists those it has."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # a KeyError would quote the message


class InvalidIndexError(SolsticeError, IndexError):
    """An index is out of range: the message says what the range is."""


class MissingPackageError(SolsticeError, ImportError):
    """A package is not installed: the message gives the command that installs it."""


class NotFiniteError(SolsticeError, FloatingPointError):
    """A run has a NaN or an infinity: the message says where.

    Attributes:
        step: The index of the training step after which it was found; None if that is not known.
        leaves: The paths of all such arrays in the experiment and the step's outs.
    """

    def __init__(
        self, message: str = "", *, step: int | None = None, leaves: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.step = step
        self.leaves = leaves


class NoCheckpointError(SolsticeError, FileNotFoundError):
    """A directory holds no checkpoint, or not the one asked for."""


class MissingFileError(SolsticeError, FileNotFoundError):
    """There is no file of that name."""


class ExistingFileError(SolsticeError, FileExistsError):
    """A new run would write into the files of another: the message says how to allow it."""


class DirectoryInUseError(SolsticeError, RuntimeError):
    """Another run writes checkpoints into the directory: the message says which.

    Attributes:
        pid: The other run's process; None if not known, like the two below.
        host: The name of its machine.
        since: When it started, as "2026-01-31T12:00:00+00:00".
    """

    def __init__(
        self,
        message: str = "",
        *,
        pid: int | None = None,
        host: str | None = None,
        since: str | None = None,
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.host = host
        self.since = since


class SlowWriteError(SolsticeError, TimeoutError):
    """A sink did not write its records within its timeout."""


class ProcessError(SolsticeError, RuntimeError):
    """Another process of a distributed run failed, exited or does not respond.

    Attributes:
        process: The index of that process; None if it is not about one.
    """

    def __init__(self, message: str = "", *, process: int | None = None) -> None:
        super().__init__(message)
        self.process = process


class UnequalCopiesError(SolsticeError, AssertionError):
    """Copies of an array that should be the same differ between devices or processes."""


class UnequalOutputsError(SolsticeError, AssertionError):
    """A network with another's weights has different outputs; the message names likely causes.

    Attributes:
        difference: The largest difference, divided by the largest output (at least 1); None if
            there is none.
        layer: The path of the first sub-module that differs; None if unknown.
    """

    def __init__(
        self,
        message: str = "",
        *,
        difference: float | None = None,
        layer: str | None = None,
    ) -> None:
        super().__init__(message)
        self.difference = difference
        self.layer = layer


class LawError(SolsticeError, AssertionError):
    """A law is violated; the message says which, by what, and with which smallest input.

    >>> raise LawError("eval_returns_itself: ...")
    Traceback (most recent call last):
        ...
    solstice.errors.LawError: eval_returns_itself: ...
    """


class UsageError(InvalidValueError, AssertionError):
    """A misuse of the training interface.

    It is an `AssertionError` too, which users of this interface already catch.

    >>> import solstice
    >>> try:
    ...     solstice.reduce([])
    ... except AssertionError as error:
    ...     print(error)
    reduce() needs a list of metrics, at least one; it got []. Was the dataset empty?
    """


class DamagedFileError(InvalidValueError):
    """A file was truncated or changed, or is not one of Solstice's.

    Attributes:
        path: The path or URL of the file, of a checkpoint or of the directory of checkpoints; None
            if the error is not about a file but about a checkpoint's content.

    >>> import pathlib, solstice, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "state.solstice"
    >>> solstice.tree.save(file, {"step": 3})
    >>> _ = file.write_bytes(file.read_bytes()[:-1])
    >>> try:
    ...     solstice.tree.load(file, like={"step": 0})
    ... except solstice.DamagedFileError as error:
    ...     print("is damaged" in str(error), error.path == str(file))
    True True
    """

    def __init__(self, message: str = "", *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class EarlyStoppingException(SolsticeError):
    """Raise it from any callback hook to end the run cleanly.

    The other callbacks finish their epoch, and `train` returns the trained experiment.

    >>> import solstice
    >>> class StopAtStep(solstice.Callback):
    ...     def on_step_end(self, outs, exp, global_step, mode, batch):
    ...         if mode == "train" and global_step == 99:
    ...             raise solstice.EarlyStoppingException("100 steps are enough")

    The log gives the reason: "The run stopped early: 100 steps are enough." The reason is optional.

    >>> print(solstice.EarlyStoppingException())
    a callback asked for it
    """

    def __str__(self) -> str:
        return super().__str__() or "a callback asked for it"


class RecompileError(SolsticeError):
    """A step was compiled again in a run with `recompile="error"`.

    The message names what changed: a leaf's shape, dtype, weak type or static value, or the tree.

    Attributes:
        leaf: The path of the first leaf, or part of the tree, that changed, such as "batch" or
            "experiment/model/params/kernel"; None if a setting of jax changed.
        before: What it was, in words such as "float32[3]".
        after: What it is now.

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
    ...     print(error.leaf, error.before, error.after)
    batch float32[3] float32[2]
    """

    def __init__(
        self,
        message: str = "",
        *,
        leaf: str | None = None,
        before: str | None = None,
        after: str | None = None,
    ) -> None:
        super().__init__(message)
        self.leaf = leaf
        self.before = before
        self.after = after
