"""The examples run, with small settings, and learn what they are to learn."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def main(name, *arguments):
    program = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    return program["main"](list(map(str, arguments)))


@pytest.mark.slow
def test_bring_your_own_library(capsys):
    program = runpy.run_path(str(ROOT / "examples" / "bring_your_own.py"))
    accuracy = program["main"](num_epochs=15, progress=False)
    printed = capsys.readouterr().out
    assert accuracy > 0.95
    assert "Laws of PebbleModel" in printed
    assert "FAILED" not in printed


def test_digits_are_learned_from_scratch():
    assert main("mnist_from_scratch", "--epochs", 5) > 0.9


def test_mnist_from_scratch_comes_through_tfds():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=128):
        assert 0 <= main("mnist_from_scratch", "--dataset", "mnist", "--epochs", 1) <= 1


@pytest.mark.slow
def test_resnet_learns_logs_profiles_and_goes_on(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main("resnet", "--epochs", 1, "--output", tmp_path)
    assert main("resnet", "--epochs", 3, "--output", tmp_path) > 0.5
    events = EventAccumulator(str(tmp_path / "tensorboard" / "val")).Reload()
    assert [event.step for event in events.Scalars("accuracy")] == [22, 44, 66]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(list((tmp_path / "checkpoints").glob("checkpoint-*"))) == 3


@pytest.mark.slow
def test_resnet_takes_cifar10_in_half_precision(tmp_path):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=128):
        flags = ("--dataset", "cifar10", "--half", "--epochs", 4, "--output", tmp_path)
        assert 0 <= main("resnet", *flags) <= 1


@pytest.mark.slow
def test_adversarial_training_withstands_the_attack():
    rows = main("adversarial", "--epochs", 8)
    assert min(clean for clean, _ in rows.values()) > 0.9
    assert rows["attacked"][1] > rows["clean"][1] + 0.2


def test_cross_validation_tests_each_fold():
    scores = main("cross_validation", "--folds", 3, "--epochs", 5)
    assert len(scores) == 3
    assert min(scores) > 0.8


@pytest.mark.slow
def test_a_language_model_learns_and_writes(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    loss = main("language_model", "--text", text, "--steps", 150, "--length", 32)
    assert loss < 0.5
    written = capsys.readouterr().out.splitlines()[-1]
    assert len(written) == 64
    assert sum(word in written[32:] for word in ("the", "quick", "brown", "fox", "jumps")) >= 2


@pytest.mark.slow
def test_fine_tuning_leaves_the_backbone_as_it_is():
    backbone, tuned, results = main("fine_tune", "--epochs", 10)
    assert results["frozen backbone, new head"] > 0.65
    kept = tuned.model.unwrap()["params"]
    for name in ("Conv_0", "Conv_1", "features"):
        same = jax.tree.map(np.array_equal, kept[name], backbone.model.params[name])
        assert all(jax.tree.leaves(same)), name


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_one_after_the_other():
    notebook = json.loads((ROOT / "examples" / "tour.ipynb").read_text())
    namespace = {"__name__": "notebook"}
    for i, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {i}", "exec"), namespace)
    assert namespace["results"]["accuracy"] > 0.95
