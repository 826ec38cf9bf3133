"""Solstice: write an experiment once in pure JAX, plug in any network library and optimizer."""

from importlib.metadata import version

from solstice import callbacks, compat, experiments, metrics, testing, tree
from solstice.callbacks import (
    Callback,
    EarlyStoppingCallback,
    LoggingCallback,
    ProfilingCallback,
)
from solstice.errors import EarlyStoppingException, UsageError
from solstice.experiment import Experiment
from solstice.experiments import ClassificationExperiment
from solstice.metrics import ClassificationMetrics, Metrics, RegressionMetrics, reduce
from solstice.padding import pad_last
from solstice.step import jit, snapshot
from solstice.trainer import predict, test, train
from solstice.tree import replace

__version__ = version("solstice")

__all__ = [
    "Callback",
    "ClassificationExperiment",
    "ClassificationMetrics",
    "EarlyStoppingCallback",
    "EarlyStoppingException",
    "Experiment",
    "LoggingCallback",
    "Metrics",
    "ProfilingCallback",
    "RegressionMetrics",
    "UsageError",
    "callbacks",
    "compat",
    "experiments",
    "jit",
    "metrics",
    "pad_last",
    "predict",
    "reduce",
    "replace",
    "snapshot",
    "test",
    "testing",
    "train",
    "tree",
]
