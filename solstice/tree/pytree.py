"""Annotations that many files share: trees, their structures, and arrays of either library."""

from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

if TYPE_CHECKING:  # pyright does not know these two
    PyTree: TypeAlias = Any
    PyTreeDef: TypeAlias = Any
else:
    from jax.tree_util import PyTreeDef
    from jaxtyping import PyTree

AnyArray = jax.Array | np.ndarray

__all__ = ["AnyArray", "PyTree", "PyTreeDef"]
