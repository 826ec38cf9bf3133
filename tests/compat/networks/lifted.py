"""Networks whose parts are within a transformation: jit, remat, scan and vmap, by library.

Each has a block, a dense layer and a tanh, four features wide, that is called within it.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

from solstice.compat import EquinoxModel, FlaxModel, FunctionModel, HaikuModel, NNXModel, tag

X = jax.random.normal(jax.random.key(9), (3, 4))
KEY = jax.random.key(0)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(4)(x))


class LinenStep(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return LinenBlock(name="block")(x), None


class LinenNet(nn.Module):
    how: str

    @nn.compact
    def __call__(self, x):
        if self.how == "scan":
            split = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            return nn.scan(LinenStep, length=2, **split)(name="steps")(x, None)[0]
        if self.how == "vmap":
            split = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            return nn.vmap(LinenBlock, in_axes=None, axis_size=2, out_axes=1, **split)(
                name="block"
            )(x).sum(1)
        return {"plain": LinenBlock, "jit": nn.jit(LinenBlock), "remat": nn.remat(LinenBlock)}[
            self.how
        ](name="block")(x)


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.dense(x))


class NNXNet(nnx.Module):
    def __init__(self, how, rngs):
        self.how = how
        if how in ("scan", "vmap"):
            self.block = nnx.split_rngs(splits=2)(nnx.vmap(NNXBlock))(rngs)
        else:
            self.block = NNXBlock(rngs)

    def __call__(self, x):
        if self.how == "scan":
            return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
                x, self.block
            )
        if self.how == "vmap":
            return nnx.vmap(lambda block, x: block(x), in_axes=(0, None), out_axes=1)(
                self.block, x
            ).sum(1)
        wrap = {"plain": lambda f: f, "jit": nnx.jit, "remat": nnx.remat}[self.how]
        return wrap(lambda block, x: block(x))(self.block, x)


class HaikuBlock(hk.Module):
    def __call__(self, x):
        return jnp.tanh(hk.Linear(4, name="dense")(x))


def haiku_net(how):
    def forward(x):
        if how == "scan":
            return hk.experimental.layer_stack(2)(lambda x: HaikuBlock(name="block")(x))(x)
        block = HaikuBlock(name="block")
        if how == "vmap":
            return hk.vmap(block, split_rng=False)(x)
        return (hk.remat(block) if how == "remat" else block)(x)

    return forward


class EquinoxBlock(eqx.Module):
    dense: eqx.nn.Linear

    def __call__(self, x):
        return jnp.tanh(self.dense(x))


class EquinoxNet(eqx.Module):
    block: EquinoxBlock
    how: str

    def __call__(self, x):
        if self.how == "scan":
            arrays, rest = eqx.partition(self.block, eqx.is_array)
            return jax.lax.scan(lambda x, one: (eqx.combine(one, rest)(x), None), x, arrays)[0]
        if self.how == "vmap":
            return eqx.filter_vmap(lambda block, x: block(x), in_axes=(0, None), out_axes=1)(
                self.block, x
            ).sum(1)
        wrap = {"plain": lambda f: f, "jit": eqx.filter_jit, "remat": eqx.filter_checkpoint}
        return wrap[self.how](self.block)(x)


def equinox_net(how):
    def make(key):
        return EquinoxBlock(eqx.nn.Linear(4, 4, key=key))

    block = make(KEY)
    if how in ("scan", "vmap"):
        block = eqx.filter_vmap(make)(jax.random.split(KEY, 2))
    return EquinoxNet(block, how)


@jax.jit
def jitted(w, x):
    return tag("block", jnp.tanh(tag("block/dense", x @ w)))


def function_net(how):
    def block(w, x):
        return jitted.__wrapped__(w, x)

    def apply(params, x):
        w = params["w"]
        if how == "scan":
            return jax.lax.scan(lambda x, w: (block(w, x), None), x, w)[0]
        if how == "vmap":
            return jax.vmap(block, (0, None), 1)(w, x).sum(1)
        return {"plain": block, "jit": jitted, "remat": jax.checkpoint(block)}[how](w, x)

    def init(key, x):
        return {"w": jax.random.normal(key, (2, 4, 4) if how in ("scan", "vmap") else (4, 4))}

    return FunctionModel(init, apply, X, key=KEY)


MAKERS = {
    "linen": lambda how: FlaxModel(LinenNet(how), X, key=KEY),
    "nnx": lambda how: NNXModel(NNXNet(how, nnx.Rngs(0))),
    "haiku": lambda how: HaikuModel(hk.transform(haiku_net(how)), X, key=KEY),
    "equinox": lambda how: EquinoxModel(equinox_net(how)),
    "function": function_net,
}
# Haiku has no jit of its own.
LIFTED = [
    (library, how)
    for library in MAKERS
    for how in ("plain", "jit", "remat", "scan", "vmap")
    if (library, how) != ("haiku", "jit")
]
