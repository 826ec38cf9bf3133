"""Ready-made experiments: they consume a Model and an Optimizer, whatever library these are of."""

from solstice.experiments.classification import ClassificationExperiment

__all__ = ["ClassificationExperiment"]
