"""Datasets: whole arrays, what else counts as one, padding, and where a run stands in one."""

from solstice.data.arrays import Arrays
from solstice.data.live import live
from solstice.data.padding import pad_last

__all__ = ["Arrays", "live", "pad_last"]
