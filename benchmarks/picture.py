"""The pictures, drawn from the tables: `python benchmarks/picture.py` redraws those of the pages.

Each is there twice, for light and for dark pages, at twice the density of a screen.
"""

import re
import statistics

import pages

INKS = {"light": "#24292f", "dark": "#d0d7de"}
OURS = "#0072B2", "#56B4E9"
OTHERS = "#8c959f"
DENSITY = 200


def _drawn(draw, path, **size):
    """Save what `draw(figure, ink, ours)` draws as NAME-light.png and NAME-dark.png."""
    from matplotlib.figure import Figure

    for (kind, ink), ours in zip(INKS.items(), OURS, strict=True):
        figure = Figure(layout="constrained", facecolor="none", **size)
        draw(figure, ink, ours)
        figure.savefig(path.with_stem(f"{path.stem}-{kind}"), dpi=DENSITY)


def _plain(panel, ink):
    panel.set_facecolor("none")
    panel.tick_params(which="both", colors=ink, labelcolor=ink)
    for label in (panel.title, panel.xaxis.label, panel.yaxis.label):
        label.set_color(ink)
    panel.grid(alpha=0.25, color=ink)
    for side in panel.spines.values():
        side.set_color(ink)
    panel.spines[["top", "right"]].set_visible(False)


def contenders(results, path):
    """Draw the ratios of each contender: median, least to largest."""
    names = list(dict.fromkeys(name for ratios in results.values() for name in ratios))[::-1]

    def draw(figure, ink, ours):
        panels = figure.subplots(1, len(results), sharex=True, sharey=True, squeeze=False)[0]
        for panel, (title, ratios) in zip(panels, results.items(), strict=True):
            for row, name in enumerate(names):
                if found := ratios.get(name):
                    colour = ours if name.startswith("solstice") else OTHERS
                    panel.plot([min(found), max(found)], [row, row], color=colour, alpha=0.5, lw=4)
                    panel.plot(statistics.median(found), row, "o", color=colour)
            panel.axvline(1, color=ink, lw=1, ls=":")
            panel.set_xscale("log")
            ticks = (0.5, 1, 2, 4, 8, 16)
            panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
            panel.minorticks_off()
            panel.set_title(title.replace(", ", ",\n"), fontsize=10)
            panel.set_yticks(range(len(names)), names)
            _plain(panel, ink)
            panel.grid(visible=False, axis="y")
        figure.supxlabel("time per step / hand-written loop", color=ink, fontsize=10)

    _drawn(draw, path, figsize=(8, 0.3 * len(names) + 1.4))


def growth(found, path):
    """Draw the time of a step over each axis, and below it the memory that a run added."""

    def draw(figure, ink, ours):
        above, below = figure.subplots(2, len(found), sharex="col", sharey="row", squeeze=False)
        for time, memory, (axis, rows) in zip(above, below, found.items(), strict=True):
            time.plot(list(rows), [micros for micros, _ in rows.values()], "o-", color=ours)
            memory.plot(list(rows), [max(mib, 0) for _, mib in rows.values()], "o-", color=ours)
            time.set_yscale("log")
            if axis != "callbacks":
                memory.set_xscale("log")
            memory.set_xlabel(axis)
            for panel in (time, memory):
                _plain(panel, ink)
        above[0].set_ylabel("µs a step")
        below[0].set_ylabel("MiB added")

    _drawn(draw, path, figsize=(8, 3.6))


def _cells(line):
    return [cell.strip() for cell in line.strip("| \n").split(" | ")]


def _table(name):
    """Return the rows of a page's table, the one that a benchmark wrote under this name."""
    text = pages.PAGES[0].read_text()
    marked = re.search(rf"<!-- bench: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert marked is not None, f"benchmarks/README.md has no table of {name}"
    lines = [line for line in marked[1].splitlines() if line.startswith("|")]
    return [_cells(line) for line in lines if not line.startswith("| ---")]


def main():
    titles, *rows = _table("train")
    results = {title: {} for title in titles[-3:]}
    for name, *cells in rows:
        for title, cell in zip(results, cells, strict=True):
            results[title][name] = [float(one) for one in re.findall(r"[\d.]+", cell)]
    contenders(results, pages.IMAGES / "benchmark.png")
    found = {}
    for axis, value, micros, mebibytes in _table("growth")[1:]:
        found.setdefault(axis, {})[int(value)] = float(micros), float(mebibytes)
    growth(found, pages.IMAGES / "growth.png")


if __name__ == "__main__":
    main()
