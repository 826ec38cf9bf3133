"""Networks of other packages, a function each: how it is made, and what it is trained on.

A package is imported in its function, so that one that cannot be imported is told in the table.
All are tiny and random: nothing is downloaded.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import loops
from rows import (
    NETWORKS,
    Network,
    Row,
    cross_entropy,
    mapped,
    negative_mean,
    normal,
    row,
    squared_error,
)

from solstice import compat

__all__ = ["NETWORKS", "NOT_INSTALLED", "Network", "Row"]

# Network, package, library, and why it is not in this environment.
NOT_INSTALLED = [
    ("steerable graph network", "segnn-jax", "Haiku", "it calls e3nn-jax as of 0.19"),
    (
        "ResNet, vision transformer",
        "eqxvision",
        "Equinox",
        "it imports `equinox.experimental`, which is gone",
    ),
]

CLASSES = jnp.array([0, 1, 2, 1])

# --- Linen ------------------------------------------------------------------------------------


@row("ResNet-18", "Linen", "flaxmodels")
def linen_resnet() -> Network:
    import flaxmodels

    net = flaxmodels.ResNet18("logits", pretrained=None, normalize=False, num_classes=3)
    return Network(
        net, (normal(0, 4, 32, 32, 3),), cross_entropy, CLASSES, training={"train": True}
    )


def _mlp(**options: Any) -> Any:
    import flax.linen as nn

    return nn.Sequential([nn.Dense(16, **options), nn.relu, nn.Dense(3, **options)])


@row("int8 dense layers (AQT)", "Linen", "aqtp")
def linen_aqt() -> Network:
    import aqt.jax.v2.config
    import aqt.jax.v2.flax.aqt_flax

    config = aqt.jax.v2.config.fully_quantized(
        fwd_bits=8, bwd_bits=8, use_stochastic_rounding=False
    )
    dot = functools.partial(aqt.jax.v2.flax.aqt_flax.AqtDotGeneral, config)
    return Network(_mlp(dot_general_cls=dot), (normal(0, 4, 8),), cross_entropy, CLASSES)


@row("int8 training with Qwix", "Linen", "qwix")
def linen_qwix() -> Network:
    import qwix

    rule = qwix.QuantizationRule(weight_qtype="int8", act_qtype="int8")
    net = qwix.quantize_model(_mlp(), qwix.QtProvider([rule]))
    return Network(net, (normal(0, 4, 8),), cross_entropy, CLASSES)


@row("fp8 dense layers", "Linen", "flax")
def linen_fp8() -> Network:
    import flax.linen as nn

    net = _mlp(dot_general_cls=nn.Fp8DirectDotGeneralOp)
    return Network(
        net, (normal(0, 16, 16),), cross_entropy, jnp.arange(16) % 3, loop=loops.linen_train_state
    )


@row("E(3)-equivariant message passing", "Linen", "e3x")
def linen_e3x() -> Network:
    import e3x
    import flax.linen as nn

    class Energies(nn.Module):
        @nn.compact
        def __call__(self, atoms: Any, positions: Any) -> Any:
            to, of = e3x.ops.sparse_pairwise_indices(4)
            basis = e3x.nn.basis(
                positions[to] - positions[of],
                max_degree=1,
                num=4,
                radial_fn=e3x.nn.reciprocal_bernstein,
                cutoff_fn=functools.partial(e3x.nn.smooth_cutoff, cutoff=5.0),
            )
            x = e3x.nn.Embed(num_embeddings=9, features=4)(atoms)
            x = e3x.nn.add(x, e3x.nn.MessagePass()(x, basis, dst_idx=to, src_idx=of))
            x = e3x.nn.Dense(4)(e3x.nn.silu(e3x.nn.Dense(4)(x)))
            return nn.Dense(1)(e3x.nn.change_max_degree_or_type(x, 0, False)[..., 0, 0, :])

    return Network(
        Energies(), (jnp.array([1, 6, 8, 1]), normal(0, 4, 3)), squared_error, normal(1, 4, 1)
    )


@row("equivariant MLP on IrrepsArrays", "Linen", "e3nn-jax")
def linen_e3nn() -> Network:
    import e3nn_jax as e3nn
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = e3nn.flax.Linear("4x0e + 4x1o")(x)
            x = e3nn.concatenate([x, e3nn.tensor_square(x)]).regroup()
            return e3nn.flax.Linear("1x0e")(e3nn.scalar_activation(x, even_act=jax.nn.gelu))

    x = e3nn.IrrepsArray("2x0e + 2x1o", normal(0, 4, 8))
    return Network(Net(), (x,), lambda out, y: squared_error(out.array, y), normal(1, 4, 1))


@row("vision transformer", "Linen", "vit-flax")
def linen_vit_flax() -> Network:
    import vit_flax

    net = vit_flax.ViT(num_classes=3)
    return Network(net, (normal(0, 4, 32, 32, 3),), cross_entropy, CLASSES)


@row("DeepViT", "Linen", "deepvit-flax")
def linen_deepvit() -> Network:
    import deepvit_flax

    net = deepvit_flax.DeepVIT(num_classes=3)
    return Network(net, (normal(0, 4, 32, 32, 3),), cross_entropy, CLASSES)


@row("mixture of experts, a language model", "Linen", "nano-moe-jax")
def linen_moe() -> Network:
    import nano_moe

    config = nano_moe.NanoMoEConfig(
        vocab_size=11, n_layers=1, n_heads=2, d_model=8, d_ff=16, n_experts=3, block_size=8
    )
    tokens = jnp.arange(16).reshape(2, 8) % 11
    return Network(
        nano_moe.NanoMoE(config),
        (tokens,),
        lambda out, y: cross_entropy(out[0][:, :-1], y[:, 1:]) + out[1],
        tokens,
        training={"deterministic": False},
    )


# --- NNX --------------------------------------------------------------------------------------


@row("Mamba-2 language model", "NNX", "mamba2-jax")
def nnx_mamba2() -> Network:
    import mamba2_jax
    from flax import nnx

    config = mamba2_jax.Mamba2Config(
        vocab_size=11, hidden_size=8, state_size=4, head_dim=4, chunk_size=4, num_hidden_layers=1
    )
    tokens = jnp.arange(16).reshape(2, 8) % 11
    net = mamba2_jax.Mamba2ForCausalLM(config, rngs=nnx.Rngs(0))
    return Network(
        net,
        (tokens,),
        lambda outputs, y: cross_entropy(outputs["logits"][:, :-1], y[:, 1:]),
        tokens,
        keeps_streams=True,
    )


@row("Mamba-3 forecaster", "NNX", "mamba3-jax")
def nnx_mamba3() -> Network:
    import mamba3_jax
    from flax import nnx

    net = mamba3_jax.Mamba3Forecaster(
        2, 8, 1, forecast_horizon=3, d_state=4, headdim=4, chunk_size=4, rngs=nnx.Rngs(0)
    )
    return Network(
        net, (normal(0, 4, 8, 2),), squared_error, normal(1, 4, 3, 1), keeps_streams=True
    )


@row("vision transformer (DINOv2) with stochastic depth", "NNX", "jimmy-vision")
def nnx_dino() -> Network:
    from flax import nnx
    from jimmy.models.vit import DinoV2

    net = DinoV2(
        8, 3, 4, embed_dim=8, depth=2, num_heads=2, drop_path_rate=0.3, rngs=nnx.Rngs(0, dropout=1)
    )
    return Network(
        net,
        (normal(0, 4, 8, 8, 3),),
        lambda x, y: squared_error(x.mean((1, 2)) if x.ndim > 2 else x.mean(1), y),
        normal(1, 4),
        keeps_streams=True,
    )


@row("vision transformer", "NNX", "vitax")
def nnx_vitax() -> Network:
    import vitax
    from flax import nnx

    net = vitax.VisionTransformer(3, 3, 8, 4, 1, 2, 16, 8, fsdp=False, rngs=nnx.Rngs(0))
    return Network(net, (normal(0, 4, 8, 8, 3),), cross_entropy, CLASSES, keeps_streams=True)


@row("vision transformer with dropout", "NNX", "attnax")
def nnx_attnax() -> Network:
    import attnax
    from flax import nnx

    config = attnax.VisionTransformerConfig(
        image_size=8, patch_size=4, num_classes=3, d_model=8, num_heads=2, num_layers=1, d_ff=16
    )
    net = attnax.VisionTransformer(nnx.Rngs(0, dropout=1), config)
    return Network(net, (normal(0, 4, 8, 8, 3),), cross_entropy, CLASSES, keeps_streams=True)


@row(
    "hypernetwork of low rank",
    "NNX",
    "synecdoche",
    how="`compat.NNXModel(hyper, call=synecdoche.functional(net))`",
)
def nnx_hyper() -> Network:
    import synecdoche
    from flax import nnx

    rngs = nnx.Rngs(0)
    net = nnx.Sequential(nnx.Linear(8, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 3, rngs=rngs))
    call = synecdoche.functional(net)
    hyper = synecdoche.LowRank(nnx.state(net, nnx.Param), rank=2, rngs=nnx.Rngs(1))
    return Network(
        hyper,
        (normal(0, 4, 8),),
        cross_entropy,
        CLASSES,
        model=lambda own, inputs, key: compat.NNXModel(own, call=call),
        call=call,
        keeps_streams=True,
    )


@row("Kolmogorov-Arnold network", "NNX", "jaxkan")
def nnx_kan() -> Network:
    from jaxkan.models.KAN import KAN

    net = KAN([4, 5, 3], "spline", {"k": 3, "G": 3})
    return Network(net, (normal(0, 4, 4),), cross_entropy, CLASSES, keeps_streams=True)


@row("graph convolutions with batch norm and dropout", "NNX", "jraphx")
def nnx_gcn() -> Network:
    from flax import nnx
    from jraphx.nn.models import GCN

    net = GCN(
        5, 8, 2, out_features=3, dropout_rate=0.3, norm="batch_norm", rngs=nnx.Rngs(0, dropout=1)
    )
    edges = jnp.array([[0, 1, 2, 3], [1, 2, 3, 0]])
    return Network(net, (normal(0, 4, 5), edges), cross_entropy, CLASSES, keeps_streams=True)


def _density(flow: Any, x: jax.Array) -> jax.Array:
    return flow.log_density(x)


@row(
    "normalizing flow (RealNVP)",
    "NNX",
    "bijx",
    how="`compat.NNXModel(flow, call=lambda flow, x: flow.log_density(x))`",
)
def nnx_flow() -> Network:
    import bijx
    from flax import nnx

    bijection = bijx.realnvp_flow(4, n_coupling_layers=2, width=8, depth=1, rngs=nnx.Rngs(0))
    flow = bijx.Transformed(bijx.IndependentNormal((4,), rngs=nnx.Rngs(1)), bijection)
    return Network(
        flow,
        (normal(0, 8, 4),),
        negative_mean,
        model=lambda own, inputs, key: compat.NNXModel(own, call=_density),
        call=_density,
        keeps_streams=True,
    )


@row("int8 training with Qwix", "NNX", "qwix")
def nnx_qwix() -> Network:
    import qwix
    from flax import nnx

    rngs, x = nnx.Rngs(0), normal(0, 4, 8)
    net = nnx.Sequential(nnx.Linear(8, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 3, rngs=rngs))
    rule = qwix.QuantizationRule(weight_qtype="int8", act_qtype="int8")
    net = qwix.quantize_model(net, qwix.QtProvider([rule]), x)
    return Network(net, (x,), cross_entropy, CLASSES, keeps_streams=True)


@row(
    "LoRA with Qwix, the base frozen",
    "NNX",
    "qwix",
    how='`compat.freeze(compat.as_model(net), lambda path, leaf: "lora" not in path)`',
)
def nnx_lora() -> Network:
    import qwix
    from flax import nnx

    rngs, x = nnx.Rngs(0), normal(0, 4, 8)
    net = nnx.Sequential(nnx.Linear(8, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 3, rngs=rngs))
    net = qwix.apply_lora_to_model(
        net, qwix.LoraProvider(module_path=".*", rank=2, alpha=2.0), x, rngs=nnx.Rngs(1)
    )

    def frozen(own: Any, inputs: Any, key: Any) -> compat.Model:
        return compat.freeze(compat.as_model(own), lambda path, leaf: "lora" not in path)

    return Network(
        net,
        (x,),
        cross_entropy,
        CLASSES,
        model=frozen,
        wrt=nnx.LoRAParam,
        keeps_streams=True,
    )


# --- Haiku ------------------------------------------------------------------------------------


def _graph() -> Any:
    import jraph

    return jraph.GraphsTuple(
        nodes=normal(0, 4, 3),
        edges=normal(1, 5, 2),
        senders=jnp.array([0, 1, 2, 3, 0]),
        receivers=jnp.array([1, 2, 3, 0, 2]),
        n_node=jnp.array([4]),
        n_edge=jnp.array([5]),
        globals=normal(2, 1, 2),
    )


@row("graph network on a GraphsTuple", "Haiku", "jraph")
def haiku_jraph() -> Network:
    import haiku as hk
    import jraph

    def part(*texts: Any) -> Any:
        return hk.nets.MLP([8, 3])(jnp.concatenate(texts, -1))

    def network(graph: Any) -> Any:
        return jraph.GraphNetwork(
            lambda *of: part(*of), lambda *of: part(*of), lambda *of: part(*of)
        )(graph)

    return Network(
        hk.transform(network), (_graph(),), lambda graph, y: cross_entropy(graph.nodes, y), CLASSES
    )


@row("E(n)-equivariant graph network", "Haiku", "egnn-jax", "jraph")
def haiku_egnn() -> Network:
    import egnn_jax
    import haiku as hk

    net = hk.transform(lambda graph, x: egnn_jax.EGNN(8, 3, num_layers=2)(graph, x))
    graph = _graph()._replace(edges=None, globals=None)
    return Network(net, (graph, normal(3, 4, 3)), lambda out, y: cross_entropy(out[0], y), CLASSES)


@row("MLP-Mixer with stochastic depth", "Haiku", "x-mlps")
def haiku_mixer() -> Network:
    import haiku as hk
    import x_mlps

    def network(x: Any, is_training: bool) -> Any:
        return x_mlps.XMLP(
            num_patches=4,
            dim=8,
            depth=2,
            block=x_mlps.mlpmixer_block_factory,
            normalization=x_mlps.layernorm_factory,
            stochastic_depth=0.7,
            num_classes=3,
        )(x, is_training=is_training)

    return Network(
        hk.transform(network),
        (normal(0, 4, 4, 6),),
        cross_entropy,
        CLASSES,
        training={"is_training": True},
    )


@row("normalizing flow (surjections)", "Haiku", "surjectors", "distrax")
def haiku_flow() -> Network:
    import distrax
    import haiku as hk
    import surjectors
    import surjectors.nn

    def decoder(z: Any) -> Any:
        mean, log_scale = jnp.split(surjectors.nn.make_mlp([8, 4])(z), 2, -1)
        return distrax.Independent(distrax.Normal(mean, jnp.exp(log_scale)))

    def density(x: Any) -> Any:
        base = distrax.Independent(distrax.Normal(jnp.zeros(2), jnp.ones(2)), 1)
        layers = [surjectors.Slice(2, decoder), surjectors.Permutation(jnp.arange(2)[::-1], 1)]
        return surjectors.TransformedDistribution(base, surjectors.Chain(layers)).log_prob(x)

    net = hk.without_apply_rng(hk.transform(density))
    return Network(net, (normal(0, 8, 4),), negative_mean, loop=loops.haiku_without_key)


@row("MobileNet", "Haiku", "dm-haiku")
def haiku_mobilenet() -> Network:
    import haiku as hk

    def network(x: Any, is_training: bool) -> Any:
        return hk.nets.MobileNetV1((1, 2), (8, 8), num_classes=3)(x, is_training)

    return Network(
        hk.transform_with_state(network),
        (normal(0, 4, 16, 16, 3),),
        cross_entropy,
        CLASSES,
        training={"is_training": True},
    )


@row("vector-quantized autoencoder", "Haiku", "dm-haiku")
def haiku_vq() -> Network:
    import haiku as hk

    def network(x: Any, is_training: bool) -> Any:
        code = hk.nets.VectorQuantizerEMA(4, 8, 0.25, 0.9)(hk.Linear(4)(x), is_training)
        return hk.Linear(6)(code["quantize"]), code["loss"]

    return Network(
        hk.transform_with_state(network),
        (normal(0, 8, 6),),
        lambda out, x: squared_error(out[0], x) + out[1],
        normal(0, 8, 6),
        training={"is_training": True},
    )


@row("equivariant MLP on IrrepsArrays", "Haiku", "e3nn-jax")
def haiku_e3nn() -> Network:
    import e3nn_jax as e3nn
    import haiku as hk

    def network(x: Any) -> Any:
        x = e3nn.haiku.Linear("4x0e + 4x1o")(x)
        x = e3nn.concatenate([x, e3nn.tensor_square(x)]).regroup()
        return e3nn.haiku.Linear("1x0e")(e3nn.scalar_activation(x, even_act=jax.nn.gelu))

    x = e3nn.IrrepsArray("2x0e + 2x1o", normal(0, 4, 8))
    return Network(
        hk.transform(network), (x,), lambda out, y: squared_error(out.array, y), normal(1, 4, 1)
    )


# --- Equinox ----------------------------------------------------------------------------------


@row("neural ODE", "Equinox", "diffrax")
def equinox_ode() -> Network:
    import diffrax
    import equinox as eqx

    class Field(eqx.Module):
        mlp: eqx.nn.MLP

        def __call__(self, t: Any, y: Any, args: Any) -> Any:
            return self.mlp(y)

    class ODE(eqx.Module):
        field: Field

        def __call__(self, y: Any) -> Any:
            return diffrax.diffeqsolve(
                diffrax.ODETerm(self.field),
                diffrax.Tsit5(),
                t0=0.0,
                t1=1.0,
                dt0=0.1,
                y0=y,
                stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6),
            ).ys[0]

    net = ODE(Field(eqx.nn.MLP(3, 3, 8, 1, jnp.tanh, key=jax.random.key(0))))
    return Network(
        net,
        (normal(0, 4, 3),),
        squared_error,
        normal(1, 4, 3),
        batched=lambda module, state, inputs, key: (jax.vmap(module)(*inputs), state),
    )


@row("vision transformer with stochastic depth", "Equinox", "equimo")
def equinox_vit() -> Network:
    from equimo.vision.models.vit import VisionTransformer

    net = VisionTransformer(
        8, 3, 8, 4, 2, [2], drop_path_rate=0.3, num_classes=3, key=jax.random.key(0)
    )
    return Network(net, (normal(0, 4, 3, 8, 8),), cross_entropy, CLASSES, batched=mapped)


def _log_prob(distribution: Any, x: jax.Array) -> jax.Array:
    import paramax

    return paramax.unwrap(distribution).log_prob(x)


@row(
    "normalizing flow (masked autoregressive)",
    "Equinox",
    "flowjax",
    how="`compat.EquinoxModel(flow, call=lambda flow, x: paramax.unwrap(flow).log_prob(x))`",
)
def equinox_flow() -> Network:
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow

    net = masked_autoregressive_flow(
        jax.random.key(0), base_dist=Normal(jnp.zeros(3)), flow_layers=2, nn_width=8
    )
    return Network(
        net,
        (normal(0, 8, 3),),
        negative_mean,
        model=lambda own, inputs, key: compat.EquinoxModel(own, call=_log_prob),
        batched=lambda module, state, inputs, key: (_log_prob(module, *inputs), state),
    )


def _log_probs(flow: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(flow.log_prob, (0, None))(x, None)


@row(
    "transformer flow",
    "Equinox",
    "transformer-flows",
    how="`compat.EquinoxModel(flow, state, call=lambda flow, x: "
    "jax.vmap(flow.log_prob, (0, None))(x, None))`",
)
def equinox_transformer_flow() -> Network:
    import equinox as eqx
    from transformer_flows import TransformerFlow

    make = eqx.nn.make_with_state(TransformerFlow)  # it keeps a cache, for sampling
    return Network(
        make(1, 4, 2, 8, 2, 1, head_dim=4, expansion=2, key=jax.random.key(0)),
        (normal(0, 4, 1, 4, 4),),
        negative_mean,
        model=lambda own, inputs, key: compat.EquinoxModel(*own, call=_log_probs),
        batched=lambda module, state, inputs, key: (_log_probs(module, *inputs), state),
    )


@row("state space model (S5)", "Equinox", "discretax")
def equinox_s5() -> Network:
    import equinox as eqx
    from discretax.models import S5

    own = eqx.nn.make_with_state(S5)(jax.random.key(0), hidden_dim=8, num_blocks=2, state_dim=4)

    def batched(module: Any, state: Any, inputs: Any, key: jax.Array) -> Any:
        keys = jax.random.split(key, len(inputs[0]))
        return jax.vmap(module, (0, None, 0), (0, None), axis_name="batch")(*inputs, state, keys)

    return Network(own, (normal(0, 4, 6, 8),), squared_error, normal(1, 4, 6, 8), batched=batched)


@row("Fourier neural operator", "Equinox", "pdequinox")
def equinox_fno() -> Network:
    import pdequinox

    net = pdequinox.arch.ClassicFNO(
        1, 1, 1, hidden_channels=4, num_modes=3, num_blocks=2, key=jax.random.key(0)
    )
    return Network(
        net,
        (normal(0, 4, 1, 16),),
        squared_error,
        normal(1, 4, 1, 16),
        batched=lambda module, state, inputs, key: (jax.vmap(module)(*inputs), state),
    )


def _logits(net: Any, tokens: jax.Array, key: Any, deterministic: bool) -> jax.Array:
    return net(tokens, deterministic=deterministic, key=key)[0]


@row(
    "Megalodon, a language model with complex averages",
    "Equinox",
    "megalodon-jax",
    how="`compat.EquinoxModel(net, call=lambda net, x, key, deterministic: "
    "net(x, key=key, deterministic=deterministic)[0])`",
)
def equinox_megalodon() -> Network:
    import megalodon_jax

    config = megalodon_jax.MegalodonConfig(
        vocab_size=11,
        model_dim=8,
        num_layers=1,
        z_dim=4,
        value_dim=8,
        ffn_hidden_dim=16,
        cema_ndim=2,
        chunk_size=8,
        norm_num_groups=2,
        dropout=0.2,
    )
    tokens = jnp.arange(16).reshape(2, 8) % 11
    return Network(
        megalodon_jax.MegalodonForCausalLM(config, key=jax.random.key(0)),
        (tokens,),
        lambda logits, y: cross_entropy(logits[:, :-1], y[:, 1:]),
        tokens,
        model=lambda own, inputs, key: compat.EquinoxModel(own, call=_logits),
        training={"deterministic": False},
        batched=lambda module, state, inputs, key, deterministic: (
            _logits(module, *inputs, key, deterministic),
            state,
        ),
    )


@row(
    "embedding of named tensors",
    "Equinox",
    "haliax",
    how="`compat.EquinoxModel(net, call=lambda net, x: "
    "net(haliax.named(x, (Batch, Position))).mean(Position).array)`",
)
def equinox_haliax() -> Network:
    import haliax

    Batch, Position, Words, Out = haliax.make_axes(Batch=4, Position=5, Words=11, Out=3)
    net = haliax.nn.Embedding.init(Words, Out, key=jax.random.key(0))

    def call(module: Any, x: Any) -> Any:
        return module(haliax.named(x, (Batch, Position))).mean(Position).array

    return Network(
        net,
        (jnp.arange(20).reshape(4, 5) % 11,),
        cross_entropy,
        CLASSES,
        model=lambda own, inputs, key: compat.EquinoxModel(own, call=call),
        batched=lambda module, state, inputs, key: (call(module, *inputs), state),
    )


# --- Keras ------------------------------------------------------------------------------------


def _keras(backbone: Any, inputs: Any, features: Any = None) -> Network:
    """A classifier on a backbone, as Keras Hub's own tasks have it."""
    import keras

    keras.utils.set_random_seed(0)
    outputs = backbone.output if features is None else features(backbone.output)
    while len(outputs.shape) > 2:
        outputs = keras.ops.mean(outputs, axis=1)
    net = keras.Model(backbone.input, keras.layers.Dense(3)(outputs))
    return Network(
        net,
        (inputs,),
        cross_entropy,
        CLASSES,
        optimizer=lambda: keras.optimizers.Adam(1e-3),
        keeps_streams=True,
    )


@row("BERT", "Keras", "keras-hub")
def keras_bert() -> Network:
    import keras_hub

    tokens = jnp.arange(20).reshape(4, 5) % 11
    inputs = {
        "token_ids": tokens,
        "segment_ids": jnp.zeros_like(tokens),
        "padding_mask": jnp.ones_like(tokens),
    }
    net = keras_hub.models.BertBackbone(11, 2, 2, 8, 16, dropout=0.1, max_sequence_length=8)
    return _keras(net, inputs, lambda outputs: outputs["pooled_output"])


@row("ResNet", "Keras", "keras-hub")
def keras_resnet() -> Network:
    import keras_hub

    net = keras_hub.models.ResNetBackbone(
        [64], [3], [64], [1], [1], "basic_block", image_shape=(8, 8, 3)
    )
    return _keras(net, normal(0, 4, 8, 8, 3))


@row("vision transformer", "Keras", "keras-hub")
def keras_vit() -> Network:
    import keras_hub

    net = keras_hub.models.ViTBackbone((8, 8, 3), (4, 4), 2, 2, 8, 16, dropout_rate=0.1)
    return _keras(net, normal(0, 4, 8, 8, 3))


@row("Mix transformer with stochastic depth", "Keras", "keras-hub")
def keras_mit() -> Network:
    import keras_hub

    net = keras_hub.models.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.3,
        layerwise_patch_sizes=[3, 3],
        layerwise_strides=[2, 2],
        image_shape=(16, 16, 3),
        hidden_dims=[8, 8],
    )
    return _keras(net, normal(0, 4, 16, 16, 3))


@row("GPT-2", "Keras", "keras-hub")
def keras_gpt2() -> Network:
    import keras_hub

    tokens = jnp.arange(20).reshape(4, 5) % 11
    net = keras_hub.models.GPT2Backbone(11, 2, 2, 8, 16, dropout=0.1, max_sequence_length=8)
    return _keras(net, {"token_ids": tokens, "padding_mask": jnp.ones_like(tokens)})


@row("vision transformer that learns tokens", "Keras", "k3im")
def keras_tokens() -> Network:
    from k3im.token_learner import ViTokenLearner

    net = ViTokenLearner(
        (8, 8), 4, 3, 8, 2, 2, 16, token_learner_units=2, dropout_rate=0.1, channels=3
    )
    return _keras(net, normal(0, 4, 8, 8, 3))


@row("float8 dense layers", "Keras", "keras")
def keras_fp8() -> Network:
    import keras

    x = keras.layers.Input((8,))
    net = keras.layers.Dense(16, "relu", dtype="float8_from_float32")(x)
    return _keras(keras.Model(x, net), normal(0, 4, 8))
