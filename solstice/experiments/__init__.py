"""Ready-made experiments: a Model and an Optimizer of any library, and a task."""

from solstice.experiments.binary import BinaryClassification, BinaryClassificationExperiment
from solstice.experiments.classification import Classification, ClassificationExperiment
from solstice.experiments.ensemble import Ensemble
from solstice.experiments.member_stopping import MemberStopping
from solstice.experiments.multilabel import MultiLabel, MultiLabelExperiment
from solstice.experiments.regression import Regression, RegressionExperiment
from solstice.experiments.runnable import Runnable
from solstice.experiments.supervised import SupervisedExperiment
from solstice.experiments.task import Names, Task

__all__ = [
    "BinaryClassification",
    "BinaryClassificationExperiment",
    "Classification",
    "ClassificationExperiment",
    "Ensemble",
    "MemberStopping",
    "MultiLabel",
    "MultiLabelExperiment",
    "Names",
    "Regression",
    "RegressionExperiment",
    "Runnable",
    "SupervisedExperiment",
    "Task",
]
