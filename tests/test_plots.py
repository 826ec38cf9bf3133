"""plots: what a figure shows, checked by what is drawn, and that no display is needed."""

import io
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from IPython.core.formatters import DisplayFormatter
from PIL import Image as Pillow

from solstice import ClassificationMetrics, plots


def record(mode, step, **metrics):
    return {"mode": mode, "epoch": 0, "step": step, "time": 0.0, **metrics}


def lines(panel):
    """What the lines of a panel show: (label, steps, values)."""
    found = [(line.get_label(), *map(np.asarray, line.get_data())) for line in panel.get_lines()]
    return [(label, x.tolist(), y.tolist()) for label, x, y in found]


def drawn(figure):
    """The figure, after drawing it; a text that does not fit would be a warning, so an error."""
    figure.savefig(io.BytesIO())
    return figure


RECORDS = [
    record("train", 10, loss=2.0, accuracy=0.5, note="text", f1_class_0=0.1, matrix=[[1]]),
    record("val", 10, loss=3.0, accuracy=0.4),
    record("train", 20, loss=1.0, accuracy=0.6),
    record("val", 20, loss=math.nan, accuracy=0.5),
]


def test_curves_have_a_panel_a_metric_and_a_line_a_mode():
    figure = drawn(plots.learning_curves(RECORDS))
    loss, accuracy = figure.axes
    assert [panel.get_ylabel() for panel in figure.axes] == ["loss", "accuracy"]
    assert lines(accuracy) == [
        ("train", [10, 20], [0.5, 0.6]),
        ("val", [10, 20], [0.4, 0.5]),
    ]
    (_, (_, _, val), not_finite) = lines(loss)
    assert val[0] == 3 and math.isnan(val[1])
    assert not_finite[:2] == ("not finite", [20])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "train",
        "val",
        "not finite",
    ]


def test_chosen_metrics_may_be_those_of_a_class():
    figure = drawn(plots.learning_curves(RECORDS, ["f1_class_0"]))
    assert lines(figure.axes[0]) == [("train", [10], [0.1])]


def test_an_average_is_found_by_the_name_of_what_is_averaged():
    records = [{"mode": "val", "epoch": 0, "step": i, "average_loss": 1.0} for i in (1, 2)]
    assert plots.learning_curves(records, ["loss"]).axes[0].get_ylabel() == "average_loss"


def test_curves_of_a_json_lines_file_are_those_of_its_records(tmp_path):
    file = tmp_path / "log.jsonl"
    text = "".join(json.dumps(one) + "\n" for one in RECORDS)
    file.write_text(text + '{"mode": "train", "st')  # a run that goes on
    shown = [lines(panel) for panel in plots.learning_curves(str(file)).axes]
    assert str(shown) == str([lines(panel) for panel in plots.learning_curves(RECORDS).axes])
    file.write_text("not json\n" + text)
    with pytest.raises(ValueError, match=r"Line 1 of .*log.jsonl' is not JSON: 'not json'"):
        plots.learning_curves(file)


def test_a_metric_over_two_decades_has_a_logarithmic_axis():
    def scale(*values):
        figure = plots.learning_curves([record("train", i, x=v) for i, v in enumerate(values)])
        return drawn(figure).axes[0].get_yscale()

    assert scale(1.0, 0.01) == "log"
    assert (
        scale(1.0, 0.5) == scale(1.0, 0.001, -0.1) == scale(0.0, 1.0) == scale(math.nan) == "linear"
    )


@pytest.mark.parametrize("points", [1, 200])
def test_a_point_that_no_line_reaches_is_marked(points):
    history = [record("train", i, x=math.nan if i in (98, 100) else 1.0 * i) for i in range(points)]
    line = drawn(plots.learning_curves(history)).axes[0].get_lines()[0]
    assert line.get_markevery() == ([0] if points == 1 else [99])


@pytest.mark.parametrize(
    ("history", "metrics", "message"),
    [
        ([], None, r"history is expected to hold records; it is \[\]"),
        (RECORDS, ["f1"], r"the history's 4 records, 'loss', 'accuracy'.*; they are \['f1'\]"),
        ([{"loss": 1.0}], None, "expected to be a mapping with a mode, a step and metrics"),
    ],
)
def test_no_curves_without_records(history, metrics, message):
    with pytest.raises(ValueError, match=message):
        plots.learning_curves(history, metrics)


@pytest.mark.parametrize("normalize", [None, "true", "pred", "all"])
@pytest.mark.parametrize("classes", [2, 10, 50])
def test_the_confusion_matrix_is_scikit_learns(classes, normalize):
    rng = np.random.default_rng(classes)
    targets, preds = rng.integers(0, classes, (2, 20 * classes))
    metrics = ClassificationMetrics(preds, targets, 0.0, classes)
    figure = drawn(plots.confusion_matrix(metrics, normalize=normalize))
    expected = sklearn.metrics.confusion_matrix(targets, preds, normalize=normalize)
    shown = np.asarray(figure.axes[0].get_images()[0].get_array())
    np.testing.assert_allclose(shown, expected * (1 if normalize is None else 100))
    assert len(figure.axes[0].texts) == (
        0 if classes == 50 else np.sum(shown > 0) if classes > 4 else 4
    )
    accuracy = np.mean(targets == preds)
    assert figure.axes[0].get_title() == f"accuracy {accuracy:.1%} of {20 * classes:,} examples"


def test_a_class_without_examples_is_grey_where_shares_are_shown():
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 2]])
    shown = (
        drawn(plots.confusion_matrix(counts, normalize="true")).axes[0].get_images()[0].get_array()
    )
    assert shown.mask.tolist() == [[False] * 3, [True] * 3, [False] * 3]
    drawn(plots.confusion_matrix(np.zeros((3, 3), int), normalize="all"))


def test_labels_name_rows_and_columns():
    axes = drawn(
        plots.confusion_matrix(np.eye(2), labels=["cat", "a very long name of a class"])
    ).axes[0]
    names = ["cat", "a very long name of a..."]
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3)),), r"counts of shape \(classes, classes\).*float64\[2,3\]"),
        ((np.eye(2), ["one"]), r"labels is expected to name 2 classes; it is .* names 1"),
        (
            (np.eye(2), None, "rows"),
            "normalize is expected to be None or 'true' or 'pred' or 'all'; it is 'rows'",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_no_confusion_matrix_of_something_else(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.confusion_matrix(*arguments)


def observed(figure):
    return figure.axes[0].get_lines()[1].get_data()


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_calibration_is_scikit_learns(bins):
    rng = np.random.default_rng(bins)
    probabilities = rng.random(500).astype(np.float32)
    targets = (rng.random(500) < probabilities**2).astype(int)
    figure = drawn(plots.calibration(probabilities, targets, bins=bins))
    rate, predicted = sklearn.calibration.calibration_curve(targets, probabilities, n_bins=bins)
    np.testing.assert_allclose(observed(figure), (predicted, rate), rtol=1e-5)
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    np.testing.assert_array_equal(heights, np.histogram(probabilities, bins, (0, 1))[0])
    error = np.abs(predicted - rate) @ np.array(heights)[np.array(heights) > 0] / 500
    assert figure.axes[0].get_title() == f"expected calibration error {error:.1%}, 500 examples"


def test_of_classes_the_most_probable_one_counts():
    rng = np.random.default_rng(0)
    probabilities, targets = rng.dirichlet(np.ones(4), (30, 7)), rng.integers(0, 4, (30, 7))
    figure = drawn(plots.calibration(probabilities, targets))
    sure, right = probabilities.max(-1).ravel(), (probabilities.argmax(-1) == targets).ravel()
    rate, predicted = sklearn.calibration.calibration_curve(right, sure, n_bins=15)
    np.testing.assert_allclose(observed(figure), (predicted, rate))
    assert figure.axes[0].get_ylabel() == "accuracy"


def test_a_histogram_says_the_same_up_to_its_bins():
    rng = np.random.default_rng(1)
    probabilities, targets = rng.random(2000), rng.integers(0, 2, 2000)
    counts = np.stack([np.histogram(probabilities[targets == i], 4095, (0, 1))[0] for i in (0, 1)])

    class Counted:
        histogram = counts

    for source in (counts, Counted()):
        figure = drawn(plots.calibration(source, bins=15))
        exact = observed(plots.calibration(probabilities, targets, bins=15))
        np.testing.assert_allclose(observed(figure), exact, atol=1 / 4095)


def test_certain_probabilities_are_in_the_outermost_bins():
    figure = drawn(plots.calibration([0.0, 1.0, 1.0], [0, 1, 0]))
    assert np.asarray(observed(figure)).tolist() == [[0.0, 1.0], [0.0, 0.5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, math.nan], [0, 1]), "from 0 to 1; 1 of 2 are not"),
        (([[2.0, -1.0]], [0]), "Apply softmax"),
        (([[0.9, 0.9]], [0]), "add up to 1; those of 1 of 1 examples do not"),
        (([[0.5, 0.5]], [0, 1]), r"\(2, 'classes'\), or \(2,\) for class 1 of two"),
        (([0.5, 0.5],), r"counts of shape \(2, bins\).*Pass targets too"),
    ],
)
def test_no_calibration_of_something_else(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.calibration(*arguments)


def titles(figure):
    return [axes.get_title() for axes in drawn(figure).axes if axes.get_title()]


def test_the_worst_examples_come_first_and_nan_is_the_worst():
    losses = [0.5, math.nan, 2.0, math.inf, 2.0, -math.inf]
    figure = plots.worst_examples(np.zeros((6, 4, 4)), losses, count=5)
    shown = [title.split()[0] for title in titles(figure)]
    assert shown == ["#1", "#3", "#2", "#4", "#0"]


def test_classes_are_named_and_mistakes_told():
    images, targets, preds = np.zeros((3, 4, 4, 3)), [0, 1, 1], [0, 0, 1]
    shown = titles(plots.worst_examples(images, [3, 2, 1], targets, preds, labels=["cat", "dog"]))
    assert shown == ["#0   loss 3\ncat", "#1   loss 2\ndog, predicted cat", "#2   loss 1\ndog"]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.full((1, 2, 2), 128, np.uint8), 128 / 255),
        (np.full((1, 2, 2, 1), 0.25), 0.25),
        (np.array([[[-1.0, 3.0], [0.0, math.nan]]]), [[0, 1], [0.25, math.nan]]),
        (np.ones((1, 2, 2), bool), 1),
        (np.full((1, 2, 2, 4), 255, np.uint8), 1),
        (np.array([[[[0, 0, 1], [math.nan, 0, 0]]]], float), [[[0, 0, 1], [0.902, 0.624, 0]]]),
    ],
)
def test_pixels_are_scaled_to_what_can_be_seen(images, expected):
    figure = drawn(plots.worst_examples(images, [1.0]))
    shown = np.ma.filled(figure.axes[0].get_images()[0].get_array().astype(float), math.nan)
    np.testing.assert_allclose(shown, np.broadcast_to(expected, shown.shape), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3, 4, 4, 3)), [1, 2]), r"\(examples, height, width\)"),
        ((np.zeros((2, 3, 4, 2)), [1, 2]), "a last axis of 1, 3 or 4 channels"),
        ((np.zeros((0, 3, 4)), []), "float64\\[0,3,4\\]"),
        ((np.zeros((2, 3, 4)), [1]), "losses are expected to be one for each of the 2 images"),
        ((np.zeros((2, 3, 4)), [1, 2], [0]), "targets are expected to be one for each"),
    ],
)
def test_no_worst_examples_of_something_else(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.worst_examples(*arguments)


FIGURES = {
    "learning_curves": lambda: plots.learning_curves(RECORDS),
    "confusion_matrix": lambda: plots.confusion_matrix(np.eye(3)),
    "calibration": lambda: plots.calibration([0.1, 0.4, 0.9], [0, 0, 1]),
    "worst_examples": lambda: plots.worst_examples(np.zeros((2, 4, 4)), [1.0, 2.0]),
}


@pytest.mark.parametrize("name", plots.__all__)
def test_a_notebook_shows_each_figure_without_any_magic(name):
    def pixels(figure):
        shown, _ = DisplayFormatter().format(figure)
        return np.asarray(Pillow.open(io.BytesIO(shown["image/png"])), float)

    figure = FIGURES[name]()
    first = pixels(figure)
    assert first.shape[1::-1] == tuple(np.round(figure.get_size_inches() * figure.dpi))
    assert len(np.unique(first)) > 5
    # Its layout moves a little each time that it is drawn.
    assert np.abs(pixels(pickle.loads(pickle.dumps(figure))) - first).mean() < 10


def test_no_two_classes_or_panels_read_alike():
    names = [f"a class with a name that is long, number {i}" for i in range(4)]
    axes = drawn(plots.confusion_matrix(np.eye(4), labels=names)).axes[0]
    assert len({label.get_text() for label in axes.get_xticklabels()}) == 4
    images, classes = np.zeros((4, 4, 4)), np.arange(4)
    figure = plots.worst_examples(images, classes, classes, labels=names)
    assert len({panel.get_title().splitlines()[1] for panel in figure.axes}) == 4
    metrics = [f"validation/of/a/long/{'very_' * i}name/accuracy_of_all" for i in range(5)]
    metrics += [f"validation/{i}/of/a/long/list/of/{j}/accuracy_of_all" for i in "ab" for j in "ab"]
    figure = drawn(plots.learning_curves([record("val", 1, **dict.fromkeys(metrics, 0.5))]))
    assert len({panel.get_ylabel() for panel in figure.axes}) == 9
    assert max(len(panel.get_ylabel()) for panel in figure.axes) <= 28


def test_what_a_run_ran_with_is_no_curve():
    facts = record("environment", 0, parameters=10, bytes=40, jax="0.7")
    shown = plots.learning_curves([facts, *RECORDS])
    assert [panel.get_ylabel() for panel in shown.axes] == ["loss", "accuracy"]
    assert [text.get_text() for text in shown.legends[0].get_texts()] == [
        "train",
        "val",
        "not finite",
    ]


@pytest.mark.slow  # starts a process
def test_figures_need_neither_pyplot_nor_a_display(tmp_path):
    code = f"""
        import sys
        import numpy as np
        from solstice import plots

        plots.confusion_matrix(np.eye(3)).savefig({str(tmp_path / "matrix.png")!r})
        assert "matplotlib.pyplot" not in sys.modules
    """
    headless = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=headless)
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_says_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ImportError, match=r"solstice\.plots needs .* pip install 'jax-solstice\[plot\]'"
    ):
        plots.confusion_matrix(np.eye(2))
