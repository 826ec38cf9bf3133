"""TensorBoard: what TensorBoard's own reader finds in the event files."""

import io
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image as Pillow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from solstice import LoggingCallback, plots
from solstice.loggers import Image, TensorBoard, Text


def read(directory):
    accumulator = EventAccumulator(
        str(directory), size_guidance=dict.fromkeys(("scalars", "images", "tensors"), 0)
    )
    return accumulator.Reload()


def scalars(directory, name):
    return [(event.step, event.value) for event in read(directory).Scalars(name)]


def record(step, mode="train", epoch=0, **metrics):
    return {"mode": mode, "epoch": epoch, "step": step, "time": 1e9 + step, **metrics}


def test_modes_are_runs_on_the_axis_of_completed_training_steps(train, tmp_path):
    train(2, [1, 2, 3], [5, 7], [LoggingCallback(2, TensorBoard(tmp_path))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "val"]
    assert scalars(tmp_path / "train", "mean") == [(2, 1.5), (3, 3.0), (4, 1.0), (6, 2.5)]
    assert scalars(tmp_path / "train", "epoch") == [(2, 0), (3, 0), (4, 1), (6, 1)]
    assert scalars(tmp_path / "val", "mean") == [(3, 6.0), (6, 6.0)]


def test_each_value_is_shown_as_what_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    sink = TensorBoard(tmp_path)
    sink.write(
        record(
            7,
            loss=jnp.asarray(0.5),
            nan=float("nan"),
            large=1e300,
            flag=True,
            weights=jnp.asarray([0.0, 1.0, 3.0, jnp.nan]),
            half=jnp.ones((2, 2), jnp.bfloat16),
            nothing=np.array([np.nan]),
            picture=Image(pixels),
            sample=Text("the *cat*"),
            samples=np.array(["the cat", "a dog"], object),
        )
    )
    sink.close()
    found = read(tmp_path / "train")
    tags = found.Tags()
    assert set(tags["scalars"]) == {"epoch", "loss", "nan", "large", "flag"}
    assert set(tags["histograms"]) == {"weights", "half"}
    (loss,) = found.Scalars("loss")
    assert (loss.step, loss.value, loss.wall_time) == (7, 0.5, 1e9 + 7)
    assert np.isnan(found.Scalars("nan")[0].value)
    assert np.isinf(found.Scalars("large")[0].value)
    (histogram,) = found.Histograms("weights")
    assert histogram.histogram_value.num == 3 and histogram.histogram_value.sum == 4
    assert sum(histogram.histogram_value.bucket) == 3
    (image,) = found.Images("picture")
    shown = np.asarray(Pillow.open(io.BytesIO(image.encoded_image_string)))
    assert np.array_equal(shown, pixels)
    (text,) = found.Tensors("sample/text_summary")
    assert text.tensor_proto.string_val == [b"the *cat*"]
    (text,) = found.Tensors("samples/text_summary")
    assert text.tensor_proto.string_val == [b"the cat\n\na dog"]


def test_a_figure_of_matplotlib_is_a_picture(tmp_path):
    figure = plots.confusion_matrix(np.eye(3))
    figure.set_layout_engine("none")  # which would move its parts at each drawing
    sink = TensorBoard(tmp_path)
    sink.write(record(7, matrix=Image(figure)))
    sink.close()
    (image,) = read(tmp_path / "train").Images("matrix")
    shown = np.asarray(Pillow.open(io.BytesIO(image.encoded_image_string)))
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert np.array_equal(shown, np.asarray(Pillow.open(file).convert("RGB")))


def test_a_figure_keeps_its_transparency_and_its_canvas():
    figure = pyplot.figure(figsize=(1, 2))
    canvas = figure.canvas
    assert Image(figure).pixels().shape == (200, 100, 3)
    figure.patch.set_alpha(0)
    assert Image(figure).pixels()[0, 0].tolist() == [255, 255, 255, 0]
    assert figure.canvas is canvas
    pyplot.close(figure)


def test_hyperparameters_are_in_the_hparams_table(tmp_path):
    values = {"rate": 3e-4, "layers": (1, 2), "name": "cnn", "bn": True, "seed": 3}
    sink = TensorBoard(tmp_path, hyperparameters=values)
    sink.open()
    sink.close()
    metadata = read(tmp_path).SummaryMetadata("_hparams_/session_start_info")
    data = HParamsPluginData.FromString(metadata.plugin_data.content)
    shown = {k: v.WhichOneof("kind") for k, v in data.session_start_info.hparams.items()}
    assert shown == {
        "rate": "number_value",
        "layers": "string_value",
        "name": "string_value",
        "bn": "bool_value",
        "seed": "number_value",
    }


def test_a_new_run_refuses_event_files(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write(record(1, loss=1.0))
    sink.close()
    with pytest.raises(FileExistsError, match="holds the event files of another run, such as"):
        TensorBoard(tmp_path).open()
    sink.write(record(2, loss=2.0))  # the same sink goes on
    sink.close()
    sink = TensorBoard(tmp_path, append=True)
    sink.write(record(3, loss=3.0))
    sink.close()
    assert scalars(tmp_path / "train", "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.parametrize("at", [0, 3])
def test_a_resume_leaves_others_files_and_drops_torn_ones(tmp_path, at, caplog):
    def write(sink, steps):
        for step in steps:  # validation, at the step of the checkpoint too
            sink.write(record(step, loss=step))
            if step % 2:
                sink.write(record(step, "val", loss=step))

    other = TensorBoard(tmp_path / "train")  # somebody else's, below
    write(other, [1])
    other.close()
    sink = TensorBoard(tmp_path, append=True, hyperparameters={"rate": 1})
    write(sink, range(at))
    state = sink.get_state()
    write(sink, range(at - 1, 5))
    sink.close()
    path = max((tmp_path / "train").glob("*tfevents*"))
    path.write_bytes(path.read_bytes()[:-5])
    sink = TensorBoard(tmp_path)
    sink.set_state(state)
    write(sink, range(at - 1, 5))
    sink.close()
    steps = [*range(at), *range(at - 1, 5)]
    with caplog.at_level(logging.WARNING):
        assert scalars(tmp_path / "train", "loss") == [(step, step) for step in steps]
        odd = [(step, step) for step in steps if step % 2]
        assert scalars(tmp_path / "val", "loss") == odd
    assert scalars(tmp_path / "train" / "train", "loss") == [(1, 1)]


def test_a_reader_that_had_seen_later_steps_forgets_them(tmp_path):
    sink = TensorBoard(tmp_path)
    for step in range(1, 4):
        sink.write(record(step, loss=step))
    state = sink.get_state()
    sink.write(record(4, loss=-1))
    sink.write(record(5, loss=-1))
    sink.close()
    live = read(tmp_path / "train")
    assert [event.step for event in live.Scalars("loss")] == [1, 2, 3, 4, 5]
    sink = TensorBoard(tmp_path)
    sink.set_state(state)
    for step in (4, 5):
        sink.write(record(step, loss=step))
    sink.close()
    live.Reload()
    assert [(event.step, event.value) for event in live.Scalars("loss")] == [
        (step, step) for step in range(1, 6)
    ]
