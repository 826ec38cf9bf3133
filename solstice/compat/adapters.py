"""The table of adapters: what each takes, and which package it needs.

To add a framework, write its adapter in a file and add a line here. The lazy names of
`solstice.compat`, `as_model` and `as_optimizer` read this table.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from solstice.errors import InvalidValueError, MissingPackageError
from solstice.tree.pytree import PyTree

What = Literal["model", "optimizer", "metrics"]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One adapter; its file and the framework are imported when it is first used.

    Attributes:
        name: The name of its class in `solstice.compat`.
        module: The module that defines it.
        what: What it adapts to: a "model" or an "optimizer".
        takes: The classes that it adapts, as dotted paths, with their names in plain words.
        package: The framework, which is also the name of the extra; None if it is installed with
            Solstice.
        initialises: Whether the network must be initialised, with an example and a key.
        part: Returns the part of the object to adapt.
    """

    name: str
    module: str
    what: What
    takes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    package: str | None = None
    initialises: bool = False
    part: Callable[[Any], Any] = lambda thing: thing

    def load(self) -> Any:
        """Return the class.

        Raises:
            ImportError: The framework is not installed.
        """
        try:
            return getattr(importlib.import_module(self.module), self.name)
        except ModuleNotFoundError as error:
            if self.package is None or (error.name or "").partition(".")[0] != self.package:
                raise
            raise MissingPackageError(
                f"compat.{self.name} needs the package {self.package!r}, which is not installed: "
                f"pip install 'jax-solstice[{self.package}]'"
            ) from error

    def adapt(self, thing: Any, example: PyTree = None, key: Any = None) -> Any:
        """Return the object adapted.

        Raises:
            ValueError: The example or the key is missing.
        """
        thing = self.part(thing)
        if not self.initialises:
            return self.load()(thing)
        needed = {
            "example (example_input of an experiment), a batch's inputs or their shapes": example,
            "key, a seed or PRNG key": key,
        }
        missing = [text for text, value in needed.items() if value is None]
        if missing:
            raise InvalidValueError(
                f"{self.name} initialises the network, which takes {' and '.join(missing)}; "
                f"pass {'them' if len(missing) > 1 else 'it'} along with the network."
            )
        return self.load()(thing, example, key=key)


def _model(name: str, file: str, **about: PyTree) -> Adapter:
    return Adapter(name, f"solstice.compat.{file}", "model", **about)


def _optimizer(name: str, file: str, **about: PyTree) -> Adapter:
    return Adapter(name, f"solstice.compat.{file}", "optimizer", **about)


# These also take pairs, which have no class: `as_model` looks for them last.
EQUINOX = _model(
    "EquinoxModel",
    "equinox",
    takes={"equinox.Module": "an Equinox module, or the (module, state) of eqx.nn.make_with_state"},
)
STAX = _model("StaxModel", "stax", initialises=True)

# If an object has two of these classes, the first line adapts it.
ADAPTERS = [
    _model("KerasModel", "keras", takes={"keras.Layer": "a Keras network"}, package="keras"),
    _model("NNXModel", "nnx", takes={"flax.nnx.Module": "a Flax NNX module"}, package="flax"),
    _model(
        "FlaxModel",
        "linen",
        takes={"flax.linen.Module": "a Flax Linen module"},
        package="flax",
        initialises=True,
    ),
    _model(
        "HaikuModel",
        "haiku",
        takes={
            "haiku.Transformed": "a transformed Haiku function",
            "haiku.TransformedWithState": "a transformed Haiku function with state",
            "haiku.MultiTransformed": "a multi-transformed Haiku function",
            "haiku.MultiTransformedWithState": "a multi-transformed Haiku function with state",
        },
        package="haiku",
        initialises=True,
    ),
    EQUINOX,
    STAX,
    _model("FunctionModel", "function"),
    _optimizer(
        "OptaxOptimizer",
        "optax",
        takes={
            "optax.GradientTransformation": "an Optax transformation",
            "optax.MultiSteps": "an optax.MultiSteps",
        },
        package="optax",
    ),
    _optimizer(
        "JaxOptimizer",
        "jax_optimizers",
        takes={
            "jax.example_libraries.optimizers.Optimizer": "an optimizer of jax.example_libraries"
        },
    ),
    _optimizer(
        "KerasOptimizer",
        "keras_optimizer",
        takes={"keras.optimizers.Optimizer": "a Keras optimizer"},
        package="keras",
    ),
    _optimizer(
        "OptaxOptimizer",
        "optax",
        takes={"flax.nnx.Optimizer": "an nnx.Optimizer, for its Optax transformation"},
        package="optax",
        part=lambda optimizer: optimizer.tx,
    ),
    Adapter("NNXMetrics", "solstice.compat.nnx_metrics", "metrics", package="flax"),
]


def adapter(name: str) -> Adapter | None:
    """Return the adapter with a name, or None.

    >>> adapter("FlaxModel").package
    'flax'
    """
    return next((one for one in ADAPTERS if one.name == name), None)
