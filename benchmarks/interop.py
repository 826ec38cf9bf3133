"""Networks trained in torch, loaded by twins in every library: `nox -s interop [-- lstm]`.

Each is trained for a few steps, saved with torch.save and with safetensors, and loaded from both.
The twins' outputs must be those of torch to 1e-5; the figures are printed as a table.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import safetensors.torch
import torch
from flax import nnx
from torch import nn as tnn
from torch.nn import functional

from solstice import compat

TOLERANCE = 1e-5
RNG = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(0), 16)
LAYERS = keras.layers
INPUTS = {
    "mlp": RNG.normal(size=(4, 8)).astype(np.float32),
    "resnet": RNG.normal(size=(4, 8, 8, 3)).astype(np.float32),
    "lstm": RNG.normal(size=(4, 5, 6)).astype(np.float32),
    "transformer": RNG.integers(0, 11, size=(4, 5)).astype(np.int32),
}


# torch


def torch_mlp():
    return tnn.Sequential(
        tnn.Linear(8, 16), tnn.ReLU(), tnn.Linear(16, 16), tnn.ReLU(), tnn.Linear(16, 3)
    )


class TorchBlock(tnn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = tnn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = tnn.BatchNorm2d(outputs)
        self.conv2 = tnn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = tnn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            conv = tnn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = tnn.Sequential(conv, tnn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class TorchResNet(tnn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = tnn.Conv2d(3, 8, 3, 1, 1, bias=False), tnn.BatchNorm2d(8)
        self.layer1, self.layer2 = TorchBlock(8, 8, 1), TorchBlock(8, 16, 2)
        self.fc = tnn.Linear(16, 3)

    def forward(self, x):
        x = self.bn1(self.conv1(x.permute(0, 3, 1, 2))).relu()
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class TorchLSTM(tnn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.fc = tnn.LSTM(6, 8, batch_first=True), tnn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


class TorchTransformer(tnn.Module):
    def __init__(self):
        super().__init__()
        self.embed = tnn.Embedding(11, 16)
        self.position = tnn.Parameter(torch.randn(5, 16))
        layer = tnn.TransformerEncoderLayer(
            16, 2, 32, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = tnn.TransformerEncoder(
            layer, 2, norm=tnn.LayerNorm(16), enable_nested_tensor=False
        )
        self.fc = tnn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.encoder(self.embed(x.long()) + self.position).mean(1))


TORCH = {
    "mlp": torch_mlp,
    "resnet": TorchResNet,
    "lstm": TorchLSTM,
    "transformer": TorchTransformer,
}


def trained(name):
    """Return a network after a few steps of Adam, in evaluation, and its outputs."""
    torch.manual_seed(0)
    network = TORCH[name]()
    inputs = torch.tensor(INPUTS[name])
    labels = torch.tensor([0, 1, 2, 1])
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if losses[-1] >= losses[0]:
        raise SystemExit(f"{name}: training did not lower the loss: {losses}")
    network.eval()
    with torch.no_grad():
        return network, network(inputs).numpy()


# Flax Linen


class LinenBlock(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train=False):
        def norm(y):
            return nn.BatchNorm(use_running_average=not train)(y)

        y = nn.Conv(self.features, (3, 3), self.stride, padding=1, use_bias=False)(x)
        y = nn.Conv(self.features, (3, 3), padding=1, use_bias=False)(nn.relu(norm(y)))
        y = norm(y)
        if self.stride > 1:
            x = norm(nn.Conv(self.features, (1, 1), self.stride, use_bias=False)(x))
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), padding=1, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = LinenBlock(16, 2)(LinenBlock(8, 1)(x, train), train)
        return nn.Dense(3)(x.mean((1, 2)))


class LinenLSTM(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.LSTMCell(8))(x)[:, -1])


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.LayerNorm(epsilon=1e-5)  # noqa: E731
        x = nn.Embed(11, 16)(x) + self.param("position", nn.initializers.normal(), (5, 16))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(2)(norm()(x))
            x = x + nn.Dense(16)(nn.relu(nn.Dense(32)(norm()(x))))
        return nn.Dense(3)(norm()(x).mean(1))


LINEN = {
    "mlp": lambda: nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(16), nn.relu, nn.Dense(3)]),
    "resnet": LinenResNet,
    "lstm": LinenLSTM,
    "transformer": LinenTransformer,
}


# Flax NNX


class NNXMLP(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in ((8, 16), (16, 16))])
        self.out = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.out(x)


class NNXBlock(nnx.Module):
    def __init__(self, inputs, outputs, stride, rngs):
        def conv(inputs, size, stride):
            padding = (size - 1) // 2
            return nnx.Conv(
                inputs,
                outputs,
                (size, size),
                stride,
                padding=padding,
                use_bias=False,
                rngs=rngs,
            )

        self.conv1, self.bn1 = conv(inputs, 3, stride), nnx.BatchNorm(outputs, rngs=rngs)
        self.conv2, self.bn2 = conv(outputs, 3, 1), nnx.BatchNorm(outputs, rngs=rngs)
        self.stride = stride
        if stride > 1:
            self.skip, self.skip_bn = conv(inputs, 1, stride), nnx.BatchNorm(outputs, rngs=rngs)

    def __call__(self, x):
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(y + (self.skip_bn(self.skip(x)) if self.stride > 1 else x))


class NNXResNet(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(8, rngs=rngs)
        self.layer1, self.layer2 = NNXBlock(8, 8, 1, rngs), NNXBlock(8, 16, 2, rngs)
        self.fc = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = self.layer2(self.layer1(nnx.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((1, 2)))


class NNXLSTM(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(6, 8, rngs=rngs))
        self.fc = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.rnn(x)[:, -1])


class NNXLayer(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs)
        self.up, self.down = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.relu(self.up(self.norm2(x))))


class NNXTransformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 16, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((5, 16)))
        self.layers = nnx.List([NNXLayer(rngs), NNXLayer(rngs)])
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs)
        self.fc = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.fc(self.norm(x).mean(1))


NNX = {"mlp": NNXMLP, "resnet": NNXResNet, "lstm": NNXLSTM, "transformer": NNXTransformer}


# Haiku


def haiku_mlp(x):
    return hk.nets.MLP([16, 16, 3])(x)


def haiku_resnet(x, is_training=False):
    def conv(x, outputs, size, stride=1):
        side = (size - 1) // 2
        pads = (side, side)
        return hk.Conv2D(outputs, size, stride, padding=(pads, pads), with_bias=False)(x)

    def norm(x):
        return hk.BatchNorm(True, True, 0.9)(x, is_training)

    def block(x, outputs, stride):
        y = norm(conv(jax.nn.relu(norm(conv(x, outputs, 3, stride))), outputs, 3))
        return jax.nn.relu(y + (norm(conv(x, outputs, 1, stride)) if stride > 1 else x))

    x = block(block(jax.nn.relu(norm(conv(x, 8, 3))), 8, 1), 16, 2)
    return hk.Linear(3)(x.mean((1, 2)))


def haiku_lstm(x):
    core = hk.LSTM(8)
    out, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
    return hk.Linear(3)(out[:, -1])


def haiku_transformer(x):
    def norm(x):
        return hk.LayerNorm(-1, True, True)(x)

    x = hk.Embed(11, 16)(x) + hk.get_parameter("position", (5, 16), init=jnp.zeros)
    for _ in range(2):
        h = norm(x)
        x = x + hk.MultiHeadAttention(2, 8, w_init=hk.initializers.VarianceScaling())(h, h, h)
        x = x + hk.Linear(16)(jax.nn.relu(hk.Linear(32)(norm(x))))
    return hk.Linear(3)(norm(x).mean(1))


HAIKU = {
    "mlp": lambda: hk.transform(haiku_mlp),
    "resnet": lambda: hk.transform_with_state(haiku_resnet),
    "lstm": lambda: hk.transform(haiku_lstm),
    "transformer": lambda: hk.transform(haiku_transformer),
}


# Equinox


class EquinoxBlock(eqx.Module):
    convs: list
    norms: list

    def __init__(self, inputs, outputs, stride):
        conv = lambda i, size, stride, key: eqx.nn.Conv2d(  # noqa: E731
            i, outputs, size, stride, (size - 1) // 2, use_bias=False, key=key
        )
        self.convs = [conv(inputs, 3, stride, KEYS[0]), conv(outputs, 3, 1, KEYS[1])]
        self.convs += [conv(inputs, 1, stride, KEYS[2])] * (stride > 1)
        self.norms = [eqx.nn.BatchNorm(outputs, "batch", mode="batch") for _ in self.convs]

    def __call__(self, x, state):
        y, state = self.norms[0](self.convs[0](x), state)
        y, state = self.norms[1](self.convs[1](jax.nn.relu(y)), state)
        if len(self.convs) > 2:
            x, state = self.norms[2](self.convs[2](x), state)
        return jax.nn.relu(x + y), state


class EquinoxResNet(eqx.Module):
    conv1: eqx.nn.Conv2d
    bn1: eqx.nn.BatchNorm
    blocks: list
    fc: eqx.nn.Linear

    def __init__(self):
        self.conv1 = eqx.nn.Conv2d(3, 8, 3, 1, 1, use_bias=False, key=KEYS[3])
        self.bn1 = eqx.nn.BatchNorm(8, "batch", mode="batch")
        self.blocks = [EquinoxBlock(8, 8, 1), EquinoxBlock(8, 16, 2)]
        self.fc = eqx.nn.Linear(16, 3, key=KEYS[4])

    def __call__(self, x, state):
        x, state = self.bn1(self.conv1(x.transpose(2, 0, 1)), state)
        x = jax.nn.relu(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.fc(x.mean((1, 2))), state


class EquinoxLSTM(eqx.Module):
    cell: eqx.nn.LSTMCell
    fc: eqx.nn.Linear

    def __init__(self):
        self.cell = eqx.nn.LSTMCell(6, 8, key=KEYS[0])
        self.fc = eqx.nn.Linear(8, 3, key=KEYS[1])

    def __call__(self, x):
        def step(carry, x):
            return self.cell(x, carry), None

        (h, _), _ = jax.lax.scan(step, (jnp.zeros(8), jnp.zeros(8)), x)
        return self.fc(h)


class EquinoxLayer(eqx.Module):
    norm1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self):
        self.norm1, self.norm2 = eqx.nn.LayerNorm(16), eqx.nn.LayerNorm(16)
        self.attention = eqx.nn.MultiheadAttention(
            2,
            16,
            use_query_bias=True,
            use_key_bias=True,
            use_value_bias=True,
            use_output_bias=True,
            key=KEYS[0],
        )
        self.up = eqx.nn.Linear(16, 32, key=KEYS[1])
        self.down = eqx.nn.Linear(32, 16, key=KEYS[2])

    def __call__(self, x):
        h = jax.vmap(self.norm1)(x)
        x = x + self.attention(h, h, h)
        h = jax.nn.relu(jax.vmap(self.up)(jax.vmap(self.norm2)(x)))
        return x + jax.vmap(self.down)(h)


class EquinoxTransformer(eqx.Module):
    embed: eqx.nn.Embedding
    position: jax.Array
    layers: list
    norm: eqx.nn.LayerNorm
    fc: eqx.nn.Linear

    def __init__(self):
        self.embed, self.position = eqx.nn.Embedding(11, 16, key=KEYS[0]), jnp.zeros((5, 16))
        self.layers, self.norm = [EquinoxLayer(), EquinoxLayer()], eqx.nn.LayerNorm(16)
        self.fc = eqx.nn.Linear(16, 3, key=KEYS[1])

    def __call__(self, x):
        x = jax.vmap(self.embed)(x) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.fc(jax.vmap(self.norm)(x).mean(0))


EQUINOX = {
    "mlp": lambda: eqx.nn.MLP(8, 3, 16, 2, key=KEYS[0]),
    "resnet": eqx.nn.make_with_state(EquinoxResNet),
    "lstm": EquinoxLSTM,
    "transformer": EquinoxTransformer,
}


# Keras


class Position(LAYERS.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], name="position")

    def call(self, x):
        return x + self.table


def keras_mlp():
    dense = LAYERS.Dense
    return keras.Sequential([LAYERS.Input((8,)), dense(16, "relu"), dense(16, "relu"), dense(3)])


def keras_resnet():
    def conv(x, outputs, size, stride=1):
        x = LAYERS.ZeroPadding2D((size - 1) // 2)(x) if size > 1 else x
        return LAYERS.Conv2D(outputs, size, stride, use_bias=False)(x)

    def norm(x):
        return LAYERS.BatchNormalization(epsilon=1e-5)(x)

    def block(x, outputs, stride):
        y = norm(conv(LAYERS.ReLU()(norm(conv(x, outputs, 3, stride))), outputs, 3))
        return LAYERS.ReLU()(y + (norm(conv(x, outputs, 1, stride)) if stride > 1 else x))

    inputs = LAYERS.Input((8, 8, 3))
    x = block(block(LAYERS.ReLU()(norm(conv(inputs, 8, 3))), 8, 1), 16, 2)
    return keras.Model(inputs, LAYERS.Dense(3)(LAYERS.GlobalAveragePooling2D()(x)))


def keras_lstm():
    return keras.Sequential([LAYERS.Input((5, 6)), LAYERS.LSTM(8), LAYERS.Dense(3)])


def keras_transformer():
    def norm(x):
        return LAYERS.LayerNormalization(epsilon=1e-5)(x)

    inputs = LAYERS.Input((5,), dtype="int32")
    x = Position()(LAYERS.Embedding(11, 16)(inputs))
    for _ in range(2):
        h = norm(x)
        x = x + LAYERS.MultiHeadAttention(2, 8)(h, h)
        x = x + LAYERS.Dense(16)(LAYERS.Dense(32, activation="relu")(norm(x)))
    return keras.Model(inputs, LAYERS.Dense(3)(LAYERS.GlobalAveragePooling1D()(norm(x))))


KERAS = {
    "mlp": keras_mlp,
    "resnet": keras_resnet,
    "lstm": keras_lstm,
    "transformer": keras_transformer,
}
LIBRARIES = {"Linen": LINEN, "NNX": NNX, "Haiku": HAIKU, "Equinox": EQUINOX, "Keras": KERAS}


def twin(library, name):
    """Return a fresh model of a library."""
    make = LIBRARIES[library][name]
    return compat.as_model(make(nnx.Rngs(0)) if library == "NNX" else make(), INPUTS[name], key=0)


def refuse_code(folder):
    """Show that a file that would run code when it is unpickled is refused, and runs none."""
    marker = folder / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    path = folder / "evil.pt"
    torch.save({"weight": torch.ones(2), "more": Evil()}, path)
    try:
        compat.load(twin("Linen", "mlp"), path)
    except ValueError as error:
        if "not unpickled" in str(error) and not marker.exists():
            return
        raise
    raise SystemExit("A file with code in it was loaded.")


def main():
    folder, worst = Path(tempfile.mkdtemp()), 0.0
    print(
        f"torch {torch.__version__}, largest difference of outputs (of the largest, at least 1)\n"
    )
    print("| network |", " | ".join(LIBRARIES), "|")
    print("| --- |" + " --- |" * len(LIBRARIES))
    for name in sys.argv[1:] or TORCH:
        network, outputs = trained(name)
        state = network.state_dict()
        files = [folder / f"{name}.pt", folder / f"{name}.safetensors"]
        checkpoint = {"epoch": 10, "state_dict": {f"module.{key}": v for key, v in state.items()}}
        torch.save(checkpoint, files[0])
        safetensors.torch.save_file(state, files[1])
        cells = []
        for library in LIBRARIES:
            gaps = []
            for source in (*files, state):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "load\\(\\): .* by order alone")
                    _, report = compat.load(twin(library, name), source, example=INPUTS[name])
                gaps.append(report.check(INPUTS[name], outputs, tolerance=1e9))
                if gaps[-1] > TOLERANCE:
                    print(report, file=sys.stderr)
            cells.append(f"{max(gaps):.1e}")
            worst = max(worst, *gaps)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    refuse_code(folder)
    print("\nA file that would run code when it is unpickled was refused.")
    if worst > TOLERANCE:
        raise SystemExit(f"Outputs differ by {worst:.1e}, more than {TOLERANCE:.0e}.")


if __name__ == "__main__":
    main()
