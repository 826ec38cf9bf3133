"""Tasked: what others, such as exports, may ask an experiment about its task and its inputs."""

import abc
from typing import Any

from solstice.experiment import Experiment
from solstice.experiments.task import Task


class Tasked(Experiment):
    """An experiment that learns a `Task` and knows its inputs."""

    @property
    @abc.abstractmethod
    def task(self) -> Task:
        """What it learns."""

    @property
    @abc.abstractmethod
    def example(self) -> tuple[Any, ...] | None:
        """The shapes of an example's inputs, the batch axis included; None if none is known."""

    @property
    @abc.abstractmethod
    def input_names(self) -> tuple[str, ...] | None:
        """The names of several inputs in batches that are mappings; None of a single input."""
