"""Checkpoints: what a run saves, where it lies, and how it is restored."""

from solstice.saving.checkpoints import restore

__all__ = ["restore"]
