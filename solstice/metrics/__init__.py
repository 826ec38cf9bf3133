"""Metrics: sufficient statistics that merge, and the numbers computed from them."""

from solstice.metrics.accumulator import Accumulator, merge_all
from solstice.metrics.base import Metrics, is_metrics, reduce
from solstice.metrics.classification import ClassificationMetrics
from solstice.metrics.ensemble import EnsembleMetrics

__all__ = [
    "Accumulator",
    "ClassificationMetrics",
    "EnsembleMetrics",
    "Metrics",
    "is_metrics",
    "merge_all",
    "reduce",
]
