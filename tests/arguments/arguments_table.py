"""Every public function and class, with a call of it that is right.

A row gives each parameter a right value and a kind (see `kinds`), which says what else is right.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import solstice


@dataclasses.dataclass(frozen=True)
class Row:
    """One function or class, and its arguments."""

    name: str
    arguments: dict[str, Any]
    # Of a method, what makes the object that it is called on.
    on: Callable[[], Any] | None = None
    # What is called, where it is not what the name says.
    made: Callable[..., Any] | None = None
    # What is done with the result: what it reads at first use belongs to the call.
    finish: Callable[[Any], Any] = lambda result: None

    @functools.cached_property
    def signature(self):
        """The signature of what is called."""
        return inspect.signature(self.function())

    def function(self):
        """Return what is called."""
        if self.made is not None:
            return self.made
        if self.on is not None:
            return getattr(self.on(), self.name.rpartition(".")[2])
        return functools.reduce(getattr, self.name.split("."), solstice)


ROWS: list[Row] = []
_TRAINER = "the trainer calls it"
_RECORD = "the library makes it, and users read it"
_ADAPTER = "a base class's, whose subclasses have rows"
_TASK = "a ready-made experiment calls it"
_TASKS = "BinaryClassification", "Classification", "MultiLabel", "Regression"
# What has no row, by patterns of names, and why.
EXEMPT: dict[str, str] = {
    "*.on_*": _TRAINER,
    "*.get_state": _TRAINER,
    "*.set_state": _TRAINER,
    "*.attach": _TRAINER,
    "*.after_epoch": _TRAINER,
    "*.revise": _TRAINER,
    "*.check_names": _TRAINER,
    "*.evaluation": _TRAINER,
    "*.after_step": _TRAINER,
    "*.fires": _TRAINER,
    "*.next_step": _TRAINER,
    "*.act": _TRAINER,
    "Exported.*(named)": "inputs by name, where the export has names: see tests/exporting",
    "*.better": "asked for a name that `compute()` has given",
    "callbacks.CheckpointingCallback.*": _TRAINER,
    "sharding.*.*": _TRAINER,
    "*.train_step": "a batch is checked as a run's first: see test_data and test_supervised",
    "*.eval_step": "as train_step",
    "*.check_batch": _TRAINER,
    "*.batch_inputs": _TRAINER,
    "*.with_mask": _TRAINER,
    "*.learns_from_whole_batches": _TRAINER,
    "data.Arrays.batches": _TRAINER,
    "data.Arrays.gathered": _TRAINER,
    "*.decide": _TRAINER,
    "*.average_outputs": _TRAINER,
    "*.innermost": _TRAINER,
    "Experiment.predict": "it says that it is missing",
    "*.is_better_than": _TRAINER,
    "data.Arrays.__getitem__": "it takes nothing, and says how batches are read",
    "data.pad_last": "as `pad_last`",
    "experiments.MemberStopping.is_about": _TRAINER,
    "experiments.Task.*": _TASK,
    "experiments.Names": "a task makes it",
    **dict.fromkeys((f"experiments.{name}.*" for name in _TASKS), _TASK),
    "sklearn.*(X)": "scikit-learn checks it: see test_sklearn",
    "sklearn.*(y)": "as X",
    "sklearn.*(sample_weight)": "as X",
    "sklearn.*.set_*_request": "scikit-learn makes it",
    "triggers.Moment": _RECORD,
    "callbacks.TimeReport": _RECORD,
    "callbacks.TriggeredCallback": _ADAPTER,
    "testing.Law": _RECORD,
    "testing.Outcome": _RECORD,
    "testing.Report": _RECORD,
    "testing.check_metrics(others)": "it takes nothing: see test_reports",
    "testing.*Subject.*": "a law calls it",
    "testing.Law.says_nothing": "the laws' runner calls it",
    "metrics.Metrics.*": _ADAPTER,
    "compat.Optimizer.*": _ADAPTER,
    "compat.*Optimizer.retarget": "it takes what `init` does, which it calls",
    "compat.*Optimizer.with_learning_rate": "`set_learning_rate` calls it",
    "compat.*Optimizer.for_trained": "`ReduceOnPlateau` calls it",
    "compat.*Optimizer.eval_params": "an experiment calls it with what `init` took",
    "compat.*Model.intermediates": "`compat.intermediates` calls it",
    "compat.*Model.tagged": "`compat.capture` calls it",
    "compat.*Metrics.update": "the library's own metric checks what it takes",
    "compat.WrappedModel": "`compat.lora` and `compat.quantize` make it",
    "compat.WrappedModel.*": "as the network's own model",
    "compat.missing_key": "it returns an error",
    "compat.*Model.library_name": "`compat.save` calls it",
    "Exported": "`load_exported` returns it",
    "compat.LoadReport": "`compat.load` returns it",
    "compat.LoadedLeaf": "a row of a `LoadReport`",
    "compat.overwrite": "an adapter calls it with trees that it has checked",
    "triggers.Trigger.start": _ADAPTER,
    "experiments.Ensemble": "`Ensemble.init` makes it",
    "experiments.Ensemble.__call__": "the members' network takes its inputs",
    "compat.Model.__call__": _ADAPTER,
    "compat.*Model.__call__(kwargs)": "the network takes them",
    "compat.*Optimizer.__call__(extras)": "the library's own update takes them",
    "experiments.*Experiment.predict": "as `ClassificationExperiment.predict`",
}


def row(name, /, *, on=None, made=None, finish=lambda result: None, **arguments):
    """Add a row to the table."""
    ROWS.append(Row(name, arguments, on, made, finish))
