"""The bar of a pass over a dataset, and the line of an epoch where no bar can be drawn.

A bar is drawn in terminals and notebooks at tqdm's pace. Elsewhere, as in a log file, each epoch is
one line. Neither asks the device for anything in between, and neither ends a run: what it cannot
show is lost, which is said once.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from tqdm import tqdm
from tqdm.utils import disp_len

from solstice.arguments import describe
from solstice.errors import EarlyStoppingException, InvalidTypeError
from solstice.training.progress.places import Cell, Terminal, is_notebook, is_terminal
from solstice.training.progress.running import Running

_logger = logging.getLogger("solstice")

ProgressChoice = bool | str | Sequence[str]

# A notebook says nothing of its width.
_NOTEBOOK_WIDTH = 100
_BAR = 10


class Progress:
    """What one call of `train`, `test` or `predict` shows of itself.

    Args:
        shown: Whether to show anything; names choose the metrics beside the bar.

    >>> with Progress(False).one_pass("predict", total=3) as bar:
    ...     bar.update(1)
    """

    def __init__(self, shown: ProgressChoice) -> None:
        shown = (shown,) if isinstance(shown, str) else shown
        names = (shown,) if isinstance(shown, str) else shown
        self._names = None if isinstance(names, bool) else tuple(names)
        self._failed = False
        self._place: type[Terminal | Cell] | None = None
        self._shown = shown is not False
        if self._shown:
            with self.losing_what_fails():
                self._place = _place()
        # Where epochs are lines: by mode, the line and the metrics of the epoch's last pass.
        self._passes: dict[str, tuple[str, str]] = {}

    def one_pass(
        self, title: str, *, mode: str = "test", total: int | None = None, done: int = 0
    ) -> "_Silent | _Drawn | _Counted":
        """Return what is to be updated during a pass, a context manager.

        Args:
            title: What the pass is called.
            mode: "train", "val" or "test".
            total: How many steps there are; None if nobody knows.
            done: How many of them an earlier run has done.
        """
        if not self._shown:
            return _Silent()
        running = Running(self._names)
        if self._place is not None:
            with self.losing_what_fails():
                return _Drawn(self, self._place, title, mode, running, total, done)
            return _Silent()
        if mode == "train":
            self.end_epoch()
        return _Counted(self, title, mode, running, done)

    def end_epoch(self) -> None:
        """Write the line of the epoch, where epochs are lines."""
        said = [f"{line} {metrics}".rstrip() for line, metrics in self._passes.values()]
        if "train" in self._passes and "val" in self._passes:
            line, metrics = self._passes["train"]
            validation = self._passes["val"][1]
            said = [f"{line} {metrics}".rstrip() + (f", val: {validation}" if validation else "")]
        self._passes.clear()
        if said and sys.stderr is not None:
            with self.losing_what_fails():
                sys.stderr.write("\n".join([*said, ""]))
                sys.stderr.flush()

    def say(self, line: str) -> None:
        """Write a line above the bar; where nothing is shown, to the logger "solstice"."""
        if not self._shown:
            _logger.info("%s", line)
            return
        with self.losing_what_fails():
            tqdm.write(line, file=sys.stderr)

    def note(self, mode: str, line: str, metrics: str) -> None:
        """Keep what a pass says until its epoch ends."""
        self._passes[mode] = line, metrics

    @contextlib.contextmanager
    def losing_what_fails(self) -> Iterator[None]:
        """Go on behind what fails to be shown."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - what only shows ends no run
            if not self._failed:
                self._failed = True
                _logger.warning(
                    "The progress cannot be shown: %s: %s. The run goes on; this is said once.",
                    type(error).__name__,
                    error,
                )


class _Silent:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        return

    def compiling(self) -> contextlib.AbstractContextManager[None]:
        """Say, while the first step is taken, that it is compiled."""
        return contextlib.nullcontext()

    def update(self, steps: int, outs: Any = None) -> None:
        return


class _Drawn:
    """A bar at the foot of a terminal or in a notebook's cell."""

    def __init__(
        self,
        progress: Progress,
        kind: type[Terminal | Cell],
        title: str,
        mode: str,
        running: Running,
        total: int | None,
        done: int,
    ) -> None:
        self._progress = progress
        self._optional = mode == "val"
        self._running = running
        self._beside = _Beside(running)
        known = "{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}"
        with contextlib.ExitStack() as opened:
            self._place = opened.enter_context(kind.shared())
            self._bar = self._beside.bar = tqdm(
                total=total,
                initial=done,
                desc=title,
                file=self._place,
                ncols=_NOTEBOOK_WIDTH if kind is Cell else None,
                dynamic_ncols=kind is Terminal,
                bar_format=known if total else "{desc}: {n_fmt} steps [{elapsed}{postfix}",
                postfix=self._beside,  # pyright: ignore[reportArgumentType]
            )
            self._open = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Say, while the first step is taken, that it is compiled."""
        title = self._bar.desc
        with self._progress.losing_what_fails():
            self._bar.set_description_str(f"{title}, compiling")
        try:
            yield
        finally:
            with self._progress.losing_what_fails():
                self._bar.set_description_str(title, refresh=False)

    def update(self, steps: int, outs: Any = None) -> None:
        """Note that some steps were taken, and what they returned."""
        self._running.add(outs)
        try:
            self._bar.update(steps)
        except Exception as error:  # noqa: BLE001 - as in `losing_what_fails`
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        with self._progress.losing_what_fails():
            try:
                raise error
            finally:
                self._bar.close()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self._progress.losing_what_fails(), self._open:
            if _is_end(error):
                self._beside.final = self._running.end()
                # The trace of a validation is its metrics.
                self._bar.leave = bool(self._beside.final) or not self._optional
            self._place.end_line()
            self._bar.close()
            self._running.drop()


class _Beside:
    """The rate and the metrics, as a text that tqdm asks for whenever it draws, and never else."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._of: Any = None
        self._text = ""
        self.bar: tqdm | None = None
        self.final: tuple[str, ...] | None = None

    def __str__(self) -> str:
        if self.bar is None:
            return "]"
        now = self.bar.format_dict
        of = now["n"], now["ncols"], self.final
        if of != self._of:  # tqdm asks several times for one drawing
            metrics = self._running.look() if self.final is None else self.final
            average = (now["n"] - now["initial"]) / now["elapsed"] if now["elapsed"] else None
            text = _fitting(_rate(now["rate"] or average), metrics, _room(now))
            self._of, self._text = of, text
        return self._text


def _room(now: Mapping[str, Any]) -> float:
    """Return how many columns a line leaves to what is beside its bar, of one column at least."""
    if not now["ncols"]:
        return float("inf")
    line: dict[str, Any] = {**now, "postfix": None, "ncols": None}
    without = tqdm.format_meter(**line)
    bar = _BAR - 1 if now["total"] else 0  # tqdm's own choice for a width that it does not know
    return now["ncols"] - (disp_len(without) - bar)


def _fitting(rate: str, metrics: tuple[str, ...], room: float) -> str:
    """Return what has room, the metrics before the rate: half a number would be another number.

    >>> for room in (43, 30, 16, 4):
    ...     print(_fitting("12.3 steps/s", ("loss=0.5000", "accuracy=0.7500"), room))
    , 12.3 steps/s] loss=0.5000 accuracy=0.7500
    ] loss=0.5000 accuracy=0.7500
    ] loss=0.5000
    ]
    """
    for count in range(len(metrics), -1, -1):
        shown = " ".join(["]", *metrics[:count]])
        for text in (f", {rate}{shown}", shown):
            if disp_len(text) <= room:
                return text
    return "]"


class _Counted:
    """A line where no bar can be drawn, written when the epoch ends."""

    def __init__(
        self, progress: Progress, title: str, mode: str, running: Running, done: int
    ) -> None:
        self._progress = progress
        self._title, self._mode = title, mode
        self._running = running
        self._done = self._steps = done

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        return self

    def compiling(self) -> contextlib.AbstractContextManager[None]:
        """Say nothing: a line is written when the epoch ends."""
        return contextlib.nullcontext()

    def update(self, steps: int, outs: Any = None) -> None:
        """Note that some steps were taken, and what they returned."""
        self._running.add(outs)
        self._steps += steps

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        metrics = " ".join(self._running.end()) if _is_end(error) else ""
        self._running.drop()
        elapsed = time.monotonic() - self._start
        rate = _rate((self._steps - self._done) / elapsed if elapsed else None)
        line = f"{self._title}: {self._steps} steps [{tqdm.format_interval(elapsed)}, {rate}]"
        self._progress.note(self._mode, line, metrics)
        if self._mode not in ("train", "val"):
            self._progress.end_epoch()


def check_progress(progress: Any) -> None:
    """Raise a TypeError if that is no truth and no names of metrics."""
    names = [progress] if isinstance(progress, str) else progress
    several = isinstance(names, Sequence) and all(isinstance(one, str) and one for one in names)
    if not (isinstance(progress, bool) or several):
        raise InvalidTypeError(
            f"progress is expected to be True, False, or the names of the metrics to show, such as "
            f"('loss', 'f1_macro'); it is {describe(progress)}."
        )


def _place() -> type[Terminal | Cell] | None:
    if is_notebook():
        return Cell
    return Terminal if is_terminal(sys.stderr) else None


def _is_end(error: BaseException | None) -> bool:
    return error is None or isinstance(error, EarlyStoppingException)


def _rate(rate: float | None) -> str:
    """Return steps per second as a text, or seconds per step.

    >>> _rate(1234.5), _rate(12.34), _rate(0.25), _rate(None)
    ('1234 steps/s', '12.3 steps/s', '4.00 s/step', '? steps/s')
    """
    if not rate:
        return "? steps/s"
    text = f"{max(rate, 1 / rate):#.3g}" if 1e-3 < rate < 1e3 else f"{max(rate, 1 / rate):.0f}"
    return f"{text.rstrip('.')} {'steps/s' if rate >= 1 else 's/step'}"
