"""Progress: what a run shows of itself while it goes on, in a terminal, a notebook or a log file.

It shows where a run is and what its metrics say; it decides nothing, and never waits for a step.
"""

from solstice.training.progress.bars import Progress, ProgressChoice, check_progress

__all__ = ["Progress", "ProgressChoice", "check_progress"]
