"""Learning curves: each metric over the training steps, with one line per mode."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.errors import InvalidValueError
from solstice.loggers.json_lines import read_json_lines
from solstice.metrics.named import reported_name
from solstice.plots.style import COLOURS, grid_shape, new_figure, plain_axes, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

_ABOUT = ("mode", "epoch", "step", "time")
_MODES = ("train", "val", "test")
_FEW_POINTS = 40
_LOG_FROM = 50
_SHORT_FROM = 50_000
_NOT_FINITE = "not finite"


def learning_curves(history: object, metrics: Sequence[str] | None = None) -> "Figure":
    """Return a figure with a panel for each metric and a line for each mode.

    The horizontal axis counts completed training steps, for all modes. A metric that stays positive
    and changes by a factor of 50 or more gets a logarithmic axis. Values that are not finite are
    marked at the bottom of the panel.

    Args:
        history: A `HistoryCallback`, a list of its records (mappings with `mode`, `step` and
            metrics), or the path of a JSON lines file of them. An incomplete last line, as during a
            run, is left out.
        metrics: The names of the metrics, where `loss` also means `average_loss`; None shows all
            numbers except those of single classes.

    Raises:
        ValueError: There is no record with such a metric, or a line is not a record.
        ImportError: matplotlib is missing.

    >>> records = [{"mode": "train", "epoch": i, "step": 10 * i, "loss": 1 / i} for i in (1, 2, 3)]
    >>> figure = learning_curves(records)
    >>> figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()
    ('loss', 'training steps')
    """
    history = getattr(history, "records", history)
    if isinstance(history, str | os.PathLike):
        records = read_json_lines(arguments.existing_file(history, "history"))
    else:
        records = arguments.several(history, "history", "a HistoryCallback, records or a path")
    if not records:
        raise InvalidValueError(f"history is expected to hold records; it is {describe(history)}.")
    for record in records:
        if not isinstance(record, Mapping) or not {"mode", "step"} <= set(record):
            raise InvalidValueError(
                f"Each record of history is expected to be a mapping with a mode, a step and "
                f"metrics; one is {describe(record)}. Log with HistoryCallback, or to "
                f"loggers.JSONLines."
            )
    # The facts of the environment are in the same file, and are not curves.
    records = [record for record in records if record["mode"] != "environment"]
    found = list(dict.fromkeys(name for record in records for name in _metrics(record)))
    names = [name for name in found if not _of_one_class(name)]
    if metrics is not None:
        chosen = arguments.texts(metrics, "metrics")
        names = [reported_name(name, found) or name for name in chosen]
    missing = [name for name in names if name not in found]
    if missing or not names:
        raise InvalidValueError(
            f"metrics are expected to be among those of the history's {len(records)} records, "
            f"{', '.join(map(repr, found)) or '[]'}; they are {missing or metrics}."
        )
    rows, columns = grid_shape(len(names))
    figure = new_figure(max(3.8 * columns, 5), 2.5 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    modes = sorted({record["mode"] for record in records}, key=_mode_order)
    for panel, name, short in zip(panels, names, shortened(names, 28), strict=False):
        _draw(panel, name, records, modes)
        panel.set_ylabel(short)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    shown = [label for label in (*modes, _NOT_FINITE) if label in lines]
    figure.legend(
        [lines[label] for label in shown],
        shown,
        loc="outside upper center",
        ncols=int(figure.get_figwidth() / 1.25),
        frameon=False,
    )
    return figure


def _draw(panel: "Axes", name: str, records: Sequence[Record], modes: Sequence[str]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

    everything, last = [], 0.0
    for place, (mode, colour) in enumerate(zip(modes, _colours(modes), strict=True)):
        points = [
            (r["step"], r[name]) for r in records if r["mode"] == mode and name in _metrics(r)
        ]
        if not points:
            continue
        steps, values = np.array(points, float).T
        finite = np.isfinite(values)
        # A line does not show a single point.
        before, after = np.r_[False, finite[:-1]], np.r_[finite[1:], False]
        alone = finite & ~before & ~after
        marked = finite if len(values) <= _FEW_POINTS else alone
        panel.plot(
            steps,
            np.where(finite, values, np.nan),
            label=mode,
            color=colour,
            linewidth=1.6,
            marker="o",
            markersize=3.5,
            markevery=np.flatnonzero(marked).tolist(),
        )
        if not finite.all():
            panel.plot(
                steps[~finite],
                np.full((~finite).sum(), 0.03 + 0.05 * place),
                label=_NOT_FINITE,
                color=colour,
                linestyle="",
                marker="x",
                markersize=6,
                transform=panel.get_xaxis_transform(),
                clip_on=False,
            )
        everything.append(values[finite])
        last = max(last, steps.max())
    shown = np.concatenate(everything)
    if shown.size and shown.min() > 0 and shown.max() / shown.min() >= _LOG_FROM:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    elif not shown.size:
        panel.set_yticks([])
    panel.set_xlabel("training steps")
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    short = last >= _SHORT_FROM
    panel.xaxis.set_major_formatter(
        EngFormatter(sep="") if short else StrMethodFormatter("{x:,.0f}")
    )
    plain_axes(panel)


def _colours(modes: Sequence[str]) -> list[str]:
    """A mode has the same colour in every picture; other names get the remaining colours."""
    others = [mode for mode in modes if mode not in _MODES]
    order = [*_MODES, *others]
    return [COLOURS[order.index(mode) % len(COLOURS)] for mode in modes]


def _mode_order(mode: str) -> tuple[int, str]:
    return (_MODES.index(mode) if mode in _MODES else len(_MODES), mode)


def _metrics(record: Record) -> list[str]:
    return [name for name in record if name not in _ABOUT and _is_number(record[name])]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _of_one_class(name: str) -> bool:
    return re.search(r"_class_\d+$", name) is not None
