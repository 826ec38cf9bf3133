"""The examples run, with small settings, and learn what they are to learn."""

import ast
import json
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import solstice

ROOT = Path(__file__).parents[1]


@pytest.fixture
def main(monkeypatch):
    """Runs an example in this process, as its own script directory would have it."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))

    def run(name, *arguments):
        program = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
        return program["main"](list(map(str, arguments)))

    return run


def assert_drawn(path):
    import matplotlib.image

    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 150
    assert np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0).shape[0] > 20


@pytest.mark.slow
def test_bring_your_own_library(main, capsys):
    accuracy = main("bring_your_own", "--epochs", 15, "--examples", 1)
    printed = capsys.readouterr().out
    assert accuracy > 0.95
    assert "Laws of PebbleModel" in printed
    assert "FAILED" not in printed


def test_digits_are_learned_from_scratch(main, tmp_path):
    picture = tmp_path / "curves.png"
    assert main("mnist_from_scratch", "--epochs", 5, "--picture", picture) > 0.9
    assert_drawn(picture)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("mnist_from_scratch", ["--epochs", 1]),
        pytest.param("cross_validation", ["--epochs", 1, "--folds", 2], marks=pytest.mark.soak),
    ],
)
def test_mnist_comes_through_tfds(main, name, flags):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=128):
        results = main(name, "--dataset", "mnist", *flags)
    assert np.size(results) == (2 if name == "cross_validation" else 1)
    if name == "mnist_from_scratch":  # the share of the 128 examples, none of the digits
        assert 128 * results == pytest.approx(round(128 * results))


@pytest.mark.slow
def test_resnet_learns_logs_profiles_and_goes_on(main, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ("--widths", 8, 16, "--output", tmp_path)
    main("resnet", "--epochs", 1, *flags)
    picture = tmp_path / "worst.png"
    assert main("resnet", "--epochs", 9, *flags, "--picture", picture) > 0.6
    events = EventAccumulator(str(tmp_path / "tensorboard" / "val")).Reload()
    assert [event.step for event in events.Scalars("accuracy")] == [
        22 * (epoch + 1) for epoch in range(9)
    ]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(list((tmp_path / "checkpoints").glob("checkpoint-*"))) >= 3
    assert_drawn(picture)


@pytest.mark.soak
@pytest.mark.slow
def test_resnet_takes_cifar10_in_half_precision(main, tmp_path):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=128):
        flags = ("--dataset", "cifar10", "--half", "--widths", 8, "--epochs", 4)
        accuracy = 128 * main("resnet", *flags, "--output", tmp_path)
    assert accuracy == pytest.approx(round(accuracy))  # it is the share of the 128 examples


@pytest.mark.slow
def test_adversarial_training_withstands_the_attack(main, tmp_path):
    picture = tmp_path / "attacked.png"
    rows = main("adversarial", "--epochs", 8, "--picture", picture)
    assert min(clean for clean, _ in rows.values()) > 0.9
    assert rows["attacked"][1] > rows["clean"][1] + 0.2
    assert_drawn(picture)


@pytest.mark.slow
def test_an_ensemble_of_seeds_and_rates(main, tmp_path):
    picture = tmp_path / "members.png"
    accuracies, best, together = main("ensemble", "--epochs", 4, "--picture", picture)
    assert accuracies.shape == (12,)
    assert accuracies[:3].max() < accuracies[6:9].min()
    assert best > 0.9
    assert together > accuracies.mean()
    assert_drawn(picture)


def test_cross_validation_tests_each_fold(main, tmp_path):
    picture = tmp_path / "confusion.png"
    scores = main("cross_validation", "--folds", 3, "--epochs", 4, "--picture", picture)
    assert len(scores) == 3
    assert min(scores) > 0.8
    assert_drawn(picture)


@pytest.mark.slow
def test_a_language_model_learns_and_writes(main, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    small = ("--steps", 150, "--length", 32, "--width", 32, "--depth", 1)
    assert main("language_model", "--text", text, *small) < 0.5
    written = capsys.readouterr().out.splitlines()[-1]
    assert len(written) == 64
    assert sum(word in written[32:] for word in ("the", "quick", "brown", "fox", "jumps")) >= 2


@pytest.mark.slow
def test_fine_tuning_leaves_the_backbone_as_it_is(main, tmp_path):
    picture = tmp_path / "curves.png"
    backbone, tuned, results = main("fine_tune", "--epochs", 8, "--picture", picture)
    assert results["frozen backbone, new head"] > 0.65
    kept = tuned.model.unwrap()["params"]
    for name in ("Conv_0", "Conv_1", "features"):
        same = jax.tree.map(np.array_equal, kept[name], backbone.model.params[name])
        assert all(jax.tree.leaves(same)), name
    assert_drawn(picture)


def weights_of_torch():
    """Weights as torch has them, which nothing has trained."""
    shapes = {"0": (16, 1, 3, 3), "3": (32, 16, 3, 3), "6": (64, 32, 2, 2), "9": (10, 64)}
    generator = np.random.default_rng(0)
    weights = {f"{i}.weight": generator.normal(0, 0.1, shape) for i, shape in shapes.items()}
    biases = {f"{i}.bias": np.zeros(shape[0]) for i, shape in shapes.items()}
    return {name: array.astype("float32") for name, array in (weights | biases).items()}


@pytest.mark.slow
@pytest.mark.torch
def test_weights_from_torch_are_tuned_and_run_from_an_export(main, tmp_path):
    """With few steps."""
    picture = tmp_path / "picture.png"
    flags = "--labels", 1, "--draws", 2, "--steps", 50, "--picture", picture
    before, (lora, last, scratch), printed = main("pretrained", *flags)
    assert min(lora.mean(), last.mean()) > max(before, scratch.mean()) + 0.05
    # The export says what the experiment did, and has loaded nothing.
    assert float(re.search(r"accuracy ([\d.]+)", printed)[1]) == pytest.approx(lora[-1, -1])
    assert "loaded: []" in printed
    assert_drawn(picture)


EVERYDAY = sorted((ROOT / "examples" / "everyday").glob("*.py"))


def everyday(name):
    return runpy.run_path(str(ROOT / "examples" / "everyday" / f"{name}.py"))


@pytest.mark.slow
def test_tabular_data_with_early_stopping():
    program = everyday("tabular")
    assert program["exp"].test([(program["x"], program["y"])], progress=False)["f1_macro"] > 0.95
    assert program["results"]["accuracy"] > program["y"].mean() + 0.25
    assert program["results"]["roc_auc"] > 0.98


@pytest.mark.slow
def test_augmentation_teaches_what_the_images_do_not_show():
    results = everyday("images")["results"]
    assert results["shifted"] > 0.8
    assert results["shifted"] > results["plain"] + 0.2


@pytest.mark.slow
def test_hidden_vowels_of_padded_lines_are_filled_in():
    program = everyday("text")
    hidden, targets = program["hidden"], program["targets"]
    assert np.isin(program["inputs"], program["vowels"]).sum() == 0
    assert (targets[~hidden] == -100).all()
    most_frequent = np.bincount(targets[hidden]).max() / hidden.sum()
    assert program["results"]["accuracy"] > most_frequent + 0.4


@pytest.mark.slow
def test_several_labels_of_which_some_are_unknown():
    program = everyday("multi_label")
    labels = program["labels"]
    always = 2 * (labels == 1).sum(0) / ((labels == 1).sum(0) + (labels >= 0).sum(0))
    assert program["results"]["f1_macro"] > always.mean() + 0.2
    assert program["results"]["exact_match"] > 0.8


@pytest.mark.slow
def test_a_frozen_backbone_and_then_all_of_it():
    program = everyday("frozen_backbone")
    head_alone, all_of_it = program["results"]
    assert head_alone > 0.5
    assert all_of_it > head_alone + 0.1
    models = program["model"], program["frozen"].model, program["whole"].model
    layers = zip(*(model.unwrap().layers for model in models), strict=True)
    for i, (start, frozen, whole) in enumerate(layers):
        for name in ("weight", "bias"):
            first, then, last = (np.asarray(getattr(one, name)) for one in (start, frozen, whole))
            assert np.array_equal(first, then) == (i < 2)
            assert not np.array_equal(then, last)


def lines_of_code(text):
    """How many lines a program has beside comments, docstrings and empty ones."""
    return sum(map(bool, map(str.strip, undocumented(text).splitlines())))


def undocumented(text):
    lines = re.sub(r"^ *#.*$", "", text, flags=re.MULTILINE).splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            first, last = node.body[0].lineno, node.body[0].end_lineno
            lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(lines)


def test_everyday_programs_are_short_and_listed():
    page = (ROOT / "docs" / "examples.md").read_text()
    assert len(EVERYDAY) == 5
    for path in EVERYDAY:
        assert lines_of_code(path.read_text()) <= 25, path.name
        assert f"`everyday/{path.name}`" in page


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_program_of_the_first_page_is_short(page):
    """From arrays to a result in ten lines beside the imports."""
    first = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[1]
    body = [
        line
        for line in undocumented(first).splitlines()
        if line.strip() and not line.startswith(("import ", "from "))
    ]
    assert len(body) <= 10
    for part in ("Dropout", "shuffle=", "no_improvement", "restore_best=True", "roc_auc"):
        assert part in first


SMALLEST = {
    "language_model": ["--steps", 1, "--width", 4, "--depth", 1, "--length", 2],
    "fine_tune": ["--epochs", 1, "--examples", 1],
    "adversarial": ["--epochs", 1],
    "bring_your_own": ["--epochs", 1, "--examples", 1],
    "cross_validation": ["--epochs", 1, "--folds", 2],
    "ensemble": ["--epochs", 1, "--seeds", 1],
    "mnist_from_scratch": ["--epochs", 1],
    "pretrained": ["--weights", "torch.safetensors", "--labels", 1, "--draws", 1, "--steps", 1],
    "quickstart": ["--epochs", 1, "--libraries", "stax", "--quiet"],
    "resnet": ["--epochs", 1, "--widths", 1],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    # The others' own tests run most of their program. Whose parts are cut from a text may be empty.
    [
        name if name == "language_model" else pytest.param(name, marks=[pytest.mark.soak])
        for name in SMALLEST
    ],
)
def test_the_smallest_settings_run(main, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "picture.png"
    if name == "pretrained":
        solstice.tree.save("torch.safetensors", weights_of_torch())
    takes = name not in ("bring_your_own", "quickstart")
    main(name, *SMALLEST[name], *(["--picture", picture] * takes))
    assert picture.exists() == takes


def test_the_smallest_settings_are_known_of_every_example():
    found = {path.stem for path in (ROOT / "examples").glob("*.py")}
    # One is no program, the other starts processes: `test_sharding` runs it.
    assert set(SMALLEST) == found - {"handwriting", "multi_process"}


# They are the programs of the tutorial's page, as the next test says, and `test_docs` runs those.
@pytest.mark.soak
@pytest.mark.slow
def test_the_cells_of_the_notebook_run_one_after_the_other(tmp_path, monkeypatch):
    notebook = json.loads((ROOT / "examples" / "tutorial.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "notebook"}
    for i, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {i}", "exec"), namespace)
    assert namespace["results"]["accuracy"] > 0.9


def test_the_notebook_stores_what_its_cells_show():
    """And is the tutorial: `python docs/assets/notebook.py` makes it from the page."""
    cells = json.loads((ROOT / "examples" / "tutorial.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        source = "".join(cell["source"])
        shows = isinstance(ast.parse(source).body[-1], ast.Expr)
        (*_, data) = [{}, *(output["data"] for output in cell["outputs"])]
        assert bool(data) == shows, source
        assert ("image/png" in data) == ("solstice.plots." in source), source
        assert "Traceback" not in str(cell["outputs"])
    page = (ROOT / "docs" / "tutorial.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert ["".join(cell["source"]) for cell in code] == [one.strip() for one in programs]
    shown = "\n".join(str(cell["outputs"]) for cell in code)
    for output in re.findall(r"```text\n(.*?)```", page, re.DOTALL):
        assert repr(output.strip())[1:-1] in shown


def test_every_example_is_listed_with_its_picture():
    page = (ROOT / "docs" / "examples.md").read_text()
    programs = [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.ipynb")]
    for program in programs:
        if program.stem == "handwriting":  # no program, but what they load their digits with
            continue
        assert f"`{program.name}`" in page
        if program.stem in ("multi_process", "tutorial"):  # has no curves of its own, or a page
            continue
        for kind in ("light", "dark"):
            picture = f"images/{program.stem}-{kind}.png"
            assert f"]({picture}#only-{kind})" in page
            assert (ROOT / "docs" / picture).stat().st_size < 100_000
