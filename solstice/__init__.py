"""Solstice: write an experiment once in pure JAX, plug in any network library and optimizer."""

from importlib.metadata import version

from solstice import (
    callbacks,
    compat,
    data,
    errors,
    experiments,
    loggers,
    metrics,
    plots,
    sharding,
    testing,
    tree,
    triggers,
)
from solstice.analysis.summary import summary
from solstice.callbacks import (
    Callback,
    CheckpointingCallback,
    EarlyStoppingCallback,
    EnvironmentCallback,
    EvaluationCallback,
    HistoryCallback,
    LoggingCallback,
    ProfilingCallback,
    ScheduledCallback,
)
from solstice.compat.rates import set_learning_rate
from solstice.data.padding import pad_last
from solstice.errors import (
    DamagedFileError,
    EarlyStoppingException,
    RecompileError,
    SolsticeError,
    UsageError,
)
from solstice.experiment import Experiment
from solstice.experiments import (
    BinaryClassificationExperiment,
    ClassificationExperiment,
    Ensemble,
    MultiLabelExperiment,
    RegressionExperiment,
)
from solstice.exporting.export import export
from solstice.exporting.exported import Exported, load_exported
from solstice.metrics import ClassificationMetrics, Metrics, RegressionMetrics, reduce
from solstice.saving import restore
from solstice.step import jit
from solstice.training.predict import predict
from solstice.training.test import test
from solstice.training.train import train
from solstice.tree import replace
from solstice.tree.flat import snapshot

__version__ = version("jax-solstice")

__all__ = [
    "BinaryClassificationExperiment",
    "Callback",
    "CheckpointingCallback",
    "ClassificationExperiment",
    "ClassificationMetrics",
    "DamagedFileError",
    "EarlyStoppingCallback",
    "EarlyStoppingException",
    "Ensemble",
    "EnvironmentCallback",
    "EvaluationCallback",
    "Experiment",
    "Exported",
    "HistoryCallback",
    "LoggingCallback",
    "Metrics",
    "MultiLabelExperiment",
    "ProfilingCallback",
    "RecompileError",
    "RegressionExperiment",
    "RegressionMetrics",
    "ScheduledCallback",
    "SolsticeError",
    "UsageError",
    "callbacks",
    "compat",
    "data",
    "errors",
    "experiments",
    "export",
    "jit",
    "load_exported",
    "loggers",
    "metrics",
    "pad_last",
    "plots",
    "predict",
    "reduce",
    "replace",
    "restore",
    "set_learning_rate",
    "sharding",
    "snapshot",
    "summary",
    "test",
    "testing",
    "train",
    "tree",
    "triggers",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
