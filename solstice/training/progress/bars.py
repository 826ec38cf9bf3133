"""The bar of a pass over a dataset, and the line of an epoch where no bar can be drawn.

A bar is drawn in terminals and notebooks at tqdm's pace. Elsewhere, as in a log file, each epoch is
one line. Neither waits for the device before a pass ends. A failure to draw does not end the run;
it is logged once.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Self

from tqdm import tqdm
from tqdm.utils import disp_len

from solstice.arguments import describe
from solstice.errors import EarlyStoppingException, InvalidTypeError
from solstice.training.progress.places import (
    Cell,
    Losing,
    Place,
    Terminal,
    is_notebook,
    is_terminal,
)
from solstice.training.progress.running import Running

_logger = logging.getLogger("solstice")

ProgressChoice = bool | str | Sequence[str]

# A notebook does not tell its width; so many columns fit next to its list of files.
_NOTEBOOK_WIDTH = 80
# tqdm's width of a bar if a line has no width, and how narrow one may become until it is full.
_BAR, _LEAST = 10, 3
# With the column that tqdm leaves free, it holds the `^C` that a terminal shows on Ctrl-C.
_SPARE = 1
_NEVER = float("inf")
# The time that a pass still takes.
_LEFT = "<{remaining}"


class Progress:
    """What one call of `train`, `test` or `predict` shows.

    Args:
        shown: Whether to show anything; names choose the metrics shown next to the bar.

    >>> with Progress(False).one_pass("predict", total=3) as bar:
    ...     bar.update(1)
    """

    def __init__(self, shown: ProgressChoice) -> None:
        names = (shown,) if isinstance(shown, str) else shown
        self.names = None if isinstance(names, bool) else tuple(names)
        self._shown = shown is not False
        self.losing = Losing(
            "The progress cannot be shown: %s: %s. The run continues; this is logged only once."
        )
        # If epochs are lines: the line and the metrics of the epoch's last pass, by mode, and the
        # training pass that is not over.
        self._passes: dict[str, tuple[str, str]] = {}
        self.training: _Shown | None = None

    def one_pass(
        self, title: str, *, mode: str = "test", total: int | None = None, done: int = 0
    ) -> "Pass":
        """Return a context manager, to be updated during a pass.

        Args:
            title: What the pass is called.
            mode: "train", "val" or "test".
            total: How many steps there are; None if not known.
            done: How many of them a run before the resume has done.
        """
        if self._shown:
            with self.losing:
                return _Shown(self, title, mode, total, done)
        return Pass()

    def note(self, mode: str, line: str, metrics: str) -> None:
        """Keep the line of a pass until its epoch ends; one in the middle of it is written."""
        if mode == "val" and self.training is not None:
            line, mode = f"{self.training.line()}, val:", "middle"
        self._passes[mode] = line, metrics
        if mode not in ("train", "val"):
            self.end_epoch()

    def end_epoch(self) -> None:
        """Write the line of the epoch, if epochs are lines."""
        said = [f"{line} {metrics}".rstrip() for line, metrics in self._passes.values()]
        if "train" in self._passes and "val" in self._passes:
            validation = self._passes["val"][1]
            said = [" ".join(self._passes["train"]).rstrip()]
            said[0] += f", val: {validation}" if validation else ""
        self._passes.clear()
        if said and sys.stderr is not None:
            with self.losing:
                sys.stderr.write("\n".join([*said, ""]))
                sys.stderr.flush()

    def say(self, line: str) -> None:
        """Write a line above the bar; if nothing is shown, to the logger "solstice"."""
        if not self._shown:
            _logger.info("%s", line)
            return
        with self.losing:
            tqdm.write(line, file=sys.stderr)


class Pass:
    """A pass that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        return

    def compiling(self) -> contextlib.AbstractContextManager[None]:
        """Show that the first step is compiling."""
        return contextlib.nullcontext()

    def update(self, steps: int, outs: object = None) -> None:
        """Record that some steps were taken, and what they returned."""


class _Shown(Pass):
    """A pass with a bar, or with a line in a log file."""

    def __init__(
        self, progress: Progress, title: str, mode: str, total: int | None, done: int
    ) -> None:
        self._progress, self._mode = progress, mode
        self._running = Running(progress.names)
        with contextlib.ExitStack() as opened:
            if is_notebook():
                self._place, width = Cell(), {"ncols": _NOTEBOOK_WIDTH}
            elif is_terminal(sys.stderr):
                self._place, width = (
                    opened.enter_context(Terminal.opened()),
                    {"dynamic_ncols": True},
                )
            else:
                # Its position is a line that tqdm gives to no bar of the user's.
                self._place, total = Place(), None
                width = {"miniters": _NEVER, "maxinterval": _NEVER, "position": 1000}
                if mode == "train":
                    progress.end_epoch()
                    progress.training = self
            self._bar = Bar(
                self._running, total, initial=done, desc=title, file=self._place, **width
            )
            self._open = opened.pop_all()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        self._bar.state = "compiling"
        with self._progress.losing:
            self._bar.refresh()
        try:
            yield
        finally:
            self._bar.state = ""

    def update(self, steps: int, outs: object = None) -> None:
        self._running.add(outs)
        try:
            self._bar.update(steps)
        except Exception as error:  # noqa: BLE001 - as in `losing`, and quicker at each step
            self._progress.losing.tell(error)

    def line(self) -> str:
        """Return the bar's line without metrics."""
        self._bar.final = ()
        return str(self._bar)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._progress.losing, self._open:
            ended = error is None or isinstance(error, EarlyStoppingException)
            metrics = self._running.end() if ended else ()
            if not self._place.draws:
                if self._mode == "train":
                    self._progress.training = None
                self._progress.note(self._mode, self.line(), " ".join(metrics))
            elif ended:
                self._bar.final = metrics
                # A finished validation leaves only its metrics.
                self._bar.leave = bool(metrics) or self._mode != "val"
            self._place.end_line()
            self._bar.close()
            self._running.drop()


class Bar(tqdm):
    """A bar whose line ends with a state or the rate, and as many metrics as fit.

    Attributes:
        state: What the run does instead of steps, shown in place of the rate; empty during steps.
        final: The metrics of the whole pass, once it is over.
    """

    def __init__(self, running: Running, total: int | None, **options: Any) -> None:
        self._running = running
        self.state = ""
        self.final: tuple[str, ...] | None = None
        known = f"{{desc}} |{{bar}}| {{n_fmt}}/{{total_fmt}} [{{elapsed}}{_LEFT}{{beside}}"
        unknown = "{desc}: {n_fmt} {steps} [{elapsed}{beside}"
        super().__init__(total=total, bar_format=known if total else unknown, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The values from which tqdm draws a line; it reads them once per line."""
        now = dict(super().format_dict)
        average = (now["n"] - now["initial"]) / now["elapsed"] if now["elapsed"] else None
        state = self.state or _rate(now["rate"] or average)
        metrics = self._running.look() if self.final is None else self.final
        now["steps"] = "step" if now["n"] == 1 else "steps"
        least = _LEAST
        if self.final is not None:
            now["bar_format"], least = now["bar_format"].replace(_LEFT, ""), 1
        room = float("inf")
        if now["ncols"]:
            now["ncols"] -= _SPARE
            line = tqdm.format_meter(**now | {"beside": "", "ncols": None})
            room = now["ncols"] - disp_len(line) + (_BAR - least if now["total"] else 0)
        return now | {"beside": _fitting(state, metrics, room)}


def check_progress(progress: object) -> None:
    """Raise a TypeError unless it is a bool or names of metrics."""
    names = [progress] if isinstance(progress, str) else progress
    several = isinstance(names, Sequence) and all(isinstance(one, str) and one for one in names)
    if not (isinstance(progress, bool) or several):
        raise InvalidTypeError(
            f"progress is expected to be True, False, or the names of the metrics to show, such as "
            f"('loss', 'f1_macro'); it is {describe(progress)}."
        )


def _fitting(state: str, metrics: tuple[str, ...], room: float) -> str:
    """Return what fits, metrics before the rate; a truncated number would be misleading.

    >>> for room in (43, 30, 16, 4):
    ...     print(_fitting("12.3 steps/s", ("loss=0.5000", "accuracy=0.7500"), room))
    , 12.3 steps/s] loss=0.5000 accuracy=0.7500
    ] loss=0.5000 accuracy=0.7500
    ] loss=0.5000
    ]
    """
    for count in range(len(metrics), -1, -1):
        shown = " ".join(["]", *metrics[:count]])
        for text in (f", {state}{shown}", shown):
            if disp_len(text) <= room:
                return text
    return "]"


def _rate(rate: float | None) -> str:
    """Return steps per second as a string, or seconds per step.

    >>> _rate(1234.5), _rate(12.34), _rate(0.25), _rate(None)
    ('1234 steps/s', '12.3 steps/s', '4.00 s/step', '? steps/s')
    """
    if not rate:
        return "? steps/s"
    text = f"{max(rate, 1 / rate):#.3g}" if 1e-3 < rate < 1e3 else f"{max(rate, 1 / rate):.0f}"
    return f"{text.rstrip('.')} {'steps/s' if rate >= 1 else 's/step'}"
