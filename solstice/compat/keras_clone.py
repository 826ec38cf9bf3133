"""A copy of a Keras network that keeps its shared layers.

Keras's `clone_model` makes a new layer for each model that it is nested in, so tied embeddings are
no longer tied.
"""

from collections.abc import Callable, Iterator
from typing import Any

import keras

from solstice.errors import InvalidTypeError


def clone(adapter: str, network: Any) -> Any:
    """Return a network of the same class and layers, with new variables.

    The copy's variables are in the same order as the network's.

    Raises:
        TypeError: Keras cannot make one that shares the same layers.
    """
    expected, failure = _sharing(network), None
    for make in _ways(network):
        try:
            copy = make()
        except (TypeError, ValueError, NotImplementedError) as error:
            failure = failure or error
            continue
        if _sharing(copy) == expected:
            return copy
    shared = sorted({layer.name for layer in _shared_layers(network).values()})
    found = (
        f"every way to clone it raises an error or duplicates the layers that it shares "
        f"({', '.join(map(repr, shared))})"
        if shared
        else f"Keras cannot clone {type(network).__name__}"
    )
    raise InvalidTypeError(
        f"{adapter}: unwrap() is expected to return a copy of the network {network.name!r} "
        f"with the same layers; {found}. Give {type(network).__name__} a get_config that its "
        f"constructor takes (**kwargs too) and that makes such a network, or assign the model's "
        f"values to the variables of your own network."
    ) from failure


def _ways(network: Any) -> Iterator[Callable[[], Any]]:
    """Yield functions that copy the network, those that keep its class first."""
    of_keras = type(network).__module__.partition(".")[0] == "keras"
    if not (is_functional(network) and of_keras):
        yield lambda: _from_config(network)
    if is_functional(network):
        yield lambda: keras.models.clone_model(network)
        # This one reuses the layers it has made already, in nested models and in wrappers.
        yield lambda: keras.models.clone_model(
            network, clone_function=_Cloning(network), recursive=True
        )


def is_functional(network: object) -> bool:
    """Whether Keras knows the network's graph; it then takes several inputs as a list."""
    return getattr(network, "inputs", None) is not None


def _from_config(network: Any) -> Any:
    copy = type(network).from_config(network.get_config())
    if not is_functional(network):
        copy.build_from_config(network.get_build_config())
    return copy


class _Cloning:
    """Clones layers by their configuration, each shared layer only once."""

    def __init__(self, network: Any) -> None:
        self._shared = _shared_layers(network)
        self._made: dict[int, Any] = {}

    def __call__(self, layer: Any) -> Any:
        if id(layer) in self._made:
            return self._made[id(layer)]
        copy = self._made[id(layer)] = type(layer).from_config(layer.get_config())
        for name, part in list(vars(layer).items()):
            if id(part) in self._shared and name in vars(copy):
                copy._layers.remove(getattr(copy, name))  # Keras would continue to track it
                setattr(copy, name, self(part))
        return copy


def _shared_layers(network: Any) -> dict[int, Any]:
    """Return the layers that are in more than one layer or model, by `id`."""
    parents: dict[int, int] = {}
    layers = list(network._flatten_layers())
    for parent in layers:
        for child in parent._layers:
            parents[id(child)] = parents.get(id(child), 0) + 1
    return {id(layer): layer for layer in layers if parents.get(id(layer), 0) > 1}


def _sharing(network: Any) -> Any:
    """Return which variables each layer has, by their positions, and their shapes and types."""
    positions = {id(variable): i for i, variable in enumerate(network.variables)}
    shapes = [(tuple(v.shape), v.dtype) for v in network.variables]
    layers = [
        (type(layer).__name__, [positions[id(v)] for v in layer.variables])
        for layer in network._flatten_layers()
    ]
    return type(network), shapes, layers
