"""Reads files of weights and mappings of arrays as arrays by name; one module per format."""
