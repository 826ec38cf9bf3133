"""Pretrained weights: trained in torch, loaded into Flax and Equinox, fine-tuned, and exported.

    python examples/pretrained.py                                 # with pip install torch
    python examples/pretrained.py --weights torch.safetensors     # those of an earlier run

A torch network learns the ten digits. The same network in Flax and in Equinox loads its weights and
gives its outputs. Then the Flax network learns from few labels to read a bad scanner's digits,
blurred, faint and noisy: with LoRA in all layers, with only the last layer, and from scratch. The
LoRA network is exported, and a process without torch, Flax and Optax runs the export.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import handwriting
import jax
import jax.numpy as jnp
import numpy as np
import optax

import solstice
from solstice import compat

WIDTHS = 16, 32, 64
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WAYS = "LoRA", "last layer", "from scratch"
ADAM = optax.adam(3e-3)
ALONE = """
import sys
import numpy as np
import solstice

exported = solstice.load_exported("digits")
pixels, names = np.load("pixels.npy"), np.load("names.npy")
print(exported)
print("accuracy", (exported.predict(pixels) == names).mean())
print("loaded:", [name for name in ("torch", "flax", "optax") if name in sys.modules])
"""


class FlaxCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(WIDTHS[:2]):
            x = nn.relu(nn.Conv(width, (3, 3), name=f"conv_{i}")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(WIDTHS[2], (2, 2), padding="VALID", name="conv_2")(x))
        return nn.Dense(10, name="head")(x.reshape(x.shape[0], -1))


class EquinoxCNN(eqx.Module):
    convs: list[eqx.nn.Conv2d]
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        one, two, three = WIDTHS
        self.convs = [
            eqx.nn.Conv2d(1, one, 3, padding=1, key=keys[0]),
            eqx.nn.Conv2d(one, two, 3, padding=1, key=keys[1]),
            eqx.nn.Conv2d(two, three, 2, key=keys[2]),
        ]
        self.head = eqx.nn.Linear(three, 10, key=keys[3])

    def __call__(self, x):
        x, pool = jnp.moveaxis(x, -1, 0), eqx.nn.MaxPool2d(2, 2)
        for conv in self.convs[:2]:
            x = pool(jax.nn.relu(conv(x)))
        return self.head(jax.nn.relu(self.convs[2](x)).reshape(-1))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="a file of weights that torch has trained before")
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--draws", type=int, default=3, help="of these labels")
    parser.add_argument("--steps", type=int, default=150, help="of fine-tuning")
    parser.add_argument("--output", help="where weights and export go; a temporary folder if not")
    parser.add_argument("--picture", help="the file to draw a picture of the results into")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(options.output or folder)
        output.mkdir(exist_ok=True)
        return run(options, output)


def run(options, output):
    (x, y), (x_test, y_test) = handwriting.load("digits")
    weights, outputs = options.weights, None
    if weights is None:
        weights = output / "torch.safetensors"
        outputs = train_in_torch(x, y, weights, x_test)

    flax = compat.FlaxModel(FlaxCNN(), x[:1], key=jax.random.key(0))
    flax, report = compat.load(flax, weights)
    print(report)
    equinox = compat.EquinoxModel(EquinoxCNN(jax.random.key(0)))
    equinox, same = compat.load(equinox, weights, example=x[:1])
    expected = flax(x_test)[0] if outputs is None else outputs
    for name, one in {"Flax": report, "Equinox": same}.items():
        print(f"{name}: outputs differ by {one.check(x_test, expected):.1e} at most")

    x, x_test = badly_scanned(x, seed=0), badly_scanned(x_test, seed=1)
    test_ds = [(x_test, y_test)]
    exp = solstice.ClassificationExperiment(flax, ADAM)
    before = exp.test(test_ds, progress=False)["accuracy"]
    accuracies = np.zeros((len(WAYS), len(options.labels), options.draws))
    for j, number in enumerate(options.labels):
        for k in range(options.draws):
            train_ds = solstice.data.Arrays(*few(x, y, number, k), batch_size=10, shuffle=k)
            for i, way in reversed([*enumerate(WAYS)]):
                exp = solstice.ClassificationExperiment(start(way, flax, seed=k), ADAM)
                exp = exp.train(None, train_ds, num_steps=options.steps, progress=False)
                accuracies[i, j, k] = exp.test(test_ds, progress=False)["accuracy"]
    print(f"on bad scans, the network as it came has an accuracy of {before:.3f}; then, with")
    print(f"{options.labels} labels of each digit:")
    for i, way in enumerate(WAYS):
        trained = solstice.tree.size(start(way, flax, seed=0).params)
        means = "  ".join(f"{one:.3f}" for one in accuracies[i].mean(-1))
        print(f"{way:<14}{trained:>7,} numbers trained, accuracy {means}")

    solstice.export(
        exp,  # the last one, of LoRA
        output / "digits",
        preprocess=lambda pixels: (pixels / 16.0).astype("float32")[..., None],
        example=jax.ShapeDtypeStruct((1, 8, 8), "uint8"),
        classes=NAMES,
        overwrite=True,
    )
    np.save(output / "pixels.npy", np.rint(16 * x_test[..., 0]).astype("uint8"))
    np.save(output / "names.npy", np.array(NAMES)[y_test])
    alone = [sys.executable, "-c", ALONE]
    printed = subprocess.run(alone, cwd=output, check=True, capture_output=True, text=True).stdout
    print(printed)
    if options.picture:
        draw(options.labels, accuracies, before, options.picture)
    return before, accuracies, printed


def train_in_torch(x, y, path, x_test):
    """Train the network on some digits, save its weights, and return its outputs for others."""
    try:
        torch: Any = importlib.import_module("torch")
        save_file = importlib.import_module("safetensors.torch").save_file
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"The first part of this example needs {error.name}: pip install torch safetensors, or "
            f"give weights that it has trained before: --weights torch.safetensors"
        ) from error
    torch.manual_seed(0)
    one, two, three = WIDTHS
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, one, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(one, two, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(two, three, 2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(three, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    images, labels = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y).long()
    for _ in range(30):
        for rows in torch.randperm(len(images)).split(64):
            loss = torch.nn.functional.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    save_file(network.state_dict(), path)
    with torch.no_grad():
        return network(torch.tensor(x_test).permute(0, 3, 1, 2)).numpy()


def badly_scanned(x, seed):
    """Return digits blurred, faint and noisy, of 17 shades as before."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    blurred = sum(padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)) / 9
    noise = np.random.default_rng(seed).normal(0, 0.1, x.shape)
    return (np.rint(16 * np.clip(0.7 * blurred + 0.2 + noise, 0, 1)) / 16).astype("float32")


def few(x, y, number, seed):
    """Return some examples of each class."""
    generator = np.random.default_rng(seed)
    rows = [generator.permutation(np.flatnonzero(y == one))[:number] for one in range(10)]
    return x[np.concatenate(rows)], y[np.concatenate(rows)]


def start(way, pretrained, seed):
    """Return the network that one way of learning begins with."""
    example = np.zeros((1, 8, 8, 1), np.float32)
    fresh = compat.FlaxModel(FlaxCNN(), example, key=jax.random.key(seed))
    if way == "from scratch":
        return fresh
    if way == "last layer":
        return compat.freeze(pretrained, "conv_*")
    return compat.lora(pretrained, rank=4, where="conv_*/kernel", full="head/*", key=seed)


def draw(labels, accuracies, before, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for way, each, colour in zip(WAYS, accuracies, ("#0072B2", "#009E73", "#D55E00"), strict=True):
        axes.plot(labels, each, "o", color=colour, alpha=0.35, markersize=4)
        axes.plot(labels, each.mean(-1), color=colour, label=way)
    axes.axhline(before, color="#999999", linestyle=":", label="as it came from torch")
    axes.set(xscale="log", xlabel="labels of each digit", ylabel="test accuracy", ylim=(0, 1))
    axes.set_xticks(labels, [str(number) for number in labels])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=200)


if __name__ == "__main__":
    main()
