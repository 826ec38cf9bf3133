"""One experiment, four network libraries, two optimizers.

    python examples/quickstart.py                      # scikit-learn's handwritten digits
    python examples/quickstart.py --dataset mnist      # MNIST through tfds, which downloads it

The same small CNN is written in each library and passed, with each optimizer, to
`solstice.ClassificationExperiment`. It prints a table and saves plots of learning curves and a
confusion matrix in `outputs/`.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.example_libraries import stax

import solstice

CLASSES = 10
BATCH = 32
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # told apart by colour-blind readers too

# --- the same CNN in four libraries ---------------------------------------------------------------


def stax_cnn(image):
    return stax.serial(
        stax.Conv(32, (3, 3), padding="SAME"),
        stax.Relu,
        stax.MaxPool((2, 2), strides=(2, 2)),
        stax.Conv(64, (3, 3), padding="SAME"),
        stax.Relu,
        stax.MaxPool((2, 2), strides=(2, 2)),
        stax.Flatten,
        stax.Dense(128),
        stax.Relu,
        stax.Dense(CLASSES),
    )


class FlaxCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        return nn.Dense(CLASSES)(x)


def flax_cnn(image):
    return FlaxCNN()


def haiku_cnn(image):
    def network(x):
        for features in (32, 64):
            x = jax.nn.relu(hk.Conv2D(features, 3)(x))
            x = hk.max_pool(x, (2, 2, 1), strides=(2, 2, 1), padding="VALID")
        x = jax.nn.relu(hk.Linear(128)(hk.Flatten()(x)))
        return hk.Linear(CLASSES)(x)

    return hk.transform(network)


class EquinoxCNN(eqx.Module):
    layers: list

    def __init__(self, image, key):
        height, width, channels = image
        keys = jax.random.split(key, 4)
        self.layers = [
            eqx.nn.Conv2d(channels, 32, 3, padding="SAME", key=keys[0]),
            eqx.nn.Conv2d(32, 64, 3, padding="SAME", key=keys[1]),
            eqx.nn.Linear(64 * (height // 4) * (width // 4), 128, key=keys[2]),
            eqx.nn.Linear(128, CLASSES, key=keys[3]),
        ]

    def __call__(self, x):
        one, two, hidden, out = self.layers
        x = jnp.moveaxis(x, -1, 0)
        for convolution in (one, two):
            x = eqx.nn.MaxPool2d(2, 2)(jax.nn.relu(convolution(x)))
        return out(jax.nn.relu(hidden(x.ravel())))


def equinox_cnn(image):
    return EquinoxCNN(image, jax.random.key(0))


NETWORKS = {"stax": stax_cnn, "flax": flax_cnn, "haiku": haiku_cnn, "equinox": equinox_cnn}


def optimizers(steps):
    return {
        "adam": optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
        "sgd": optax.sgd(optax.cosine_decay_schedule(0.05, steps), momentum=0.9, nesterov=True),
    }


# --- data -----------------------------------------------------------------------------------------


class Data(NamedTuple):
    """What `train` takes: a function from the epoch to batches, and a list of batches."""

    train: Any
    test: list
    steps: int
    image: tuple[int, ...]


def batched(x, y, order):
    return [(x[i], y[i]) for i in np.split(order, range(BATCH, len(order), BATCH))]


def prepared(x_train, y_train, x_test, y_test, seed):
    full = len(x_train) // BATCH * BATCH

    def train(epoch):  # a new order each epoch, the same in every run; only whole batches
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(x_train))[:full]
        for x, y in batched(x_train, y_train, order):
            yield np.roll(x, rng.integers(-1, 2), axis=2), y  # a pixel to the left or right

    test = batched(x_test, y_test, np.arange(len(x_test)))
    return Data(train, test, full // BATCH, x_train.shape[1:])


def digits(seed):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y.astype(np.int32), test_size=0.2, random_state=seed, stratify=y
    )
    return prepared(x_train, y_train, x_test, y_test, seed)


def mnist(seed):
    import tensorflow_datasets as tfds

    def split(name):
        try:
            source: Any = tfds.data_source("mnist", split=name)
        except Exception as error:
            raise SystemExit(
                "MNIST could not be loaded through tfds, which downloads it the first time "
                f"({type(error).__name__}: {error}).\nConnect to the network and run this again, "
                "or put a prepared copy into ~/tensorflow_datasets; without any network, run the "
                "digits: python examples/quickstart.py --dataset digits"
            ) from error
        examples = [source[i] for i in range(len(source))]
        x = np.stack([example["image"] for example in examples])
        return x.astype(np.float32) / 255, np.array([e["label"] for e in examples], np.int32)

    x_train, y_train = split("train")
    x_test, y_test = split("test")
    return prepared(x_train, y_train, x_test, y_test, seed)


# --- the main job ---------------------------------------------------------------------------------


class History(solstice.Callback):
    """The duration of each training epoch, and what a LoggingCallback logs."""

    def __init__(self):
        self.logged: dict[str, list[dict[str, float]]] = {"train": [], "val": []}
        self.seconds: list[float] = []

    def log(self, metrics, epoch, mode):
        self.logged[mode].append(metrics)

    def on_epoch_start(self, exp, epoch, mode):
        self._start = time.perf_counter()

    def on_epoch_end(self, exp, epoch, mode):
        if mode == "train":
            jax.block_until_ready(jax.tree.leaves(exp))
            self.seconds.append(time.perf_counter() - self._start)


class Row(NamedTuple):
    library: str
    optimizer: str
    parameters: int
    accuracy: float
    macro_f1: float
    seconds: float


def run(library, optimizer, name, data, epochs, seed, progress):
    exp = solstice.ClassificationExperiment(
        NETWORKS[library](data.image), optimizer, example_input=data.test[0][0][:1], key=seed
    )
    history = History()
    exp = solstice.train(
        exp,
        epochs,
        data.train,
        data.test,
        callbacks=[solstice.LoggingCallback(logging_fn=history.log), history],
        progress=progress,
    )
    results = exp.test(data.test, progress=False)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(exp.model.params))
    # The first epoch compiles, so the median leaves it out where there are more.
    seconds = statistics.median(history.seconds[1:] or history.seconds)
    row = Row(library, name, parameters, results["accuracy"], results["f1_macro"], seconds)
    return exp, row, history.logged


def table(rows):
    lines = [
        f"{'library':<9}{'optimizer':<11}{'parameters':>10}{'test accuracy':>15}{'macro F1':>10}"
        f"{'s/epoch':>9}"
    ]
    lines += [
        f"{r.library:<9}{r.optimizer:<11}{r.parameters:>10,}{r.accuracy:>15.4f}{r.macro_f1:>10.4f}"
        f"{r.seconds:>9.3f}"
        for r in rows
    ]
    return "\n".join(lines)


def draw_curves(histories, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(7.6, 4), layout="constrained")
    colours = dict(zip(NETWORKS, COLOURS, strict=True))
    for (library, optimizer), logged in histories.items():
        style = {"color": colours[library], "linestyle": "-" if optimizer == "adam" else "--"}
        epochs = range(1, len(logged["train"]) + 1)
        if len(epochs) < 5:  # a line shows no single point
            style["marker"] = "o" if optimizer == "adam" else "x"
        loss = [metrics["average_loss"] for metrics in logged["train"]]
        errors = [100 * (1 - metrics["accuracy"]) for metrics in logged["val"]]
        axes[0].plot(epochs, loss, label=f"{library}, {optimizer}", **style)
        axes[1].plot(epochs, errors, **style)
    axes[0].set(title="Training loss", ylabel="cross-entropy (nats)", yscale="log")
    axes[1].set(title="Test error", ylabel="error (%)", yscale="log")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("epochs trained")
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def draw_confusion(confusion, title, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.5, 5), layout="constrained")
    axis.imshow(np.log1p(confusion), cmap="Blues")
    for (i, j), count in np.ndenumerate(confusion):
        if count:
            axis.text(j, i, count, ha="center", va="center", color="white" if i == j else "black")
    axis.set(title=title, xlabel="predicted", ylabel="true")
    axis.set(xticks=range(len(confusion)), yticks=range(len(confusion)))
    figure.savefig(path, dpi=200)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="One experiment, four libraries.")
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--libraries", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--epochs", type=int, help="default: 20 for digits, 3 for mnist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)

    data = {"digits": digits, "mnist": mnist}[options.dataset](options.seed)
    epochs = options.epochs or {"digits": 20, "mnist": 3}[options.dataset]
    options.output.mkdir(parents=True, exist_ok=True)
    finished, histories = [], {}
    for name, optimizer in optimizers(epochs * data.steps).items():
        for library in options.libraries:
            print(f"{library} with {name}", file=sys.stderr, flush=True)
            exp, row, logged = run(
                library, optimizer, name, data, epochs, options.seed, not options.quiet
            )
            finished.append((row, exp))
            histories[library, name] = logged

    rows = [row for row, _ in finished]
    print(f"\n{options.dataset}, {epochs} epochs\n\n{table(rows)}\n")
    draw_curves(histories, options.output / "learning_curves.png")
    row, exp = max(finished, key=lambda pair: pair[0].accuracy)
    metrics = solstice.reduce(exp.eval_step(batch)[1] for batch in data.test)
    confusion = np.asarray(metrics.confusion_matrix)
    title = f"{row.library} with {row.optimizer}: {row.accuracy:.1%} of {confusion.sum()}"
    draw_confusion(confusion, title, options.output / "confusion_matrix.png")
    print(f"pictures: {options.output}/learning_curves.png, {options.output}/confusion_matrix.png")
    return rows


if __name__ == "__main__":
    main()
