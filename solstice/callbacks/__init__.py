"""Callbacks: logging, checkpoints and other side effects of a run."""

from solstice.callbacks.base import Callback
from solstice.callbacks.checkpointing import CheckpointingCallback
from solstice.callbacks.early_stopping import EarlyStoppingCallback
from solstice.callbacks.environment import EnvironmentCallback
from solstice.callbacks.evaluation import EvaluationCallback
from solstice.callbacks.history import HistoryCallback
from solstice.callbacks.inspection import InspectionCallback
from solstice.callbacks.logging import LoggingCallback
from solstice.callbacks.profiling import ProfilingCallback
from solstice.callbacks.reduce_on_plateau import ReduceOnPlateau
from solstice.callbacks.replication import ReplicationCallback
from solstice.callbacks.scheduled import ScheduledCallback
from solstice.callbacks.stop_on_nan import StopOnNaN
from solstice.callbacks.stopwatch import TimeReport
from solstice.callbacks.triggered import TriggeredCallback

__all__ = [
    "Callback",
    "CheckpointingCallback",
    "EarlyStoppingCallback",
    "EnvironmentCallback",
    "EvaluationCallback",
    "HistoryCallback",
    "InspectionCallback",
    "LoggingCallback",
    "ProfilingCallback",
    "ReduceOnPlateau",
    "ReplicationCallback",
    "ScheduledCallback",
    "StopOnNaN",
    "TimeReport",
    "TriggeredCallback",
]
