"""The main job: it runs, prints its table, draws its pictures and reaches its accuracy."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "examples" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_drawn(path):
    import matplotlib.image

    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 300
    assert np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0).shape[0] > 20


@pytest.mark.soak
@pytest.mark.slow
def test_every_row_learns_and_is_drawn(quickstart, tmp_path, capsys):
    rows = quickstart.main(["--epochs", "5", "--quiet", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [(row.library, row.optimizer) for row in rows] == [
        (library, optimizer)
        for optimizer in ("adam", "sgd")
        for library in ("stax", "flax", "haiku", "equinox")
    ]
    assert {row.parameters for row in rows} == {53_002}
    assert all(row.accuracy > 0.85 and row.seconds > 0 for row in rows)
    assert re.search(r"library +optimizer +parameters +test accuracy +macro F1 +s/epoch", printed)
    assert_drawn(tmp_path / "learning_curves.png")
    assert_drawn(tmp_path / "confusion_matrix.png")


@pytest.mark.soak
@pytest.mark.slow
def test_the_four_networks_are_one_architecture(quickstart):
    import jax
    import jax.numpy as jnp

    from solstice.compat import as_model

    x = jnp.ones((2, 8, 8, 1))
    models = [as_model(make((8, 8, 1)), x, key=0) for make in quickstart.NETWORKS.values()]
    sizes = [sorted(leaf.size for leaf in jax.tree.leaves(model.params)) for model in models]
    assert all(one == sizes[0] for one in sizes)
    assert all(model(x)[0].shape == (2, 10) for model in models)


def test_each_epoch_has_its_own_order_and_every_run_the_same(quickstart):
    data = quickstart.digits(seed=0)
    first, second = (np.concatenate([y for _, y in data.train(epoch)]) for epoch in (0, 1))
    assert (first != second).any()
    assert (np.concatenate([y for _, y in quickstart.digits(seed=0).train(0)]) == first).all()
    assert sum(len(y) for _, y in data.test) == 360


@pytest.mark.slow
def test_mnist_comes_through_tfds(quickstart, tmp_path):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=64):
        flags = "--dataset mnist --epochs 1 --quiet --libraries haiku --output"
        rows = quickstart.main([*flags.split(), str(tmp_path)])
    assert len(rows) == 2
    assert rows[0].parameters > 400_000
    assert_drawn(tmp_path / "learning_curves.png")


def test_a_failed_download_says_what_to_do(quickstart, monkeypatch):
    import tensorflow_datasets as tfds

    # The network is the one thing that a test cannot have.
    def refuse(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds, "data_source", refuse)
    with pytest.raises(
        SystemExit, match=r"(?s)MNIST could not be loaded.*--dataset digits"
    ) as stop:
        quickstart.main(["--dataset", "mnist"])
    assert isinstance(stop.value.__cause__, ConnectionError)


# Warnings are errors, but one: another process may be writing a program that this one reads.
STRICT = ("-W", "error", "-W", "ignore:Error reading persistent compilation cache entry")


def rows_of(directory, *flags):
    """Run the program as a user does; return the accuracies and what it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, *STRICT, str(PROGRAM), "--output", str(directory), *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = re.findall(
        r"^(\w+) +(adam|sgd) +53,002 +(0\.\d+) +0\.\d+ +\d", done.stdout, re.MULTILINE
    )
    assert len(rows) == 8, done.stdout
    assert_drawn(directory / "learning_curves.png")
    assert_drawn(directory / "confusion_matrix.png")
    return [float(accuracy) for _, _, accuracy in rows], done.stderr


@pytest.mark.slow
def test_every_row_learns_in_three_epochs(tmp_path):
    accuracies, bars = rows_of(tmp_path, "--epochs", "3")
    assert min(accuracies) >= 0.8
    assert "epoch 2/2" in bars


# As CI runs it too, beside the other tests.
@pytest.mark.soak
@pytest.mark.slow
def test_every_row_reaches_its_accuracy(tmp_path):
    accuracies, bars = rows_of(tmp_path)
    assert min(accuracies) >= 0.97
    assert "epoch 19/19" in bars
