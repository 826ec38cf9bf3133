"""Checkpoints: what a run saves, where, and how it is restored."""

from solstice.saving.checkpoints import restore

__all__ = ["restore"]
