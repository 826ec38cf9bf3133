"""The progress bar: in a real pseudo-terminal, in a log file, and what it costs nobody."""

import fcntl
import itertools
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

import solstice
from solstice.loggers import Console
from solstice.metrics import ClassificationMetrics, Collect
from solstice.training.progress.running import Running
from solstice.triggers import Every


@pytest.fixture(autouse=True)
def _usual_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


class Terminal:
    """A pseudo-terminal that standard output and error are for a while, and what one sees in it."""

    def __init__(self, columns=100):
        self._columns = columns
        self._written = b""

    def __enter__(self):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, self._columns, 0, 0))
        self._before = sys.stdout, sys.stderr
        ends = theirs, os.dup(theirs)
        sys.stdout, sys.stderr = (
            os.fdopen(end, "w", buffering=1, encoding="utf-8") for end in ends
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self):
        while True:
            try:
                self._written += os.read(self._ours, 65536)
            except OSError:  # how Linux says that nobody has it open any more
                return

    def __exit__(self, *error):
        sys.stdout.close()
        sys.stderr.close()
        sys.stdout, sys.stderr = self._before
        self._reader.join()
        os.close(self._ours)

    def screens(self):
        """What it showed whenever the cursor went back to a line's start, and shows at the end."""
        lines, row, column, shown = [""], 0, 0, []
        for token in re.findall(r"\x1b\[[AK]|.", self._written.decode(), re.DOTALL):
            if token == "\r":
                shown.append(list(lines))
                column = 0
            elif token == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif token == "\x1b[A":
                row -= 1
            elif token == "\x1b[K":
                lines[row] = lines[row][:column]
            else:
                assert token.isprintable(), repr(token)
                line = lines[row].ljust(column)
                lines[row] = line[:column] + token + line[column + 1 :]
                column += 1
        return [[line.rstrip() for line in screen if line.strip()] for screen in [*shown, lines]]

    def shapes(self):
        """What it shows at the end, without what depends on the clock."""
        return list(map(shape_of, self.screens()[-1]))


class At(solstice.Callback):
    """Does something after some training steps."""

    def __init__(self, **actions):
        self._actions = {int(name.removeprefix("step")): what for name, what in actions.items()}

    def on_step_end(self, outs, exp, global_step, mode, batch):
        if mode == "train" and global_step in self._actions:
            self._actions[global_step]()


def shape_of(line):
    """A bar's line without what depends on the clock, and without the bar."""
    return re.sub(r"\|.*?\|", "||", re.sub(r"\[.*\]", "[]", line))


def test_a_terminal_shows_each_pass_with_its_metrics(train):
    with Terminal() as terminal:
        train(2, [1, 2, 6], [4, 5], progress=True)
    assert terminal.shapes() == [
        "epoch 0/1 || 3/3 [] mean=3.000 count=3",
        "epoch 0/1 val || 2/2 [] mean=4.500 count=2",
        "epoch 1/1 || 3/3 [] mean=3.000 count=3",
        "epoch 1/1 val || 2/2 [] mean=4.500 count=2",
    ]


def test_the_bar_says_so_while_the_first_step_of_each_mode_compiles(adding):
    class Compiled(type(adding)):
        train_step = solstice.jit(type(adding).train_step)
        eval_step = solstice.jit(type(adding).eval_step)

    def shown(exp):
        batches = [jnp.asarray(1.0)] * 2
        with Terminal() as terminal:
            solstice.train(exp, 2, batches, batches)
        found = {line for lines in terminal.screens() for line in lines if "compiling]" in line}
        return {line.split(" |")[0] for line in found}, terminal.shapes()

    titles, last = shown(Compiled(adding.total, adding.evaluated))
    assert titles == {"epoch 0/1", "epoch 0/1 val"}
    assert not any("compiling" in line for line in last)
    assert shown(adding)[0] == set()  # jax compiles no step of these as a whole


def test_the_bar_has_the_time_passed_and_left_and_the_rate(train):
    with Terminal() as terminal:
        train(1, [1, 2], progress=True)
    (line,) = terminal.screens()[-1]
    assert re.fullmatch(
        r"epoch 0 \|█+\| 2/2 \[00:0\d, [\d.]+ (steps/s|s/step)\] mean=1.500 count=2", line
    )


def test_the_metrics_are_there_while_it_runs(train):
    actions = {f"step{i}": lambda: print("a line of the user's") for i in range(10, 90)}
    with Terminal() as terminal:
        train(1, list(range(100)), callbacks=[At(**actions)], progress=True)
    lines = [screen[-1] for screen in terminal.screens() if screen and "/100 [" in screen[-1]]
    assert any(" mean=" in line and "| 100/100" not in line for line in lines)


def test_all_of_it_fits_into_80_columns(capsys):
    class Classifies(solstice.Experiment):
        def train_step(self, batch):
            return self, ClassificationMetrics([0, 1, 1], [0, 0, 1], 0.25, num_classes=2)

        eval_step = train_step

    with Terminal(columns=80) as terminal:
        solstice.train(Classifies(), 1, [0] * 250)
    solstice.train(Classifies(), 1, [0, 0], progress=("loss", "f1_macro"))
    assert capsys.readouterr().err.endswith("] loss=0.2500 f1_macro=0.6667\n")
    (line,) = terminal.screens()[-1]
    assert len(line) < 80 and line.endswith("] loss=0.2500 accuracy=0.6667")
    assert re.search(r"\|█+\| 250/250 \[\d\d:\d\d, ", line)


@pytest.mark.parametrize("columns", [20, 36, 50, 60, 64, 72, 79])
def test_a_narrow_terminal_gets_whole_numbers_or_none(train, columns):
    options = {"progress": ("mean", "count")}
    with Terminal(columns=columns) as terminal:
        train(1, list(range(100)), [1.0] * 20, **options)
        train(1, lambda: iter(range(30)), **options)
    lines = [line for screen in terminal.screens() for line in screen]
    # What a terminal echoes of Ctrl-C fits behind it, so that the next drawing erases it.
    assert max(map(len, lines)) <= columns - len("^C")
    ends = {re.sub(r".*\]", "", line) for line in lines if "]" in line}
    assert all(re.fullmatch(r"( mean=\d+\.\d+)?( count=\d+)?", end) for end in ends), ends
    last = [line for line in terminal.screens()[-1] if "val" not in line]
    assert columns < 50 or ("mean=49.50" in last[0] and "mean=14.50" in last[-1])
    assert columns < 60 or ("count=100" in last[0] and "count=30" in last[-1])


def test_what_others_write_goes_above_the_bar(train):
    logger = logging.getLogger("others")

    def dots():
        print("dots", end="")
        print("...", end="", flush=True)

    def table():
        sink = Console(["loss"])
        sink.write({"mode": "train", "epoch": 0, "step": 9, "loss": 0.5})
        sink.close()

    actions = At(
        step1=lambda: print("printed"),
        step2=lambda: logger.warning("logged"),
        step3=lambda: sys.stderr.write("an error\n"),
        step4=dots,
        step5=lambda: print(" done\ntwo lines at once"),
        step6=lambda: print(),
        step7=lambda: tqdm.write("written by tqdm"),
        step8=table,
        step9=lambda: print("unfinished", end=""),
    )
    with Terminal() as terminal:
        handler = logging.StreamHandler()  # holds the stream from before
        logger.addHandler(handler)
        train(1, list(range(10)), callbacks=[actions], progress=True)
        logger.removeHandler(handler)
        print("after")
    screens = terminal.screens()
    expected = [
        "printed",
        "logged",
        "an error",
        "dots... done",
        "two lines at once",
        "written by tqdm",
        "mode   epoch     step       loss",
        "train      0        9        0.5",
        "unfinished",
        "epoch 0 || 10/10 [] mean=4.500 count=10",
        "after",
    ]
    assert terminal.shapes() == expected
    bars = [line for screen in screens for line in screen if "epoch 0" in line]
    assert bars and all(line.startswith("epoch 0 |") for line in bars)
    others = [[line for line in screen if "epoch 0" not in line] for screen in screens]
    for before, after in itertools.pairwise(others):  # what was there stays there
        assert all(b.startswith(a) for a, b in zip(before, after, strict=False)), (before, after)


def test_the_streams_are_theirs_again_after_a_run(train):
    with Terminal() as terminal:
        train(1, [1, 2], progress=True)
        with pytest.raises(ZeroDivisionError):
            train(1, [1, 2], callbacks=[At(step0=lambda: 1 / 0)], progress=True)
        print("an error came")
        assert "write" not in vars(sys.stdout) and "write" not in vars(sys.stderr)
    first, second, third = terminal.shapes()
    assert first == "epoch 0 || 2/2 [] mean=1.500 count=2"
    assert second.startswith("epoch 0 || 1/2 []")
    assert third == "an error came"


def test_a_bar_of_the_users_own_and_a_run_within_a_run(train):
    def own():
        for _ in tqdm(range(3), desc="mine"):
            print("inside")

    inner = At(step1=lambda: train(1, [7], progress=True))
    with Terminal() as terminal:
        train(1, [1, 2, 3], callbacks=[At(step0=own)], progress=True)
        train(1, [1, 2, 3], callbacks=[inner], progress=True)
    lines = terminal.shapes()
    assert lines[-2:] == [
        "epoch 0 || 1/1 [] mean=7.000 count=1",
        "epoch 0 || 3/3 [] mean=2.000 count=3",
    ]


def test_prints_and_bars_of_the_users_own_stay_whole(train, capsys):
    def own():
        for number in tqdm(range(3), desc="mine", mininterval=0):
            print("inside", number)

    with Terminal() as terminal:
        train(1, [1, 2, 3], callbacks=[At(step0=own)], progress=True)
        for _ in tqdm(range(2), desc="outer", mininterval=0):
            train(1, [4], callbacks=[At(step0=lambda: print("printed"))], progress=True)
    assert terminal.shapes() == [
        *(f"inside {number}" for number in range(3)),
        "mine: 100%|| 3/3 []",
        "epoch 0 || 3/3 [] mean=2.000 count=3",
        *("printed", "epoch 0 || 1/1 [] mean=4.000 count=1") * 2,
        "outer: 100%|| 2/2 []",
    ]
    train(1, [1, 2, 3], callbacks=[At(step0=own)], progress=True)
    assert "\x1b" not in capsys.readouterr().err  # the only bar there is the user's


def test_validations_within_an_epoch_and_datasets_without_a_length(train):
    options = {"validate_every": Every(steps=3), "progress": True}
    with Terminal() as terminal:
        train(1, lambda: iter(range(6)), lambda: iter([7.0]), **options)
    assert terminal.shapes() == [
        "epoch 0, step 3 val: 1 step [] mean=7.000 count=1",
        "epoch 0, step 6 val || 1/1 [] mean=7.000 count=1",
        "epoch 0: 6 steps [] mean=2.500 count=6",
    ]


def test_several_steps_a_call_count_as_several(train):
    with Terminal() as terminal:
        train(1, list(range(7)), steps_per_call=3, progress=True)
    assert terminal.shapes() == ["epoch 0 || 7/7 [] mean=3.000 count=7"]


@pytest.mark.parametrize("progress", [False, True])
def test_a_log_file_gets_one_line_an_epoch_and_silence_none(train, capsys, progress):
    train(2, [1, 2, 6], [4, 5], progress=progress)
    train(1, [1, 2], progress=progress)
    train(1, [1, 2, 3, 4], [5], validate_every=Every(steps=2), progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [
        "epoch 0/1: 3 steps [] mean=3.000 count=3, val: mean=4.500 count=2",
        "epoch 1/1: 3 steps [] mean=3.000 count=3, val: mean=4.500 count=2",
        "epoch 0: 2 steps [] mean=1.500 count=2",
        "epoch 0: 2 steps [], val: mean=5.000 count=1",
        "epoch 0: 4 steps [], val: mean=5.000 count=1",
        "epoch 0: 4 steps [] mean=2.500 count=4",
    ]
    assert list(map(shape_of, err.splitlines())) == (lines if progress else [])


@pytest.mark.parametrize(("term", "columns"), [("dumb", 100), ("xterm", 0)])
def test_a_terminal_that_cannot_erase_gets_lines(train, monkeypatch, term, columns):
    monkeypatch.setenv("TERM", term)
    with Terminal(columns) as terminal:
        train(2, [1, 2, 6], [4, 5], progress=True)
    assert terminal.shapes() == [
        "epoch 0/1: 3 steps [] mean=3.000 count=3, val: mean=4.500 count=2",
        "epoch 1/1: 3 steps [] mean=3.000 count=3, val: mean=4.500 count=2",
    ]
    assert b"\x1b" not in terminal._written


def test_a_notebook_gets_a_line_of_its_own_a_pass(train, monkeypatch, capsys):
    shown = []

    class Handle:
        def __init__(self, data):
            self._at = len(shown)
            shown.append(data["text/plain"])

        def update(self, data, raw):
            shown[self._at] = data["text/plain"]

    kernel = SimpleNamespace(config={"IPKernelApp": {}})
    display = SimpleNamespace(display=lambda data, raw, display_id: Handle(data))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    train(1, [1, 2, 6], [4, 5], progress=True)
    assert list(map(shape_of, shown)) == [
        "epoch 0 || 3/3 [] mean=3.000 count=3",
        "epoch 0 val || 2/2 [] mean=4.500 count=2",
    ]
    assert all(re.search(r" steps?/s| s/step", line) for line in shown)
    assert max(map(len, shown)) < 80  # more wrap in a small window
    assert capsys.readouterr() == ("", "")


def test_a_test_and_a_prediction_are_a_line_each(adding, capsys):
    solstice.test(adding, [1, 2], return_outs=True)
    solstice.predict(adding, [np.ones(2)] * 3)
    lines = list(map(shape_of, capsys.readouterr().err.splitlines()))
    assert lines == ["test: 2 steps [] mean=1.500 count=2", "predict: 3 steps []"]


def test_a_failed_run_says_how_far_it_came(train, capsys):
    with pytest.raises(ZeroDivisionError):
        train(2, [1, 2, 3], callbacks=[At(step4=lambda: 1 / 0)], progress=True)
    lines = list(map(shape_of, capsys.readouterr().err.splitlines()))
    assert lines == ["epoch 0/1: 3 steps [] mean=2.000 count=3", "epoch 1/1: 2 steps []"]


@pytest.mark.parametrize("steps", [1, 7, 65, 200])
def test_a_pass_ends_with_what_a_callback_logs_of_it(train, capsys, steps):
    history = solstice.HistoryCallback()
    console = solstice.LoggingCallback(logging_fn=Console())
    values = list(range(steps))
    train(2, values, values[::2], [history, console], progress=True)
    out, err = capsys.readouterr()
    rows = [row.split() for row in out.splitlines()[1:]]
    records = history.records
    assert [row[:2] for row in rows] == [[one["mode"], str(one["epoch"])] for one in records]
    assert [float(row[3]) for row in rows] == pytest.approx([one["mean"] for one in records], 1e-3)
    lines = err.splitlines()
    for epoch, line in enumerate(lines):
        found = re.fullmatch(
            r"epoch (\d+)/1: .* mean=(\S+) count=(\d+), val: mean=(\S+) count=(\d+)", line
        )
        number, mean, count, val_mean, val_count = map(float, found.groups())
        trained, validated = history.records[2 * epoch : 2 * epoch + 2]
        assert number == epoch == trained["epoch"]
        assert (
            (count, val_count) == (trained["count"], validated["count"]) == (steps, -(-steps // 2))
        )
        assert mean == pytest.approx(trained["mean"], rel=1e-3)
        assert val_mean == pytest.approx(validated["mean"], rel=1e-3)


def test_names_choose_the_metrics_and_a_wrong_one_is_told_once(train, capsys, caplog):
    train(2, [1, 2], progress="count")
    train(2, [1, 2], progress=["mean", "acuracy"])
    lines = list(map(shape_of, capsys.readouterr().err.splitlines()))
    assert [line.split("] ")[1] for line in lines] == ["count=2"] * 2 + ["mean=1.500"] * 2
    assert caplog.messages == [
        "The progress bar has no 'acuracy'. compute() returns numbers named mean, count."
    ]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("progress", [3, None, ["loss", 3]])
def test_other_values_are_refused_before_the_first_step(train, adding, progress):
    events = []
    with pytest.raises(TypeError, match="True, False, or the names of the metrics"):
        train(1, lambda: iter(events), progress=progress)
    with pytest.raises(TypeError, match="it is"):
        solstice.test(adding, [1], return_outs=True, progress=progress)
    with pytest.raises(TypeError, match="it is"):
        solstice.predict(adding, [np.ones(2)], progress=progress)


class Odd(solstice.Metrics):
    """Metrics that no compiler follows."""

    total: jax.Array

    def merge(self, other):
        return Odd(self.total + other.total)

    def compute(self):
        return {"total": float(self.total)}


@pytest.mark.parametrize(
    "outs",
    [None, 3.0, {"loss": 0.5}, Odd(jnp.ones(())), Collect(values=jnp.ones(3))],
    ids=lambda outs: type(outs).__name__,
)
def test_outs_that_it_cannot_show_are_left_out(outs):
    running = Running(None)
    for _ in range(3):
        running.add(outs)
    assert running.look() == running.look() == running.end() == ()


def test_nothing_is_waited_for_before_the_end_of_a_pass(mean):
    @jax.jit
    def slow(x):
        start = jnp.full((500, 500), x)
        return jax.lax.fori_loop(0, 300, lambda i, m: jnp.tanh(m @ m), start).mean() * 0 + x

    slow(1.0).block_until_ready()
    running = Running(None)
    running.add(mean([1.0]))
    running.look()
    running._numbers["mean"].block_until_ready()
    for value in (1.0, 5.0):
        late = solstice.replace(mean([value]), total=slow(value))
        running.add(late)
        texts = [running.look(), running.look(), running.look()]
        assert not late.total.is_ready()  # so none of these waited
        assert texts[1:] == [("mean=1.000", "count=1")] * 2
    assert running.end() == ("mean=2.333", "count=3")


def test_drawing_changes_nothing_of_what_a_pass_ends_with(mean):
    """Nor does it compile anew: what is drawn is merged apart from what a pass ends with."""
    looked_at, left = Running(None), Running(None)
    for value in range(150):
        for running in (looked_at, left):
            running.add(mean([float(value)]))
        if value % 5 == 0:
            looked_at.look()
        assert len(looked_at._outs) == len(left._outs)
    jax.block_until_ready(list(looked_at._numbers.values()))
    assert looked_at.look() == ("mean=72.50", "count=146")
    assert looked_at.end() == left.end() == ("mean=74.50", "count=150")


def test_few_outs_are_kept_alive_and_fewer_large_ones(mean):
    running, large = Running(None), Running(None)
    for value in range(200):
        running.add(mean([float(value)]))
        assert len(running._outs) <= 64
    for value in range(9):
        large.add(solstice.replace(mean([1.0]), total=jnp.full(10**6, float(value))))
        assert len(large._outs) <= 4  # 16 MiB


class Growing(solstice.Metrics):
    """Metrics that keep all they saw."""

    values: jax.Array

    def merge(self, other):
        return Growing(jnp.concatenate([self.values, other.values]))

    def compute(self):
        return {"mean": self.values.mean()}


class Unmergeable(Growing):
    def merge(self, other):
        raise ZeroDivisionError("at a merge")


@pytest.mark.parametrize("kind", [Growing, Unmergeable])
@pytest.mark.parametrize("steps", [2, 70])
def test_metrics_that_grow_or_fail_to_merge_are_left_out_and_end_nothing(
    train, caplog, kind, steps
):
    class Steps(solstice.Experiment):
        def train_step(self, batch):
            return self, kind(jnp.ones(2))

        eval_step = train_step

    with caplog.at_level(logging.INFO, logger="solstice"):
        solstice.train(Steps(), 1, [0] * steps, [0] * steps)
    ours = [record.getMessage() for record in caplog.records if record.name == "solstice"]
    told = {message.split(":")[0] for message in ours}
    assert told == {"The progress bar shows no metrics, since they cannot be merged or computed"}
