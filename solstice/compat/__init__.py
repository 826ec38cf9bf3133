"""compat: any network library and any optimizer behind two protocols, one adapter a file.

An adapter is loaded when its name is first used, so that `import solstice` loads no framework.
"""

import importlib
from typing import TYPE_CHECKING, Any

from solstice.compat.model import Model
from solstice.compat.optimizer import Optimizer

if TYPE_CHECKING:
    from solstice.compat.equinox import EquinoxModel
    from solstice.compat.haiku import HaikuModel
    from solstice.compat.linen import FlaxModel
    from solstice.compat.optax import OptaxOptimizer
    from solstice.compat.registry import as_model, as_optimizer
    from solstice.compat.stax import StaxModel

__all__ = [
    "EquinoxModel",
    "FlaxModel",
    "HaikuModel",
    "Model",
    "OptaxOptimizer",
    "Optimizer",
    "StaxModel",
    "as_model",
    "as_optimizer",
]

# Where a name lives, and the framework and extra it needs beside Solstice itself.
_LAZY = {
    "EquinoxModel": ("equinox", None),
    "FlaxModel": ("linen", "flax"),
    "HaikuModel": ("haiku", "haiku"),
    "OptaxOptimizer": ("optax", "optax"),
    "StaxModel": ("stax", None),
    "as_model": ("registry", None),
    "as_optimizer": ("registry", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'solstice.compat' has no attribute {name!r}")
    file, framework = _LAZY[name]
    try:
        return getattr(importlib.import_module(f"solstice.compat.{file}"), name)
    except ModuleNotFoundError as error:
        if framework is None or (error.name or "").partition(".")[0] != framework:
            raise
        raise ImportError(
            f"compat.{name} needs the package {framework!r}, which is not installed: "
            f"pip install 'solstice[{framework}]'"
        ) from error


def __dir__() -> list[str]:
    return __all__
