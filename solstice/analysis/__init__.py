"""Analysis of an experiment without running it."""

from solstice.analysis.summary import summary

__all__ = ["summary"]
