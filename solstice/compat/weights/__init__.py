"""Weights that move: from one library's network to another's, from files, and back."""
