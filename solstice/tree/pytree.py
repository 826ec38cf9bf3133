"""PyTree: the annotation of any tree, which a checker of types reads as Any."""

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    PyTree: TypeAlias = Any  # jaxtyping's own is unknown to pyright
else:
    from jaxtyping import PyTree

__all__ = ["PyTree"]
