"""Datasets: what counts as one, padding, reading ahead, and where a run stands in one."""

from solstice.data.live import live
from solstice.data.padding import pad_last

__all__ = ["live", "pad_last"]
