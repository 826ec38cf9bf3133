"""testing: the laws of adapters, metrics, experiments, sinks and triggers, to check your own."""

from solstice.errors import LawError
from solstice.testing import strategies
from solstice.testing.experiment import EXPERIMENT_LAWS, ExperimentSubject, check_experiment
from solstice.testing.law import Law, Outcome, Report
from solstice.testing.metrics import METRICS_LAWS, MetricsSubject, check_metrics
from solstice.testing.model import MODEL_LAWS, check_model
from solstice.testing.model_subject import ModelSubject
from solstice.testing.optimizer import OPTIMIZER_LAWS, OptimizerSubject, check_optimizer
from solstice.testing.sink import SINK_LAWS, check_sink
from solstice.testing.stores import SinkSubject
from solstice.testing.trigger import TRIGGER_LAWS, TriggerSubject, check_trigger

__all__ = [
    "EXPERIMENT_LAWS",
    "METRICS_LAWS",
    "MODEL_LAWS",
    "OPTIMIZER_LAWS",
    "SINK_LAWS",
    "TRIGGER_LAWS",
    "ExperimentSubject",
    "Law",
    "LawError",
    "MetricsSubject",
    "ModelSubject",
    "OptimizerSubject",
    "Outcome",
    "Report",
    "SinkSubject",
    "TriggerSubject",
    "check_experiment",
    "check_metrics",
    "check_model",
    "check_optimizer",
    "check_sink",
    "check_trigger",
    "strategies",
]
