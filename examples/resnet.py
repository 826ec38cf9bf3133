"""A small ResNet with batch statistics, augmentation, TensorBoard, a profile and checkpoints.

    python examples/resnet.py                          # scikit-learn's handwritten digits
    python examples/resnet.py --dataset cifar10        # CIFAR-10, which tfds downloads
    python examples/resnet.py --half                   # bfloat16 in the network, float32 weights

Run it again with the same --output, after a crash or for more epochs, and it continues;
`tensorboard --logdir outputs/resnet` shows the curves. Images are augmented by a function of the
epoch, so a resumed run sees the same ones.
"""

import argparse
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

import solstice


class Block(nn.Module):
    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        y = x
        for stride in (self.stride, 1):
            y = nn.relu(nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(y))
            y = nn.Conv(self.features, (3, 3), stride, dtype=self.dtype)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), self.stride, dtype=self.dtype)(x)
        return x + y


class ResNet(nn.Module):
    widths: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype)(x)
        for i, width in enumerate(self.widths):
            x = Block(width, 1 if i == 0 else 2, self.dtype)(x, train)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x))
        return nn.Dense(10)(x.mean((1, 2)).astype(jnp.float32))


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 8 - 1).astype("float32").reshape(-1, 8, 8, 1), y[order].astype("int32")
    return (x[:1437], y[:1437]), (x[1437:], y[1437:]), False


def cifar10():
    import tensorflow_datasets as tfds

    def split(name):
        data: Any = tfds.data_source("cifar10", split=name)
        examples = [data[i] for i in range(len(data))]
        x = np.stack([example["image"] for example in examples])
        y = np.array([example["label"] for example in examples], "int32")
        return (x / 127.5 - 1).astype("float32"), y

    return split("train"), split("test"), True


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=("digits", "cifar10"), default="digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--half", action="store_true", help="compute in bfloat16")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--picture", help="the file to draw the worst test images into")
    parser.add_argument("--output", type=Path, default=Path("outputs/resnet"))
    options = parser.parse_args(arguments)

    (x, y), test, flip = {"digits": digits, "cifar10": cifar10}[options.dataset]()
    size, steps = 64, len(x) // 64
    test_ds = [(test[0][i : i + 256], test[1][i : i + 256]) for i in range(0, len(test[0]), 256)]

    def train_ds(epoch):
        rng = np.random.default_rng(epoch)
        for part in np.split(rng.permutation(len(x))[: steps * size], steps):
            images = np.roll(x[part], rng.integers(-1, 2, 2), axis=(1, 2))
            yield images[:, :, ::-1] if flip and rng.integers(2) else images, y[part]

    rate = optax.cosine_onecycle_schedule(options.epochs * steps, 3e-3)
    exp = solstice.ClassificationExperiment(
        ResNet(tuple(options.widths), jnp.bfloat16 if options.half else jnp.float32),
        optax.adamw(rate, weight_decay=1e-2),
        example_input=x[:1],
        key=0,
    )
    saving = solstice.CheckpointingCallback(
        options.output / "checkpoints", best=("accuracy", "max")
    )
    callbacks = [
        solstice.LoggingCallback(
            logging_fn=[
                solstice.loggers.TensorBoard(options.output / "tensorboard"),
                solstice.loggers.Console(["average_loss", "accuracy", "f1_macro"]),
            ]
        ),
        solstice.ProfilingCallback(options.output / "profile", steps_to_profile=range(5, 8)),
        solstice.EnvironmentCallback(),
        saving,
    ]
    exp = exp.train(options.epochs, train_ds, test_ds, callbacks, resume_from=saving)
    best = solstice.restore(saving.directory, exp, "best")
    accuracy = best.test(test_ds)["accuracy"]
    print(f"test accuracy of the best epoch: {accuracy:.4f}")
    if options.picture:
        images, labels = test
        logits = np.concatenate([best(images) for images, _ in test_ds])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        worst = solstice.plots.worst_examples(images, losses, labels, logits.argmax(-1), count=9)
        worst.savefig(options.picture, dpi=200)
    return accuracy


if __name__ == "__main__":
    main()
