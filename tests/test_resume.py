"""Resuming: the same bits as a run that was never interrupted, wherever it was."""

import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resuming import VAL, X, Y, bits, experiment, shuffled

import solstice
from solstice.saving.checkpoints import Checkpoints
from solstice.triggers import Every


class BangError(Exception):
    """A crash."""


class Crash(solstice.Callback):
    """Raises after a step of a mode, as a crash would, once all else has seen the step."""

    def __init__(self, mode, step):
        self.at = (mode, step)

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if (mode, global_step) == self.at:
            raise BangError


def watching():
    """A log of the steps, one of the epochs, and two decisions."""
    return [
        solstice.HistoryCallback(4),
        solstice.HistoryCallback(),
        solstice.EarlyStoppingCallback.no_improvement("accuracy", mode="max", patience=50),
        solstice.EarlyStoppingCallback(lambda outs: False, accumulate_every_n_steps=3),
    ]


def history(callbacks):
    return [
        {name: value for name, value in record.items() if name != "time"}
        for callback in callbacks[:2]
        for record in callback.records
    ]


def run(directory, callbacks=(), *, resume=True, exp=None, num_epochs=3, **options):
    saving = solstice.CheckpointingCallback(
        directory, every=options.pop("every", Every(steps=1)), keep=options.pop("keep", None)
    )
    options = {"train_ds": shuffled, "val_ds": VAL, "progress": False} | options
    return solstice.train(
        experiment() if exp is None else exp,
        num_epochs,
        callbacks=[*callbacks, saving],
        resume_from=saving if resume else None,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "steps_per_call"),
    [
        ("linen", 1),
        ("nnx", 2),
        pytest.param("linen", 2, marks=pytest.mark.soak),
        pytest.param("nnx", 1, marks=pytest.mark.soak),
    ],
)
def test_a_run_resumes_at_every_step(tmp_path, network, steps_per_call):
    exp = experiment(network)
    options = {"steps_per_call": steps_per_call, "validate_every": Every(steps=4), "exp": exp}
    whole = watching()
    expected = bits(run(tmp_path / "whole", whole, **options))
    names = Checkpoints(tmp_path / "whole").names()
    assert len(names) >= 15 / steps_per_call
    for i, name in enumerate(names):
        part = tmp_path / f"part-{i}"
        shutil.copytree(tmp_path / "whole" / name, part / name)
        again = watching()
        assert bits(run(part, again, **options)) == expected, name
        assert history(again) == history(whole), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "mode", "step"),
    [
        ("linen", "train", 2),
        ("haiku", "train", 4),
        ("nnx", "val", 0),
        *(
            pytest.param("linen", mode, step, marks=pytest.mark.soak)
            for mode, step in [("train", 0), ("train", 5), ("val", 2), ("val", 4), ("val", 5)]
        ),
    ],
)
def test_a_crashed_run_goes_on_to_the_same_bits(tmp_path, network, mode, step):
    whole, again = watching(), watching()
    exp = experiment(network)
    expected = bits(run(tmp_path / "whole", whole, exp=exp))
    with pytest.raises(BangError):
        run(tmp_path / "run", [*watching(), Crash(mode, step)], exp=exp)
    assert bits(run(tmp_path / "run", again, exp=experiment(network))) == expected
    assert history(again) == history(whole)


@pytest.mark.slow
def test_it_starts_anew_without_a_checkpoint_and_ends_at_once_with_the_last(tmp_path):
    exp = run(tmp_path, resume=True)
    counting = Count()
    assert bits(run(tmp_path, [counting])) == bits(exp) and counting.steps == 0
    longer = run(tmp_path, [counting], num_epochs=4)
    assert counting.steps == 5
    assert bits(longer) == bits(run(tmp_path / "other", num_epochs=4))


class Count(solstice.Callback):
    steps = 0

    def on_step_end(self, outs, exp, global_step, mode, batch):
        self.steps += mode == "train"


def test_a_run_cut_by_num_steps_goes_on_in_mid_epoch(tmp_path):
    run(tmp_path / "run", num_steps=7)
    counting = Count()
    exp = run(tmp_path / "run", [counting], num_steps=13)
    assert counting.steps == 6
    assert bits(exp) == bits(run(tmp_path / "whole", num_steps=13))


def test_an_early_stop_is_an_end(tmp_path):
    def stopping():
        return solstice.EarlyStoppingCallback(lambda outs: True, accumulate_every_n_steps=3)

    exp = run(tmp_path, [stopping()])
    counting = Count()
    assert bits(run(tmp_path, [stopping(), counting])) == bits(exp) and counting.steps == 0


def test_a_directory_with_checkpoints_is_not_overwritten(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"holds checkpoints of another run .*resume_from="):
        run(tmp_path / "run", resume=False)
    forked = solstice.CheckpointingCallback(tmp_path / "fork")
    solstice.train(
        experiment(), 4, shuffled, callbacks=[forked], resume_from=tmp_path / "run", progress=False
    )
    assert Checkpoints(tmp_path / "fork").names()
    saving = solstice.CheckpointingCallback(tmp_path / "run")
    with pytest.raises(FileExistsError, match="another directory"):
        solstice.train(
            experiment(),
            9,
            shuffled,
            callbacks=[saving],
            resume_from=tmp_path / "fork",
            progress=False,
        )


def test_a_fresh_start_in_place_of_a_resume_is_told(tmp_path, caplog):
    run(tmp_path / "run")
    newest = Checkpoints(tmp_path / "run").names()[-1]
    for wrong in (tmp_path / "run" / newest, f"{tmp_path}/run/{newest}/"):
        with pytest.raises(solstice.errors.NoCheckpointError, match="pass the directory above it"):
            solstice.train(experiment(), 1, shuffled, resume_from=wrong, progress=False)
        with pytest.raises(solstice.errors.NoCheckpointError, match=f"which='{newest}'"):
            solstice.restore(wrong, experiment())
    solstice.restore(tmp_path / "run", experiment(), newest)
    (tmp_path / "file").touch()
    with pytest.raises(solstice.errors.NoCheckpointError, match="file is a file"):
        solstice.train(experiment(), 1, shuffled, resume_from=tmp_path / "file", progress=False)
    caplog.clear()
    saving = solstice.CheckpointingCallback(tmp_path / "new")
    for callbacks, place, told in (
        ([], tmp_path / "typo", True),
        ([], saving, True),
        ([saving], tmp_path / "typo", True),
        ([solstice.CheckpointingCallback(tmp_path / "newer")], tmp_path / "newer", False),
    ):
        solstice.train(
            experiment(), 1, shuffled, callbacks=callbacks, resume_from=place, progress=False
        )
        messages = [record.getMessage() for record in caplog.records]
        said = [one for one in messages if "starts from the beginning" in one]
        assert len(said) == told
        caplog.clear()


def test_other_data_in_the_place_of_the_skipped_is_an_error(tmp_path):
    with pytest.raises(BangError):
        run(tmp_path, [Crash("train", 3)])
    other = [(X[:6] + 1, Y[:6])] * 5
    with pytest.raises(ValueError, match=r"epoch 0; train_ds now has a different one"):
        run(tmp_path, train_ds=other)
    with pytest.raises(ValueError, match=r"train_ds now ends before it"):
        run(tmp_path, train_ds=lambda epoch: iter(list(shuffled(epoch))[:2]))


def test_an_iterator_that_can_save_itself_is_not_read_again(tmp_path):
    class Read:
        count = 0

    def one(i):
        Read.count += 1
        return X[int(i) % 26], Y[int(i) % 26]

    ds = grain.MapDataset.range(60).shuffle(seed=7).map(one).to_iter_dataset().batch(6)
    options = {"train_ds": ds, "prefetch": 2}
    expected = bits(run(tmp_path / "whole", **options))
    with pytest.raises(BangError):
        run(tmp_path / "run", [Crash("train", 8)], num_epochs=1, **options)
    Read.count = 0
    run(tmp_path / "run", num_epochs=1, **options)
    assert Read.count < 60
    assert bits(run(tmp_path / "run", **options)) == expected


def reshuffled(read=None, buffer=20):
    """Batches of tf.data in another order in each pass, and counts of what is read."""
    tf = pytest.importorskip("tensorflow")
    ds = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(buffer, seed=3)
    if read is not None:

        def noted(x, y):
            read.append(1)
            return x, y

        ds = ds.map(lambda x, y: tf.numpy_function(noted, [x, y], (X.dtype, Y.dtype)))
    return ds.batch(6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "prefetch"),
    [
        (4, 0),
        (7, 3),
        *(
            pytest.param(step, prefetch, marks=pytest.mark.soak)
            for step in (0, 4, 5, 7, 9)
            for prefetch in (0, 3)
            if (step, prefetch) not in ((4, 0), (7, 3))
        ),
    ],
)
def test_a_shuffled_tf_dataset_goes_on_where_it_stood(tmp_path, step, prefetch, caplog):
    whole, again = watching(), watching()
    options = {"prefetch": prefetch}
    expected = bits(run(tmp_path / "whole", whole, train_ds=reshuffled(), **options))
    assert expected != bits(run(tmp_path / "other", train_ds=reshuffled(buffer=19), **options))
    crash = [*watching(), Crash("train", step)]
    with pytest.raises(BangError):
        run(tmp_path / "run", crash, train_ds=reshuffled(), **options)
    assert bits(run(tmp_path / "run", again, train_ds=reshuffled(), **options)) == expected
    assert history(again) == history(whole)
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("crash", [("train", 5), ("val", 2)])
def test_a_tf_dataset_shuffles_on_after_an_epoch(tmp_path, crash):
    def go(directory, *callbacks):
        return run(directory, callbacks, train_ds=reshuffled(), every=Every(epochs=1))

    expected = bits(go(tmp_path / "whole"))
    with pytest.raises(BangError):
        go(tmp_path / "run", Crash(*crash))
    assert bits(go(tmp_path / "run")) == expected


def test_a_tf_dataset_is_not_read_again(tmp_path):
    tf = pytest.importorskip("tensorflow")
    reads = tf.Variable(0)

    def noted(x, y):
        reads.assign_add(1)
        return x, y

    def dataset():
        ds = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(8, seed=3).batch(2)
        options = tf.data.Options()
        options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
        return ds.map(noted).with_options(options)

    expected = bits(run(tmp_path / "whole", train_ds=dataset(), num_epochs=1))
    with pytest.raises(BangError):
        run(tmp_path / "run", [Crash("train", 7)], train_ds=dataset(), num_epochs=1)
    reads.assign(0)
    assert bits(run(tmp_path / "run", train_ds=dataset(), num_epochs=1)) == expected
    assert int(reads) <= 13 - 7


def test_a_tf_dataset_that_calls_python_is_read_again_and_says_so(tmp_path, caplog):
    read = []
    expected = bits(run(tmp_path / "whole", train_ds=reshuffled(), num_epochs=1))
    with pytest.raises(BangError):
        run(tmp_path / "run", [Crash("train", 3)], train_ds=reshuffled(read), num_epochs=1)
    caplog.clear()
    read.clear()
    exp = run(tmp_path / "run", train_ds=reshuffled(read), num_epochs=1)
    assert bits(exp) == expected and len(read) == len(X)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "cannot save itself (PyFunc is stateful" in said[0]


def test_a_state_of_another_dataset_is_refused(tmp_path):
    with pytest.raises(BangError):
        run(tmp_path / "tf", [Crash("train", 3)], train_ds=reshuffled())
    with pytest.raises(
        ValueError, match=r"state of train_ds's iterator; .* cannot continue from it"
    ):
        run(tmp_path / "tf")
    ds = grain.MapDataset.source([(X[:6], Y[:6])] * 5).to_iter_dataset()
    with pytest.raises(BangError):
        run(tmp_path / "grain", [Crash("train", 3)], train_ds=ds)
    with pytest.raises(ValueError, match=r"Resume with the dataset that"):
        run(tmp_path / "grain", train_ds=reshuffled())


def test_an_experiment_of_another_form_is_refused(tmp_path):
    run(tmp_path)
    other = solstice.replace(experiment(), key=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"'key' is key<fry>\[\] there and float32\[3\] in `exp`"):
        run(tmp_path, exp=other)


def test_callbacks_that_are_gone_are_named(tmp_path, caplog):
    with pytest.raises(BangError):
        run(tmp_path, [solstice.HistoryCallback(), Crash("train", 3)])
    run(tmp_path)
    assert "callbacks that this run does not have: HistoryCallback" in caplog.text


def test_validation_may_come_within_epochs(tmp_path):
    class Order(solstice.Callback):
        def __init__(self):
            self.events = []

        def on_step_end(self, outs, exp, global_step, mode, batch):
            self.events.append((mode, global_step))

    order = Order()
    solstice.train(
        experiment(), 2, shuffled, VAL, [order], validate_every=Every(steps=4), progress=False
    )
    modes = "".join(mode[0] for mode, _ in order.events)
    assert modes == "ttttvvttttvvtt"
    order = Order()
    solstice.train(
        experiment(), 3, shuffled, VAL, [order], validate_every=Every(epochs=2), progress=False
    )
    assert "".join(mode[0] for mode, _ in order.events) == "t" * 10 + "vv" + "t" * 5
    with pytest.raises(ValueError, match="no val_ds to validate on"):
        solstice.train(experiment(), 1, shuffled, validate_every=Every(steps=4))


def test_a_diverged_run_keeps_its_last_finite_checkpoint(tmp_path):
    def poisoned(epoch):
        for i, (x, y) in enumerate(shuffled(epoch)):
            yield (np.where(i == 2, np.nan, 1).astype("float32") * x, y)

    for every in (1, 2, 100):
        directory = tmp_path / str(every)
        stop = solstice.callbacks.StopOnNaN(every)
        with pytest.raises(FloatingPointError, match=r"step 2, .* in experiment/mod") as caught:
            run(directory, [stop], train_ds=poisoned)
        assert caught.value.step == 2 and caught.value.leaves[0].startswith("experiment/model/")
        exp = solstice.restore(directory, experiment())
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(exp.model.params))


def test_a_look_for_what_is_not_finite_does_not_wait_for_it():
    @jax.jit
    def slow(matrix):
        for _ in range(8):
            matrix = matrix @ matrix
        return matrix

    stop, exp = solstice.callbacks.StopOnNaN(1), experiment()
    stop.on_step_end(slow(jnp.eye(600)), exp, 0, "train", None)  # which compiles
    stop.on_epoch_end(exp, 0, "train")
    pending = slow(jnp.eye(600))
    for _ in range(8):
        pending = slow(pending)
    stop.on_step_end(pending, exp, 1, "train", None)
    assert not pending.is_ready()
    stop.on_epoch_end(exp, 0, "train")
    assert pending.is_ready()


class Shuffling:
    """Shuffles itself in each pass, as a DataLoader does."""

    def __init__(self, seed=None, one_batch=False):
        self.rng, self.whole = np.random.default_rng(seed), one_batch

    def __iter__(self):
        order = self.rng.permutation(len(X))
        parts = [order] if self.whole else np.split(order, range(6, len(X), 6))
        return iter([(X[part], Y[part]) for part in parts])


class Told(Shuffling):
    def set_epoch(self, epoch):
        self.rng = np.random.default_rng(epoch)


def resumed_in_each_epoch(directory, make, caplog):
    """Run three epochs, each in a process of its own, and return what was said of shuffling."""
    for epochs in (1, 2, 3):
        caplog.clear()
        run(directory, num_epochs=epochs, train_ds=make(), every=Every(epochs=1))
    return [one for one in caplog.messages if "gives other batches in each pass" in one]


def test_a_dataset_that_shuffles_itself_is_told_of_where_a_run_goes_on_at_an_epochs_start(
    tmp_path, caplog
):
    (said,) = resumed_in_each_epoch(tmp_path / "unseeded", Shuffling, caplog)
    assert "resumed in epoch 2" in said and "method set_epoch(epoch)" in said
    assert resumed_in_each_epoch(tmp_path / "whole", lambda: Shuffling(None, True), caplog)


def test_a_seed_that_begins_anew_in_each_process_is_told_of_too(tmp_path, caplog):
    # One pass of each process tells nothing; two passes of one do.
    run(tmp_path, num_epochs=1, train_ds=Shuffling(0))
    run(tmp_path, num_epochs=3, train_ds=Shuffling(0))
    (said,) = caplog.messages
    assert "resumed in epoch 1" in said
    caplog.clear()
    run(tmp_path / "other", num_epochs=2, train_ds=Shuffling(0))
    assert not caplog.messages  # where all passes are of one process, all is well
    run(tmp_path / "other", num_epochs=3, train_ds=Shuffling(0))
    (said,) = caplog.messages
    assert "resumed in epoch 2" in said


@pytest.mark.parametrize(
    "make",
    [
        lambda: [(X[:6], Y[:6]), (X[6:], Y[6:])],
        lambda: shuffled,
        Told,
        lambda: (
            grain.MapDataset.range(4).shuffle(seed=7).map(lambda i: (X[:6] * i, Y[:6])).repeat(1)
        ),
    ],
    ids=["list", "function of the epoch", "set_epoch", "grain"],
)
def test_of_others_nothing_is_said(tmp_path, make, caplog):
    assert not resumed_in_each_epoch(tmp_path, make, caplog)
