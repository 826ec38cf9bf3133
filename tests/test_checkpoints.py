"""Checkpoints: whatever happens to their files, no wrong restore, no silent restart."""

import errno
import json
import logging
import math
import shutil
import signal
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from resuming import VAL, bits, experiment, shuffled

import solstice
from solstice.saving.arrays import Piece, check_places, copies, named, pieces
from solstice.saving.checkpoints import Checkpoints, newest
from solstice.tree.tensors import packages, text_digest
from solstice.triggers import Every


def run(directory, exp=None, num_epochs=3, **options):
    callback = solstice.CheckpointingCallback(directory, **options)
    exp = experiment() if exp is None else exp
    return solstice.train(exp, num_epochs, shuffled, VAL, [callback], progress=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, and the experiments that they hold, with a large array."""
    directory = tmp_path_factory.mktemp("saved") / "run"
    store = Checkpoints(directory)
    older, newer = experiment(), run(directory.parent / "other", num_epochs=1)
    older, newer = (older, LARGE + 1), (newer, LARGE + 2)
    store.write(older, {"n": 0})
    store.write(newer, {"n": 1})
    return directory, bits(older), bits(newer)


LARGE = np.arange(600_000, dtype=np.float32)


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def damages(content):
    yield "truncated", content[: len(content) // 2]
    yield "emptied", b""
    for where in {0, len(content) // 2, len(content) - 1} if content else ():
        yield f"bit {where}", content[:where] + bytes([content[where] ^ 4]) + content[where + 1 :]
    yield "deleted", None


@pytest.mark.slow
def test_no_damage_gives_a_wrong_restore(saved, tmp_path, caplog):
    directory, older, newer = saved
    count = skipped = 0
    for file in files(directory / "checkpoint-000001"):
        content = file.read_bytes()
        for what, damaged in damages(content):
            copy = tmp_path / f"{count}"
            shutil.copytree(directory, copy)
            target = copy / file.relative_to(directory)
            target.unlink() if damaged is None else target.write_bytes(damaged)
            caplog.clear()
            _, exp, rest = newest(Checkpoints(copy), (experiment(), LARGE))
            found = bits(exp)
            assert found in (older, newer), (file, what)
            if found == older:
                assert rest == {"n": 0} and "checkpoint-000001" in caplog.text, (file, what)
                skipped += 1
            count += 1
            shutil.rmtree(copy)
    names = {file.parts[len(directory.parts) + 1] for file in files(directory)}
    assert names == {"checkpoint.json", "arrays-0.safetensors"}
    assert count == skipped == 12


def test_only_unreadable_ones_are_an_error(saved, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(saved[0], copy)
    for name in Checkpoints(copy).names():
        (copy / name / "checkpoint.json").unlink()
    with pytest.raises(
        solstice.DamagedFileError, match=r"None of the 2 checkpoints in .* can be"
    ) as all_:
        solstice.restore(copy, (experiment(), LARGE))
    assert all_.value.path == str(copy)
    one = all_.value.__cause__
    assert isinstance(one, solstice.DamagedFileError)
    assert one.path == str(copy / Checkpoints(copy).names()[0] / "checkpoint.json")
    with pytest.raises(solstice.DamagedFileError, match="not started over silently"):
        solstice.train(experiment(), 1, shuffled, resume_from=copy, progress=False)


def test_what_is_foreign_or_unfinished_is_no_checkpoint(saved, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(saved[0], copy)
    (copy / "notes").mkdir()
    (copy / ".checkpoint-000002.tmp").mkdir()
    (copy / "checkpoint-000009").mkdir()
    assert newest(Checkpoints(copy), (experiment(), LARGE))[0] == "checkpoint-000001"


def test_every_kind_of_leaf_comes_back(tmp_path):
    tree = {
        "raw": jax.random.PRNGKey(1),
        "typed": jax.random.split(jax.random.key(2, impl="rbg"), 3),
        "narrow": jnp.asarray([1.5, jnp.nan, -jnp.inf], jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.asarray(3),
        "numpy": np.arange(3),
        "weak": jax.jit(lambda: 1.0)(),
        "python": [1, 2.5, "name", True],
        "function": len,
    }
    store = Checkpoints(tmp_path)
    again, _ = store.read(store.write(tree, {}), like=jax.tree.map(lambda leaf: leaf, tree))
    assert bits(again) == bits(tree)
    assert isinstance(again["numpy"], np.ndarray) and again["weak"].weak_type
    assert jax.random.key_impl(again["typed"]) == jax.random.key_impl(tree["typed"])
    assert store.read(store.write({"n": 1}, {}), like={"n": 0})[0] == {"n": 1}


def test_the_newest_and_the_best_are_kept(tmp_path):
    run(tmp_path, num_epochs=6, keep=2, best=("accuracy", "max"))
    store = Checkpoints(tmp_path)
    best = store.best()
    assert len(store.names()) in (2, 3) and best["checkpoint"] in store.names()
    values = []
    logging = solstice.LoggingCallback(logging_fn=lambda metrics, *_: values.append(metrics))
    exp = solstice.restore(tmp_path, experiment(), which="best")
    solstice.test(exp, VAL, [logging], progress=False)
    assert values[0]["accuracy"] == best["value"] and best["metric"] == "accuracy"
    assert bits(solstice.restore(tmp_path, experiment(), which=store.names()[-1]))
    for which, message in (("checkpoint-000077", "a checkpoint of .*, checkpoint-0"),):
        with pytest.raises(FileNotFoundError, match=message):
            solstice.restore(tmp_path, experiment(), which=which)
    with pytest.raises(FileNotFoundError, match="is expected to hold a checkpoint"):
        solstice.restore(tmp_path / "none", experiment())


@pytest.mark.slow
def test_the_best_survives_a_resume(tmp_path):
    def best(directory, *limits):
        for n in limits:
            callback = solstice.CheckpointingCallback(directory, best=("average_loss", "min"))
            solstice.train(
                experiment(), n, shuffled, VAL, [callback], resume_from=callback, progress=False
            )
        return json.loads((directory / "best.json").read_text())

    once, twice = best(tmp_path / "a", 5), best(tmp_path / "b", 2, 3, 5)
    assert once["value"] == twice["value"] and once["steps"] == twice["steps"]


def test_a_best_metric_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        solstice.UsageError, match=r"looks for 'acc'; the validation gives average_loss, accuracy"
    ):
        run(tmp_path, best=("acc", "max"))
    callback = solstice.CheckpointingCallback(tmp_path, best=("accuracy", "max"))
    with pytest.raises(solstice.UsageError, match=r"train.. has none: pass val_ds"):
        solstice.train(experiment(), 1, shuffled, callbacks=[callback])


class Nearest(solstice.Metrics):
    """How near to 2 a count is."""

    count: jax.Array

    def merge(self, other):
        return solstice.replace(self, count=(self.count + other.count) / 2)

    def compute(self):
        return {"count": self.count}

    def is_better_than(self, other):
        return abs(self.count - 2) < abs(other.count - 2)


class Counting(solstice.Experiment):
    count: jax.Array

    @solstice.jit
    def train_step(self, batch):
        return solstice.replace(self, count=self.count + 1), None

    @solstice.jit
    def eval_step(self, batch):
        return self, Nearest(self.count)


@pytest.mark.parametrize("parts", [(5,), (1, 3, 5), (3, 5)])
def test_metrics_may_say_themselves_which_is_better(tmp_path, parts):
    exp = Counting(jnp.zeros(()))
    for num_epochs in parts:
        saving = solstice.CheckpointingCallback(tmp_path, best=True)
        solstice.train(exp, num_epochs, [0.0], [0.0], [saving], resume_from=saving, progress=False)
    best = Checkpoints(tmp_path).best()
    assert (best["metric"], best["mode"], best["value"]) == (
        "Nearest",
        "is_better_than",
        {"count": 2},
    )
    assert best["steps"] == 2 and solstice.restore(tmp_path, exp, which="best").count == 2


def test_metrics_that_cannot_say_it_are_named(tmp_path, unchecked):
    with pytest.raises(solstice.UsageError, match=r"ClassificationMetrics does not have\. Define"):
        run(tmp_path, best=True)
    for best in (3, ("accuracy",), ("accuracy", "best"), (True, "max"), ("a", "max", "b", "c")):
        with pytest.raises(ValueError, match=r"best is expected to be a metric and"):
            solstice.CheckpointingCallback(tmp_path, best=best)


class Scores(solstice.Metrics):
    """A score under a name, beside a number that never changes."""

    score: jax.Array
    name: str = eqx.field(static=True)
    directions: tuple = eqx.field(static=True, default=())

    def merge(self, other):
        return other

    def compute(self):
        return {self.name: self.score, "epochs": 3} if self.name else self.score

    def better(self, name):
        return dict(self.directions).get(name) or super().better(name)

    def is_better_than(self, other):
        return self.score > other.score


class Distrustful(Scores):
    def is_better_than(self, other):  # true of a NaN
        return not self.score <= other.score


class Scored(solstice.Experiment):
    """After the nth epoch, the nth of `scores` is its validation's."""

    scores: jax.Array
    count: jax.Array
    name: str = eqx.field(static=True, default="score")
    directions: tuple = eqx.field(static=True, default=())
    kind: type = eqx.field(static=True, default=Scores)

    def train_step(self, batch):
        return solstice.replace(self, count=self.count + 1), None

    def eval_step(self, batch):
        return self, self.kind(self.scores[self.count - 1], self.name, self.directions)


def scored(*scores, **options):
    return Scored(np.float32(scores), np.asarray(0), **options)


def best_of(directory, exp, best, *callbacks, num_epochs=None, **options):
    """What is known of the best checkpoint, whose file is JSON as others read it."""
    saving = solstice.CheckpointingCallback(directory, best=best, keep=1)
    num_epochs = num_epochs or len(exp.scores)
    solstice.train(exp, num_epochs, [0], [0, 0], [*callbacks, saving], progress=False, **options)
    path = directory / "best.json"
    if not path.exists():
        return None
    return json.loads(path.read_text(), parse_constant=pytest.fail)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("best", [("score", "max"), True, "own", "evaluation"])
@pytest.mark.parametrize("kind", [Scores, Distrustful])
@pytest.mark.parametrize(
    ("scores", "epoch"),
    [
        ((NAN, 0.7, 0.9, 0.8), 3),
        ((0.7, NAN, 0.9, NAN), 3),
        ((0.9, NAN, 0.7, NAN), 1),
        ((NAN, NAN, -INF, NAN), 3),
        ((INF, NAN, 0.7, 0.8), 1),
        ((NAN, NAN), None),
    ],
)
def test_a_nan_is_never_the_best_and_hides_no_later_value(tmp_path, kind, best, scores, epoch):
    directions, more, name = (), [], "score"
    if best == "own":
        best, directions = "score", (("score", "max"),)
    elif best == "evaluation":
        more = [
            solstice.EvaluationCallback(
                lambda exp, batch, key: exp.eval_step(batch)[1],
                {"hard": [0]},
                when=Every(epochs=1),
                jit=False,
            )
        ]
        best, directions = ("score", None, "hard"), (("score", "max"),)
    elif best is True:
        name = ""  # otherwise, the other number is one that is always there
    exp = scored(*scores, kind=kind, name=name, directions=directions)
    found = best_of(tmp_path, exp, best, *more)
    assert (found and found["epoch"]) == epoch
    if epoch is not None:
        assert solstice.restore(tmp_path, exp, "best").count == epoch


@pytest.mark.parametrize("kind", [Scores, Distrustful])
def test_metrics_that_compare_a_nan_are_not_the_best_for_long(tmp_path, kind):
    # Which of two numbers is compared, nobody but the metrics knows.
    exp = scored(NAN, 0.7, NAN, 0.8, 0.75, kind=kind)
    found = best_of(tmp_path, exp, True)
    assert found["epoch"] == 4 and found["value"] == {"score": pytest.approx(0.8), "epochs": 3}


@pytest.mark.parametrize(
    ("best", "name", "directions", "epoch"),
    [
        ("accuracy", "accuracy", (), 2),
        ("average_loss", "average_loss", (), 3),
        ("loss", "average_loss", (), 3),
        ("mse", "mse", (), 3),
        ("mine", "mine", (("mine", "max"),), 2),
        ("accuracy", "accuracy", (("accuracy", "min"),), 3),  # the metric knows better
        (("accuracy", "min"), "accuracy", (), 3),  # a user knows best
        (("accuracy", None), "accuracy", (), 2),
    ],
)
def test_the_metric_knows_which_is_the_best(tmp_path, best, name, directions, epoch):
    exp = scored(2.0, 3.0, 1.0, 2.0, name=name, directions=directions)
    found = best_of(tmp_path, exp, best)
    assert found["epoch"] == epoch and found["metric"] == name
    assert found["mode"] == ("max" if epoch == 2 else "min")


def test_a_best_without_a_direction_or_a_number_is_asked_for(tmp_path):
    with pytest.raises(solstice.UsageError, match=r"best=\('mine', 'min'\) or \('mine', 'max'\)"):
        best_of(tmp_path / "a", scored(1.0, name="mine"), "mine")
    exp = Scored(np.ones((1, 2), np.float32), np.asarray(0), name="accuracy")
    with pytest.raises(
        solstice.UsageError, match=r"a number; 'accuracy' of the validation is float"
    ):
        best_of(tmp_path / "b", exp, "accuracy")


class Signal(solstice.Callback):
    """Sends Ctrl-C at the end of a validation step, after which the run is saved and ends."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if mode == "val" and global_step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("best", ["score", True])
def test_a_validation_cut_anywhere_has_the_same_best(tmp_path, best, step):
    exp = scored(1.0, 2.0, 1.5, directions=(("score", "max"),))
    with pytest.raises(KeyboardInterrupt):
        best_of(tmp_path, exp, best, Signal(step))
    found = best_of(tmp_path, exp, best, resume_from=tmp_path)
    assert found["epoch"] == 2 and found["metric"] == ("Scores" if best is True else "score")
    assert solstice.restore(tmp_path, exp, "best").count == 2


class FullDisk:
    """Has no space left from the second checkpoint on."""

    def __init__(self, monkeypatch):
        self.saves = 0
        self.write = Checkpoints.write_arrays
        monkeypatch.setattr(Checkpoints, "write_arrays", self)

    def __get__(self, store, owner):
        def write(*arguments, **options):
            self.saves += 1
            if self.saves > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.write(store, *arguments, **options)

        return write


def test_a_lost_save_ends_a_run_only_if_told_to(tmp_path, caplog, monkeypatch):
    FullDisk(monkeypatch)
    exp = run(tmp_path / "warn")
    assert Checkpoints(tmp_path / "warn").names() == ["checkpoint-000000"]
    lost = [record for record in caplog.records if "could not be saved" in record.getMessage()]
    assert len(lost) == 2 and "No space left" in lost[0].getMessage()
    assert bits(exp) == bits(solstice.train(experiment(), 3, shuffled, VAL, progress=False))


def test_a_lost_save_may_be_an_error(tmp_path, monkeypatch):
    FullDisk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, on_error="raise")
    assert Checkpoints(tmp_path).names() == ["checkpoint-000000"]


def test_a_directory_that_cannot_be_written_is_an_error_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written: NotADirectoryError.*Check that"):
        run(tmp_path / "file" / "run", num_epochs=1)


def test_a_directory_that_vanishes_costs_its_saves_alone(tmp_path, caplog):
    class Vanish(solstice.Callback):
        def on_epoch_end(self, exp, epoch, mode):
            if mode == "train" and epoch == 1:
                (tmp_path / "run").rename(tmp_path / "gone")
                (tmp_path / "run").write_text("")

    saving = solstice.CheckpointingCallback(tmp_path / "run")
    exp = solstice.train(experiment(), 3, shuffled, VAL, [Vanish(), saving], progress=False)
    lost = [line for line in caplog.messages if "could not be saved" in line]
    assert len(lost) in (2, 3) and all("\n" not in line for line in lost)
    assert bits(exp) == bits(solstice.train(experiment(), 3, shuffled, VAL, progress=False))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 100}, "every is expected to be a trigger"),
        ({"keep": 0}, "keep is expected to be at least 1"),
        ({"best": ("accuracy", "most")}, "best is expected to be a metric and"),
        ({"on_error": "ignore"}, "on_error is expected to be"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        solstice.CheckpointingCallback(tmp_path, **options)


@pytest.mark.parametrize("package", ["safetensors", "xxhash"])
def test_a_missing_package_is_named_before_anything_is_done(tmp_path, monkeypatch, package):
    packages.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf"'{package}'.*pip install 'jax-solstice\[checkpoint\]'"
    ):
        solstice.CheckpointingCallback(tmp_path)
    packages.cache_clear()


def test_checkpoints_do_not_change_training(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    plain = solstice.train(experiment(), 2, shuffled, VAL, progress=False)
    assert bits(run(tmp_path, num_epochs=2, every=Every(steps=1))) == bits(plain)
    assert not caplog.records


def test_a_copy_does_not_wait_for_what_is_being_computed():
    """A save in a run of small steps would let the device run dry."""

    @jax.jit
    def slow(matrix):
        for _ in range(8):
            matrix = matrix @ matrix
        return matrix, matrix[0, :3]

    large, small = slow(jnp.eye(600))
    for _ in range(8):
        large, small = slow(large)
    found = copies(pieces({"large": large, "small": small, "own": np.ones(2)}))
    assert not large.is_ready()
    np.testing.assert_array_equal(found[1].values, [1, 0, 0])
    np.testing.assert_array_equal(found[0].values, large)


def test_a_save_keeps_its_values_when_the_next_step_takes_the_buffers(tmp_path):
    step = jax.jit(lambda w: w + 1, donate_argnums=0)
    saving, w = solstice.CheckpointingCallback(tmp_path), jnp.zeros(1_000_000)
    own = np.arange(3)  # of a dtype that jax may lack, and to be changed in place
    saving.save({"w": w, "own": own}, lambda: dict)
    w = step(w)
    own += 1
    saving.wait()
    found = solstice.restore(tmp_path, {"w": w, "own": own})
    assert w[0] == 1 and (found["w"] == 0).all()
    assert found["own"].dtype == np.int64 and found["own"].tolist() == [0, 1, 2]


def test_a_checkpoint_of_another_format_is_refused_and_not_skipped(tmp_path):
    store, tree = Checkpoints(tmp_path), {"w": jnp.ones(2)}
    for _ in range(2):
        name = store.write(tree, {})
    file = tmp_path / name / "checkpoint.json"
    for text in (_signed(_inner(file).replace('"format": 5', '"format": 6')), OLDER):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"has the format [46], but this version of"):
            newest(store, tree)


OLDER = '0123456789abcdef\n{"format": 4, "leaves": [], "parts": [], "rest": "{}"}'


def _inner(file):
    return json.dumps(json.loads(file.read_text())["checkpoint"])


def _signed(inner):
    return f'{{"digest": "{text_digest(inner)}", "checkpoint": {inner}}}\n'


def test_any_tool_reads_a_checkpoint(tmp_path):
    tree = {"net": {"w": np.ones((2, 3), np.float32)}, "rate": 0.5}
    name = Checkpoints(tmp_path).write(tree, {"epoch": 3, "window": np.arange(2)})
    arrays = safetensors.numpy.load_file(tmp_path / name / "arrays-0.safetensors")
    assert set(arrays) == {"net/w", "run:window"}
    np.testing.assert_array_equal(arrays["net/w"], tree["net"]["w"])
    said = json.loads((tmp_path / name / "checkpoint.json").read_text())["checkpoint"]
    assert said["leaves"]["rate"] == {"kind": "float", "value": "0.5"}
    assert said["run"]["epoch"] == 3
    assert Checkpoints(tmp_path).read_run(name)["window"].tolist() == [0, 1]


PLACES = {
    "whole": ([[0, 0, 4, 6]], True),
    "grid": ([[0, 0, 2, 3], [0, 3, 2, 3], [2, 0, 2, 3], [2, 3, 2, 3]], True),
    "uneven": ([[0, 0, 3, 6], [3, 0, 1, 6]], True),
    "hole": ([[0, 0, 2, 6]], False),
    "hole in the grid": ([[0, 0, 2, 3], [0, 3, 2, 3], [2, 0, 2, 3]], False),
    "twice": ([[0, 0, 4, 6], [0, 0, 4, 6]], False),
    "overlap": ([[0, 0, 3, 6], [2, 0, 2, 6]], False),
    "outside": ([[0, 0, 4, 6], [4, 0, 1, 6]], False),
    "none": ([], False),
    "of other axes": ([[0, 4]], False),
}


@pytest.mark.parametrize("name", PLACES)
def test_pieces_that_do_not_fill_the_array_are_damage(name):
    places, right = PLACES[name]
    half = [(place[: len(place) // 2], place[len(place) // 2 :]) for place in places]
    entries = [{"start": start, "shape": shape} for start, shape in half]
    if right:
        check_places("run/step_4", "w", (4, 6), entries)
    else:
        with pytest.raises(solstice.DamagedFileError, match="do not fill an array"):
            check_places("run/step_4", "w", (4, 6), entries)


def test_pieces_of_one_leaf_have_names_of_their_own():
    arrays, entries = named([Piece("w", (i,), np.full(1, i)) for i in range(3)])
    assert list(arrays) == ["w", "w#1", "w#2"] == [entry["name"] for entry in entries]


CRAFTED = {
    "another file": lambda said: said["files"][0].update(name="../../secret"),
    "another size": lambda said: said["files"][0].update(bytes=7),
    "a huge shape": lambda said: said["leaves"]["w"].update(shape=[2**60]),
    "another dtype": lambda said: said["leaves"]["w"].update(dtype="float64"),
    "no such dtype": lambda said: said["leaves"]["w"].update(dtype="who"),
    "a piece elsewhere": lambda said: said["files"][0]["pieces"][0].update(start=[-1]),
    "a piece twice": lambda said: said["files"][0]["pieces"].append(said["files"][0]["pieces"][0]),
    "no pieces": lambda said: said["files"][0].update(pieces=[]),
    "no files": lambda said: said.update(files=[]),
    "no leaves": lambda said: said.update(leaves=7),
    "another digest": lambda said: said["files"][0]["pieces"][0].update(digest="0" * 32),
    "a deep run": lambda said: said.update(run=json.loads("[" * 900 + "]" * 900)),
    "an odd run": lambda said: said.update(run={"$array": 7}),
    "a huge array of the run": lambda said: said["arrays of the run"]["n"].update(shape=[2**60]),
    "another array of the run": lambda said: said["arrays of the run"]["n"].update(dtype="int8"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_checkpoint_is_an_error_and_has_no_effect(tmp_path, name):
    tree = {"w": jnp.ones(2)}
    where = Checkpoints(tmp_path).write(tree, {"n": np.arange(3)})
    file = tmp_path / where / "checkpoint.json"
    said = json.loads(file.read_text())["checkpoint"]
    CRAFTED[name](said)
    before = sorted(tmp_path.rglob("*"))
    file.write_text(_signed(json.dumps(said)))
    with pytest.raises(solstice.DamagedFileError):
        Checkpoints(tmp_path).read(where, tree)
    assert sorted(tmp_path.rglob("*")) == before


def test_pruning_deletes_only_what_was_written_and_goes_on(tmp_path, caplog):
    """Links, strays and odd files stay; an odd best.json stops nothing."""
    archive, store = Checkpoints(tmp_path / "archive"), Checkpoints(tmp_path / "run")
    tree, home = {"w": jnp.ones(2)}, tmp_path / "run"
    kept = tmp_path / "archive" / archive.write(tree, {})
    store.write(tree, {})
    (home / "checkpoint-000001").symlink_to(kept)
    (home / "checkpoint-000002").write_text("a file where a directory should be")
    (home / ".checkpoint-notes.txt").write_text("notes")
    (home / ".checkpoint-000003.tmp").mkdir()
    (home / ".checkpoint-000003.tmp" / ".tmpAbC123").write_text("of a save that was killed")
    (home / "best.json").write_text("")
    second = store.write(tree, {})
    (home / second / "mine.txt").write_text("mine")
    third = store.write(tree, {})
    store.prune(1)
    assert third == "checkpoint-000005" and "checkpoint-000000" not in store.names()
    assert [path.name for path in kept.iterdir()] and (home / "checkpoint-000001").is_symlink()
    assert (home / f".{second}.old" / "mine.txt").read_text() == "mine"
    assert not (home / ".checkpoint-000003.tmp").exists()
    assert (home / "checkpoint-000002").is_file() and (home / ".checkpoint-notes.txt").is_file()
    assert "The best checkpoint is no longer known" in caplog.text
    store.set_best(checkpoint=third)
    store.prune(1)
    assert store.best() == {"checkpoint": third} and store.read(third, tree)


@pytest.mark.parametrize("content", ["", "[]", "7", '{"checkpoint": "../x"}', "{"])
def test_an_odd_best_is_an_error_to_restore(tmp_path, content):
    Checkpoints(tmp_path).write({"w": jnp.ones(2)}, {})
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(solstice.DamagedFileError):
        solstice.restore(tmp_path, {"w": jnp.ones(2)}, which="best")
