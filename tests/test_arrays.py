"""Arrays: each row once an epoch, in an order of the seed and the epoch, resumed by index."""

import collections
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.example_libraries import stax
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

import solstice
from solstice.data import Arrays

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(23, 4)).astype("float32"), RNG.integers(0, 3, 23)
ROWS = np.arange(23)
LABELS = np.repeat([0, 1, 2], [50, 31, 19])


Pair = collections.namedtuple("Pair", "x y")
# Made once: each new one is another program.
NET, TX = stax.serial(stax.Dense(3)), optax.adam(0.1)


def classifier(network=None):
    network = NET if network is None else network
    return solstice.ClassificationExperiment(network, TX, 3, example_input=X[:1], key=0)


def train(exp, data, epochs=2, **options):
    return solstice.train(exp, epochs, data, progress=False, **options)


def same(one, other):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


class Seen(solstice.Callback):
    """Notes the batches of training."""

    def __init__(self):
        self.batches = []

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if mode == "train":
            self.batches.append(batch)


def seen(exp, data, **options):
    callback = Seen()
    train(exp, data, callbacks=[callback], **options)
    return callback.batches


# What an epoch reads.


def test_batches_are_a_permutation_cut_as_one_would_by_hand():
    order = np.random.default_rng((5, 2)).permutation(23)
    batches = list(Arrays(X, Y, batch_size=8, shuffle=5)(2))
    for i, (x, y) in enumerate(batches):
        rows = order[8 * i : 8 * i + 8]
        np.testing.assert_array_equal(x, X[rows])
        np.testing.assert_array_equal(y, Y[rows])
    assert len(batches) == 3


@pytest.mark.parametrize("shuffle", [0, 1, None, False])
@pytest.mark.parametrize("batch_size", [1, 4, 23, 40])
def test_each_epoch_has_each_row_once(shuffle, batch_size):
    data = Arrays(ROWS, batch_size=batch_size, shuffle=shuffle)
    epochs = [np.concatenate(list(data(epoch))).tolist() for epoch in range(3)]
    assert len(list(data(0))) == len(data)
    assert all(sorted(epoch) == ROWS.tolist() for epoch in epochs)
    shuffled = shuffle is not None and shuffle is not False
    assert len(set(map(tuple, epochs))) == (3 if shuffled else 1)
    assert epochs[0] == ROWS.tolist() or shuffled


@pytest.mark.parametrize(
    ("last", "sizes"),
    [("short", [8, 8, 7]), ("drop", [8, 8]), ("pad", [8, 8, 8]), (None, [8, 8, 7])],
)
def test_last_says_what_becomes_of_a_short_batch(last, sizes):
    data = Arrays(ROWS, Y, batch_size=8, shuffle=0, last=last)
    batches = list(data(0))
    assert [len(batch[0]) for batch in batches] == sizes and len(data) == len(sizes)
    if last == "pad":
        read = np.concatenate([x[mask] for x, _, mask in batches])
        assert sorted(read.tolist()) == ROWS.tolist()
        assert batches[-1][2].tolist() == [True] * 7 + [False]
        assert batches[-1][0][-1] in batches[0][0]  # a real row


def test_batches_that_divide_are_not_masked():
    assert [len(batch) for batch in Arrays(X[:16], Y[:16], batch_size=8, last="pad")(0)] == [2, 2]


def test_a_mask_of_the_data_and_one_of_padding_are_both_in_force():
    mine = ROWS % 2 == 0
    *_, last = Arrays(X, Y, mine, batch_size=8, last="pad")(0)
    assert last[2].tolist() == [*mine[16:], False]
    *_, last = Arrays({"image": X, "label": Y, "mask": mine}, batch_size=8, last="pad")(0)
    assert last["mask"].tolist() == [*mine[16:], False]


@pytest.mark.parametrize("dtype", ["bool", "int32", "uint8", "float32", "float64"])
def test_a_mask_of_numbers_is_one_of_bools(dtype):
    mine = (ROWS % 2 == 0).astype(dtype)
    *_, last = Arrays(X, Y, mine, batch_size=8, last="pad")(0)
    assert last[2].dtype == dtype and last[2].tolist() == [*mine[16:], False]


def test_forms_of_data(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    wanted = X[np.random.default_rng((0, 0)).permutation(23)[:8]]
    for data in (X, mapped, jnp.asarray(X)):
        np.testing.assert_array_equal(next(Arrays(data, batch_size=8, shuffle=0)(0)), wanted)
        named = Arrays({"image": data, "more": {"y": Y}}, batch_size=8, shuffle=0)
        batch = next(named(0))
        np.testing.assert_array_equal(batch["image"], wanted)
        assert batch["more"]["y"].shape == (8,)
        pair, _ = next(Arrays((data, data), Y, batch_size=8, shuffle=0)(0))
        np.testing.assert_array_equal(pair[1], wanted)


def test_a_memory_map_is_not_read_whole(tmp_path):
    mapped = np.lib.format.open_memmap(
        tmp_path / "large.npy", mode="w+", dtype="uint8", shape=(2**20, 2**10)
    )  # of a gigabyte, most of it never written
    mapped[7] = 3
    data = Arrays(mapped, batch_size=8)
    train_part, _ = data.split(0.5)
    assert next(data(0))[7].tolist() == [3] * 2**10
    assert next(train_part(0)).shape == (8, 2**10)


# In a run.


def test_padded_where_the_experiment_takes_masks_and_each_row_counts_once():
    data = Arrays(X, Y, batch_size=8, shuffle=0)
    batches = seen(classifier(), data)
    assert [len(batch) for batch in batches] == [3] * 6
    whole = classifier().test([(X, Y)], progress=False)
    assert classifier().test(data, progress=False) == pytest.approx(whole, rel=1e-5)


class Plain(solstice.Experiment):
    """Takes no masks: its steps have `x, y = batch`."""

    rows: jax.Array

    @solstice.jit
    def train_step(self, batch):
        x, y = batch
        return solstice.replace(self, rows=self.rows + len(y)), x.sum()


def test_short_where_the_experiment_takes_no_masks():
    exp = train(Plain(jnp.zeros((), int)), Arrays(X, Y, batch_size=8, shuffle=0))
    assert int(exp.rows) == 46


class BatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


def test_batch_norm_learns_from_real_rows_alone():
    data = Arrays(X, Y, batch_size=8, shuffle=0)
    batches = seen(classifier(BatchNorm()), data, val_ds=data)
    assert [len(batch[0]) for batch in batches] == [8, 8, 7] * 2
    assert {len(batch) for batch in batches} == {2}


def test_padding_asked_for_is_refused_by_batch_norm():
    with pytest.raises(solstice.errors.InvalidValueError, match="Drop the last"):
        train(classifier(BatchNorm()), Arrays(X, Y, batch_size=8, last="pad"))


def test_the_padded_run_is_that_of_short_batches():
    data = Arrays(X, Y, batch_size=8, shuffle=0)
    short = Arrays(X, Y, batch_size=8, shuffle=0, last="short")
    one, other = train(classifier(), data), train(classifier(), short)
    for a, b in zip(*map(jax.tree.leaves, (one.model.params, other.model.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_predictions_are_in_the_order_of_the_data():
    exp = classifier()
    shuffled = Arrays(X, Y, batch_size=8, shuffle=0, last="drop")
    found = solstice.predict(exp, shuffled, progress=False)
    np.testing.assert_array_equal(found, exp.predict(X))
    part, _ = shuffled.split(0.5)
    found = solstice.predict(exp, part, progress=False)
    np.testing.assert_array_equal(
        found, np.concatenate([exp.predict(x) for x, _ in part.in_order()(0)])
    )


# Resuming.


class Counted(np.ndarray):
    """Counts how often it is read."""

    reads = 0

    def take(self, *arguments, **options):
        Counted.reads += 1
        return self.view(np.ndarray).take(*arguments, **options)


def noisy(batch, key):
    x, y = batch
    return x + 0.1 * jax.random.normal(key, x.shape), y


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda data: data, lambda data: data.map(noisy)])
def test_a_run_resumed_anywhere_is_the_same_to_the_bit(tmp_path, change):
    data = change(Arrays(X, Y, batch_size=8, shuffle=0).balanced())
    whole = train(classifier(), data)
    for stop in range(1, 6):
        place = tmp_path / str(stop)
        saving = solstice.CheckpointingCallback(place, every=solstice.triggers.Every(steps=1))
        train(classifier(), data, num_steps=stop, callbacks=[saving])
        resumed = train(classifier(), data, resume_from=place, callbacks=[saving])
        assert same(resumed, whole), f"resumed after {stop} steps"


def test_a_resumed_run_reads_nothing_of_what_it_had(tmp_path):
    rows = np.arange(1000)
    saving = solstice.CheckpointingCallback(tmp_path, every=solstice.triggers.Every(steps=90))
    exp = Plain(jnp.zeros((), int))
    data = Arrays(rows, rows, batch_size=10, shuffle=0)
    train(exp, data, 1, num_steps=90, callbacks=[saving])
    counted = Arrays(rows, rows, batch_size=10, shuffle=0)
    counted._leaves[0] = rows.view(Counted)
    Counted.reads = 0
    resumed = train(exp, counted, 1, resume_from=tmp_path, callbacks=[saving])
    # The ten batches that are left, and the first and the last one that it had.
    assert int(resumed.rows) == 1000 and Counted.reads == 12


@pytest.mark.parametrize("other", [{"shuffle": 1}, {"shuffle": None}, {"batch_size": 6}])
def test_other_batches_than_the_runs_are_refused(tmp_path, other):
    options = {"batch_size": 8, "shuffle": 0}
    saving = solstice.CheckpointingCallback(tmp_path, every=solstice.triggers.Every(steps=1))
    train(classifier(), Arrays(X, Y, **options), num_steps=2, callbacks=[saving])
    with pytest.raises(solstice.errors.InvalidValueError, match="has a different one"):
        train(
            classifier(), Arrays(X, Y, **options | other), resume_from=tmp_path, callbacks=[saving]
        )


# Parts of the data.


@pytest.mark.parametrize("fraction", [0.5, 0.7, 0.9])
def test_a_stratified_split_has_the_classes_that_sklearn_gives(fraction):
    data = Arrays(np.arange(100), LABELS, batch_size=100)
    reference = StratifiedShuffleSplit(1, train_size=fraction, random_state=0)
    for stratify in (True, LABELS):
        parts = data.split(fraction, seed=3, stratify=stratify)
        rows = [next(part(0))[0] for part in parts]
        assert sorted(np.concatenate(rows).tolist()) == list(range(100))
        for mine, theirs in zip(rows, next(reference.split(LABELS, LABELS)), strict=True):
            counts = [np.bincount(LABELS[part], minlength=3) for part in (mine, theirs)]
            # Of two classes with one remainder, sklearn chooses by chance.
            assert np.abs(counts[0] - counts[1]).max() <= (fraction == 0.5)
            assert len(mine) == len(theirs)


def test_folds_part_the_rows_as_sklearn_does():
    data = Arrays({"x": np.arange(100), "label": LABELS}, batch_size=100)
    for stratify in (None, "label", LABELS):
        folds = data.folds(7, seed=1, stratify=stratify)
        own = [next(val(0))["x"] for _, val in folds]
        assert sorted(np.concatenate(own).tolist()) == list(range(100))
        for (rest, _), rows in zip(folds, own, strict=True):
            assert sorted([*next(rest(0))["x"], *rows]) == list(range(100))
        if stratify is not None:
            theirs = StratifiedKFold(7).split(LABELS, LABELS)
            for rows, (_, fold) in zip(own, theirs, strict=True):
                assert np.bincount(LABELS[rows]).tolist() == np.bincount(LABELS[fold]).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_folds_have_of_each_class_as_many_within_one(seed):
    labels = np.random.default_rng(seed).integers(0, 4, 57)
    folds = Arrays(np.arange(57), batch_size=57).folds(5, seed=seed, stratify=labels)
    counts = [np.bincount(labels[next(val(0))], minlength=4) for _, val in folds]
    assert np.ptp(counts, axis=0).max() <= 1


def test_whole_numbers_of_any_type_are_classes():
    wanted = Arrays(X, Y, batch_size=8, shuffle=0).balanced()
    for labels in (Y.astype("float32"), Y.astype(str), Y.astype(object), Y.tolist()):
        found = Arrays(X, Y, batch_size=8, shuffle=0).balanced(labels)
        assert same(list(found(0)), list(wanted(0)))
    assert same(list(Arrays(X, Y * 1.0, batch_size=8, shuffle=0).balanced()(0)), list(wanted(0)))


def test_parts_of_parts_are_of_the_same_rows():
    data = Arrays(ROWS, Y, batch_size=23, shuffle=0)
    first, _ = data.split(0.8)
    inner, outer = first.split(0.5, stratify=True)
    rows = [set(next(part(0))[0].tolist()) for part in (first, inner, outer)]
    assert rows[1] | rows[2] == rows[0] and not rows[1] & rows[2] and len(rows[0]) == 18
    assert all(x in rows[1] and Y[x] == y for x, y in zip(*next(inner(3)), strict=True))


def test_a_split_without_a_seed_is_in_order():
    first, rest = Arrays(ROWS, batch_size=23).split(0.4, seed=None)
    assert next(first(0)).tolist() == list(range(9)) and next(rest(0)).tolist() == list(
        range(9, 23)
    )


# What is drawn, and what is done to it.


def test_balanced_draws_each_class_as_often():
    data = Arrays(np.arange(100), LABELS, batch_size=100, shuffle=0).balanced()
    epochs = [next(data(epoch)) for epoch in range(60)]
    shares = np.mean([np.bincount(y, minlength=3) for _, y in epochs], axis=0)
    np.testing.assert_allclose(shares, 100 / 3, atol=0.7)
    counts = np.array([np.bincount(rows, minlength=100) for rows, _ in epochs])
    expected = 100 / 3 / np.bincount(LABELS)[LABELS]
    assert (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
    np.testing.assert_allclose(counts.mean(0), expected, atol=0.3)


def test_weights_are_in_proportion_and_belong_to_their_rows():
    weights = np.arange(100.0)
    data = Arrays(np.arange(100), batch_size=50, shuffle=2).weighted(weights)
    _, part = data.split(0.5, seed=None)
    rows = np.concatenate([next(part(epoch)) for epoch in range(300)])
    assert len(rows) == 300 * 50 and rows.min() >= 50
    np.testing.assert_allclose(
        np.bincount(rows)[50:] / len(rows), weights[50:] / weights[50:].sum(), atol=0.002
    )


def test_weights_may_be_as_large_as_numbers_are():
    data = Arrays(np.arange(10), batch_size=10, shuffle=0)
    assert sorted(next(data.weighted(np.full(10, 1e308))(0)).tolist()) == list(range(10))


@pytest.mark.parametrize("on_device", [False, True])
def test_a_map_may_move_rows_and_leave_some_out(on_device):
    def turned(batch):
        return jax.tree.map(lambda leaf: leaf[::-1], batch)

    exp, data = classifier(), Arrays(X, Y, batch_size=20)
    data = data.on_device() if on_device else data
    wanted = exp.test(data, progress=False)
    assert exp.test(data.map(turned), progress=False) == pytest.approx(wanted, rel=1e-5)
    halved = data.map(lambda batch: jax.tree.map(lambda leaf: leaf[::2], batch))
    assert exp.test(halved, progress=False)["accuracy"] == pytest.approx(
        float(
            (
                np.asarray(exp(X[np.r_[0:20:2, 20:23:2]])).argmax(-1) == Y[np.r_[0:20:2, 20:23:2]]
            ).mean()
        )
    )
    padded = Arrays(X, Y, batch_size=20, last="pad")
    padded = (padded.on_device() if on_device else padded).map(
        lambda batch: jax.tree.map(lambda leaf: leaf[::2], batch)
    )
    with pytest.raises(ValueError, match=r"marks which of 20 rows are real.*last='short'"):
        exp.test(padded, progress=False)


@pytest.mark.parametrize(
    "labels", [[0.0] * 20 + [np.nan] * 3, [0.5] * 20 + [1.5] * 3, [0] * 20 + [np.float32(0.5)] * 3]
)
def test_objects_that_are_no_classes_are_refused(labels):
    with pytest.raises(ValueError, match="one whole number or text for each"):
        Arrays(X, Y, batch_size=8, shuffle=0).balanced(np.array(labels, object))


def test_a_map_has_a_key_for_each_batch():
    data = Arrays(np.zeros((6, 2)), batch_size=2, shuffle=0).map(
        lambda x, key: x + jax.random.normal(key)
    )
    numbers = [float(x[0, 0]) for epoch in range(2) for x in data(epoch)]
    assert len(set(numbers)) == 6
    assert numbers[:3] == [float(x[0, 0]) for x in data(0)]
    key = jax.random.key(0)
    for part in (0, 1, 2):  # the first function, epoch 1, batch 2
        key = jax.random.fold_in(key, part)
    assert numbers[5] == float(jax.random.normal(key))
    twice = data.map(lambda x, key: x - jax.random.normal(key))
    assert all(float(x[0, 0]) != 0 for x in twice(0))


def test_the_data_stay_as_they_are():
    data = Arrays(X, Y, batch_size=8, shuffle=0)
    data.map(noisy).balanced().split(0.5)
    assert repr(data) == "Arrays(float32[23,4], int64[23], batch_size=8, shuffle=0)"
    assert len(next(data(0))) == 2


# What is refused.


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Arrays(batch_size=2), "as in Arrays\\(x, y, batch_size=32\\)"),
        (lambda: Arrays(X, Y[:9], batch_size=2), "same examples.*'0': 23, '1': 9"),
        (lambda: Arrays(X[:0], batch_size=2), "at least one example"),
        (lambda: Arrays(X, Y, 32, batch_size=2), "'2' is the int 32"),
        (lambda: Arrays(X, np.array(["a"] * 23), batch_size=2), "text"),
        (lambda: Arrays(X, batch_size=2, shuffle=True), "seed.*shuffle=0"),
        (lambda: Arrays(X, batch_size=2, shuffle=-1), "at least 0"),
        (lambda: Arrays(X, batch_size=24, last="drop"), "23 rows, fewer than batch_size=24"),
        (lambda: Arrays(X, batch_size=5, last="pad")(0).__next__(), "last='short'"),
        (lambda: Arrays(X, batch_size=2)[0], r"for batch in data\(epoch=0\)"),
        (lambda: list(Arrays(X, batch_size=2)), r"for batch in data\(epoch=0\)"),
        (lambda: Arrays(X, batch_size=2).split(0.01), "leave at least one row"),
        (lambda: Arrays(X, batch_size=2).folds(24), "at most 23"),
        (lambda: Arrays(X, batch_size=2).split(0.5, stratify=Y[:3]), "each of 23 rows"),
        (lambda: Arrays(X, batch_size=2).split(0.5, stratify=True), "each of 23 rows"),
        (lambda: Arrays({"x": X}, batch_size=2).folds(2, stratify="y"), "each of 23 rows"),
        (lambda: Arrays(X, Y, batch_size=2).balanced(), "needs a seed"),
        (lambda: Arrays({"x": X, "y": Y}, batch_size=2).balanced(), "one of 'x', 'y'"),
        (lambda: Arrays(X, Y[:, None], batch_size=2).balanced(), "ravel"),
        (lambda: Arrays(X, X > 0, batch_size=2).split(0.5, stratify=True), "no single class"),
        (lambda: Arrays(X, np.ones((23, 2, 2)), batch_size=2).balanced(), "no single class"),
        (lambda: Arrays(X, X[:, 0], batch_size=2).balanced(), "bins, as from np.digitize"),
        (lambda: Arrays(X, batch_size=2).split(0.5, stratify=[None, *"ab" * 11]), "missing"),
        (lambda: Arrays(X, batch_size=2).balanced(np.array([1, *"ab" * 11], object)), "types"),
        (lambda: Arrays(np.ma.masked_greater(X, 1), batch_size=2), "getmaskarray"),
        (lambda: Arrays(jax.random.split(jax.random.key(0), 4), batch_size=2), "key_data"),
        (lambda: next(Arrays(Pair(X, Y), batch_size=5, last="pad")(0)), "not a named tuple"),
        (lambda: Arrays(X, batch_size=2, shuffle=0).weighted(-Y), "23 finite numbers"),
        (
            lambda: Arrays(X, batch_size=2, shuffle=0).weighted(ROWS < 2).split(0.1, seed=None),
            "all 0. Split first",
        ),
        (lambda: Arrays(X, batch_size=2).map(lambda a, b, c: a), "requires 3 arguments"),
        (lambda: Arrays(X, batch_size=2).split(test_size=0.2), "mean 'fraction.*1 - test_size'"),
        (lambda: Arrays(X, batch_size=2).split(0.8, random_state=0), "did you mean 'seed'"),
    ],
)
def test_what_cannot_be_is_told(make, told):
    with pytest.raises(solstice.errors.SolsticeError, match=told):
        make()


@pytest.mark.parametrize(
    ("function", "called"),
    [
        (lambda x, y: (-x[0], y + 1), r"function\(batch, key\)"),
        (lambda x: np.random.default_rng(0).permutation(x[0]), r"function\(batch\)"),
    ],
)
def test_a_map_that_fails_is_told_how_it_is_called(function, called):
    with pytest.raises(TypeError) as raised:
        next(Arrays(X, Y, batch_size=8).map(function)(0))
    (note,) = [one for one in raised.value.__notes__ if "compiles" in one]
    assert re.search(rf"takes jax\.numpy.* as {called}; the batch is \(float32\[8,4\]", note)


@pytest.mark.parametrize("data", [(X, Y), (X, X), (X, X[:, :1]), (X, Y, Y > 0), [X, Y]])
def test_whole_arrays_as_a_dataset_are_told_of_arrays(data):
    with pytest.raises(
        solstice.errors.InvalidTypeError, match=r"data\.Arrays\(x, y.*batch_size=32"
    ):
        train(classifier(), data)


def test_a_batch_size_is_not_guessed():
    with pytest.raises(TypeError, match="batch_size"):
        Arrays(X, Y)
