"""What can be said of an experiment without running it."""

from solstice.analysis.summary import summary

__all__ = ["summary"]
