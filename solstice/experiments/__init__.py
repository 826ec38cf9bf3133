"""Ready-made experiments: they consume a Model and an Optimizer, whatever library these are of."""

from solstice.experiments.classification import ClassificationExperiment
from solstice.experiments.regression import RegressionExperiment
from solstice.experiments.supervised import SupervisedExperiment, Task

__all__ = ["ClassificationExperiment", "RegressionExperiment", "SupervisedExperiment", "Task"]
