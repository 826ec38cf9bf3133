"""Datasets: whole arrays, other kinds of datasets, padding, and the position of a run in one."""

from solstice.data.arrays import Arrays
from solstice.data.live import live
from solstice.data.padding import pad_last

__all__ = ["Arrays", "live", "pad_last"]
