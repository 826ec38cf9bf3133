"""Metrics: sufficient statistics that merge, and the numbers computed from them."""

from solstice.metrics.accumulator import Accumulator, merge_all
from solstice.metrics.base import Metrics, is_metrics, reduce
from solstice.metrics.binary import BinaryMetrics
from solstice.metrics.classification import ClassificationMetrics
from solstice.metrics.collect import Collect
from solstice.metrics.combine import MetricsDict
from solstice.metrics.directions import direction
from solstice.metrics.ensemble import EnsembleMetrics
from solstice.metrics.multilabel import MultiLabelMetrics
from solstice.metrics.named import named_values
from solstice.metrics.numbers import Last, Max, Mean, Min, Std, Sum
from solstice.metrics.one_vs_rest import OneVsRestMetrics
from solstice.metrics.regression import RegressionMetrics
from solstice.metrics.sample import Sample

__all__ = [
    "Accumulator",
    "BinaryMetrics",
    "ClassificationMetrics",
    "Collect",
    "EnsembleMetrics",
    "Last",
    "Max",
    "Mean",
    "Metrics",
    "MetricsDict",
    "Min",
    "MultiLabelMetrics",
    "OneVsRestMetrics",
    "RegressionMetrics",
    "Sample",
    "Std",
    "Sum",
    "direction",
    "is_metrics",
    "merge_all",
    "named_values",
    "reduce",
]
