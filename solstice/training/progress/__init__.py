"""Progress: what a run shows in a terminal, a notebook or a log file.

It shows the position and the metrics, and never waits for a step.
"""

from solstice.training.progress.bars import Progress, ProgressChoice, check_progress

__all__ = ["Progress", "ProgressChoice", "check_progress"]
