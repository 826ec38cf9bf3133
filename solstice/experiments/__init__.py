"""Ready-made experiments: they consume a Model and an Optimizer, whatever library these are of."""

from solstice.experiments.classification import ClassificationExperiment
from solstice.experiments.ensemble import Ensemble
from solstice.experiments.member_stopping import MemberStopping
from solstice.experiments.regression import RegressionExperiment
from solstice.experiments.runnable import Runnable
from solstice.experiments.supervised import SupervisedExperiment
from solstice.experiments.task import Task

__all__ = [
    "ClassificationExperiment",
    "Ensemble",
    "MemberStopping",
    "RegressionExperiment",
    "Runnable",
    "SupervisedExperiment",
    "Task",
]
