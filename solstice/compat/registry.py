"""From any network or optimizer to its adapter, by its type and without importing anything.

An object of a library can only exist once that library is loaded, so it is enough to look among
the loaded modules. What is not recognised is an error, never passed through.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from solstice import compat
from solstice.compat.model import Model
from solstice.compat.optimizer import Optimizer
from solstice.tree import describe


class _Kind(NamedTuple):
    """Objects of one library: where their classes are, and what adapts them."""

    title: str
    module: str
    classes: tuple[str, ...]
    adapt: Callable[..., Any]

    def matches(self, thing: Any) -> bool:
        home = sys.modules.get(self.module)
        if home is None:
            return False
        return isinstance(thing, tuple(getattr(home, name) for name in self.classes))


def _with_example(name: str) -> Callable[..., Model]:
    def adapt(network: Any, example: Any, key: Any) -> Model:
        missing = [
            text
            for text, value in (
                ("example_input, a batch's inputs or their shapes", example),
                ("key, a seed or PRNG key", key),
            )
            if value is None
        ]
        if missing:
            raise ValueError(
                f"{name} initialises the network, which takes {' and '.join(missing)}; "
                f"pass {'them' if len(missing) > 1 else 'it'} along with the network."
            )
        return getattr(compat, name)(network, example, key=key)

    return adapt


# Most specific first: what is nobody's class comes last, in `as_model` itself.
_MODELS = (
    _Kind("a Flax Linen module", "flax.linen", ("Module",), _with_example("FlaxModel")),
    _Kind(
        "a transformed Haiku function",
        "haiku",
        ("Transformed", "TransformedWithState"),
        _with_example("HaikuModel"),
    ),
    _Kind(
        "an Equinox module, or (module, state)",
        "equinox",
        ("Module",),
        lambda network, example, key: compat.EquinoxModel(network),
    ),
)

_OPTIMIZERS = (
    _Kind(
        "an optax.GradientTransformation",
        "optax",
        ("GradientTransformation",),
        lambda optimizer: compat.OptaxOptimizer(optimizer),
    ),
)


def as_model(network: Any, example: Any = None, *, key: Any = None) -> Model:
    """Return any supported network as a `Model`; a `Model` as it is.

    Args:
        network: A Flax Linen module, a transformed Haiku function, an Equinox module or the
            `(module, state)` of `eqx.nn.make_with_state`, a Stax `(init, apply)` pair.
        example: A batch's inputs, or as many `jax.ShapeDtypeStruct`, where the network must be
            initialised; a tuple is several inputs.
        key: A seed or PRNG key for the initialisation.

    Raises:
        TypeError: The network is of no known kind, or a class instead of an instance.
        ValueError: The example or the key is missing.

    >>> import jax, jax.numpy as jnp, solstice
    >>> from jax.example_libraries import stax
    >>> type(solstice.compat.as_model(stax.Dense(2), jnp.ones((1, 3)), key=0)).__name__
    'StaxModel'
    """
    if isinstance(network, Model):
        return network
    _refuse_class(network, "a network")
    for kind in _MODELS:
        if kind.matches(network):
            return kind.adapt(network, example, key)
    if type(network) is tuple and len(network) == 2:
        if _is_with_state(network):
            return compat.EquinoxModel(*network)
        if all(map(callable, network)):
            return _with_example("StaxModel")(network, example, key)
    known = [kind.title for kind in _MODELS] + ["a Stax (init, apply) pair", "a compat.Model"]
    raise TypeError(_unknown("network", network, known))


def as_optimizer(optimizer: Any) -> Optimizer:
    """Return any supported optimizer as an `Optimizer`; an `Optimizer` as it is.

    Args:
        optimizer: An `optax.GradientTransformation`.

    Raises:
        TypeError: The optimizer is of no known kind, or a class or function instead of its result.

    >>> import optax, solstice
    >>> type(solstice.compat.as_optimizer(optax.adam(1e-3))).__name__
    'OptaxOptimizer'
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    _refuse_class(optimizer, "an optimizer")
    for kind in _OPTIMIZERS:
        if kind.matches(optimizer):
            return kind.adapt(optimizer)
    known = [kind.title for kind in _OPTIMIZERS] + ["a compat.Optimizer"]
    raise TypeError(_unknown("optimizer", optimizer, known))


def _is_with_state(pair: tuple[Any, Any]) -> bool:
    equinox = sys.modules["equinox"]
    return isinstance(pair[0], equinox.Module) and isinstance(pair[1], equinox.nn.State)


def _refuse_class(thing: Any, what: str) -> None:
    if isinstance(thing, type):
        raise TypeError(
            f"An instance of {what} is expected; it got the class {thing.__name__!r}. "
            f"Make one first: {thing.__name__}(...)."
        )


def _unknown(what: str, thing: Any, known: list[str]) -> str:
    hint = " Call it first: optax.adam is a function, optax.adam(1e-3) an optimizer." * (
        what == "optimizer" and callable(thing)
    )
    listed = "".join(f"\n  - {title}" for title in known)
    return (
        f"This {what} is of no known kind: {describe(thing)}, of type "
        f"{type(thing).__module__}.{type(thing).__qualname__}.{hint} Known are:{listed}\n"
        f"For anything else, write a subclass of compat.{'Model' if what == 'network' else 'Optimizer'}."
    )
