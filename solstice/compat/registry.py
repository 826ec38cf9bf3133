"""Registry: finds the adapter of a network or optimizer by its type, without importing anything.

An object of a library can only exist if that library is loaded, so it is enough to look at the
loaded modules. Unknown objects raise an error.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Literal, NamedTuple

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.adapters import ADAPTERS, EQUINOX, STAX
from solstice.compat.model import Model
from solstice.compat.optimizer import Optimizer
from solstice.errors import InvalidTypeError, SolsticeError
from solstice.tree.pytree import PyTree


class Kind(NamedTuple):
    """A class of objects and the function that adapts them."""

    # The class, or its dotted path if it may not be loaded.
    cls: type | str
    adapt: Callable[..., PyTree]
    title: str

    def matches(self, thing: object) -> bool:
        cls = self.cls
        if isinstance(cls, str):
            module, _, name = cls.rpartition(".")
            # A class of a loaded module; getattr alone could import one that is lazy.
            cls = getattr(sys.modules[module], name, ()) if module in sys.modules else ()
        return isinstance(thing, cls)


def _known(what: str) -> Iterator[Kind]:
    """Yield the adapters of this library."""
    for one in ADAPTERS:
        if one.what == what:
            yield from (Kind(path, one.adapt, title) for path, title in one.takes.items())


# Registered by others, newest first.
_REGISTERED: dict[str, list[Kind]] = {"model": [], "optimizer": []}


def register(
    cls: type | str,
    adapt: Callable[..., PyTree],
    *,
    what: Literal["model", "optimizer"] = "model",
) -> None:
    """Register an adapter for the objects of another class.

    It comes before the existing ones; registering a class again replaces its adapter.

    An installed package can do the same without being imported, by an entry point in the group
    `solstice.models` or `solstice.optimizers`: its name is the dotted path of the class, its
    value that of the function, as in `"mylib.Network" = "mylib.adapters:adapt"`.

    Args:
        cls: The class, or its dotted path such as "mylib.Network".
        adapt: For a model, called as `adapt(network, example, key)`, with None for what the user
            did not give; for an optimizer, called as `adapt(optimizer)`. Returns the adapted
            object.
        what: Whether it adapts a "model" or an "optimizer".

    Raises:
        TypeError: `cls` is not a class or path, or `adapt` is not callable.

    >>> import jax, jax.numpy as jnp
    >>> from solstice import compat
    >>> class Affine:
    ...     def init(self, key, x):
    ...         return {"w": jax.random.normal(key, (x.shape[-1], 2))}
    ...
    ...     def apply(self, params, x):
    ...         return x @ params["w"]
    >>> def adapt(network, example, key):
    ...     return compat.FunctionModel(network.init, network.apply, example, key=key)
    >>> compat.register(Affine, adapt)
    >>> compat.as_model(Affine(), jnp.ones((1, 3)), key=0)(jnp.ones((5, 3)))[0].shape
    (5, 2)
    """
    arguments.choice(what, "what", tuple(_REGISTERED))
    if not isinstance(cls, type) and not (isinstance(cls, str) and "." in cls):
        raise InvalidTypeError(
            f"cls is expected to be a class or its dotted path, such as 'mylib.Network'; it is "
            f"{describe(cls)}."
        )
    arguments.function(adapt, "adapt", "network, example, key" if what == "model" else "optimizer")
    title = cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"
    others = [kind for kind in _REGISTERED[what] if kind.cls != cls]
    _REGISTERED[what][:] = [Kind(cls, adapt, f"{title} (registered)"), *others]


@functools.cache
def _installed(what: str) -> tuple[Kind, ...]:
    """Return the adapters of installed packages; an entry point is loaded when it is first used."""
    return tuple(
        Kind(point.name, functools.partial(_load_and_adapt, point), f"{point.name} (installed)")
        for point in entry_points(group=f"solstice.{what}s")
    )


def _load_and_adapt(point: Any, *arguments: Any) -> Any:
    return point.load()(*arguments)


def _kinds(what: str) -> Iterator[Kind]:
    yield from _REGISTERED[what]
    yield from _installed(what)
    yield from _known(what)


def as_model(network: Any, example: PyTree = None, *, key: Any = None) -> Model:
    """Return any supported network as a `Model`; a `Model` is returned unchanged.

    Args:
        network: A Flax Linen or NNX module, a transformed Haiku function, an Equinox module or
            the `(module, state)` of `eqx.nn.make_with_state`, a Keras network, a Stax
            `(init, apply)` pair, or an object of a registered class.
        example: A batch's inputs, or their `jax.ShapeDtypeStruct`s, if the network must be
            initialised; a tuple is several inputs.
        key: A seed or PRNG key for the initialisation.

    Raises:
        TypeError: No adapter knows the network, or it is a class instead of an instance.
        ValueError: The example or the key is missing.

    >>> import jax, jax.numpy as jnp, solstice
    >>> from jax.example_libraries import stax
    >>> type(solstice.compat.as_model(stax.Dense(2), jnp.ones((1, 3)), key=0)).__name__
    'StaxModel'
    """
    if isinstance(network, Model):
        return network
    _refuse_class(network, "a network")
    for kind in _kinds("model"):
        if kind.matches(network):
            return _checked(_adapted(kind, network, example, key), Model, kind)
    if type(network) is tuple and len(network) == 2:
        if _is_with_state(network):
            return EQUINOX.load()(*network)
        if all(map(callable, network)):
            return STAX.adapt(network, example, key)
    known = [kind.title for kind in _kinds("model")]
    raise InvalidTypeError(_unknown("network", network, [*known, "a Stax (init, apply) pair"]))


def as_optimizer(optimizer: Any) -> Optimizer:
    """Return any supported optimizer as an `Optimizer`; an `Optimizer` is returned unchanged.

    Args:
        optimizer: An Optax transformation, an optimizer of Keras or `jax.example_libraries`, an
            `nnx.Optimizer` (only its transformation; its state is dropped), or an object of a
            registered class.

    Raises:
        TypeError: No adapter knows the optimizer, or it is a class or function instead of its
            result.

    >>> import optax, solstice
    >>> type(solstice.compat.as_optimizer(optax.adam(1e-3))).__name__
    'OptaxOptimizer'
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    _refuse_class(optimizer, "an optimizer")
    for kind in _kinds("optimizer"):
        if kind.matches(optimizer):
            return _checked(kind.adapt(optimizer), Optimizer, kind)
    known = [kind.title for kind in _kinds("optimizer")]
    raise InvalidTypeError(_unknown("optimizer", optimizer, known))


def _adapted(kind: Kind, network: Any, example: PyTree, key: Any) -> Any:
    try:
        return kind.adapt(network, example, key)
    except SolsticeError:
        raise
    except Exception as error:
        absent = [
            f"{name} ({remedy})"
            for name, value, remedy in (
                ("example", example, "example_input=x[:1] of an experiment"),
                ("key", key, "key=0"),
            )
            if value is None
        ]
        # Without them, an adapter that needs them fails on None.
        if not absent or not any(word in str(error) for word in ("NoneType", "None")):
            raise
        raise InvalidTypeError(
            f"The adapter of {kind.title} raised {type(error).__name__}: {error}. It was given no "
            f"{' and no '.join(absent)}. If the network must be initialised, pass what is missing."
        ) from error


def _checked(adapted: Any, protocol: type, kind: Kind) -> Any:
    if isinstance(adapted, protocol):
        return adapted
    raise InvalidTypeError(
        f"The adapter of {kind.title} is expected to return a compat.{protocol.__name__}; it "
        f"returned {describe(adapted)}."
    )


def _is_with_state(pair: tuple[Any, Any]) -> bool:
    equinox = sys.modules["equinox"]
    return isinstance(pair[0], equinox.Module) and isinstance(pair[1], equinox.nn.State)


def _refuse_class(thing: object, what: str) -> None:
    if isinstance(thing, type):
        raise InvalidTypeError(
            f"An instance of {what} is expected; it got the class {thing.__name__!r}. "
            f"Make one first: {thing.__name__}(...)."
        )


# Hints for a function.
_HINTS = {
    "optimizer": " Call it first: optax.adam is a function, optax.adam(1e-3) an optimizer.",
    "network": " Instead of jax.vmap(module), pass the module, which is mapped over the batch; "
    "for a "
    "function of parameters and inputs, use compat.FunctionModel(init, apply, example, key=key).",
}


_OTHERS = {"optimizer": "an optimizer", "model": "a network"}


def _unknown(what: str, thing: Any, known: list[str]) -> str:
    is_function = callable(thing) and (what == "optimizer" or hasattr(thing, "__name__"))
    hint = _HINTS[what] if is_function else ""
    kind, other = ("optimizer", Optimizer) if what == "network" else ("model", Model)
    if isinstance(thing, other) or any(one.matches(thing) for one in _kinds(kind)):
        hint = f" It is {_OTHERS[kind]}: the network comes first, the optimizer after it."
    listed = "".join(f"\n  - {title}" for title in known)
    protocol, adapt = (
        ("Model", "network, example, key") if what == "network" else ("Optimizer", "optimizer")
    )
    return (
        f"This {what} is not supported: {describe(thing)}, of type "
        f"{type(thing).__module__}.{type(thing).__qualname__}.{hint} Supported are:{listed}\n"
        f"  - a compat.{protocol}\n"
        f"For another library, register an adapter: compat.register(TheClass, adapt) with "
        f"adapt({adapt}) -> compat.{protocol}."
    )
