"""What the tests share: types and shapes checked at run time, an experiment, a record of hooks."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

# Checked one function at a time, beartype cannot know what Self is.
_CHECKER = (
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, hint_overrides="
    "beartype.FrozenDict({beartype.typing.Self: beartype.typing.Any})))"
)
jaxtyping.install_import_hook(
    [
        "solstice.analysis",
        "solstice.callbacks",
        "solstice.data",
        "solstice.errors",
        "solstice.experiment",
        "solstice.loggers",
        "solstice.metrics",
        "solstice.static",
        "solstice.step",
        "solstice.training",
        "solstice.tree",
        "solstice.triggers",
    ],
    _CHECKER,
)

import solstice  # noqa: E402 - after the hook

# Scripts, which tests run in processes of their own.
collect_ignore = [
    "killed_run.py",
    "on_eight_devices.py",
    "sharded_runs.py",
    "shown_run.py",
    "sharded_saves.py",
    "uneven_processes.py",
]


# Which their test imports; imported once more, they would add their rows to its table twice.
collect_ignore_glob = ["arguments/*_rows.py", "typing_programs/*"]


@pytest.fixture
def unchecked():
    """No type checks at run time: for wrong types that users, who have none, may pass."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def x64():
    """64-bit types."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


class Mean(solstice.Metrics):
    """The mean of a batch's values, and how many there were."""

    total: jax.Array
    count: jax.Array

    def __init__(self, values):
        values = jnp.asarray(values, jnp.float32)
        self.total = values.sum()
        self.count = jnp.asarray(values.size, jnp.int32)

    def merge(self, other):
        total, count = self.total + other.total, self.count + other.count
        return solstice.replace(self, total=total, count=count)

    def compute(self):
        return {"mean": self.total / self.count, "count": self.count}


class Adding(solstice.Experiment):
    """Training adds the batch to `total`; evaluation counts its steps in `evaluated`."""

    total: jax.Array
    evaluated: jax.Array

    def train_step(self, batch):
        batch = jnp.asarray(batch)
        return solstice.replace(self, total=self.total + batch.sum()), Mean(batch)

    def eval_step(self, batch):
        return solstice.replace(self, evaluated=self.evaluated + 1), Mean(batch)

    def predict(self, inputs):
        return {"sum": inputs + self.total, "pair": (inputs * 2, -inputs)}


class Recorder(solstice.Callback):
    """Appends each call to `events`: (hook, mode, epoch or step, total so far), named if wanted.

    `errors` says where to raise: {(hook, mode, index): exception}.
    """

    def __init__(self, events, name=None, errors=()):
        self._events = events
        self._name = () if name is None else (name,)
        self._errors = dict(errors)

    def _note(self, *event):
        self._events.append((*self._name, *event))
        if event[:3] in self._errors:
            raise self._errors[event[:3]]

    def on_run_start(self, exp):
        self._note("run_start")

    def on_run_end(self, exp, error):
        self._note("run_end", error)

    def on_epoch_start(self, exp, epoch, mode):
        self._note("epoch_start", mode, epoch)

    def on_epoch_end(self, exp, epoch, mode):
        self._note("epoch_end", mode, epoch)

    def on_step_start(self, exp, global_step, mode, batch):
        self._note("step_start", mode, global_step, batch, float(exp.total))

    def on_step_end(self, outs, exp, global_step, mode, batch):
        self._note("step_end", mode, global_step, batch, float(exp.total), float(outs.total))


@pytest.fixture
def mean():
    return Mean


@pytest.fixture
def adding():
    return Adding(jnp.asarray(0), jnp.asarray(0))


@pytest.fixture
def recorder():
    return Recorder


@pytest.fixture
def train(adding):
    """`solstice.train` with the experiment `adding`, quiet."""

    def train(*arguments, **options):
        return solstice.train(adding, *arguments, **({"progress": False} | options))

    return train
