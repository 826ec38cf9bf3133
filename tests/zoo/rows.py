"""What a row of the table is: a network in its library's own hands, and what to train it on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of a third party's, and how each side calls it.

    Attributes:
        own: What its library makes: a module, a transformed function, `(module, state)`.
        inputs: A batch's inputs.
        loss: Of the outputs and the targets, a scalar.
        targets: What the loss compares with; None where outputs are a loss already.
        model: How it goes into Solstice, `model(own, inputs, key=)`; None is `compat.as_model`.
        training: Keywords of its own call in training; in evaluation, the opposite.
        batched: Of an Equinox network, how it is called on a batch: `batched(module, state,
            inputs, key)` returns the outputs and the state.
        call: Of an NNX network, `call(module, *inputs)` where it is not called itself.
        wrt: Of an NNX network, the type of variables that are trained; None is `nnx.Param`.
        optimizer: Makes an optimizer of another library; None is Adam of Optax.
        loop: A loop of its own instead of its library's.
        keeps_streams: Whether it keeps its random numbers itself, and takes no key.
    """

    own: Any
    inputs: tuple[Any, ...]
    loss: Callable[[Any, Any], jax.Array]
    targets: Any = None
    model: Callable[..., Any] | None = None
    training: dict[str, bool] = dataclasses.field(default_factory=dict)
    batched: Callable[..., Any] | None = None
    call: Callable[..., Any] | None = None
    wrt: Any = None
    optimizer: Callable[[], Any] | None = None
    loop: Callable[..., Any] | None = None
    keeps_streams: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table; `make` imports the package, and returns its network."""

    title: str
    library: str
    packages: tuple[str, ...]
    how: str
    make: Callable[[], Network]

    @property
    def name(self) -> str:
        return self.make.__name__


NETWORKS: list[Row] = []


def row(
    title: str, library: str, *packages: str, how: str = "`as_model`"
) -> Callable[[Callable[[], Network]], Callable[[], Network]]:
    """Put a function into the table."""

    def add(make: Callable[[], Network]) -> Callable[[], Network]:
        NETWORKS.append(Row(title, library, packages, how, make))
        return make

    return add


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean((outputs - targets) ** 2)


def negative_mean(log_density: jax.Array, _: None) -> jax.Array:
    """What a flow minimises, whose outputs are log densities."""
    return -jnp.mean(log_density)


def mapped(module: Any, state: Any, inputs: Any, key: jax.Array) -> Any:
    """Call an Equinox network for one example on a batch, a key for each."""
    keys = jax.random.split(key, len(inputs[0]))
    return jax.vmap(lambda inputs, key: module(*inputs, key=key))(inputs, keys), state
