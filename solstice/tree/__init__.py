"""Functions on pytrees.

They do not know what an array means, nor any framework.
"""

from solstice.arguments import describe
from solstice.tree.dependence import depends_on, used_leaves
from solstice.tree.digests import digest, digests
from solstice.tree.fields import replace
from solstice.tree.files import load, save
from solstice.tree.json import from_json, to_json
from solstice.tree.keys import as_key, is_key
from solstice.tree.kinds import is_typed_key
from solstice.tree.names import path_name
from solstice.tree.naming import (
    flatten_with_paths,
    leaf_names,
    leaves_by_path,
    paths,
    tree_difference,
)
from solstice.tree.norms import norm
from solstice.tree.ownership import owned
from solstice.tree.sizes import nbytes, size

__all__ = [
    "as_key",
    "depends_on",
    "describe",
    "digest",
    "digests",
    "flatten_with_paths",
    "from_json",
    "is_key",
    "is_typed_key",
    "leaf_names",
    "leaves_by_path",
    "load",
    "nbytes",
    "norm",
    "owned",
    "path_name",
    "paths",
    "replace",
    "save",
    "size",
    "to_json",
    "tree_difference",
    "used_leaves",
]
