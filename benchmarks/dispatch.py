"""What calling a `Model` under jax.jit costs beside the library's own jitted apply.

    python benchmarks/dispatch.py

For each library, three jitted forward passes of one small network take turns in every round: the
library's own on a flat list of arrays (the cheapest call there is), the library's own on its own
tree of variables, and the `Model`. Printed: medians of the ratios to the first, with the least and
the largest. Absolute times mean nothing on a shared machine.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import argparse
import statistics
import time

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from jax.example_libraries import stax
from tqdm import tqdm

from solstice import compat

KEY = jax.random.key(0)


def sizes(inputs, hidden, outputs):
    return list(zip([inputs, *hidden], [*hidden, outputs], strict=True))


def linen(x, widths):
    layers = [part for _, n in widths for part in (nn.Dense(n), nn.relu)][:-1]
    module = nn.Sequential(layers)
    return compat.FlaxModel(module, x, key=KEY), module.apply


def haiku(x, widths):
    def forward(x):
        return hk.nets.MLP([n for _, n in widths])(x)

    network = hk.without_apply_rng(hk.transform(forward))
    return compat.HaikuModel(network, x, key=KEY), network.apply


def stax_(x, widths):
    network = stax.serial(*[part for _, n in widths for part in (stax.Dense(n), stax.Relu)][:-1])
    return compat.StaxModel(network, x, key=KEY), network[1]


def equinox(x, widths):
    keys = jax.random.split(KEY, len(widths))
    layers = [
        part
        for (m, n), key in zip(widths, keys, strict=True)
        for part in (eqx.nn.Linear(m, n, key=key), eqx.nn.Lambda(jax.nn.relu))
    ][:-1]
    module = eqx.nn.Sequential(layers)
    arrays, rest = eqx.partition(module, eqx.is_array)

    def apply(arrays, x):
        return jax.vmap(eqx.combine(arrays, rest))(x)

    return compat.EquinoxModel(module), apply, arrays


def nnx_(x, widths):
    rngs = nnx.Rngs(0)
    module = nnx.Sequential(
        *[part for m, n in widths for part in (nnx.Linear(m, n, rngs=rngs), nnx.relu)][:-1]
    )
    graph, state = nnx.split(module)
    pure = nnx.to_pure_dict(state)
    return compat.NNXModel(module), lambda pure, x: nnx.merge(graph, pure)(x), pure


def keras_(x, widths):
    import keras

    layers = [
        keras.layers.Dense(n, activation="relu" if i < len(widths) - 1 else None)
        for i, (_, n) in enumerate(widths)
    ]
    network = keras.Sequential([keras.layers.Input(x.shape[1:]), *layers])
    variables = network.variables

    def apply(values, x):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return network(x, training=False)

    return compat.KerasModel(network), apply, [variable.value for variable in variables]


LIBRARIES = {
    "linen": linen,
    "haiku": haiku,
    "equinox": equinox,
    "nnx": nnx_,
    "stax": stax_,
    "keras": keras_,
}


def contenders(make, x, widths):
    model, apply, *values = make(x, widths)
    tree = values[0] if values else model.unwrap()
    leaves, structure = jax.tree.flatten(tree)
    flat = jax.jit(lambda leaves, x: apply(jax.tree.unflatten(structure, leaves), x))
    own = jax.jit(apply)
    ours = jax.jit(lambda model, x: model(x)[0])
    return {"flat": (flat, leaves), "its own tree": (own, tree), "Model": (ours, model)}


def seconds(function, first, x, calls):
    start = time.perf_counter()
    for _ in range(calls):
        result = function(first, x)
    result.block_until_ready()
    return (time.perf_counter() - start) / calls


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    networks = {
        "MLP 64-128-10, batch 128": (jnp.ones((128, 64)), sizes(64, [128], 10)),
        "MLP 784-200-200-10, batch 128": (jnp.ones((128, 784)), sizes(784, [200, 200], 10)),
        "MLP 16-(5x32)-10, batch 8": (jnp.ones((8, 16)), sizes(16, [32] * 5, 10)),
    }
    print("| network | library | its own tree / flat | Model / flat | Model / its own tree |")
    print("| --- | --- | --- | --- | --- |")
    for title, (x, widths) in networks.items():
        for library, make in LIBRARIES.items():
            turns = contenders(make, x, widths)
            for function, first in turns.values():
                seconds(function, first, x, 20)
            times = {name: [] for name in turns}
            for _ in tqdm(range(options.rounds), desc=f"{library}, {title}", leave=False):
                for name, (function, first) in turns.items():
                    times[name].append(seconds(function, first, x, options.calls))
            cells = []
            for above, below in (
                ("its own tree", "flat"),
                ("Model", "flat"),
                ("Model", "its own tree"),
            ):
                ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
                low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
                cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
            print(f"| {title} | {library} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
