"""The pictures, readable on light and on dark pages: grey ink, no background of their own."""

import statistics

INK = "#808080"
OURS = "#2f81f7"
OTHERS = "#9a9a9a"


def _figure(**options):
    from matplotlib.figure import Figure

    return Figure(layout="constrained", facecolor="none", **options)


def _plain(panel):
    panel.set_facecolor("none")
    panel.tick_params(colors=INK, labelcolor=INK)
    panel.title.set_color(INK)
    panel.xaxis.label.set_color(INK)
    panel.yaxis.label.set_color(INK)
    panel.grid(alpha=0.25, color=INK)
    for side in panel.spines.values():
        side.set_color(INK)
    panel.spines[["top", "right"]].set_visible(False)


def contenders(results, path):
    """Draw the ratios of each contender: median, least to largest."""
    names = list(dict.fromkeys(name for ratios in results.values() for name in ratios))[::-1]
    figure = _figure(figsize=(10, 0.36 * len(names) + 1.2))
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, (title, ratios) in zip(panels, results.items(), strict=True):
        for row, name in enumerate(names):
            if found := ratios.get(name):
                colour = OURS if name.startswith("solstice") else OTHERS
                panel.plot([min(found), max(found)], [row, row], color=colour, alpha=0.5, lw=4)
                panel.plot(statistics.median(found), row, "o", color=colour)
        panel.axvline(1, color=INK, lw=1, ls=":")
        panel.set_xscale("log")
        least, most = panel.get_xlim()
        wide = (0.5, 1, 1.5, 2, 4, 8, 16, 32) if most < 4 else (0.5, 1, 2, 4, 8, 16, 32)
        ticks = wide if most > 2 * least else (0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6)
        ticks = [t for t in ticks if least <= t <= most]
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.minorticks_off()
        panel.set_title(title, fontsize=10)
        panel.set_yticks(range(len(names)), names)
        _plain(panel)
        panel.grid(visible=False, axis="y")
    figure.supxlabel("time per step / hand-written loop", color=INK, fontsize=10)
    figure.savefig(path, dpi=100)


def growth(found, path):
    """Draw microseconds a step over each axis, and beside them the memory that a run added."""
    figure = _figure(figsize=(10, 2.6))
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (axis, rows) in zip(panels, found.items(), strict=True):
        values = list(rows)
        panel.plot(values, [micros for micros, _ in rows.values()], "o-", color=OURS)
        panel.set_ylim(bottom=0)
        beside = panel.twinx()
        beside.plot(values, [max(mib, 0) for _, mib in rows.values()], "s:", color=OTHERS)
        beside.set_ylim(0, max(50, *(2 * mib for _, mib in rows.values())))
        if axis != "callbacks":
            panel.set_xscale("log")
        panel.set_xlabel(axis)
        for one in (panel, beside):
            _plain(one)
        beside.grid(visible=False)
    panels[0].set_ylabel("us a step (blue)")
    beside.set_ylabel("MiB added (grey)")
    figure.savefig(path, dpi=100)
