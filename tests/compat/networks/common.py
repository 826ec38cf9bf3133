"""The kinds of networks, the inputs of each, and what a library has to tell of one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from solstice.compat import Model

CLASSES = 3
TX = optax.adam(1e-2)


def _normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


# What each kind of network takes; the first axis is the batch.
COMMON = {
    "mlp": (_normal(1, 4, 4),),
    "cnn": (_normal(2, 4, 4, 4, 1),),
    "recurrent": (_normal(3, 4, 5, 3),),
    # Two inputs, two streams of random numbers (where the library names them), a dict of outputs.
    "attention": (_normal(4, 4, 5, 8), _normal(5, 4, 3, 8)),
    "embedding": (jnp.arange(20).reshape(4, 5) % 7,),
    "parameterless": (_normal(6, 4, 4),),
    "shared": (_normal(7, 4, 4),),
    # It asks for a key in training and evaluation, and uses it in the backward pass alone.
    "rounding": (_normal(9, 4, 4),),
}
INPUTS = COMMON | {
    # Of the libraries that have it: scales that the gradient overwrites.
    "fp8": (_normal(8, 4, 4),),
}


def other_inputs(kind: str, seed: int) -> tuple[jax.Array, ...]:
    """The inputs of a kind with other values."""
    return tuple(
        jnp.roll(x, seed, axis=-1) if x.dtype == jnp.int32 else x + 0.1 * _normal(seed, *x.shape)
        for x in INPUTS[kind]
    )


def loss_of(outputs: Any) -> jax.Array:
    return sum(jnp.mean((leaf - 1) ** 2) for leaf in jax.tree.leaves(outputs))


def rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return `x`, with a gradient that is rounded at random, as low-precision training has it."""

    @jax.custom_vjp
    def identity(x: jax.Array) -> jax.Array:
        return x

    def backward(_: None, grad: jax.Array) -> tuple[jax.Array]:
        return (jnp.floor(64 * grad + jax.random.uniform(key, grad.shape)) / 64,)

    identity.defvjp(lambda x: (x, None), backward)
    return identity(x)


class Subject(NamedTuple):
    """A network, adapted and in its library's own hands."""

    inputs: tuple[jax.Array, ...]
    make_model: Callable[[jax.Array], Model]
    # The library's own call, on what `Model.unwrap` returns: (own, *inputs, key=, train=).
    call: Callable[..., Any]
    # The library's own loop: `start(key)` gives its carry, `step(carry, inputs, key)` the loss and
    # the next carry, `evaluate(carry, inputs)` outputs, `own(carry)` what `Model.unwrap` returns.
    start: Callable[[jax.Array], Any]
    step: Callable[..., tuple[jax.Array, Any]]
    evaluate: Callable[..., Any]
    own: Callable[[Any], Any]
    # The arrays of what `Model.unwrap` returns, in the library's order.
    arrays: Callable[[Any], list[Any]]
    # Whether the network keeps its random streams, so that its own loop takes no key.
    keeps_streams: bool = False


def arrays(tree: Any) -> list[Any]:
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


def functional(
    inputs: tuple[jax.Array, ...],
    make_model: Callable[[jax.Array], Model],
    init: Callable[[jax.Array], tuple[Any, Any]],
    apply: Callable[..., tuple[Any, Any]],
    own: Callable[[Any, Any], Any],
    split: Callable[[Any], tuple[Any, Any]],
) -> Subject:
    """A subject of a library whose networks are functions of (params, state).

    `apply(params, state, inputs, key, train)` returns the outputs and the next state; `own` and
    `split` go between (params, state) and what the library calls its variables.
    """

    def start(key: jax.Array) -> Any:
        params, state = init(key)
        return params, state, TX.init(params)

    @jax.jit
    def step(carry: Any, inputs: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        params, state, opt_state = carry

        def objective(params: Any) -> Any:
            outputs, new_state = apply(params, state, inputs, key, True)
            return loss_of(outputs), new_state

        (loss, state), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return loss, (optax.apply_updates(params, updates), state, opt_state)

    @jax.jit
    def evaluate(carry: Any, inputs: Any) -> Any:
        return apply(carry[0], carry[1], inputs, None, False)[0]

    def call(variables: Any, *inputs: Any, key: Any, train: bool) -> Any:
        return apply(*split(variables), inputs, key, train)[0]

    return Subject(
        inputs,
        make_model,
        call,
        start,
        step,
        evaluate,
        lambda carry: own(carry[0], carry[1]),
        arrays,
    )


def _on_host(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def assert_same_bits(left: list[Any], right: list[Any]) -> None:
    assert len(left) == len(right)
    for a, b in zip(map(_on_host, left), map(_on_host, right), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()
