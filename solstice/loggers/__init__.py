"""Loggers: where logs go; one sink per file, each writing outside the training thread.

A sink imports its library when it is made, so `import solstice` loads none.
"""

from solstice.loggers.base import Sink
from solstice.loggers.console import Console
from solstice.loggers.csv import CSV
from solstice.loggers.json_lines import JSONLines, read_json_lines
from solstice.loggers.mlflow import MLflow
from solstice.loggers.tensorboard import TensorBoard
from solstice.loggers.values import Image, Text
from solstice.loggers.wandb import WandB

__all__ = [
    "CSV",
    "Console",
    "Image",
    "JSONLines",
    "MLflow",
    "Sink",
    "TensorBoard",
    "Text",
    "WandB",
    "read_json_lines",
]
