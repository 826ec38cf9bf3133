"""compat: any network library and any optimizer behind two protocols, one adapter per file.

An adapter is loaded when its name is first used, so `import solstice` loads no framework.
"""

from typing import TYPE_CHECKING, Any

from solstice.compat.adapters import adapter
from solstice.compat.by_path import by_path
from solstice.compat.flags import check_train
from solstice.compat.freeze import freeze, unfreeze
from solstice.compat.inside import gradients, intermediates, training_norms
from solstice.compat.metrics import UpdatedMetrics, as_metrics
from solstice.compat.model import Model, join_params, missing_key, single_key, split_params
from solstice.compat.optimizer import Optimizer
from solstice.compat.registry import as_model, as_optimizer, register
from solstice.compat.surgery.capture import capture, intervene
from solstice.compat.surgery.lora import lora
from solstice.compat.surgery.quantize import quantize
from solstice.compat.surgery.tags import tag
from solstice.compat.surgery.wrapped import WrappedModel, merge
from solstice.compat.weights.convert import convert
from solstice.compat.weights.load import load
from solstice.compat.weights.report import LoadedLeaf, LoadReport
from solstice.compat.weights.save import save
from solstice.static import Static
from solstice.tree.overwritten import Overwritten, overwrite, trained

if TYPE_CHECKING:
    from solstice.compat.equinox import EquinoxModel
    from solstice.compat.function import FunctionModel
    from solstice.compat.haiku import HaikuModel
    from solstice.compat.jax_optimizers import JaxOptimizer
    from solstice.compat.keras import KerasModel
    from solstice.compat.keras_optimizer import KerasOptimizer
    from solstice.compat.linen import FlaxModel
    from solstice.compat.nnx import NNXModel
    from solstice.compat.nnx_metrics import NNXMetrics
    from solstice.compat.optax import OptaxOptimizer
    from solstice.compat.stax import StaxModel

__all__ = [
    "EquinoxModel",
    "FlaxModel",
    "FunctionModel",
    "HaikuModel",
    "JaxOptimizer",
    "KerasModel",
    "KerasOptimizer",
    "LoadReport",
    "LoadedLeaf",
    "Model",
    "NNXMetrics",
    "NNXModel",
    "OptaxOptimizer",
    "Optimizer",
    "Overwritten",
    "Static",
    "StaxModel",
    "UpdatedMetrics",
    "WrappedModel",
    "as_metrics",
    "as_model",
    "as_optimizer",
    "by_path",
    "capture",
    "check_train",
    "convert",
    "freeze",
    "gradients",
    "intermediates",
    "intervene",
    "join_params",
    "load",
    "lora",
    "merge",
    "missing_key",
    "overwrite",
    "quantize",
    "register",
    "save",
    "single_key",
    "split_params",
    "tag",
    "trained",
    "training_norms",
    "unfreeze",
]


if not TYPE_CHECKING:  # a type checker knows only the names above

    def __getattr__(name: str) -> Any:
        found = adapter(name)
        if found is None:
            raise AttributeError(f"module 'solstice.compat' has no attribute {name!r}")
        return found.load()


def __dir__() -> list[str]:
    return __all__
