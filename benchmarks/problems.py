"""The problems that all contenders solve: a network of one size, and its batches."""

import dataclasses

import jax
import numpy as np

CLASSES = 10
LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Problem:
    """One size.

    Attributes:
        title: What the table calls it.
        widths: The widths of the dense layers, the last one's outputs included.
        channels: The channels of the 3x3 convolutions before them, each with a 2x2 max-pooling.
        batches: A list of (x, y), float32 and int32, on the host.
    """

    title: str
    widths: tuple[int, ...]
    channels: tuple[int, ...]
    batches: list


def make(title, shape, widths, channels=(), *, batch=128, steps):
    rng = np.random.default_rng(0)
    batches = [
        (
            rng.normal(size=(batch, *shape)).astype("float32"),
            rng.integers(0, CLASSES, batch).astype("int32"),
        )
        for _ in range(steps)
    ]
    return Problem(title, widths, channels, batches)


def all_problems(scale=1.0):
    """Return the three sizes, with so many steps that a pass takes about 0.2 s on two cores.

    On an accelerator there is a fourth, whose steps are long enough for one.
    """

    def steps(n):
        return max(20, int(n * scale))

    sizes = {
        "tiny": make("MLP 64-128-10", (64,), (128, CLASSES), steps=steps(1500)),
        "mlp": make("MLP 784-200-200-10", (784,), (200, 200, CLASSES), steps=steps(200)),
        "cnn": make(
            "CNN 28x28, 16-32 channels",
            (28, 28, 1),
            (CLASSES,),
            (16, 32),
            batch=32,
            steps=steps(20),
        ),
    }
    if jax.default_backend() != "cpu":
        sizes["large"] = make(
            "MLP 784-4096-4096-10, batch 1024",
            (784,),
            (4096, 4096, CLASSES),
            batch=1024,
            steps=steps(100),
        )
    return sizes
