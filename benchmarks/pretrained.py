"""Checkpoints that PyPI's packages ship, loaded by twins in several libraries.

    pip download --no-deps facenet-pytorch resemblyzer lpips silero-vad -d wheels
    for wheel in wheels/*.whl; do unzip -q -o $wheel -d unpacked; done
    python benchmarks/pretrained.py unpacked

Each torch network is written out here, so that nothing of the packages runs. Its outputs, with the
package's weights, must be those of the twins to 1e-5; the figures are printed as a table.
"""

import sys
import warnings
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import safetensors.torch
import torch
from torch import nn as tnn
from torch.nn import functional

from solstice import compat
from solstice.errors import UnequalOutputsError

RNG = np.random.default_rng(0)
KEYS = list(jax.random.split(jax.random.key(0), 16))
LAYERS = keras.layers


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# Three cascaded detectors: convolutions as (features, size, pool's size), features of the dense
# layer, and sizes of the heads, the first of which is a softmax.
DETECTORS = {
    "pnet": (24, [(10, 3, 2), (16, 3, 0), (32, 3, 0)], 0, (2, 4)),
    "rnet": (24, [(28, 3, 3), (48, 3, 3), (64, 2, 0)], 128, (2, 4)),
    "onet": (48, [(32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)], 256, (2, 4, 10)),
}


class TorchDetector(tnn.Module):
    def __init__(self, size, convs, dense, heads):
        super().__init__()
        self.pools, self.dense, channels = [pool for *_, pool in convs], dense, 3
        self.layers = tnn.ModuleList()
        for features, kernel, pool in convs:
            self.layers += [tnn.Conv2d(channels, features, kernel), tnn.PReLU(features)]
            size, channels = size - kernel + 1, features
            size = -(-(size - pool) // 2) + 1 if pool else size
        if dense:
            self.layers += [tnn.Linear(size * size * channels, dense), tnn.PReLU(dense)]
        last = tnn.Linear if dense else tnn.Conv2d
        self.heads = tnn.ModuleList(
            [last(dense or channels, head, *([] if dense else [1])) for head in heads]
        )

    def forward(self, x):
        for i, pool in enumerate(self.pools):
            x = self.layers[2 * i + 1](self.layers[2 * i](x))
            x = functional.max_pool2d(x, pool, 2, ceil_mode=True) if pool else x
        if self.dense:
            x = x.permute(0, 3, 2, 1).reshape(len(x), -1)
            x = self.layers[-1](self.layers[-2](x))
        first, *rest = [head(x) for head in self.heads]
        return [first.softmax(1), *rest]


def pooled(x, size):
    """Max pooling by 2 of (batch, height, width, channels), whose last window may be cut."""
    over = (-(x.shape[1] - size)) % 2
    pads = ((0, 0), (0, over), (0, over), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 2, 2, 1), pads)


class PReLU(nn.Module):
    @nn.compact
    def __call__(self, x):
        slopes = self.param("slopes", nn.initializers.zeros, x.shape[-1:])
        return jnp.where(x >= 0, x, slopes * x)


class LinenDetector(nn.Module):
    convs: tuple
    dense: int
    heads: tuple

    @nn.compact
    def __call__(self, x):
        for features, kernel, pool in self.convs:
            x = PReLU()(nn.Conv(features, (kernel, kernel), padding="VALID")(x))
            x = pooled(x, pool) if pool else x
        if self.dense:
            x = x.transpose(0, 2, 1, 3).reshape(len(x), -1)
            x = PReLU()(nn.Dense(self.dense)(x))
        first, *rest = [nn.Dense(head)(x) for head in self.heads]
        return [jax.nn.softmax(first), *rest]


class EquinoxDetector(eqx.Module):
    convs: list
    slopes: list
    dense: eqx.nn.Linear | None
    heads: list
    pools: tuple = eqx.field(static=True)

    def __init__(self, size, convs, dense, heads):
        channels, self.convs, self.slopes = 3, [], []
        self.pools = tuple(pool for *_, pool in convs)
        for features, kernel, pool in convs:
            self.convs.append(eqx.nn.Conv2d(channels, features, kernel, key=KEYS[0]))
            self.slopes.append(jnp.zeros(features))
            size, channels = size - kernel + 1, features
            size = -(-(size - pool) // 2) + 1 if pool else size
        self.dense = eqx.nn.Linear(size * size * channels, dense, key=KEYS[1]) if dense else None
        self.slopes += [jnp.zeros(dense)] if dense else []
        self.heads = [eqx.nn.Linear(dense or channels, head, key=KEYS[2]) for head in heads]

    def __call__(self, x):
        def bent(x, slopes):
            return jnp.where(x >= 0, x, slopes * x)

        x = x.transpose(2, 0, 1)
        for conv, slopes, pool in zip(self.convs, self.slopes, self.pools, strict=False):
            x = bent(conv(x), slopes[:, None, None])
            x = pooled(x.transpose(1, 2, 0)[None], pool)[0].transpose(2, 0, 1) if pool else x
        if self.dense is None:
            outs = [jax.vmap(jax.vmap(head))(x.transpose(1, 2, 0)) for head in self.heads]
        else:
            x = bent(self.dense(x.transpose(2, 1, 0).reshape(-1)), self.slopes[-1])
            outs = [head(x) for head in self.heads]
        return [jax.nn.softmax(outs[0]), *outs[1:]]


def keras_detector(size, convs, dense, heads):
    x = inputs = LAYERS.Input((size, size, 3))
    for features, kernel, pool in convs:
        x = LAYERS.PReLU(shared_axes=[1, 2])(LAYERS.Conv2D(features, kernel)(x))
        if pool:
            padding = "same" if (x.shape[1] - pool) % 2 else "valid"
            x = LAYERS.MaxPooling2D(pool, 2, padding=padding)(x)
    if dense:
        x = LAYERS.Flatten()(LAYERS.Permute((2, 1, 3))(x))
        x = LAYERS.PReLU()(LAYERS.Dense(dense)(x))
    first, *rest = [LAYERS.Dense(head)(x) for head in heads]
    return compat.KerasModel(keras.Model(inputs, [LAYERS.Softmax()(first), *rest]))


def detector(name):
    def case(folder):
        state = torch.load(folder / f"facenet_pytorch/data/{name}.pt", weights_only=True)
        network, x = TorchDetector(*DETECTORS[name]), normal(2, *[DETECTORS[name][0]] * 2, 3)
        network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
        outs = network(torch.tensor(x).permute(0, 3, 1, 2))
        outs = [out.permute(0, 2, 3, 1) if out.ndim > 2 else out for out in outs]
        size, convs, dense, heads = DETECTORS[name]
        twins = {
            "Linen": compat.as_model(LinenDetector(tuple(convs), dense, heads), x, key=0),
            "Equinox": compat.as_model(EquinoxDetector(size, convs, dense, heads)),
            "Keras": keras_detector(size, convs, dense, heads),
        }
        return folder / f"facenet_pytorch/data/{name}.pt", x, outs, twins, {}

    return case


class TorchSpeaker(tnn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = tnn.LSTM(40, 256, 3, batch_first=True)
        self.linear = tnn.Linear(256, 256)

    def forward(self, x):
        raw = self.linear(self.lstm(x)[1][0][-1]).relu()
        return raw / raw.norm(dim=1, keepdim=True)


def unit(x):
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True))


class LinenSpeaker(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.RNN(nn.OptimizedLSTMCell(256))(x)
        return unit(nn.relu(nn.Dense(256)(x[:, -1])))


class EquinoxSpeaker(eqx.Module):
    cells: list
    linear: eqx.nn.Linear

    def __init__(self):
        self.cells = [eqx.nn.LSTMCell(size, 256, key=KEYS[0]) for size in (40, 256, 256)]
        self.linear = eqx.nn.Linear(256, 256, key=KEYS[1])

    def __call__(self, x):
        for cell in self.cells:
            start = jnp.zeros(256), jnp.zeros(256)
            _, x = jax.lax.scan(lambda s, x, cell=cell: ((s := cell(x, s)), s[0]), start, x)
        return unit(jax.nn.relu(self.linear(x[-1])))


def speaker(folder):
    path, network, x = folder / "resemblyzer/pretrained.pt", TorchSpeaker(), normal(2, 30, 40)
    state = torch.load(path, weights_only=True, map_location="cpu")["model_state"]
    network.load_state_dict({k: v for k, v in state.items() if k in network.state_dict()})
    cells = [LAYERS.LSTM(256, return_sequences=True) for _ in range(2)]
    last = LAYERS.LSTM(256), LAYERS.Dense(256, "relu"), LAYERS.UnitNormalization()
    twins = {
        "Linen": compat.as_model(LinenSpeaker(), x, key=0),
        "Equinox": compat.as_model(EquinoxSpeaker()),
        "Keras": compat.KerasModel(keras.Sequential([LAYERS.Input((30, 40)), *cells, *last])),
    }
    return path, x, network(torch.tensor(x)), twins, {"rename": {"^similarity_": None}}


class TorchVoice(tnn.Module):
    """Chunks of 512 samples of a wave, each with the 64 before it; the LSTM goes over chunks."""

    def __init__(self):
        super().__init__()
        self.stft_conv = tnn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1 = tnn.Conv1d(129, 128, 3, 1, 1)
        self.conv2 = tnn.Conv1d(128, 64, 3, 2, 1)
        self.conv3 = tnn.Conv1d(64, 64, 3, 2, 1)
        self.conv4 = tnn.Conv1d(64, 128, 3, 1, 1)
        self.lstm_cell = tnn.LSTMCell(128, 128)
        self.final_conv = tnn.Conv1d(128, 1, 1)

    def forward(self, chunks):
        state, outs = None, []
        for chunk in chunks.unbind(1):
            x = functional.pad(chunk, (0, 64), "reflect")[:, None]
            x = self.stft_conv(x)
            x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
            for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
                x = conv(x).relu()
            state = self.lstm_cell(x.squeeze(-1), state)
            outs.append(self.final_conv(state[0].relu()[..., None]).sigmoid()[:, 0, 0])
        return torch.stack(outs, 1)


class LinenVoice(nn.Module):
    @nn.compact
    def __call__(self, chunks):
        batch, many, _ = chunks.shape
        x = chunks.reshape(batch * many, -1, 1)
        x = jnp.concatenate([x, x[:, -65:-1][:, ::-1]], 1)
        x = nn.Conv(258, (256,), (128,), "VALID", use_bias=False)(x)
        x = jnp.sqrt(x[..., :129] ** 2 + x[..., 129:] ** 2)
        for features, stride in ((128, 1), (64, 2), (64, 2), (128, 1)):
            x = nn.relu(nn.Conv(features, (3,), (stride,), padding=((1, 1),))(x))
        x = nn.RNN(nn.OptimizedLSTMCell(128))(x.reshape(batch, many, 128))
        return nn.sigmoid(nn.Dense(1)(nn.relu(x)))[..., 0]


class EquinoxVoice(eqx.Module):
    stft: eqx.nn.Conv1d
    convs: list
    cell: eqx.nn.LSTMCell
    last: eqx.nn.Conv1d

    def __init__(self):
        self.stft = eqx.nn.Conv1d(1, 258, 256, 128, use_bias=False, key=KEYS[0])
        sizes = (129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1)
        self.convs = [eqx.nn.Conv1d(a, b, 3, stride, 1, key=KEYS[1]) for a, b, stride in sizes]
        self.cell = eqx.nn.LSTMCell(128, 128, key=KEYS[2])
        self.last = eqx.nn.Conv1d(128, 1, 1, key=KEYS[3])

    def __call__(self, chunks):
        def features(x):
            x = self.stft(jnp.concatenate([x, x[-65:-1][::-1]])[None])
            x = jnp.sqrt(x[:129] ** 2 + x[129:] ** 2)
            for conv in self.convs:
                x = jax.nn.relu(conv(x))
            return x[:, 0]

        start = jnp.zeros(128), jnp.zeros(128)
        xs = jax.vmap(features)(chunks)
        _, h = jax.lax.scan(lambda s, x: ((s := self.cell(x, s)), s[0]), start, xs)
        return jax.nn.sigmoid(self.last(jax.nn.relu(h).T))[0]


def voice(folder):
    path, network, x = folder / "silero_vad/data/silero_vad_16k.safetensors", TorchVoice(), None
    network.load_state_dict(safetensors.torch.load_file(path))
    x = 0.1 * normal(2, 4, 576)
    twins = {
        "Linen": compat.as_model(LinenVoice(), x, key=0),
        "Equinox": compat.as_model(EquinoxVoice()),
    }
    return path, x, network(torch.tensor(x)), twins, {}


WIDTHS = 64, 192, 384, 256, 256


class LinenDistance(nn.Module):
    @nn.compact
    def __call__(self, *features):
        return sum(nn.Dense(1, use_bias=False)(x).mean((1, 2)) for x in features)


def distance(folder):
    path = folder / "lpips/weights/v0.1/alex.pth"
    state = torch.load(path, weights_only=True, map_location="cpu")
    xs = [normal(2, 7 - i, 7 - i, width) ** 2 for i, width in enumerate(WIDTHS)]
    firsts = [torch.tensor(x).permute(0, 3, 1, 2) for x in xs]
    pairs = zip(firsts, state.values(), strict=True)
    outs = sum(functional.conv2d(x, weight).mean((2, 3)) for x, weight in pairs)
    inputs = [LAYERS.Input(x.shape[1:]) for x in xs]
    means = [
        LAYERS.GlobalAveragePooling2D()(LAYERS.Conv2D(1, 1, use_bias=False)(x)) for x in inputs
    ]
    twins = {
        "Linen": compat.as_model(LinenDistance(), tuple(xs), key=0),
        "Keras": compat.KerasModel(keras.Model(inputs, LAYERS.Add()(means))),
    }
    return path, tuple(xs), outs, twins, {}


CASES = {
    **{name: detector(name) for name in DETECTORS},
    "speaker": speaker,
    "voice": voice,
    "distance": distance,
}


def loaded(model, path, x, outs, options):
    """Return by how much outputs differ, and a mark if they were needed to settle the layout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # alike layers, whose order is then checked
        _, report = compat.load(model, path, example=x, **options)
    try:
        return f"{report.check(x, outs):.1e}"
    except UnequalOutputsError:
        _, report = compat.load(model, path, example=x, outputs=outs, **options)
        return f"{report.check(x, outs):.1e} (by outputs)"


def main(folder, names):
    libraries = "Linen", "Equinox", "Keras"
    print(f"| checkpoint | {' | '.join(libraries)} |\n| --- | --- | --- | --- |")
    for name in names or CASES:
        with torch.no_grad():
            path, x, outs, twins, options = CASES[name](folder)
        cells = [
            loaded(twins[library], path, x, outs, options) if library in twins else ""
            for library in libraries
        ]
        print(f"| {path.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
