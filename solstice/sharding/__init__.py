"""Sharding: places an experiment and its batches on a mesh; jax's compiler does the rest."""

from solstice.sharding.checks import assert_replicated, gather
from solstice.sharding.placements import DataParallel, FullySharded, Rules, Sharding
from solstice.sharding.processes import initialize, is_first_process

__all__ = [
    "DataParallel",
    "FullySharded",
    "Rules",
    "Sharding",
    "assert_replicated",
    "gather",
    "initialize",
    "is_first_process",
]
