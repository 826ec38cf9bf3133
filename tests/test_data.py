"""What counts as a dataset: any re-iterable of batches, those of other libraries as they are."""

import collections
import functools
import itertools
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import solstice
from solstice.compat import FunctionModel
from solstice.data.datasets import check_dataset
from solstice.data.prefetch import ahead, on_device, prefetched


class LenLess:
    """Says neither how long it is nor what is where."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class IndexOnly:
    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, index):
        return self.batches[index]


class UnknownLength(LenLess):
    def __len__(self):
        raise TypeError("The dataset length is unknown.")


class Loader:
    """A callable object."""

    def __init__(self, batches):
        self.batches = batches

    def __call__(self):
        return iter(self.batches)


def batch_names(shuffled, *, batches):
    return iter(batches)


RE_ITERABLE = {
    "list": list,
    "tuple": tuple,
    "deque": collections.deque,
    "dict values": lambda batches: dict(enumerate(batches)).values(),
    "without length": LenLess,
    "of unknown length": UnknownLength,
    "by index only": IndexOnly,
    "function": lambda batches: lambda: iter(batches),
    "function of the epoch": lambda batches: lambda epoch: iter(batches),
    "function of anything": lambda batches: lambda *args: iter(batches),
    "generator function": lambda batches: lambda: (batch for batch in batches),
    "function that returns a list": lambda batches: lambda: batches,
    "partial": lambda batches: functools.partial(batch_names, batches=batches),
    "callable object": Loader,
}
ONE_SHOT = {
    "generator": lambda batches: (batch for batch in batches),
    "list iterator": iter,
    "zip": lambda batches: zip(batches, batches, strict=True),
    "map": lambda batches: map(int, batches),
    "filter": lambda batches: filter(None, batches),
    "enumerate": enumerate,
    "reversed": reversed,
    "islice": lambda batches: itertools.islice(batches, 3),
    "chain": lambda batches: itertools.chain(batches, batches),
}


def batches_seen(events, mode="train"):
    return [event[3] for event in events if event[:2] == ("step_start", mode)]


@pytest.mark.parametrize("kind", RE_ITERABLE)
def test_re_iterables_are_read_every_epoch(kind, adding, train, recorder):
    events = []
    make = RE_ITERABLE[kind]
    trained = train(2, make([1, 2, 3]), make([5]), [recorder(events)])
    assert batches_seen(events) == [1, 2, 3, 1, 2, 3]
    assert batches_seen(events, "val") == [5, 5]
    assert int(trained.total) == 12
    outs = solstice.test(adding, make([1, 2]), return_outs=True, progress=False)
    assert len(outs) == 2
    inputs = [np.ones(2), np.ones(1)]
    assert solstice.predict(adding, make(inputs), progress=False)["sum"].shape == (3,)


@pytest.mark.parametrize("kind", ONE_SHOT)
def test_one_shot_iterators_are_read_once(kind, adding, train):
    make = ONE_SHOT[kind]
    assert int(train(1, make([1, 2, 3])).total) > 0
    assert solstice.test(adding, make([1, 2, 3]), return_outs=True, progress=False)


@pytest.mark.parametrize("kind", ONE_SHOT)
@pytest.mark.parametrize("name", ["train_ds", "val_ds"])
def test_a_second_epoch_of_a_one_shot_is_refused_before_training(kind, name, train, recorder):
    events = []
    iterator = ONE_SHOT[kind]([1, 2, 3])
    datasets = {"train_ds": [1], "val_ds": [1]} | {name: iterator}
    message = (
        rf"{name} is a \w+, which can be read only once, but 2 epochs are asked for\. Pass a lis"
    )
    with pytest.raises(ValueError, match=message):
        train(2, **datasets, callbacks=[recorder(events)])
    assert events == []
    assert next(iterator) is not None  # nothing was taken from it


class Stream:
    """An iterator of one's own: nothing tells that it is read only once."""

    def __init__(self, batches):
        self.left = list(batches)

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        return self.left.pop(0)


@pytest.mark.parametrize("epochs", [dict(num_epochs=3), dict(num_epochs=None, num_steps=9)])
def test_an_iterator_that_runs_dry_is_an_error(train, recorder, epochs):
    events = []
    message = (
        r"train_ds gave no batch in epoch 1\. An iterator that can be read only once is exhausted"
    )
    with pytest.raises(ValueError, match=message) as raised:
        train(train_ds=Stream([1, 2]), callbacks=[recorder(events)], **epochs)
    assert batches_seen(events) == [1, 2]
    assert events[-1] == ("run_end", raised.value)


@pytest.mark.parametrize("make", [*ONE_SHOT.values(), Stream])
def test_an_exhausted_iterator_is_an_error(make, adding, train):
    iterator = make([1, 2, 3])
    collections.deque(iterator, maxlen=0)
    with pytest.raises(ValueError, match=r"train_ds gave no batch in epoch 0\. An iterator that"):
        train(1, iterator)
    with pytest.raises(ValueError, match=r"val_ds gave no batch in epoch 0\. An iterator that"):
        train(1, [1], iterator)
    with pytest.raises(ValueError, match=r"test_ds gave no batch in epoch 0\. An iterator that"):
        solstice.test(adding, iterator, return_outs=True, progress=False)
    with pytest.raises(ValueError, match=r"ds gave no batch in epoch 0\. An iterator that"):
        solstice.predict(adding, iterator, progress=False)


def test_one_generator_for_training_and_validation_is_an_error(train):
    generator = (batch for batch in [1, 2])
    with pytest.raises(ValueError, match=r"val_ds gave no batch in epoch 0\. An iterator that"):
        train(1, generator, generator)


@pytest.mark.parametrize("make", [list, tuple, collections.deque])
def test_an_empty_collection_is_refused_before_training(make, adding, train, recorder):
    events = []
    with pytest.raises(ValueError, match="train_ds is empty: it has no batches"):
        train(1, make(), callbacks=[recorder(events)])
    with pytest.raises(ValueError, match="val_ds is empty: it has no batches"):
        train(1, [1], make(), [recorder(events)])
    with pytest.raises(ValueError, match="test_ds is empty: it has no batches"):
        solstice.test(adding, make(), [recorder(events)])
    with pytest.raises(ValueError, match="ds is empty: it has no batches"):
        solstice.predict(adding, make())
    assert events == []


@pytest.mark.parametrize("empty", [LenLess([]), IndexOnly([]), UnknownLength([])])
def test_a_dataset_that_turns_out_empty_is_an_error(empty, train):
    with pytest.raises(ValueError, match=r"train_ds gave no batch in epoch 0\. The dataset is em"):
        train(1, empty)
    with pytest.raises(ValueError, match=r"val_ds gave no batch in epoch 0\. The dataset is empty"):
        train(1, [1], empty)


def test_a_function_without_batches_is_an_error(train):
    message = r"train_ds gave no batch in epoch {}\. It is a function: it must return a new iterato"
    with pytest.raises(ValueError, match=message.format(0)):
        train(1, Loader([]))
    with pytest.raises(ValueError, match=message.format(1)):
        train(3, lambda epoch: iter([1, 2][epoch * 2 :]))
    always_the_same = iter([1, 2])
    with pytest.raises(ValueError, match=message.format(1)):
        train(3, lambda: always_the_same)


@pytest.mark.parametrize(
    ("wrong", "described"),
    [
        ({"image": [1, 2]}, r"\{'image': \[the int 1, the int 2\]\}"),
        (np.zeros((4, 2), np.float32), r"float32\[4,2\]"),
        (jnp.zeros((4, 2)), r"float32\[4,2\]"),
        ("train", "the str 'train'"),
        (b"train", "the bytes b'train'"),
        (list, "the class 'list'"),
        (LenLess, "the class 'LenLess'"),
        (7, "the int 7"),
        (object(), "the object <object"),
    ],
)
def test_what_is_no_dataset_is_refused(wrong, described, adding, train, recorder):
    events = []
    message = (
        rf"_ds is expected to be a re-iterable of batches.*; it is {described}.*data.Arrays\(x, y"
    )
    with pytest.raises(TypeError, match="train" + message):
        train(1, wrong, callbacks=[recorder(events)])
    with pytest.raises(TypeError, match="val" + message):
        train(1, [1], wrong, [recorder(events)])
    with pytest.raises(TypeError, match="test" + message):
        solstice.test(adding, wrong, [recorder(events)])
    assert events == []


@pytest.mark.parametrize("one", [[(1, 2)], [{"x": 1}], range(3)])
def test_a_mapping_of_datasets_is_told_to_choose(one, train):
    with pytest.raises(
        TypeError, match=r"'train', 'test'. Choose one: train_ds=datasets\['train'\]"
    ):
        train(1, {"train": one, "test": one})


class Repeated:
    """Tells its length as grain's datasets do after `repeat()`."""

    def __len__(self):
        return sys.maxsize

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize(
    "make", [lambda: itertools.cycle([1]), itertools.count, lambda: itertools.repeat(1), Repeated]
)
def test_a_pass_that_never_ends_is_refused_unless_num_steps_ends_it(make, adding, train):
    message = r"_ds is expected to end; a pass over .* never does. Leave out its repeat\(\)"
    with pytest.raises(ValueError, match="train" + message):
        train(1, make())
    with pytest.raises(ValueError, match="val" + message):
        train(1, [1], make(), num_steps=3)
    with pytest.raises(ValueError, match="test" + message):
        solstice.test(adding, make(), return_outs=True)
    train(1, make(), num_steps=3)
    assert len(solstice.test(adding, itertools.repeat(1, 3), return_outs=True)) == 3


def test_no_dataset_at_all_is_refused(train):
    with pytest.raises(TypeError, match=r"train_ds is expected.*; it is the NoneType None"):
        train(1, None)


def test_a_function_of_the_epoch_is_told_it(train):
    told = []

    def shuffled(epoch):
        told.append(epoch)
        return iter([epoch, 10])

    assert int(train(3, shuffled, shuffled).total) == 33
    assert told == [0, 0, 1, 1, 2, 2]


def test_set_epoch_is_called_before_each_pass(train, recorder):
    class Sampler(list):
        told = ()

        def set_epoch(self, epoch):
            self.told = (*self.told, epoch)
            self[:] = [epoch]

    events, train_ds, val_ds = [], Sampler([9]), Sampler([9])
    train(3, train_ds, val_ds, [recorder(events)])
    assert train_ds.told == val_ds.told == (0, 1, 2)
    assert batches_seen(events) == batches_seen(events, "val") == [0, 1, 2]


def test_a_step_starts_before_the_next_batch_is_read(train, recorder):
    events = []

    def noting():
        for batch in (1, 2):
            events.append(("read", batch))
            yield batch

    train(1, noting, callbacks=[recorder(events)])
    assert [event[0] for event in events] == [
        "run_start",
        "epoch_start",
        "read",
        "step_start",
        "step_end",
        "read",
        "step_start",
        "step_end",
        "epoch_end",
        "run_end",
    ]


class Foreign:
    """An array of another library."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_foreign_arrays_become_numpys_and_nothing_else_changes():
    seen = []

    class Watch(solstice.Experiment):
        def train_step(self, batch):
            seen.append(batch)
            return self, None

        def eval_step(self, batch):
            return self, None

    foreign, key, array, other = Foreign([1, 2]), jax.random.key(0), np.ones(2), object()
    batch = {"x": (foreign, None), "key": key, "y": [array, 3, "name", np.float32(1), other]}
    solstice.train(Watch(), 1, [batch], progress=False)
    (given,) = seen
    assert given["x"][0] is foreign.values and given["x"][1] is None
    assert given["key"] is key
    assert given["y"][0] is array and given["y"][4] is other
    assert given["y"][1:4] == [3, "name", np.float32(1)]


# Real datasets of other libraries, handed over as they are.


def linear_classifier(inputs, num_classes):
    def init(key, x):
        return {"w": jnp.zeros((x[0].size, num_classes))}

    def apply(params, x):
        return x.reshape(len(x), -1).astype(jnp.float32) @ params["w"]

    model = FunctionModel(init, apply, inputs, key=0)
    return solstice.ClassificationExperiment(model, optax.sgd(1e-3), num_classes)


def examples(count=10):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 4)).astype(np.float32), rng.integers(0, 3, count)


class Batches(solstice.Callback):
    """What the steps were given."""

    def __init__(self):
        self.seen = []

    def on_step_start(self, exp, global_step, mode, batch):
        self.seen.append((mode, batch))


def assert_trains_as_lists_do(dataset, x, y, size):
    """The dataset's batches, in order, are those of a list, and so is what comes of them."""
    listed = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    exp = linear_classifier(x[:1], 3)
    watch = Batches()
    trained = exp.train(2, dataset, dataset, [watch], progress=False)
    for (mode, given), expected in zip(watch.seen, listed * 4, strict=True):
        assert mode in ("train", "val")
        for one, other in zip(given, expected, strict=True):
            assert type(one) is np.ndarray
            np.testing.assert_array_equal(one, other)
    reference = exp.train(2, listed, listed, progress=False)
    np.testing.assert_array_equal(trained.model.params["w"], reference.model.params["w"])
    assert trained.test(dataset, progress=False) == reference.test(listed, progress=False)
    np.testing.assert_array_equal(
        solstice.predict(trained, dataset, progress=False), reference.predict(x)
    )


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow", reason="tensorflow")


@pytest.mark.slow  # imports TensorFlow
def test_tf_data_trains_as_it_is(tf):
    x, y = examples()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    assert len(dataset) == 3
    assert_trains_as_lists_do(dataset, x, y, 4)


@pytest.mark.slow  # imports TensorFlow
def test_tf_data_of_unknown_length_trains_as_it_is(tf):
    x, y = examples()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda x, y: True)
    with pytest.raises(TypeError, match="unknown"):
        len(dataset)
    assert_trains_as_lists_do(dataset.batch(4).prefetch(2), x, y, 4)


@pytest.mark.slow  # imports TensorFlow
def test_tf_data_may_be_endless_shuffled_and_of_mappings(tf):
    x, y = examples()
    dataset = tf.data.Dataset.from_tensor_slices({"image": x, "label": y})
    dataset = dataset.repeat().shuffle(20, seed=0).batch(4)
    watch = Batches()
    exp = linear_classifier(x[:1], 3)
    exp.train(train_ds=dataset, num_steps=7, callbacks=[watch], progress=False)
    assert [batch["image"].shape for _, batch in watch.seen] == [(4, 4)] * 7
    for call in (lambda: exp.train(1, dataset), lambda: exp.test(dataset)):
        with pytest.raises(ValueError, match="never does"):
            call()


@pytest.mark.slow  # imports TensorFlow
def test_empty_tf_data_is_refused_before_training(tf):
    dataset = tf.data.Dataset.range(0)
    with pytest.raises(ValueError, match="train_ds is empty"):
        linear_classifier(np.ones((1, 4)), 3).train(1, dataset)


@pytest.mark.slow  # imports TensorFlow
def test_tfds_trains_as_it_is(tf, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=10):
        dataset = tfds.load("mnist", split="train", as_supervised=True, data_dir=tmp_path)
    dataset = dataset.batch(4)
    watch = Batches()
    exp = linear_classifier(np.zeros((1, 28, 28, 1), np.uint8), 10)
    trained = exp.train(2, dataset, dataset, [watch], progress=False)
    shapes = [(mode, x.shape, x.dtype, y.shape) for mode, (x, y) in watch.seen]
    one_pass = [((size, 28, 28, 1), np.dtype(np.uint8), (size,)) for size in (4, 4, 2)]
    assert shapes == [(mode, *shape) for mode in ("train", "val") * 2 for shape in one_pass]
    results = trained.test(dataset, progress=False)
    assert results["average_loss"] != exp.test(dataset, progress=False)["average_loss"]
    predicted = solstice.predict(trained, dataset, progress=False)
    labels = np.concatenate([y for mode, (_, y) in watch.seen if mode == "val"][:3])
    assert results["accuracy"] == pytest.approx(np.mean(predicted == labels))


@pytest.mark.slow
def test_grain_trains_as_it_is():
    grain = pytest.importorskip("grain", reason="grain")
    x, y = examples()
    source = grain.MapDataset.source(list(zip(x, y, strict=True)))
    assert_trains_as_lists_do(source.batch(4), x, y, 4)
    assert_trains_as_lists_do(source.to_iter_dataset().batch(4), x, y, 4)
    with pytest.raises(ValueError, match="train_ds is empty"):
        linear_classifier(x[:1], 3).train(1, grain.MapDataset.source([]).batch(4))


def test_a_functions_own_default_is_not_the_epoch(train, recorder):
    batches = [1, 2]
    events = []
    train(2, lambda ds=batches: iter(ds), None, [recorder(events)])
    assert [event[3] for event in events if event[0] == "step_end"] == [1, 2, 1, 2]
    train(2, lambda epoch=7: iter([epoch]), None, [recorder(events)])
    assert [event[3] for event in events if event[0] == "step_end"][4:] == [0, 1]


class Recording:
    """A dataset that notes which thread reads it and how far."""

    def __init__(self, length, fail_at=None):
        self.length, self.fail_at = length, fail_at
        self.read, self.threads = 0, set()

    def __iter__(self):
        for i in range(self.length):
            if i == self.fail_at:
                raise OSError("the disk is gone")
            self.read += 1
            self.threads.add(threading.current_thread().name)
            yield {"x": np.full(2, i), "name": "a string"}


def alive():
    return [thread.name for thread in threading.enumerate() if "solstice" in thread.name]


def test_a_thread_reads_ahead_and_places():
    dataset = Recording(10)
    with prefetched(iter(dataset), size=3, place=on_device) as ready:
        first = next(ready)
        for _ in range(100):
            time.sleep(0.01)
            if dataset.read == 4:
                break
        assert dataset.read == 4 and alive() == ["solstice-prefetch"]
        assert isinstance(first["x"], jax.Array) and first["name"] == "a string"
        assert [int(batch["x"][0]) for batch in ready] == list(range(1, 10))
    assert dataset.threads == {"solstice-prefetch"} and not alive()


def test_what_lies_in_memory_is_not_read_ahead_unless_asked(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    data = solstice.data.Arrays(np.zeros(4), batch_size=2)
    assert [ahead(None, one) for one in ([], (), data, Recording(1), None)] == [0, 0, 0, 2, 2]
    assert ahead(3, []) == 3


def test_without_it_nothing_is_read_ahead():
    for size in (0, None):  # None is 0 on a CPU
        dataset = Recording(10)
        with prefetched(iter(dataset), size) as ready:
            assert isinstance(next(ready)["x"], np.ndarray)
            assert dataset.read == 1 and dataset.threads == {"MainThread"}


def test_an_error_in_the_thread_comes_in_its_turn_with_its_traceback():
    with prefetched(iter(Recording(10, fail_at=2)), size=4) as ready:
        assert [int(next(ready)["x"][0]) for _ in range(2)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone") as caught:
            next(ready)
    assert "__iter__" in [frame.name for frame in caught.traceback]
    assert not alive()


def test_the_thread_ends_with_the_loop(adding):
    numbers = list(range(20))
    exp = solstice.train(adding, 2, numbers, numbers, num_steps=25, prefetch=3, progress=False)
    assert int(exp.total) == sum(numbers) + sum(range(5)) and not alive()


def test_a_dataset_that_blocks_does_not_hold_the_run(caplog, monkeypatch):
    monkeypatch.setattr("solstice.data.prefetch._PATIENCE", 0.1)
    release = threading.Event()

    def stuck():
        yield np.ones(2)
        release.wait()

    with prefetched(stuck(), size=2) as ready:
        next(ready)
    assert "still waiting" in caplog.text
    release.set()


def test_whole_arrays_in_a_pair_are_no_batches():
    x, y = np.zeros((500, 12, 12)), np.zeros(500, int)
    with pytest.raises(
        TypeError, match=r"(?s)whole arrays, \(float64\[500,12,12\], .*Arrays\(x, y, "
    ):
        check_dataset((x, y), "train_ds")
    with pytest.raises(TypeError, match="whole arrays"):
        check_dataset([x, y, y > 0], "train_ds")


def test_batches_that_are_single_arrays_are_a_dataset():
    check_dataset([np.zeros((32, 4)), np.zeros((32, 4))], "train_ds")
    check_dataset([np.zeros((32, 4)), np.zeros((17, 4))], "train_ds")
    check_dataset([np.zeros(4), 1.0], "train_ds")
