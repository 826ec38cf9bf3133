"""Files of weights, and mappings of arrays, read as arrays by name; a format a file."""
