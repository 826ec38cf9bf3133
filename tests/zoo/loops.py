"""Each library's own training loop, written as its own guide has it, with nothing of Solstice.

A loop takes a network (`networks.Network`), two keys and a number of steps, and returns the losses,
all arrays of the trained network by name, and its outputs in evaluation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax

TX = optax.adam(1e-3)


class Result(NamedTuple):
    """What a loop leaves: as many losses as steps, arrays by name, outputs in evaluation."""

    losses: list[float]
    arrays: dict[str, np.ndarray]
    outputs: Any


def host(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by path, random keys as their data."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if eqx.is_array(leaf):
            found[jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def keys_of(key: jax.Array, steps: int) -> list[jax.Array]:
    """The keys that an experiment with this key gives its steps."""
    given = []
    for _ in range(steps):
        key, one = jax.random.split(key)
        given.append(one)
    return given


def linen(network: Any, init: jax.Array, key: jax.Array, steps: int) -> Result:
    module, on = network.own, network.training
    off = {name: not value for name, value in on.items()}
    state = dict(module.init(init, *network.inputs, **off))
    params, opt_state = state.pop("params"), None
    opt_state = TX.init(params)

    @jax.jit
    def step(params: Any, state: Any, opt_state: Any, key: jax.Array, batch: Any) -> Any:
        inputs, targets = batch

        def loss(params: Any) -> Any:
            outputs, new = module.apply(
                {"params": params, **state},
                *inputs,
                rngs={"dropout": key, "params": jax.random.fold_in(key, 1)},
                mutable=list(state),
                **on,
            )
            return network.loss(outputs, targets), new

        (value, state_), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), state_, opt_state

    @jax.jit
    def evaluate(params: Any, state: Any, inputs: Any) -> Any:
        rngs = {"params": jax.random.key(0)}  # AQT asks for a key and rounds to nearest
        return module.apply({"params": params, **state}, *inputs, rngs=rngs, **off)

    batch, losses = (network.inputs, network.targets), []
    for one in keys_of(key, steps):
        value, params, state, opt_state = step(params, state, opt_state, one, batch)
        losses.append(float(value))
    return Result(losses, host({"params": params, **state}), evaluate(params, state, batch[0]))


def linen_train_state(network: Any, init: jax.Array, key: jax.Array, steps: int) -> Result:
    """Flax's TrainState over all variables, which writes the gradients of fp8 scales into them."""
    from flax.training.train_state import TrainState

    module = network.own
    variables = module.init(init, *network.inputs)
    state = TrainState.create(apply_fn=module.apply, params=variables, tx=TX)

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        inputs, targets = batch

        def loss(variables: Any) -> Any:
            return network.loss(module.apply(variables, *inputs), targets)

        value, grads = jax.value_and_grad(loss)(state.params)
        return value, state.apply_gradients(grads=grads)

    batch, losses = (network.inputs, network.targets), []
    for _ in range(steps):
        value, state = step(state, batch)
        losses.append(float(value))
    outputs = jax.jit(module.apply)(state.params, *network.inputs)
    return Result(losses, host(state.params), outputs)


def nnx(network: Any, init: jax.Array, key: jax.Array, steps: int) -> Result:
    from flax import nnx

    module = nnx.clone(network.own)
    module.train()
    optimizer = nnx.Optimizer(module, TX, wrt=network.wrt or nnx.Param)
    call = network.call or (lambda module, *inputs: module(*inputs))

    @nnx.jit
    def step(module: Any, optimizer: Any, batch: Any) -> jax.Array:
        inputs, targets = batch

        def loss(module: Any) -> jax.Array:
            return network.loss(call(module, *inputs), targets)

        where = nnx.DiffState(0, network.wrt or nnx.Param)
        value, grads = nnx.value_and_grad(loss, argnums=where)(module)
        optimizer.update(module, grads)
        return value

    batch = network.inputs, network.targets
    losses = [float(step(module, optimizer, batch)) for _ in range(steps)]
    module.eval()
    outputs = nnx.jit(call)(module, *network.inputs)
    return Result(losses, host(nnx.to_pure_dict(nnx.state(module))), outputs)


def haiku(network: Any, init: jax.Array, key: jax.Array, steps: int) -> Result:
    import haiku as hk

    transformed, on = network.own, network.training
    if isinstance(transformed, hk.Transformed):
        transformed = hk.with_empty_state(transformed)
    off = {name: not value for name, value in on.items()}
    params, state = transformed.init(init, *network.inputs, **on)
    opt_state = TX.init(params)

    @jax.jit
    def step(params: Any, state: Any, opt_state: Any, key: jax.Array, batch: Any) -> Any:
        inputs, targets = batch

        def loss(params: Any) -> Any:
            outputs, new = transformed.apply(params, state, key, *inputs, **on)
            return network.loss(outputs, targets), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), new, opt_state

    batch, losses = (network.inputs, network.targets), []
    for one in keys_of(key, steps):
        value, params, state, opt_state = step(params, state, opt_state, one, batch)
        losses.append(float(value))

    @jax.jit
    def evaluate(params: Any, state: Any, inputs: Any) -> Any:
        return transformed.apply(params, state, None, *inputs, **off)[0]

    return Result(losses, host((params, state)), evaluate(params, state, batch[0]))


def haiku_without_key(network: Any, init: jax.Array, key: jax.Array, steps: int) -> Result:
    """The loop of a network that draws no random numbers, whose `apply` takes no key."""
    transformed = network.own
    params = transformed.init(init, *network.inputs)
    opt_state = TX.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        inputs, targets = batch

        def loss(params: Any) -> Any:
            return network.loss(transformed.apply(params, *inputs), targets)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = TX.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), opt_state

    batch, losses = (network.inputs, network.targets), []
    for _ in range(steps):
        value, params, opt_state = step(params, opt_state, batch)
        losses.append(float(value))
    outputs = jax.jit(transformed.apply)(params, *network.inputs)
    return Result(losses, host((params, {})), outputs)


def equinox(network: Any, init: jax.Array, key: jax.Array, steps: int) -> Result:
    """Equinox's loop; `network.batched` is how the network's own guide calls it on a batch."""
    module, state = network.own if isinstance(network.own, tuple) else (network.own, None)
    on = network.training
    off = {name: not value for name, value in on.items()}
    state = jax.tree.map(lambda leaf: leaf, state)
    opt_state = TX.init(eqx.filter(module, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(module: Any, state: Any, opt_state: Any, key: jax.Array, batch: Any) -> Any:
        inputs, targets = batch

        @eqx.filter_value_and_grad(has_aux=True)
        def loss(module: Any) -> Any:
            outputs, new = network.batched(module, state, inputs, key, **on)
            return network.loss(outputs, targets), new

        (value, new), grads = loss(module)
        updates, opt_state = TX.update(grads, opt_state, eqx.filter(module, eqx.is_inexact_array))
        return value, eqx.apply_updates(module, updates), new, opt_state

    batch, losses = (network.inputs, network.targets), []
    for one in keys_of(key, steps):
        value, module, state, opt_state = step(module, state, opt_state, one, batch)
        losses.append(float(value))

    @eqx.filter_jit
    def evaluate(module: Any, state: Any, inputs: Any) -> Any:
        quiet = eqx.nn.inference_mode(module)
        return network.batched(quiet, state, inputs, jax.random.key(0), **off)[0]

    arrays = host((module, state) if state is not None else module)
    return Result(losses, arrays, evaluate(module, state, batch[0]))


def keras(network: Any, init: jax.Array, key: jax.Array, steps: int) -> Result:
    """The loop of Keras's guide to training with JAX."""
    module, optimizer = network.own, network.optimizer()
    optimizer.build(module.trainable_variables)
    tv = [v.value + 0 for v in module.trainable_variables]
    ntv = [v.value + 0 for v in module.non_trainable_variables]
    ov = [v.value + 0 for v in optimizer.variables]

    def loss(tv: Any, ntv: Any, batch: Any) -> Any:
        (inputs,), targets = batch
        outputs, ntv = module.stateless_call(tv, ntv, inputs, training=True)
        return network.loss(outputs, targets), ntv

    @jax.jit
    def step(tv: Any, ntv: Any, ov: Any, batch: Any) -> Any:
        (value, ntv), grads = jax.value_and_grad(loss, has_aux=True)(tv, ntv, batch)
        tv, ov = optimizer.stateless_apply(ov, grads, tv)
        return value, tv, ntv, ov

    batch, losses = (network.inputs, network.targets), []
    for _ in range(steps):
        value, tv, ntv, ov = step(tv, ntv, ov, batch)
        losses.append(float(value))

    @jax.jit
    def evaluate(tv: Any, ntv: Any, inputs: Any) -> Any:
        return module.stateless_call(tv, ntv, inputs, training=False)[0]

    outputs = evaluate(tv, ntv, *network.inputs)
    values = {id(v): x for v, x in zip(module.trainable_variables, tv, strict=True)}
    values |= {id(v): x for v, x in zip(module.non_trainable_variables, ntv, strict=True)}
    return Result(losses, host([values[id(v)] for v in module.variables]), outputs)


OWN: dict[str, Callable[..., Result]] = {
    "Linen": linen,
    "NNX": nnx,
    "Haiku": haiku,
    "Equinox": equinox,
    "Keras": keras,
}
