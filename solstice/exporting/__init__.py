"""Exports: programs and weights in one folder, which need no network library."""
